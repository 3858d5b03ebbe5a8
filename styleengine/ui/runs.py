"""Running the engine beside the page: progress and previews come out, Cancel goes in."""

import hashlib
import queue
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from styleengine.engine import StyleEngine
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.learned_style import LearnedStyle
from styleengine.stylization import LearningEvent, OnStep, StepEvent, Stylization
from styleengine.ui.gpu import on_gpu

REPORT_PAUSE = 0.2  # seconds between two moves of the progress bar, at least
PREVIEW_PAUSE = 1.0  # seconds between two previews, at least
PREVIEW_SHARE = 0.1  # of a run's time may go into previews
PREVIEWED_PHASES = ("stylizing", "learning")  # the phases before them only look at the inputs

Result: TypeAlias = Stylization | list[Stylization] | LearnedStyle


@dataclass(frozen=True)
class Job:
    """A call of an engine's method, as plain data: on ZeroGPU it travels to another process.

    `model` names the model to run on; None is the one that the app started with.
    """

    method: str
    content: Any  # a picture or a VideoClip
    arguments: Mapping[str, Any]
    model: str | None = None

    def run(self, engine: StyleEngine, on_step: OnStep) -> "Result":
        method = getattr(engine.with_model(self.model), self.method)
        return method(self.content, **self.arguments, on_step=on_step)


@dataclass(frozen=True)
class Report:
    """How far a run has come; `preview` is there from time to time, `seconds_left` once it can be guessed.

    While a painting is learnt `judged` and `steps_per_second` are those of the `LearningEvent`.
    """

    phase: str
    step: int
    total: int
    preview: Image.Image | None = None
    seconds_left: float | None = None
    judged: Sequence[tuple[int, float]] = ()
    steps_per_second: float = 0.0


class Runner:
    """Runs jobs on one engine for many browser sessions.

    Each run holds a ticket, got before it queues, and stops at the next step once the ticket is
    withdrawn. Tickets are files, not events, so that a run in another process sees them too.
    """

    def __init__(self, engine: StyleEngine) -> None:
        self.engine = engine
        self._tickets = tempfile.TemporaryDirectory(prefix="styleengine-runs-")

        @on_gpu
        def outcomes(job: Job, ticket: Path, previews: bool) -> Iterator[Report | Result | Exception]:
            return (yield from _outcomes(engine, job, ticket, previews))

        self._outcomes = outcomes

    def admit(self, request: gr.Request, name: str) -> str:
        """A ticket for the session's next run of what is called `name`."""
        return self._new_ticket(f"{_session(request)}-{name}-")

    def admit_beyond_session(self, name: str) -> str:
        """A ticket for a run that is nobody's: it outlives the page from which it was begun."""
        return self._new_ticket(f"nobody-{name}-")

    def run(self, job: Job, ticket: str, *, previews: bool) -> Iterator[Report | Result]:
        """Reports, and the result last. Raises StyleEngineError, or Cancelled once the ticket is withdrawn."""
        path = self._path(ticket)
        if not path.is_file():
            raise Cancelled
        for outcome in self._outcomes(job, path, previews):
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def release(self, ticket: str) -> None:
        """Takes back the ticket of a run that has ended."""
        self._path(ticket).unlink(missing_ok=True)

    def withdraw(self, request: gr.Request, name: str = "*") -> None:
        """Stops what the session has running of that name, and what it has waiting as soon as its turn comes."""
        for ticket in self._tickets_of(request, name):
            ticket.unlink(missing_ok=True)

    def has_admitted(self, request: gr.Request, name: str) -> bool:
        """Whether the session has a run of that name going or waiting that is not withdrawn."""
        return any(self._tickets_of(request, name))

    def _new_ticket(self, prefix: str) -> str:
        with tempfile.NamedTemporaryFile(dir=self._tickets.name, prefix=prefix, delete=False) as file:
            return Path(file.name).name

    def _path(self, ticket: str) -> Path:
        return Path(self._tickets.name) / (Path(ticket).name or "none")

    def _tickets_of(self, request: gr.Request, name: str = "*") -> Iterator[Path]:
        return Path(self._tickets.name).glob(f"{_session(request)}-{name}-*")


def _session(request: gr.Request) -> str:
    return hashlib.sha256(str(request.session_hash).encode()).hexdigest()[:16]


def _outcomes(
    engine: StyleEngine, job: Job, ticket: Path, previews: bool
) -> Iterator[Report | Result | StyleEngineError | Cancelled]:
    """Runs the job in a thread; what it raises for a person to read comes out as the last item."""
    reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(max_workers=1) as thread:
        on_step = _Reporter(ticket, reports, previews)
        run = thread.submit(job.run, engine, on_step)
        run.add_done_callback(lambda _: reports.put(None))
        try:
            while (report := reports.get()) is not None:
                yield report
        finally:  # also when the reader goes away: the thread then stops at its next step
            ticket.unlink(missing_ok=True)
        try:
            yield run.result()
        except (StyleEngineError, Cancelled) as error:
            yield error


class _Reporter:
    """The engine's `on_step`: looks at the ticket each time, reports and previews only so often."""

    def __init__(self, ticket: Path, reports: queue.SimpleQueue, previews: bool) -> None:
        self.ticket, self.reports, self.previews = ticket, reports, previews
        self.next_report = self.next_preview = 0.0
        self.began: tuple[float, int] | None = None

    def __call__(self, event: StepEvent) -> None:
        if not self.ticket.exists():
            raise Cancelled
        self.began = self.began or (time.monotonic(), event.step)
        if time.monotonic() < self.next_report:
            return
        preview = self._preview(event) if self.previews else None
        report = Report(event.phase, event.step, event.total, preview, self._seconds_left(event))
        if isinstance(event, LearningEvent):
            report = replace(report, judged=event.judged, steps_per_second=event.steps_per_second)
        self.reports.put(report)
        self.next_report = time.monotonic() + REPORT_PAUSE

    def _seconds_left(self, event: StepEvent) -> float | None:
        """At the pace since the first step seen: a run that goes on from earlier work begins far up."""
        began, first = self.began or (0.0, event.step)
        if event.step == first:
            return None
        return (event.total - event.step) * (time.monotonic() - began) / (event.step - first)

    def _preview(self, event: StepEvent) -> Image.Image | None:
        began = time.monotonic()
        if not event.phase.startswith(PREVIEWED_PHASES) or not event.step or began < self.next_preview:
            return None
        preview = event.preview()
        ended = time.monotonic()
        self.next_preview = ended + max(PREVIEW_PAUSE, (ended - began) / PREVIEW_SHARE)
        return preview
