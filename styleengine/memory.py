"""Memory: how running out of it is recognised and becomes a sentence, and how little of it is held."""

import contextlib
import ctypes
import errno
import traceback
from collections.abc import Iterator

import torch

from styleengine.errors import StyleEngineError

PIXELS_ON_CPU = 4 * 256 * 256
PIXELS_PER_GIGABYTE_ON_CUDA = 512 * 512
ARENA_MAX = -8  # glibc's M_ARENA_MAX
# Where torch has no exception of its own: its CPU allocator (Linux, Windows), CUDA's libraries, Apple's GPUs.
MESSAGES = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, that of the CPU or of a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    message = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(known in message for known in MESSAGES)


@contextlib.contextmanager
def memory_in_words(sentence: str) -> Iterator[None]:
    """Within the context running out of memory raises StyleEngineError with this sentence.

    What the failed work held is let go and given back to the GPU before. The error carries the original's
    words as a note, and nothing that holds a tensor.
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
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    refused = StyleEngineError(sentence)
    refused.add_note(reason)
    raise refused from None


def _let_go(error: BaseException | None) -> None:
    """Empties the frames that an exception and what led to it hold, which have all ended."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def share_heaps() -> None:
    """Lets all threads share two heaps, where the C library is glibc.

    Otherwise it makes up to eight for each core. Every run has threads of its own, and what they leave
    in so many heaps does not go back to the system: 60 MiB after a few hundred runs and requests.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL("libc.so.6").mallopt(ARENA_MAX, 2)


def gpu_memory(device: torch.device) -> float:
    """All the memory of a GPU in bytes; no bound for other devices, or where none can be seen yet (ZeroGPU)."""
    with contextlib.suppress(RuntimeError, AssertionError):
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
    return float("inf")


def at_most(bytes_: int, share: float, memory: float) -> int:
    """So many bytes, or a share of a memory where that is less."""
    return int(min(bytes_, share * memory))


def pixels_at_once(device: torch.device) -> int:
    """How many pixels of pictures the free memory of a device has room for."""
    if device.type != "cuda":
        return PIXELS_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, and not in use
    return int((free + kept) / 2**30 * PIXELS_PER_GIGABYTE_ON_CUDA)
