"""Learning paintings in the background: it goes on when the page is closed, and what is unfinished lies on disk.

A painting is learnt in slices. Between two of them other runs have their turn on the engine, and on
ZeroGPU each is a call of its own. Each slice begins where the file that the one before left ends; so
does one in a new process, after a restart.
"""

import contextvars
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image

from styleengine.backbone import that_listens
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.images import open_image
from styleengine.learned_style import LearnedStyle
from styleengine.methods.inst_training import InSTLearningSettings
from styleengine.style_library import StyleLibrary, Unfinished
from styleengine.ui.runs import WAITING, Job, Report, Runner

SLICE_SECONDS = 30.0
BREATH = 0.05  # seconds between two slices, in which another run can take its turn
POLL = 0.25  # seconds between two looks of a page at what is being learnt
MOST_PREVIEWS = 8
MOST_KNOWN = 50  # of paintings whose learning has ended
CONTENT_FILE = "content.png"

Phase = Literal["waiting", "learning", "finished", "stopped", "failed"]
ENDS = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Learnt:
    """How far a painting has come. `style` is there once learning has ended well; `sentence` says why it failed.

    `previews` are pictures drawn on the way, with words: at most eight, evenly spaced, the last among them.
    """

    name: str
    phase: Phase
    step: int = 0
    total: int = 0
    judged: Sequence[tuple[int, float]] = ()
    steps_per_second: float = 0.0
    previews: Sequence[tuple[Image.Image, str]] = ()
    style: LearnedStyle | None = None
    sentence: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in ENDS


class Learning:
    """All that is being learnt, one painting at a time; the others wait."""

    def __init__(self, runner: Runner, library: StyleLibrary) -> None:
        self.runner, self.library = runner, library
        self._known: dict[str, Learnt] = {}
        self._tickets: dict[str, str] = {}
        self._stopping: set[str] = set()
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def begin(
        self, painting: Image.Image, settings: InSTLearningSettings, name: str, content: Image.Image | None
    ) -> str:
        """Starts to learn a painting; the name that its style gets. Previews are drawn on `content`.

        Raises StyleEngineError where it cannot be learnt on this model.
        """
        engine = self.runner.engine
        that_listens(engine.backbone)
        settings = engine.settings_for(InSTLearningSettings, "inst_learn", settings)
        place = self.library.begin(painting, name, {"settings": settings.model_dump(), "model": engine.backbone.name})
        if content:
            content.save(place.folder / CONTENT_FILE)
        self._start(place)
        return place.name

    def go_on(self, name: str) -> str:
        """Goes on with what is unfinished, if it is not being learnt already; StyleEngineError for an unknown name."""
        with self._lock:
            known = self._known.get(name)
        if known is None or known.ended:
            self._start(self._place(name))
        return name

    def stop(self, name: str) -> None:
        """Ends it at its next step; what is learnt by then becomes a style, and it can be gone on with."""
        with self._lock:
            self._stopping.add(name)
            self.runner.release(self._tickets.get(name, ""))

    def look(self, name: str) -> Learnt:
        """How far it has come; StyleEngineError for a name that is not being learnt."""
        with self._lock:
            known = self._known.get(name)
        if known is None:
            raise StyleEngineError(f"“{name}” is not being learnt. Begin anew, or go on with an unfinished one.")
        return known

    def watch(self, name: str) -> Iterator[Learnt]:
        """How far it has come, whenever that has changed, until it has ended."""
        shown = None
        while shown is None or not shown.ended:
            known = self.look(name)
            if known is not shown:
                shown = known
                yield known
            else:
                time.sleep(POLL)

    def unfinished(self) -> list[str]:
        return list(self.library.unfinished())

    def _place(self, name: str) -> Unfinished:
        place = self.library.unfinished().get(name)
        if place is None:
            raise StyleEngineError(f"There is no unfinished style “{name}”. Choose one from the list, or begin anew.")
        return place

    def _start(self, place: Unfinished) -> None:
        job = self._job(place, place.run())
        with self._lock:
            known = self._known.get(place.name)
            if known is not None and not known.ended:
                return
            for name in [name for name, other in self._known.items() if other.ended][:-MOST_KNOWN]:
                del self._known[name]
            total = int(job.arguments["settings"].steps)
            self._known[place.name] = Learnt(place.name, "waiting", total=total, previews=_previews(place))
            self._stopping.discard(place.name)
        # In a copy of this request's context, by which ZeroGPU knows for whom a GPU is asked.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._learn, place, job), daemon=True).start()

    def _job(self, place: Unfinished, run: Mapping[str, Any]) -> Job:
        content = place.folder / CONTENT_FILE
        arguments = {
            "settings": InSTLearningSettings(**run["settings"]),
            "name": place.name,
            "partial": place.partial,
            "seconds": SLICE_SECONDS,
            "preview_on": open_image(content, "content image") if content.is_file() else None,
        }
        return Job("inst_learn", place.painting(), arguments, run["model"])

    def _learn(self, place: Unfinished, job: Job) -> None:
        try:
            with self._turn:
                style = self._slices(place, job)
            self._end(place, "finished", style)
        except Cancelled:
            self._stopped(place)
        except StyleEngineError as error:
            self._failed(place, str(error))
        except Exception:
            self._failed(place, "Something went wrong that should not have.")
            raise

    def _slices(self, place: Unfinished, job: Job) -> LearnedStyle:
        """One slice after the other; Cancelled once it is stopped."""
        while True:
            with self._lock:
                if place.name in self._stopping:
                    raise Cancelled
                ticket = self._tickets[place.name] = self.runner.admit_beyond_session(job.method)
            for outcome in self.runner.run(job, ticket, previews=True):
                if isinstance(outcome, Report) and outcome.phase != WAITING:
                    self._note(place, outcome)
                elif isinstance(outcome, LearnedStyle) and outcome.record.complete:
                    return outcome
            time.sleep(BREATH)

    def _note(self, place: Unfinished, report: Report) -> None:
        changed: dict[str, Any] = {}
        if report.preview:
            place.save_preview(report.step, report.preview)
            changed["previews"] = _previews(place)
        self._change(
            place,
            phase="learning",
            step=report.step,
            total=report.total,
            judged=report.judged,
            steps_per_second=report.steps_per_second,
            **changed,
        )

    def _stopped(self, place: Unfinished) -> None:
        if not place.partial.is_file():  # stopped before it began
            self._failed(place, "Stopped before the first step; nothing was learnt.")
            place.delete()
            return
        try:
            self._end(place, "stopped", LearnedStyle.open(place.partial, with_state=True))
        except StyleEngineError as error:
            self._failed(place, str(error))

    def _end(self, place: Unfinished, phase: Phase, style: LearnedStyle) -> None:
        kept = self.library.put(place, style)
        self._change(place, phase=phase, step=kept.record.step, judged=kept.record.history, style=kept)

    def _failed(self, place: Unfinished, sentence: str) -> None:
        self._change(place, phase="failed", sentence=sentence)

    def _change(self, place: Unfinished, **values: Any) -> None:
        with self._lock:
            self._known[place.name] = replace(self._known[place.name], **values)


def _previews(place: Unfinished) -> list[tuple[Image.Image, str]]:
    kept = place.previews()
    count = min(MOST_PREVIEWS, len(kept))
    chosen = [kept[round(i * (len(kept) - 1) / max(1, count - 1))] for i in range(count)]
    return [(open_image(file, "preview"), f"step {step}") for step, file in chosen]
