"""Support for ZeroGPU Spaces, which allocate a GPU per call. No other module depends on ZeroGPU."""

from collections.abc import Callable
from typing import TypeVar

try:
    import spaces  # pyright: ignore[reportMissingImports]
except ImportError:  # not on Hugging Face Spaces
    spaces = None

SECONDS = 120

Function = TypeVar("Function", bound=Callable)


def on_gpu(function: Function) -> Function:
    """Requests a GPU for each call on ZeroGPU; elsewhere returns the function unchanged."""
    return spaces.GPU(duration=SECONDS)(function) if spaces else function
