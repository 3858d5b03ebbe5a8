"""The one place that knows about ZeroGPU Spaces, where a GPU is lent for the length of a call."""

from collections.abc import Callable
from typing import TypeVar

try:
    import spaces  # pyright: ignore[reportMissingImports]
except ImportError:  # not on Hugging Face Spaces
    spaces = None

SECONDS = 120

Function = TypeVar("Function", bound=Callable)


def on_gpu(function: Function) -> Function:
    """Asks for a GPU around each call on ZeroGPU; elsewhere the function as it is."""
    return spaces.GPU(duration=SECONDS)(function) if spaces else function
