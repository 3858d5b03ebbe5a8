"""The devices and dtypes that models run in."""

import torch

from styleengine.errors import StyleEngineError
from styleengine.memory import is_out_of_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def working_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tested by a computation on it; the default device for None.

    Raises StyleEngineError, which lists the available devices, if it cannot be used.
    """
    if device is None or device == "":
        return default_device()
    try:
        found = torch.device(device.strip().lower() if isinstance(device, str) else device)
        if found == default_device():  # needs no test; on ZeroGPU none is possible before a call
            return found
        if torch.ones(1, dtype=torch.float32, device=found).add(1).item() == 2:
            return found
    except Exception as error:  # torch's exceptions differ between devices
        if is_out_of_memory(error):
            raise StyleEngineError(f"The device “{device}” has no memory left. Free some, or choose “cpu”.") from error
    known = ", ".join(f"“{name}”" for name in devices())
    raise StyleEngineError(f"The device “{device}” cannot be used here. Choose one of: {known}.")


def devices() -> list[str]:
    """The names of this machine's devices."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def working_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype, also by its name; StyleEngineError for one that models cannot run in."""
    if dtype is None:
        return default_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise StyleEngineError(f"Models cannot run in “{name}”. Choose one of: {', '.join(DTYPES)}.")
    return DTYPES[name]
