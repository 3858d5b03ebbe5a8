"""Clips on ZeroGPU: several calls of limited time instead of one that lasts longer than a GPU is lent for."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from styleengine.errors import Cancelled, StyleEngineError, TimeUp
from styleengine.method import Inputs
from styleengine.methods import METHODS
from styleengine.methods.zstar_video.method import RESULT
from styleengine.stylization import VideoStylization
from styleengine.ui.gpu import ZERO, RefusedError
from styleengine.ui.kept_clips import KeptClips
from styleengine.ui.runs import Job, Program, Report, RunJob
from styleengine.version import __version__
from styleengine.workfolder import WorkFolder

SLICE_SECONDS = 30.0
KEPT = (
    "The finished frames are kept for a day at most: start the same clip with the same styles and settings again, and "
    "the run continues after them."
)


@dataclass(frozen=True)
class ClipSlices:
    """The job of a clip as a series of calls, each of which redraws some frames, with the result of a single call.

    The finished frames and the state are in a folder until the end. If ZeroGPU refuses a call, or the run is cancelled,
    the folder is kept, and the same job continues from it later.
    """

    job: Job
    kept: KeptClips = field(default_factory=KeptClips.usual)

    @property
    def content(self) -> Any:
        return self.job.content

    def outcomes(self, run: RunJob) -> Iterator[Any]:
        """The reports of all slices, whose steps are counted together, and the result.

        Raises RefusedError, which says so if the finished frames are kept. If kept files are damaged, the run starts
        from the first frame.
        """
        work = self.kept.take(self._name())
        resumed = any(work.iterdir())
        try:
            while True:
                try:
                    outcome: Any = None
                    for outcome in self._slices(run, work):
                        resumed = resumed and not _is_step(outcome)
                        yield outcome
                    if isinstance(outcome, VideoStylization) and not outcome.complete:
                        self._keep(work)
                    return
                except Cancelled:
                    self._keep(work)
                    raise
                except RefusedError as error:
                    if self._keep(work):
                        raise RefusedError(f"{error} {KEPT}") from error
                    raise
                except StyleEngineError:
                    if not resumed:  # not of the kept folder, which is read before the first step
                        raise
                    resumed = False
                    shutil.rmtree(work, ignore_errors=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _keep(self, work: Path) -> bool:
        """Keeps the finished frames; False if there are none, or they cannot be kept."""
        return WorkFolder(work).finished(RESULT) > 0 and self.kept.keep(self._name(), work)

    def _slices(self, run: RunJob, work: Path) -> Iterator[Any]:
        part = replace(self.job, options={**self.job.options, "work": work, "seconds": SLICE_SECONDS})
        done = 0
        while True:
            try:
                for outcome in run(part):
                    if _is_step(outcome):
                        done = max(done, outcome.step)  # a later slice repeats the inversions that it needs
                        outcome = replace(outcome, step=done)
                    yield outcome
                return
            except TimeUp:
                continue

    def _name(self) -> str:
        """SHA-256 of all that the frames depend on, except what the app's own model is: that the work folder knows."""
        job = self.job
        inputs = [replace(entry, name="") for entry in Inputs.open(METHODS[job.method].roles, job.inputs).records]
        asked = [__version__, job.method, job.model, job.settings.model_dump(), [asdict(entry) for entry in inputs]]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _is_step(outcome: Any) -> TypeGuard[Report]:
    """Whether this is a report of the run itself, not of its waiting."""
    return isinstance(outcome, Report) and outcome.phase.counted


def in_slices(job: Job) -> Program:
    """On ZeroGPU a clip in slices; every other job unchanged."""
    return ClipSlices(job) if ZERO and hasattr(job.settings, "frames") else job
