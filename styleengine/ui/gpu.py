"""Support for ZeroGPU Spaces, which allocate a GPU per call. No other module depends on ZeroGPU."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

try:
    import spaces  # pyright: ignore[reportMissingImports]
except ImportError:  # not on Hugging Face Spaces
    spaces = None

# Estimates of ours, which no GPU has confirmed yet. Too much costs the visitor's quota, too little ends the run.
START_SECONDS, LEAST_SECONDS, MOST_SECONDS = 25, 40, 300
STEP_SECONDS = {"qs_attn": 0.8, "qs_attn_variations": 0.8, "inst_learn": 0.6}  # at 512 px
OTHER_STEP_SECONDS = 0.5  # with inversions
SIDE = 512

Function = TypeVar("Function", bound=Callable)


def seconds(job: Any, *_: Any) -> int:
    """The seconds of GPU time to ask for: for starting, and for each step by its pixels. `job` is a `runs.Job`.

    A job with a time limit, such as a slice of a training, needs that and the start.
    """
    settings = job.settings
    if "seconds" in job.options:
        return math.ceil(START_SECONDS + job.options["seconds"])
    steps = getattr(settings, "steps", 1) * getattr(settings, "frames", 1) * job.options.get("count", 1)
    area = (getattr(settings, "size", SIDE) / SIDE) ** 2
    step = STEP_SECONDS.get(job.method, OTHER_STEP_SECONDS)
    return min(MOST_SECONDS, max(LEAST_SECONDS, math.ceil(START_SECONDS + steps * step * max(area, 0.5))))


def on_gpu(function: Function) -> Function:
    """Requests a GPU for each call on ZeroGPU, for the time its job needs; elsewhere returns the function unchanged."""
    return spaces.GPU(duration=seconds)(function) if spaces else function
