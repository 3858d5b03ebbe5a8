"""Devices and number types that models run on and in."""

import torch

from styleengine.errors import StyleEngineError
from styleengine.memory import is_out_of_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def working_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tried by computing something on it; the default for none.

    Raises StyleEngineError, which names those that work, for any that this machine or this torch lacks.
    """
    if device is None or device == "":
        return default_device()
    try:
        found = torch.device(device.strip().lower() if isinstance(device, str) else device)
        if found == default_device():  # which needs no trial; on ZeroGPU none is possible before a call
            return found
        if torch.ones(1, dtype=torch.float32, device=found).add(1).item() == 2:
            return found
    except Exception as error:  # what torch raises differs from device to device
        if is_out_of_memory(error):
            raise StyleEngineError(f"The device “{device}” has no memory left. Free some, or choose “cpu”.") from error
    known = ", ".join(f"“{name}”" for name in devices())
    raise StyleEngineError(f"The device “{device}” cannot be used here. Choose one of: {known}.")


def devices() -> list[str]:
    """The devices of this machine that can be named."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def working_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The number type, which may be named by text; StyleEngineError for one that models do not run in."""
    if dtype is None:
        return default_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise StyleEngineError(f"Models cannot run in “{name}”. Choose one of: {', '.join(DTYPES)}.")
    return DTYPES[name]
