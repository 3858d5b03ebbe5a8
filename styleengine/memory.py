"""Out-of-memory errors: detection and conversion to messages. Also memory limits and estimates."""

import contextlib
import ctypes
import errno
import gc
import traceback
from collections.abc import Iterator

import torch

from styleengine.errors import StyleEngineError

GIB = 1 << 30
PIXELS_ON_CPU = 4 * 256 * 256
SMALL_CARD = 10 * GIB  # bytes; on a GPU with less, recorded keys and values are kept in the host's memory
RECORDED_AT_MOST = GIB  # bytes of the recorded tensors of one image

# Bytes of living tensors per image pixel in float16, of Stable Diffusion 1.5: counted by benchmarks/memory.py.
EVALUATION = 262  # of the U-Net
LEARNING = 2960  # of the U-Net with the gradient by its condition
GUIDANCE = 3110  # by its latents
ENCODING, DECODING, DECODING_WITH_GRADIENT = 1286, 1540, 11_660  # of the autoencoder
# Of 25 levels and layers 10 to 15: 2·(3·1024·640 + 3·4096·320) / 512² bytes of queries, twice that of keys and values.
RECORDED_QUERIES, RECORDED_STYLE = 25 * 45, 25 * 90
# Attention to a style at layers 13 to 15: 2·4096·8·48 / 512² bytes of keys, of values, and of a copy of each.
STYLE_ATTENTION = 4 * 12
CLIP_IMAGE = 354 << 20  # bytes of CLIP ViT-L/14 with gradient in float32, per image
WORKSPACE = 512 << 20  # bytes of the kernels' own memory, an estimate of ours
MARGIN = 1.2  # for fragmentation, an estimate of ours
MOST_AT_ONCE = 32  # images; more in a batch are no faster
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


def free_memory(device: torch.device) -> float:
    """The bytes that can be allocated on a GPU, including those that torch caches; infinity for other devices."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def batch_bytes(pixels: int, count: int, styles: int, itemsize: int = 2) -> int:
    """How many bytes a batch of `count` images of `pixels` pixels needs, in `styles` styles, beyond the weights.

    For Stable Diffusion 1.5 in numbers of `itemsize` bytes. Recorded are the keys and values of each style, and of
    each image the queries. Images are decoded one by one, in float32 if float16 overflows.
    """
    recorded = styles * min(RECORDED_AT_MOST, pixels * RECORDED_STYLE * itemsize // 2)
    recorded += count * min(RECORDED_AT_MOST, pixels * RECORDED_QUERIES * itemsize // 2)
    evaluated = count * pixels * (EVALUATION + (1 + styles) * STYLE_ATTENTION) * itemsize // 2
    decoded = 2 * pixels * DECODING
    return int(recorded + MARGIN * max(evaluated, decoded)) + WORKSPACE


def batch_size(pixels: int, styles: int, device: torch.device, itemsize: int = 2) -> int:
    """The largest batch that fits into the free memory of a device, at least 1; on the CPU a number of pixels."""
    if device.type != "cuda":
        return max(1, 2 * PIXELS_ON_CPU // (pixels * (1 + styles)))
    free = free_memory(device)
    return max(1, sum(batch_bytes(pixels, count, styles, itemsize) <= free for count in range(1, MOST_AT_ONCE + 1)))


def learning_bytes(pixels: int, batch: int, itemsize: int = 2) -> int:
    """How many bytes a step of InST's learning needs, without gradient checkpointing, beyond the weights."""
    return int(MARGIN * batch * pixels * LEARNING * itemsize / 2) + WORKSPACE


def guidance_bytes(pixels: int, clip_images: int, itemsize: int = 2) -> int:
    """How many bytes a step of QS-Attn needs, without gradient checkpointing, beyond the weights.

    The U-Net is evaluated twice, the second time only its encoder. CLIP embeds `clip_images` images in float32.
    """
    networks = pixels * (1.5 * GUIDANCE + DECODING_WITH_GRADIENT) * itemsize / 2
    return int(MARGIN * (networks + clip_images * CLIP_IMAGE)) + WORKSPACE


def saving(choice: str, needed: int, device: torch.device) -> str:
    """The setting `save_memory`, with “auto” decided: “on” if `needed` bytes are not free on the device."""
    if choice != "auto":
        return choice
    return "on" if needed > free_memory(device) else "off"


def kept_on_host(device: torch.device) -> bool:
    """Whether recorded keys, values and queries are moved to the host's memory: on a small GPU."""
    return gpu_memory(device) < SMALL_CARD


def as_kept(x: torch.Tensor) -> torch.Tensor:
    """A recorded tensor where it is kept: a copy in the host's memory if `kept_on_host`, else itself."""
    return to_host(x) if kept_on_host(x.device) else x


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, with the same strides; pinned if it comes from a GPU, which reads it faster."""
    return torch.empty_like(x, device="cpu", pin_memory=x.is_cuda).copy_(x)
