"""Learning paintings in the background: it goes on when the page is closed, and what is unfinished lies on disk.

A painting is learnt in slices. Between two of them other runs have their turn on the engine, and on
ZeroGPU each is a call of its own. Each slice begins where the file that the one before left ends; so
does one in a new process, after a restart.

One thread learns, one painting after the other. At most `MOST_LEARNING` wait or are being learnt.
To look how far they have come takes no thread.
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

from PIL import Image

from styleengine.backbones import with_text_encoder
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.learned_style import LearnedStyle
from styleengine.methods.inst import InSTLearningSettings
from styleengine.phases import LEARNING
from styleengine.style_library import StyleLibrary, Unfinished
from styleengine.ui.runs import Job, Report, Runner

SLICE_SECONDS = 30.0
PAUSE_BETWEEN_SLICES = 0.05  # seconds between two slices, in which another run can take its turn
POLL = 0.25  # seconds between two looks at what is being learnt
HEARTBEAT = 2.0  # seconds after which a watcher hears again of what has not changed
MOST_LEARNING = 20  # paintings that wait or are being learnt
MOST_PREVIEWS = 8
MOST_KNOWN = 50  # of paintings whose learning has ended
NOT_BEGUN = "Stopped before its first step. It is kept as unfinished."
FAILED = "Something went wrong that should not have."

Phase = Literal["waiting", "learning", "finished", "stopped", "failed"]
ENDS = ("finished", "stopped", "failed")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learnt:
    """How far a painting has come. `style` is there once something is learnt; `sentence` says why nothing is.

    `previews` are files of pictures drawn on the way, with words: at most eight, evenly spaced, the
    last among them. Once learning is finished these files are gone.
    """

    name: str
    phase: Phase
    step: int = 0
    total: int = 0
    judged: Sequence[tuple[int, float]] = ()
    steps_per_second: float = 0.0
    previews: Sequence[tuple[Path, str]] = ()
    style: LearnedStyle | None = None
    sentence: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in ENDS


@dataclass(eq=False)
class _Task:
    """A painting that waits or is being learnt; `ticket` is that of its slice."""

    place: Unfinished
    context: contextvars.Context
    ticket: str = ""
    stopped: bool = False


class Learning:
    """All that is being learnt, one painting at a time; the others wait in a queue."""

    def __init__(self, runner: Runner, library: StyleLibrary) -> None:
        self.runner, self.library = runner, library
        self._known: dict[str, Learnt] = {}
        self._waiting: deque[_Task] = deque()
        self._now: _Task | None = None
        self._worker: threading.Thread | None = None
        self._lock, self._room = threading.Lock(), threading.Semaphore(MOST_LEARNING)

    def begin(
        self, painting: Image.Image, settings: InSTLearningSettings, name: str, content: Image.Image | None
    ) -> str:
        """Starts to learn a painting; the name that its style gets. Previews are drawn on `content`.

        Raises StyleEngineError where it cannot be learnt on this model, or too many wait already.
        """
        engine = self.runner.engine
        with_text_encoder(engine.backbone)
        settings = engine.settings_for(InSTLearningSettings, "inst_learn", settings)
        run = {"settings": settings.model_dump(), "model": engine.backbone.name}
        return self._enter(lambda: self.library.begin(painting, name, run, content, self._in_use()))

    def go_on(self, name: str) -> str:
        """Goes on with what is unfinished, if it is not being learnt already.

        Raises StyleEngineError for an unknown name, for what is damaged, or where too many wait already.
        """
        if name in self._in_use():
            return name

        def sound() -> Unfinished:
            place = self.library.take_up(name)
            place.painting()
            return place

        return self._enter(sound)

    def stop(self, name: str) -> None:
        """Ends it at its next step, or takes it from the queue; it can be gone on with. Unknown names do nothing.

        What is learnt by then becomes a style, if it is being learnt.
        """
        with self._lock:
            if self._now and self._now.place.name == name:
                self._now.stopped = True
                self.runner.release(self._now.ticket)
            for task in [task for task in self._waiting if task.place.name == name]:
                self._waiting.remove(task)
                self._end(name, phase="stopped", sentence=NOT_BEGUN)

    def look(self, name: str) -> Learnt:
        """How far it has come; StyleEngineError for a name that is not being learnt."""
        with self._lock:
            known = self._known.get(name)
        if known is None:
            raise StyleEngineError("This style is not being learnt. Begin anew, or go on with an unfinished one.")
        return known

    async def watch(self, name: str) -> AsyncIterator[Learnt]:
        """How far it has come, until it has ended: whenever that has changed, and every `HEARTBEAT` seconds.

        Gradio finds out that nobody listens any more only when there is something to send.
        """
        shown, since = None, 0.0
        while shown is None or not shown.ended:
            known = self.look(name)
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
        """Puts a painting at the end of the queue, unless it is there already; its name."""
        if not self._room.acquire(blocking=False):
            raise StyleEngineError(
                f"{MOST_LEARNING} paintings wait or are being learnt already. Try again when some have ended, or stop "
                "one that is not needed."
            )
        entered = False
        try:
            place = place_made()
            waiting = Learnt(place.name, "waiting", total=_settings(place).steps, previews=_previews(place))
            # In a copy of this request's context, by which ZeroGPU knows for whom a GPU is asked.
            task = _Task(place, contextvars.copy_context())
            with self._lock:
                known = self._known.get(place.name)
                if known is None or known.ended:
                    self._see_to_worker()
                    self._waiting.append(task)
                    self._known.pop(place.name, None)  # so that the names stand in the order of their beginning
                    self._known[place.name] = waiting
                    entered = True
            return place.name
        finally:
            if not entered:
                self._room.release()

    def _see_to_worker(self) -> None:
        """Starts the thread if there is none; it waits for the lock, which is held here."""
        if self._worker is None:
            worker = threading.Thread(target=self._work, name="styleengine-learning", daemon=True)
            worker.start()
            self._worker = worker

    def _work(self) -> None:
        """Learns what waits, until nothing does."""
        while task := self._next():
            task.context.run(self._learn, task)

    def _next(self) -> _Task | None:
        with self._lock:
            self._now = self._waiting.popleft() if self._waiting else None
            if self._now is None:
                self._worker = None
            return self._now

    def _learn(self, task: _Task) -> None:
        """Learns until it is learnt or stopped. Whatever goes wrong, the thread is there for the next one."""
        place = task.place
        try:
            values = self._outcome(task)
        except StyleEngineError as error:
            gone = not place.run_file.is_file()
            values = {"phase": "failed", "sentence": str(place.damaged() if gone else error)}
        except BaseException:
            log.exception("Learning “%s” failed", place.name)
            values = {"phase": "failed", "sentence": FAILED}
        with self._lock:
            self._end(place.name, **values)

    def _outcome(self, task: _Task) -> dict[str, Any]:
        """How it has ended; what is learnt lies in the library then."""
        phase, partial = "finished", task.place.partial
        try:
            style = self._slices(task)
        except Cancelled:
            if not partial.is_file():
                return {"phase": "stopped", "sentence": NOT_BEGUN}
            phase, style = "stopped", LearnedStyle.open(partial, with_state=True)
        kept = self.library.put(task.place, style)
        return {"phase": phase, "step": kept.record.step, "judged": kept.record.history, "style": kept}

    def _slices(self, task: _Task) -> LearnedStyle:
        """One slice after the other; Cancelled once it is stopped."""
        job = _job(task.place)
        while True:
            self._touch_all()
            ticket = self.runner.admit_beyond_session(job.method)
            try:
                with self._lock:
                    task.ticket = ticket
                    if task.stopped:
                        raise Cancelled
                for outcome in self.runner.run(job, ticket, previews=True):
                    if isinstance(outcome, Report) and outcome.phase == LEARNING:
                        self._note(task.place, outcome)
                    elif isinstance(outcome, LearnedStyle) and outcome.record.complete:
                        return outcome
            finally:
                self.runner.release(ticket)
            time.sleep(PAUSE_BETWEEN_SLICES)

    def _touch_all(self) -> None:
        """Keeps what waits or is being learnt from being deleted, by other processes too."""
        with self._lock:
            tasks = [self._now, *self._waiting]
        for task in tasks:
            if task:
                task.place.touch()

    def _note(self, place: Unfinished, report: Report) -> None:
        changed: dict[str, Any] = {
            "phase": "learning",
            "step": report.step,
            "total": report.total,
            "judged": report.judged,
            "steps_per_second": report.steps_per_second,
        }
        if report.preview:
            place.save_preview(report.step, report.preview)
            changed["previews"] = _previews(place)
        with self._lock:
            self._known[place.name] = replace(self._known[place.name], **changed)

    def _end(self, name: str, **values: Any) -> None:
        """Notes how it has ended, forgets what ended long ago, and lets one more in. The lock is held."""
        self._known[name] = replace(self._known[name], **values)
        for old in [name for name, known in self._known.items() if known.ended][:-MOST_KNOWN]:
            del self._known[old]
        self._room.release()


def _settings(place: Unfinished) -> InSTLearningSettings:
    """StyleEngineError where what is kept about how to learn it is damaged."""
    stated = place.run().get("settings")
    if not isinstance(stated, Mapping):
        raise place.damaged()
    try:
        return InSTLearningSettings(**stated)
    except (StyleEngineError, TypeError) as error:
        raise place.damaged() from error


def _job(place: Unfinished) -> Job:
    model = place.run().get("model")
    if not isinstance(model, str):
        raise place.damaged()
    options = {
        "name": place.name,
        "partial": place.partial,
        "seconds": SLICE_SECONDS,
        "preview_on": place.content(),
    }
    return Job("inst_learn", {"painting": place.painting()}, _settings(place), options, model)


def _previews(place: Unfinished) -> tuple[tuple[Path, str], ...]:
    kept = place.previews()
    count = min(MOST_PREVIEWS, len(kept))
    chosen = [kept[round(i * (len(kept) - 1) / max(1, count - 1))] for i in range(count)]
    return tuple((file, f"step {step}") for step, file in chosen)
