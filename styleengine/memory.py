"""Out-of-memory errors: detection and conversion to messages. Also memory limits and estimates."""

import contextlib
import ctypes
import errno
import gc
import traceback
from collections.abc import Iterator

import torch

from styleengine.errors import StyleEngineError

PIXELS_ON_CPU = 4 * 256 * 256
PIXELS_PER_GIGABYTE_ON_CUDA = 512 * 512
ARENA_MAX = -8  # glibc's M_ARENA_MAX
# Errors without an exception class: torch's CPU allocator (Linux, Windows), CUDA's libraries, Apple's GPUs.
MESSAGES = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an out-of-memory error, of the CPU or of a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    message = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(known in message for known in MESSAGES)


@contextlib.contextmanager
def memory_in_words(sentence: str) -> Iterator[None]:
    """Within the context, an out-of-memory error becomes a StyleEngineError with this sentence.

    The memory of the failed call is released first, also on the GPU. The new error has the original message
    as a note and references no tensor, as long as the function that enters the context has none among its variables.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        _let_go(error)
    else:
        return
    gc.collect()  # networks can be in reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    refused = StyleEngineError(sentence)
    refused.add_note(reason)
    raise refused from None


def _let_go(error: BaseException) -> None:
    """Clears the finished stack frames that an exception, its causes and its contexts reference.

    Cleared frames still reference their functions, with closures, and the context managers' frames the traceback.
    Therefore its entries are separated.
    """
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        entry, one.__traceback__ = one.__traceback__, None
        while entry is not None:
            following, entry.tb_next = entry.tb_next, None
            entry = following
        found += [one.__cause__, one.__context__]


def share_heaps() -> None:
    """Limits glibc to two malloc arenas for all threads.

    The default is up to eight per core. Each run has its own threads, and memory freed in so many arenas is not
    returned to the system: 60 MiB after a few hundred runs and requests.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        ctypes.CDLL("libc.so.6").mallopt(ARENA_MAX, 2)


def gpu_memory(device: torch.device) -> float:
    """A GPU's total memory in bytes; infinity for other devices, or if no GPU is available yet (ZeroGPU)."""
    with contextlib.suppress(RuntimeError, AssertionError):
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
    return float("inf")


def at_most(bytes_: int, share: float, memory: float) -> int:
    """The smaller of `bytes_` and `share` of `memory`."""
    return int(min(bytes_, share * memory))


def pixels_at_once(device: torch.device) -> int:
    """How many image pixels fit into the free memory of a device."""
    if device.type != "cuda":
        return PIXELS_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached by torch, not in use
    return int((free + kept) / 2**30 * PIXELS_PER_GIGABYTE_ON_CUDA)
