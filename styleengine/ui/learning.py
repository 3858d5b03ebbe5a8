"""Training of styles in the background. It continues when the page is closed; unfinished styles are kept on disk.

A style is trained in slices, between which other runs can use the engine. On ZeroGPU each slice is a call of
its own. A slice resumes from the file that the previous one saved, also after a restart.

One thread trains one style at a time. At most `MOST_LEARNING` are queued or in training. Status requests
use no thread.
"""

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from styleengine.backbones import with_text_encoder
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.learned_style import LearnedStyle
from styleengine.methods.inst import InSTLearningSettings
from styleengine.phases import LEARNING, WAITING, Stage
from styleengine.style_library import StyleLibrary, Unfinished
from styleengine.ui.runs import Job, Report, Runner

LEARN = "inst_learn"  # the engine's function, and the endpoint
SLICE_SECONDS = 30.0
PAUSE_BETWEEN_SLICES = 0.05  # seconds between two slices, in which another run can start
POLL = 0.25  # seconds between two status checks
HEARTBEAT = 2.0  # seconds after which an unchanged status is repeated
MOST_LEARNING = 20  # queued or in training
MOST_PREVIEWS = 8
MOST_KNOWN = 50  # ended trainings whose status is kept
NOT_BEGUN = "Stopped before its first step. It is kept as unfinished."
FAILED = "Training failed with an unexpected error. See the server's log."

Phase = Literal["waiting", "learning", "finished", "stopped", "failed"]
ENDS = ("finished", "stopped", "failed")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningStatus:
    """The status of a training. `style` is set at its end, or `sentence` gives the reason why there is none.

    `report` is the latest one, without its preview. `previews` are files of preview images with captions: at most
    eight, evenly spaced, including the last. The files are deleted when training has finished.
    """

    name: str
    phase: Phase
    report: Report
    previews: Sequence[tuple[Path, str]] = ()
    style: LearnedStyle | None = None
    sentence: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in ENDS


@dataclass(eq=False)
class _Task:
    """A queued or current training; all its slices have the same ticket."""

    place: Unfinished
    context: contextvars.Context
    ticket: str


class Learning:
    """Trains one style at a time; the others are queued."""

    def __init__(self, runner: Runner, library: StyleLibrary) -> None:
        self.runner, self.library = runner, library
        self._known: dict[str, LearningStatus] = {}
        self._waiting: deque[_Task] = deque()
        self._now: _Task | None = None
        self._worker: threading.Thread | None = None
        self._lock, self._room = threading.Lock(), threading.Semaphore(MOST_LEARNING)

    def begin(
        self,
        painting: Image.Image,
        settings: InSTLearningSettings,
        name: str,
        content: Image.Image | None,
        more: Sequence[Image.Image] = (),
    ) -> str:
        """Queues the training of a painting's style and returns the style's name. Previews restyle `content`.

        `more` are further paintings of the same artist.
        Raises StyleEngineError if the model has no text encoder or the queue is full. Before the model is loaded, the
        training ends with the former error.
        """
        engine = self.runner.engine
        if engine.loaded:
            with_text_encoder(engine.loaded)
        settings = engine.settings_for(InSTLearningSettings, LEARN, settings)
        run = {"settings": settings.model_dump(), "model": engine.model}
        return self._enter(lambda: self.library.begin(painting, name, run, content, self._in_use(), more))

    def resume(self, name: str) -> str:
        """Resumes an unfinished training, unless it is queued or running already.

        Raises StyleEngineError for an unknown name, damaged files, or a full queue.
        """
        if name in self._in_use():
            return name

        def sound() -> Unfinished:
            place = self.library.take_up(name)
            place.paintings()
            return place

        return self._enter(sound)

    def stop(self, name: str) -> None:
        """Stops a training at its next step, or removes it from the queue. Unknown names are ignored.

        It can be resumed. If it was running, the progress so far is saved as a style.
        """
        with self._lock:
            if self._now and self._now.place.name == name:
                self.runner.release(self._now.ticket)
            for task in [task for task in self._waiting if task.place.name == name]:
                self._waiting.remove(task)
                self._end(task, phase="stopped", sentence=NOT_BEGUN)

    def renew(self, name: str, request: gr.Request) -> None:
        """Further slices of a training are in the name of this request. Unknown names are ignored."""
        with self._lock:
            tasks = [task for task in (self._now, *self._waiting) if task and task.place.name == name]
        for task in tasks:
            self.runner.renew(task.ticket, request)

    def status(self, name: str) -> LearningStatus:
        """The status of a training; StyleEngineError for an unknown name."""
        with self._lock:
            known = self._known.get(name)
        if known is None:
            raise StyleEngineError("This style is not being learned. Start again, or resume an unfinished one.")
        return known

    async def watch(self, name: str) -> AsyncIterator[LearningStatus]:
        """The status until the end: at each change, and at least every `HEARTBEAT` seconds.

        Gradio detects a disconnected client only when there is something to send.
        """
        shown, since = None, 0.0
        while shown is None or not shown.ended:
            known = self.status(name)
            if known is not shown or time.monotonic() - since > HEARTBEAT:
                shown, since = known, time.monotonic()
                yield known
            if not known.ended:
                await asyncio.sleep(POLL)

    def unfinished(self) -> list[str]:
        return list(self.library.unfinished())

    def _in_use(self) -> list[str]:
        with self._lock:
            return [name for name, known in self._known.items() if not known.ended]

    def _enter(self, place_made: Callable[[], Unfinished]) -> str:
        """Appends a training to the queue, unless it is queued or running already; returns its name."""
        if not self._room.acquire(blocking=False):
            raise StyleEngineError(
                f"{MOST_LEARNING} paintings are queued or being learned already. Try again when some have ended, or "
                "stop one that is not needed."
            )
        entered = False
        try:
            place = place_made()
            report = Report(WAITING, 0, _settings(place).steps)
            waiting = LearningStatus(place.name, "waiting", report, _previews(place))
            with self._lock:
                known = self._known.get(place.name)
                if known is None or known.ended:
                    self._ensure_worker()
                    # In a copy of this request's context, from which ZeroGPU takes the user.
                    context, ticket = contextvars.copy_context(), self.runner.admit_without_session(LEARN)
                    self._waiting.append(_Task(place, context, ticket))
                    self._known.pop(place.name, None)  # keeps the names in order of their start
                    self._known[place.name] = waiting
                    entered = True
            return place.name
        finally:
            if not entered:
                self._room.release()

    def _ensure_worker(self) -> None:
        """Starts the thread if there is none. The caller holds the lock, for which the thread waits."""
        if self._worker is None:
            worker = threading.Thread(target=self._work, name="styleengine-learning", daemon=True)
            worker.start()
            self._worker = worker

    def _work(self) -> None:
        """Runs the queued trainings until the queue is empty."""
        while task := self._next():
            task.context.run(self._learn, task)

    def _next(self) -> _Task | None:
        with self._lock:
            self._now = self._waiting.popleft() if self._waiting else None
            if self._now is None:
                self._worker = None
            return self._now

    def _learn(self, task: _Task) -> None:
        """Trains until the end or until stopped. No error ends the thread."""
        place = task.place
        try:
            values = self._outcome(task)
        except StyleEngineError as error:
            gone = not place.manifest_file.is_file()
            values = {"phase": "failed", "sentence": str(place.damaged() if gone else error)}
        except BaseException:
            log.exception("Learning “%s” failed", place.name)
            values = {"phase": "failed", "sentence": FAILED}
        with self._lock:
            self._end(task, **values)

    def _outcome(self, task: _Task) -> dict[str, Any]:
        """Trains, saves the style to the library, and returns the final status."""
        phase, partial = "finished", task.place.partial
        try:
            style = self._slices(task)
        except Cancelled:
            if not partial.is_file():
                return {"phase": "stopped", "sentence": NOT_BEGUN}
            phase, style = "stopped", LearnedStyle.open(partial, with_state=True)
        kept = self.library.put(task.place, style)
        report = replace(self.status(task.place.name).report, step=kept.record.step, validations=kept.record.history)
        return {"phase": phase, "report": report, "style": kept}

    def _slices(self, task: _Task) -> LearnedStyle:
        """Runs slices until training is complete; raises Cancelled once it is stopped."""
        job = _job(task.place)
        while True:
            self._touch_all()
            for outcome in self.runner.run(job, task.ticket, previews=True):
                if isinstance(outcome, Report) and outcome.phase == LEARNING:
                    self._note(task.place, outcome)
                elif isinstance(outcome, Report) and outcome.phase.stage is Stage.LOADING:
                    self._set(task.place, report=outcome)
                elif isinstance(outcome, LearnedStyle) and outcome.record.complete:
                    return outcome
            time.sleep(PAUSE_BETWEEN_SLICES)

    def _touch_all(self) -> None:
        """Protects queued and current trainings from deletion, also by other processes."""
        with self._lock:
            tasks = [self._now, *self._waiting]
        for task in tasks:
            if task:
                task.place.touch()

    def _note(self, place: Unfinished, report: Report) -> None:
        changed: dict[str, Any] = {"phase": "learning", "report": replace(report, preview=None)}
        if report.preview:
            place.save_preview(report.step, report.preview)
            changed["previews"] = _previews(place)
        self._set(place, **changed)

    def _set(self, place: Unfinished, **values: Any) -> None:
        with self._lock:
            self._known[place.name] = replace(self._known[place.name], **values)

    def _end(self, task: _Task, **values: Any) -> None:
        """Stores the final status, drops old ones, and frees a place in the queue. The caller holds the lock."""
        self.runner.forget(task.ticket)
        self._known[task.place.name] = replace(self._known[task.place.name], **values)
        for old in [name for name, known in self._known.items() if known.ended][:-MOST_KNOWN]:
            del self._known[old]
        self._room.release()


def _settings(place: Unfinished) -> InSTLearningSettings:
    """The saved training settings; StyleEngineError if they are damaged."""
    stated = place.manifest().get("settings")
    if not isinstance(stated, Mapping):
        raise place.damaged()
    try:
        return InSTLearningSettings(**stated)
    except (StyleEngineError, TypeError) as error:
        raise place.damaged() from error


def _job(place: Unfinished) -> Job:
    model = place.manifest().get("model")
    if not isinstance(model, str):
        raise place.damaged()
    options = {
        "name": place.name,
        "partial": place.partial,
        "seconds": SLICE_SECONDS,
        "preview_on": place.content(),
    }
    return Job(LEARN, {"painting": place.paintings()}, _settings(place), options, model)


def _previews(place: Unfinished) -> tuple[tuple[Path, str], ...]:
    kept = place.previews()
    count = min(MOST_PREVIEWS, len(kept))
    chosen = [kept[round(i * (len(kept) - 1) / max(1, count - 1))] for i in range(count)]
    return tuple((file, f"step {step}") for step, file in chosen)
