"""Support for ZeroGPU Spaces, where each call runs in a forked process that gets a GPU."""

import gc
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from styleengine.backbones import named_backbones
from styleengine.disk_cache import disk_cache
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.file_hashes import store

try:
    import spaces  # pyright: ignore[reportMissingImports]
except ImportError:  # not on Hugging Face Spaces
    spaces = None

ZERO = spaces is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
PARALLEL_CALLS = 10 if ZERO else 1  # calls that use the model; on ZeroGPU each has a process of its own

# Estimates of ours, which no GPU has confirmed yet. Too much costs the visitor's quota, too little ends the run.
START_SECONDS, LEAST_SECONDS, MOST_SECONDS = 25, 40, 300
STEP_SECONDS = {"qs_attn": 0.8, "qs_attn_variations": 0.8, "inst_learn": 0.6}  # at 512 px
OTHER_STEP_SECONDS = 0.5  # with inversions
SIDE = 512
FRAMES_AFTER = 2  # steps of as many frames may follow when a slice's time is up: a frame, and a batch's inversion

SENTENCES = {  # for what ZeroGPU says in words of its own
    "GPU task aborted": "The run took longer than the GPU was lent for. Choose fewer steps or a smaller size.",
    "Expired ZeroGPU proxy token": (
        "The page was open, or the run waited, for so long that ZeroGPU no longer accepts the page's token. Reload the "
        "page and start the run again."
    ),
}

Function = TypeVar("Function", bound=Callable)


def seconds(job: Any, *_: Any) -> int:
    """The seconds of GPU time to ask for: for starting, and for each step by its pixels. `job` is a `runs.Job`.

    A job with a time limit, such as a slice of a training or of a clip, needs that, the start, and for a clip what
    follows when the time is up.
    """
    settings = job.settings
    area = max((getattr(settings, "size", SIDE) / SIDE) ** 2, 0.5)
    step = STEP_SECONDS.get(job.method, OTHER_STEP_SECONDS) * area
    if "seconds" in job.options:
        after = FRAMES_AFTER * settings.steps * step if hasattr(settings, "frames") else 0
        return math.ceil(START_SECONDS + job.options["seconds"] + after)
    steps = getattr(settings, "steps", 1) * getattr(settings, "frames", 1) * job.options.get("count", 1)
    return min(MOST_SECONDS, max(LEAST_SECONDS, math.ceil(START_SECONDS + steps * step)))


def on_gpu(function: Function) -> Function:
    """Requests a GPU for each call on ZeroGPU, for the time its job needs; elsewhere returns the function unchanged."""
    lend: Any = spaces and spaces.GPU(duration=seconds)
    return lend(function) if lend else function


class RefusedError(StyleEngineError):
    """ZeroGPU lends no GPU, or took it back. What a run saved on disk before is complete."""


def refusal(error: gr.Error) -> Exception:
    """ZeroGPU's error as one for the user: no GPU, no quota, time over, an expired token of the visitor.

    The name of another exception is unexpected.
    """
    words = str(error.message).strip()
    words = SENTENCES.get(words, words)
    if words.isidentifier():
        return RuntimeError(words)
    return RefusedError(words if words.endswith((".", "!", "?")) else f"{words}.")


@cache
def freeze_forks() -> None:
    """From now on, no forked process collects garbage of the app.

    To free a clip's decoder, for example, means to wait for its threads, which do not exist in the fork. Frozen before
    the fork, since other hooks of the fork may already collect; once more within, since another thread's fork may have
    thawed the objects meanwhile.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze, after_in_child=gc.freeze)


def prepare(engine: StyleEngine) -> None:
    """On ZeroGPU: loads the embedded models and CLIP before processes are forked, and caches inversions on disk.

    What a call loads or caches in memory is lost at its end. What is garbage in the app stays so in a call's process.
    """
    if not ZERO:
        return
    freeze_forks()
    engine.cache.disk = engine.cache.disk or disk_cache(engine.device, store().parent)
    embedded = [name for name, origin in named_backbones().items() if Path(origin.location).is_dir()]
    for model in embedded:
        engine.with_model(model)
    with suppress(StyleEngineError):  # not on this machine, and the hub cannot be reached
        engine.clip()
