"""Clips on ZeroGPU: several calls of limited time instead of one that lasts longer than a GPU is lent for."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from styleengine.errors import TimeUp
from styleengine.ui.gpu import ZERO
from styleengine.ui.runs import Job, Program, Report, RunJob

SLICE_SECONDS = 30.0


@dataclass(frozen=True)
class ClipSlices:
    """The job of a clip as a series of calls, each of which redraws some frames, with the result of a single call.

    The finished frames and the state are in a temporary folder until the end.
    """

    job: Job

    @property
    def content(self) -> Any:
        return self.job.content

    def outcomes(self, run: RunJob) -> Iterator[Any]:
        """The reports of all slices, whose steps are counted together, and the result."""
        with tempfile.TemporaryDirectory(prefix="styleengine-clip-") as work:
            part = replace(self.job, options={**self.job.options, "work": work, "seconds": SLICE_SECONDS})
            total = done = 0
            while True:
                try:
                    for outcome in run(part):
                        if isinstance(outcome, Report) and outcome.phase.counted:
                            total = max(total, outcome.total)  # that of a later slice is what was left
                            done = max(done, total - outcome.total + outcome.step)
                            yield replace(outcome, step=done, total=total)
                        else:
                            yield outcome
                    return
                except TimeUp:
                    continue


def in_slices(job: Job) -> Program:
    """On ZeroGPU a clip in slices; every other job unchanged."""
    return ClipSlices(job) if ZERO and hasattr(job.settings, "frames") else job
