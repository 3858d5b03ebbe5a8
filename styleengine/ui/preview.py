"""Instant previews: a run shows the result of StyTr² at once, until its own previews and its result replace it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from styleengine.errors import StyleEngineError
from styleengine.methods import STYTR2
from styleengine.methods.stytr2 import StyTr2Settings
from styleengine.phases import PREVIEW
from styleengine.stylization import Stylization
from styleengine.ui.gpu import ZERO
from styleengine.ui.runs import Job, Program, Report, RunJob

MOST_PIXELS = 512  # shorter side of a preview


@dataclass(frozen=True)
class Previewed:
    """A job after one of StyTr² on the same images, masks and weights, whose result is a report with a preview."""

    job: Job

    @property
    def content(self) -> Any:
        return self.job.content

    def outcomes(self, run: RunJob) -> Iterator[Any]:
        """The preview's report, then the reports and the result of the job. Invalid inputs are the job's error."""
        inputs = {role.name: self.job.inputs.get(role.name) for role in STYTR2.roles}
        settings = StyTr2Settings(size=min(self.job.settings.size, MOST_PIXELS), feather=self.job.settings.feather)
        with suppress(StyleEngineError):
            for outcome in run(Job(STYTR2.name, inputs, settings)):
                if isinstance(outcome, Stylization):
                    yield Report(PREVIEW, 1, 1, outcome.image)
                elif isinstance(outcome, Report) and not outcome.phase.counted:
                    yield outcome
        yield from run(self.job)


def with_preview(job: Job, wanted: bool) -> Program:
    """The job with an instant preview if it is wanted; on ZeroGPU without one, which would need a GPU of its own."""
    return Previewed(job) if wanted and not ZERO else job
