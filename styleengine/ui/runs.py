"""Runs of the engine in the background, with progress, previews and cancellation."""

import asyncio
import contextlib
import contextvars
import hashlib
import queue
import re
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import gradio as gr
from gradio.context import LocalContext
from PIL import Image

from styleengine.engine import StyleEngine
from styleengine.errors import Cancelled, StyleEngineError, TimeUp
from styleengine.learned_style import LearnedStyle
from styleengine.methods import METHODS
from styleengine.phases import Phase
from styleengine.stylization import LearningEvent, OnStep, StepEvent, Stylization, VideoStylization, model_name
from styleengine.ui.gpu import on_gpu, refusal
from styleengine.video import VideoClip

REPORT_PAUSE = 0.2  # minimum seconds between two progress updates
PREVIEW_PAUSE = 1.0  # minimum seconds between two previews
PREVIEW_SHARE = 0.1  # maximum share of a run's time for previews
CLIENT_PAUSE = 0.3  # seconds between two checks that the client is connected
UNREAD_SECONDS = 30.0  # a client that has read nothing for so long counts as disconnected
MOST_TICKETS = 5000  # of queued and running jobs
NUMBER = re.compile("[0-9a-f]{16}")

Result: TypeAlias = Stylization | list[Stylization] | LearnedStyle


@dataclass(frozen=True)
class Job:
    """A run as plain data, since ZeroGPU sends it to another process.

    `method` is the name of a `Method` or of another engine function, which takes `inputs` and `options` as
    keywords. `model` is the name of the model; None is the app's own.
    """

    method: str
    inputs: Mapping[str, Any]
    settings: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None

    @property
    def content(self) -> Any:
        """The first image or clip, with which the result is compared; None without one."""
        return next((given for given in self.inputs.values() if isinstance(given, (Image.Image, VideoClip))), None)

    def outcomes(self, run: "RunJob") -> "Iterator[Any]":
        """The reports and the result. Other kinds of jobs run several jobs, one after another."""
        return run(self)

    def run(self, engine: StyleEngine, on_step: OnStep) -> "Result":
        engine = engine.with_model(self.model, on_step=on_step)
        if self.method in METHODS:
            return engine.run(self.method, self.inputs, self.settings, **self.options, on_step=on_step)
        return getattr(engine, self.method)(**self.inputs, settings=self.settings, **self.options, on_step=on_step)


class Program(Protocol):
    """What `Runner.follow` runs: a job, or several."""

    @property
    def content(self) -> Any: ...

    def outcomes(self, run: "RunJob") -> "Iterator[Any]": ...


@dataclass(frozen=True)
class Report:
    """The progress of a run. `preview` is set occasionally, `seconds_left` once it can be estimated.

    During training, `validations` and `steps_per_second` are those of the `LearningEvent`.
    """

    phase: Phase
    step: int
    total: int
    preview: Image.Image | None = None
    seconds_left: float | None = None
    validations: Sequence[tuple[int, float]] = ()
    steps_per_second: float = 0.0


RunJob: TypeAlias = Callable[[Job], Iterator[Report | Result]]


class Runner:
    """Runs jobs on one engine for many browser sessions.

    Each run has a ticket, a cancellation token that is created before the run is queued. A run whose ticket is
    withdrawn stops at its next step or does not start. While a job runs, its ticket is also a file, which a run in
    another process can check, too. Tickets are kept until they are forgotten; beyond a limit the oldest are dropped.

    `following` are functions whose updates the page needs when the model is loaded, each with its outputs.
    """

    def __init__(self, engine: StyleEngine) -> None:
        self.engine = engine
        self.following: list[tuple[Callable[[], dict[Any, Any]], Sequence[Any]]] = []
        self._running = tempfile.TemporaryDirectory(prefix="styleengine-runs-")
        self._tickets: OrderedDict[str, bool] = OrderedDict()  # whether each is still valid
        self._requests: dict[str, gr.Request] = {}  # the latest of a ticket's page
        self._lock = threading.Lock()

        @on_gpu
        def outcomes(job: Job, ticket: Path, previews: bool) -> Iterator[Report | Result | Exception]:
            return (yield from _outcomes(engine, job, ticket, previews))

        self._outcomes = outcomes

    def admit(self, request: gr.Request, name: str) -> str:
        """A ticket for the session's next run of `name`."""
        return self._new_ticket(f"{_session(request)}-{name}-")

    def admit_without_session(self, name: str) -> str:
        """A ticket for a run that does not depend on a browser session."""
        return self._new_ticket(f"nobody-{name}-")

    def admitted(self, request: gr.Request, name: str, ticket: Any) -> str:
        """The client's ticket if it belongs to this session and name, else a new one."""
        prefix = f"{_session(request)}-{name}-"
        known = isinstance(ticket, str) and ticket.startswith(prefix) and NUMBER.fullmatch(ticket[len(prefix) :])
        return ticket if known else self._new_ticket(prefix)

    def run(self, job: Job, ticket: str, *, previews: bool) -> Iterator[Report | Result]:
        """Yields reports, then the result. Raises StyleEngineError, or Cancelled once the ticket is withdrawn.

        Several runs, one after the other, may have the same ticket. Each asks for a GPU in the name of the ticket's
        latest request, if it was renewed.
        """
        path = self._path(ticket)
        with self._lock:
            if not self._remember(ticket):
                raise Cancelled
            path.touch()
            if request := self._requests.get(ticket):
                LocalContext.request.set(request)
        try:
            for outcome in self._outcomes(job, path, previews):
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        except gr.Error as error:  # of ZeroGPU
            raise refusal(error) from error
        finally:
            path.unlink(missing_ok=True)

    async def follow(self, job: Program, ticket: str, *, previews: bool) -> AsyncGenerator[Any, None]:
        """As `run`, without blocking the event loop, and also for several jobs.

        The run stops at its next step if the iterator is closed, its task is cancelled, or the client
        disconnects, which raises Cancelled. None of these waits for that step.
        """
        loop, client = asyncio.get_running_loop(), Client()
        outcomes: asyncio.Queue[Any] = asyncio.Queue()

        def run(one: Job) -> Iterator[Report | Result]:
            yield from map(_shareable, self.run(one, ticket, previews=previews))

        def put(outcome: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

        def work() -> None:
            try:
                for outcome in job.outcomes(run):
                    put(outcome)
                put(None)
            except BaseException as error:  # noqa: BLE001 - raised again below, in the request's task
                put(error)

        # In a copy of this request's context, from which ZeroGPU takes the user.
        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
        try:
            while not client.gone():
                try:
                    outcome = await asyncio.wait_for(outcomes.get(), CLIENT_PAUSE)
                except TimeoutError:
                    continue
                if outcome is None:
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
            raise Cancelled
        finally:
            self.release(ticket)

    def renew(self, ticket: str, request: gr.Request) -> None:
        """Further runs of a ticket are in the name of this request: ZeroGPU's tokens, which it contains, expire."""
        with self._lock:
            if self._tickets.get(ticket):
                self._requests[ticket] = request

    def release(self, ticket: str) -> None:
        """Cancels the run of a ticket: it stops at its next step or does not start."""
        with self._lock:
            if ticket in self._tickets:
                self._tickets[ticket] = False
            self._path(ticket).unlink(missing_ok=True)

    def forget(self, ticket: str) -> None:
        """Removes the ticket of a run that has ended or will not start."""
        with self._lock:
            self._tickets.pop(ticket, None)
            self._requests.pop(ticket, None)
            self._path(ticket).unlink(missing_ok=True)

    def withdraw(self, request: gr.Request, name: str) -> None:
        """Cancels the session's running and queued runs of that name."""
        for ticket in self._tickets_of(request, name):
            self.release(ticket)

    def has_admitted(self, request: gr.Request, name: str) -> bool:
        """Whether the session has a run of that name going or waiting that is not withdrawn."""
        return bool(self._tickets_of(request, name))

    def _new_ticket(self, prefix: str) -> str:
        ticket = prefix + secrets.token_hex(8)
        with self._lock:
            self._remember(ticket)
        return ticket

    def _remember(self, ticket: str) -> bool:
        """Keeps the ticket as the latest one; returns whether it is valid, which a new one is."""
        valid = self._tickets[ticket] = self._tickets.pop(ticket, True)
        while len(self._tickets) > MOST_TICKETS:
            self._requests.pop(self._tickets.popitem(last=False)[0], None)
        return valid

    def _path(self, ticket: str) -> Path:
        return Path(self._running.name) / (ticket or "none")

    def _tickets_of(self, request: gr.Request, name: str) -> list[str]:
        prefix = f"{_session(request)}-{name}-"
        with self._lock:
            return [ticket for ticket, valid in self._tickets.items() if valid and ticket.startswith(prefix)]


class Client:
    """The client of the current event, to detect when it disconnects.

    Gradio marks an event as not alive once the connection for its messages is closed. A client that never
    opens one leaves its messages unread.
    """

    def __init__(self) -> None:
        blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
        self._queue = blocks._queue if blocks else None
        self._event = self._queue.event_ids_to_events.get(event_id or "") if self._queue is not None else None
        self._read = time.monotonic()

    def gone(self) -> bool:
        if self._event is None or self._queue is None:  # a call outside Gradio's queue
            return False
        messages = self._queue.pending_messages_per_session.get(self._event.session_hash)
        if messages is None or messages.empty():
            self._read = time.monotonic()
        return not self._event.alive or time.monotonic() - self._read > UNREAD_SECONDS


def _shareable(outcome: Report | Result) -> Report | Result:
    """The outcome with the name of a local model instead of its path, which clients must not get.

    A clip is unchanged: its file already contains the record.
    """
    if isinstance(outcome, list):
        return [replace(one, backbone=model_name(one.backbone)) for one in outcome]
    if isinstance(outcome, Stylization) and not isinstance(outcome, VideoStylization):
        return replace(outcome, backbone=model_name(outcome.backbone))
    return outcome


def _session(request: gr.Request) -> str:
    """An identifier of the browser session; each call without a session gets a new one."""
    known = request.session_hash
    return hashlib.sha256(str(known).encode()).hexdigest()[:16] if known else secrets.token_hex(8)


def _outcomes(engine: StyleEngine, job: Job, ticket: Path, previews: bool) -> Iterator[Report | Result | Exception]:
    """Runs the job in a thread and yields its reports, then the result or the error for the user."""
    reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        run = thread.submit(job.run, engine, _Reporter(ticket, reports, previews))
        run.add_done_callback(lambda _: reports.put(None))
        while (report := reports.get()) is not None:
            yield report
        try:
            yield run.result()
        except (StyleEngineError, Cancelled, TimeUp) as error:
            yield error
    finally:  # also if the iterator is closed; the thread stops at its next step, without waiting for it
        ticket.unlink(missing_ok=True)
        thread.shutdown(wait=False)


class _Reporter:
    """The engine's `on_step`: checks the ticket at each step; limits the rate of reports and previews."""

    def __init__(self, ticket: Path, reports: queue.SimpleQueue, previews: bool) -> None:
        self.ticket, self.reports, self.previews = ticket, reports, previews
        self.next_report = self.next_preview = 0.0
        self.began: tuple[float, int] | None = None

    def __call__(self, event: StepEvent) -> None:
        if not self.ticket.exists():
            raise Cancelled
        if event.phase.counted:
            self.began = self.began or (time.monotonic(), event.step)
        if time.monotonic() < self.next_report:
            return
        preview = self._preview(event) if self.previews else None
        report = Report(event.phase, event.step, event.total, preview, self._seconds_left(event))
        if isinstance(event, LearningEvent):
            report = replace(report, validations=event.validations, steps_per_second=event.steps_per_second)
        self.reports.put(report)
        self.next_report = time.monotonic() + REPORT_PAUSE

    def _seconds_left(self, event: StepEvent) -> float | None:
        """An estimate from the pace since the first observed step; a resumed run does not start at step 0."""
        began, first = self.began or (0.0, event.step)
        if event.step == first or not event.phase.counted:
            return None
        return (event.total - event.step) * (time.monotonic() - began) / (event.step - first)

    def _preview(self, event: StepEvent) -> Image.Image | None:
        began = time.monotonic()
        if not event.phase.previewed or not event.step or began < self.next_preview:
            return None
        preview = event.preview()
        ended = time.monotonic()
        self.next_preview = ended + max(PREVIEW_PAUSE, (ended - began) / PREVIEW_SHARE)
        return preview
