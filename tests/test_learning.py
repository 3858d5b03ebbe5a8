"""Learning in the background: a bounded queue, one thread, and nothing lost when pages, clients or processes end."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_learned_style import made_up

from styleengine import InSTLearningSettings, LearnedStyle, StyleEngine, ZStarSettings
from styleengine import engine as engine_module
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.phases import LEARNING
from styleengine.style_library import StyleLibrary
from styleengine.ui import learning as learning_module
from styleengine.ui.learning import MOST_KNOWN, MOST_LEARNING, Learning, LearningStatus
from styleengine.ui.runs import Job, Report, Runner

LEARN: dict[str, Any] = {"size": 32, "steps": 6, "batch": 2, "views": 2, "check_every": 2, "patience": 0}
SETTINGS = InSTLearningSettings(**LEARN)
SO_LONG = 5000  # steps that no test waits for
PATIENCE = 60  # seconds
ASKED_BY: ContextVar[str] = ContextVar("asked_by", default="nobody")


class Stub(Runner):
    """Learns nothing and takes no time; waits at the gate before the only step of each painting."""

    def __init__(self, engine: StyleEngine, style: LearnedStyle) -> None:
        super().__init__(engine)
        self.style, self.gate, self.asked_by = style, threading.Event(), list[str]()
        self.tickets: set[str] = set()
        self.troubles: list[BaseException] = []

    def admit_without_session(self, name: str) -> str:
        self.tickets.add(ticket := super().admit_without_session(name))
        return ticket

    def release(self, ticket: str) -> None:
        self.tickets.discard(ticket)

    forget = release

    def run(self, job: Job, ticket: str, *, previews: bool) -> Iterator[Any]:
        self.asked_by.append(ASKED_BY.get())
        yield Report(LEARNING, 0, 1, job.content if previews else None)
        while not self.gate.wait(0.01):
            if ticket not in self.tickets:
                self._style(job, complete=False).save(job.options["partial"])
                raise Cancelled
        if self.troubles:
            raise self.troubles.pop()
        yield Report(LEARNING, 1, 1)
        yield self._style(job, complete=True)

    def _style(self, job: Job, complete: bool) -> LearnedStyle:
        record = self.style.record.replace(name=job.options["name"], complete=complete)
        return replace(self.style, record=record, state={} if complete else {"module.a": torch.ones(2)})


@pytest.fixture
def runner(shared_engine: StyleEngine, cat: Image.Image) -> Iterator[Stub]:
    stub = Stub(shared_engine, made_up(shared_engine.backbone, cat))
    yield stub
    stub.gate.set()
    settled()  # the next test counts threads


@pytest.fixture
def learning(runner: Stub, tmp_path: Path) -> Learning:
    return Learning(runner, StyleLibrary(tmp_path, shipped=tmp_path / "none"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_module, "POLL", 0.01)
    monkeypatch.setattr(learning_module, "PAUSE_BETWEEN_SLICES", 0.01)
    monkeypatch.setattr(engine_module, "PREVIEW_SIZE", 64)
    monkeypatch.setattr(engine_module, "PREVIEW_STEPS", 2)


def watched(learning: Learning, name: str) -> Iterator[LearningStatus]:
    """As `Learning.watch`, without asyncio."""
    shown, until = None, time.monotonic() + PATIENCE
    while shown is None or not shown.ended:
        assert time.monotonic() < until
        known = learning.status(name)
        if known is not shown:
            yield known
        shown = known
        time.sleep(0.01)


def end(learning: Learning, name: str) -> LearningStatus:
    *_, last = watched(learning, name)
    return last


def until_learning(learning: Learning, name: str) -> None:
    next(known for known in watched(learning, name) if known.phase == "learning")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "styleengine-learning"]


def settled() -> None:
    until = time.monotonic() + PATIENCE
    while workers():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_watching_takes_no_thread_and_costs_nothing_once_nobody_watches(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    name = learning.begin(cat, SETTINGS, "cat", None)

    async def watch() -> str:
        return [known.phase async for known in learning.watch(name)][-1]

    async def crowd() -> list[str]:
        watchers = [asyncio.create_task(watch()) for _ in range(60)]
        await asyncio.sleep(0.05)
        before = threading.active_count()
        for gone in watchers[:20]:
            gone.cancel()
        began = time.monotonic()
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 1  # the loop is free
        assert threading.active_count() <= before
        assert all(task.cancelled() for task in watchers[:20])
        runner.gate.set()
        return await asyncio.gather(*watchers[20:])

    assert asyncio.run(crowd()) == ["finished"] * 40


def test_a_watcher_gets_an_unchanged_status_repeatedly(
    learning: Learning, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "HEARTBEAT", 0.03)
    name = learning.begin(cat, SETTINGS, "cat", None)
    until_learning(learning, name)

    async def two() -> list[LearningStatus]:
        states = learning.watch(name)
        return [await anext(states), await anext(states)]

    first, second = asyncio.run(two())
    assert first is second


def test_five_paintings_too_many_are_each_refused_in_a_sentence_and_all_others_become_styles(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    names, sentences = list[str](), list[str]()
    for _ in range(MOST_LEARNING + 5):
        try:
            names.append(learning.begin(cat, SETTINGS, "same", None))
        except StyleEngineError as error:
            sentences.append(str(error))
    assert len(sentences) == 5
    assert {sentence[:50] for sentence in sentences} == {"20 paintings are queued or being learned already. "}
    assert len(learning.unfinished()) == MOST_LEARNING
    runner.gate.set()
    assert [end(learning, name).phase for name in names] == ["finished"] * MOST_LEARNING
    assert sorted(learning.library.names()) == sorted(names)
    assert learning.unfinished() == []
    assert learning.begin(cat, SETTINGS, "same", None)  # there is room again


def test_one_thread_learns_all_and_is_gone_when_nothing_waits(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    others = set(workers())
    names = [learning.begin(cat, SETTINGS, "a", None) for _ in range(5)]
    assert len(set(workers()) - others) == 1
    runner.gate.set()
    assert {end(learning, name).phase for name in names} == {"finished"}
    settled()
    assert end(learning, learning.begin(cat, SETTINGS, "later", None)).phase == "finished"


@pytest.mark.parametrize("trouble", [RuntimeError("x"), MemoryError(), SystemExit(), StyleEngineError("No luck.")])
def test_after_an_error_the_next_painting_is_learned(
    learning: Learning, runner: Stub, cat: Image.Image, trouble: BaseException
) -> None:
    runner.troubles.append(trouble)
    names = [learning.begin(cat, SETTINGS, name, None) for name in ("first", "second")]
    runner.gate.set()
    first, second = (end(learning, name) for name in names)
    assert (first.phase, second.phase) == ("failed", "finished")
    unexpected = "Training failed with an unexpected error. See the server's log."
    assert first.sentence == ("No luck." if isinstance(trouble, StyleEngineError) else unexpected)
    assert learning.unfinished() == ["first"]


def test_each_painting_is_learned_in_the_context_of_its_own_request(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    for who in ("one", "other"):
        token = ASKED_BY.set(who)
        learning.begin(cat, SETTINGS, who, None)
        ASKED_BY.reset(token)
    runner.gate.set()
    for who in ("one", "other"):
        end(learning, who)
    assert runner.asked_by == ["one", "other"]


def test_an_unknown_name_cannot_be_stopped_and_is_not_stored(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    name = learning.begin(cat, SETTINGS, "cat", None)
    until_learning(learning, name)
    for number in range(100):
        learning.stop(f"{number}")
    assert not learning.status(name).ended
    runner.gate.set()
    end(learning, name)
    learning.stop(name)  # too late
    settled()
    assert not learning._waiting
    assert learning._now is None
    assert list(learning._known) == [name]
    assert not runner.tickets
    assert end(learning, learning.begin(cat, SETTINGS, "cat", None)).phase == "finished"


def test_the_status_of_ended_runs_is_kept_for_the_latest_only(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    runner.gate.set()
    for number in range(MOST_KNOWN + 3):
        end(learning, learning.begin(cat, SETTINGS, f"{number}", None))
    assert list(learning._known) == [f"{number}" for number in range(3, MOST_KNOWN + 3)]
    with pytest.raises(StyleEngineError, match="is not being learned"):
        learning.status("0")


def test_a_queued_painting_that_is_stopped_leaves_the_queue_at_once_and_is_kept_as_unfinished(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    first, second = (learning.begin(cat, SETTINGS, name, None) for name in ("first", "second"))
    until_learning(learning, first)
    learning.stop(second)
    stopped = learning.status(second)
    assert (stopped.phase, stopped.style) == ("stopped", None)
    assert stopped.sentence == "Stopped before its first step. It is kept as unfinished."
    assert learning.resume(second) == second
    runner.gate.set()
    assert end(learning, second).phase == "finished"


def test_resuming_a_painting_that_is_being_learned_changes_nothing(
    learning: Learning, runner: Stub, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_room", threading.Semaphore(1))
    name = learning.begin(cat, SETTINGS, "cat", None)
    assert learning.resume(name) == name
    runner.gate.set()
    assert end(learning, name).phase == "finished"
    assert runner.asked_by == ["nobody"]


def test_a_queued_or_running_painting_is_not_deleted_for_others_however_long_it_takes(
    learning: Learning, runner: Stub, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("styleengine.style_library.MOST_UNFINISHED", 2)
    monkeypatch.setattr("styleengine.style_library.LATELY", -1.0)  # whatever is touched was touched long ago
    names = [learning.begin(cat, SETTINGS, name, None) for name in ("a", "b")]
    with pytest.raises(StyleEngineError, match="2 paintings are being learned or were left unfinished"):
        learning.begin(cat, SETTINGS, "c", None)
    runner.gate.set()
    assert [end(learning, name).phase for name in names] == ["finished"] * 2


def test_the_folder_of_a_queued_painting_is_touched_while_another_is_learned(
    learning: Learning, runner: Stub, cat: Image.Image
) -> None:
    learning.begin(cat, SETTINGS, "a", None)
    until_learning(learning, "a")
    learning.begin(cat, SETTINGS, "b", None)
    (waiting,) = [place for name, place in learning.library.unfinished().items() if name == "b"]
    before = waiting.manifest_file.stat().st_mtime_ns
    learning._touch_all()
    assert waiting.manifest_file.stat().st_mtime_ns > before


def test_a_folder_that_vanishes_is_explained_without_naming_it(
    learning: Learning, runner: Stub, cat: Image.Image, tmp_path: Path
) -> None:
    names = [learning.begin(cat, SETTINGS, name, None) for name in ("a", "b")]
    until_learning(learning, "a")
    learning.library.unfinished()["b"].delete()
    runner.gate.set()
    failed = end(learning, names[1])
    assert failed.phase == "failed"
    assert failed.sentence == "The saved progress of “b” is damaged: learn the painting again."


def test_queued_and_running_paintings_are_offered_as_unfinished_after_a_crash(
    learning: Learning, runner: Stub, cat: Image.Image, coffee: Image.Image, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        learning.begin(cat, SETTINGS, name, coffee)
    until_learning(learning, "a")
    after = Stub(runner.engine, runner.style)
    after.gate.set()
    again = Learning(after, StyleLibrary(tmp_path, shipped=tmp_path / "none"))
    assert again.unfinished() == ["a", "b", "c"]
    for name in again.unfinished():
        again.resume(name)
    assert end(again, "c").phase == "finished"


def test_all_paintings_of_a_run_are_learned_also_after_a_crash(
    shared_engine: StyleEngine, cat: Image.Image, coffee: Image.Image, rocket: Image.Image, tmp_path: Path
) -> None:
    settings = InSTLearningSettings(**{**LEARN, "steps": SO_LONG})
    first = Learning(Runner(shared_engine), StyleLibrary(tmp_path, shipped=tmp_path / "none"))
    name = first.begin(cat, settings, "three", None, [coffee, rocket])
    next(known for known in watched(first, name) if known.report.step >= 3)
    first.stop(name)
    stopped = end(first, name)
    assert stopped.style is not None
    assert stopped.style.record.paintings == 3
    second = Learning(Runner(shared_engine), StyleLibrary(tmp_path, shipped=tmp_path / "none"))
    second.resume(name)
    next(known for known in watched(second, name) if known.report.step > stopped.report.step)
    second.stop(name)
    again = end(second, name)
    assert again.style is not None
    assert again.style.record.painting == stopped.style.record.painting
    assert again.style.record.step > stopped.style.record.step
    (second.library.unfinished()[name].path / "painting-3.png").unlink()
    with pytest.raises(StyleEngineError, match="The saved progress of “three” is damaged: learn the painting again"):
        second.resume(name)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"\xff\xfe"),
        ("run.json", b"[1, 2]"),
        ("run.json", b"{}"),
        ("run.json", b'{"settings": {"steps": -1}, "model": "mini"}'),
        ("run.json", b'{"settings": {"steps": 1}, "model": 5}'),
        ("run.json", b'{"settings": {"steps": 1}, "model": "mini", "paintings": 2}'),
        ("run.json", b'{"settings": {"steps": 1}, "model": "mini", "paintings": "all"}'),
        ("run.json", b"[" * 100_000),
        ("painting.png", b"\x89PNG\r\n\x1a\ncut"),
        ("painting.png", b""),
    ],
)
def test_half_written_files_are_explained_on_use_and_affect_nothing_else(
    learning: Learning, runner: Stub, cat: Image.Image, file: str, content: bytes
) -> None:
    place = learning.library.begin(cat, "cut", {"settings": LEARN, "model": runner.engine.backbone.name})
    (place.path / file).write_bytes(content)
    (place.path / "preview-00001.png").write_bytes(b"cut")
    (place.path / "preview-x.png").write_bytes(b"cut")
    runner.gate.set()
    assert learning.unfinished() == ["cut"]
    try:
        learning.resume("cut")
        failed = end(learning, "cut")
        assert failed.phase == "failed"
        sentence = failed.sentence
    except StyleEngineError as error:
        sentence = str(error)
    assert sentence == "The saved progress of “cut” is damaged: learn the painting again."
    assert end(learning, learning.begin(cat, SETTINGS, "next", None)).phase == "finished"


def test_previews_are_few_and_the_last_is_among_them(learning: Learning, cat: Image.Image) -> None:
    place = learning.library.begin(cat, "cat", {"settings": LEARN})
    for step in range(30):
        place.save_preview(step, cat)
    shown = learning_module._previews(place)
    assert [words for _, words in shown][::7] == ["step 0", "step 29"]
    assert len(shown) == 8


def test_learning_survives_its_page_and_its_process(
    shared_engine: StyleEngine, cat: Image.Image, tmp_path: Path
) -> None:
    settings = InSTLearningSettings(**{**LEARN, "steps": 12})
    library = StyleLibrary(tmp_path, shipped=tmp_path / "none")
    first = Learning(Runner(shared_engine), library)
    name = first.begin(cat, settings, "cat", cat)
    next(
        known for known in watched(first, name) if known.report.step >= 3
    )  # the page is closed: nobody watches any more
    first.stop(name)
    *_, stopped = watched(first, name)
    assert stopped.phase == "stopped"
    assert stopped.style is not None
    assert library.names() == ["cat"]
    second = Learning(Runner(shared_engine), StyleLibrary(tmp_path))  # a new process finds it on the disk
    assert second.unfinished() == ["cat"]
    second.resume("cat")
    steps = []
    for known in watched(second, "cat"):
        steps.append(known.report.step)
        last = known
    assert last.phase == "finished"
    assert min(step for step in steps if step) >= stopped.report.step
    assert second.unfinished() == []
    assert library.names() == ["cat"]
    whole = shared_engine.inst_learn(cat, settings)
    torch.testing.assert_close(library.open("cat").word, whole.word, atol=1e-6, rtol=0)
    assert last.previews


def test_learning_goes_in_slices_and_lets_others_in_between(
    shared_engine: StyleEngine, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "SLICE_SECONDS", 0.2)
    learning = Learning(Runner(shared_engine), StyleLibrary(tmp_path))
    name = learning.begin(cat, InSTLearningSettings(**{**LEARN, "steps": SO_LONG}), "cat", None)
    next(known for known in watched(learning, name) if known.report.step >= 1)
    shared_engine.zstar(cat, [cat], ZStarSettings(size=64, steps=4))
    assert not learning.status(name).ended
    before = learning.status(name).report.step
    next(known for known in watched(learning, name) if known.report.step > before)
    learning.stop(name)
    *_, stopped = watched(learning, name)
    assert stopped.phase == "stopped"


def test_two_paintings_are_learned_one_after_the_other(
    shared_engine: StyleEngine, cat: Image.Image, coffee: Image.Image, tmp_path: Path
) -> None:
    learning = Learning(Runner(shared_engine), StyleLibrary(tmp_path))
    names = [learning.begin(painting, InSTLearningSettings(**LEARN), "same", None) for painting in (cat, coffee)]
    assert names == ["same", "same 2"]
    ends = [list(watched(learning, name))[-1] for name in names]
    assert [end.phase for end in ends] == ["finished", "finished"]
    assert ends[0].style is not None
    assert ends[1].style is not None
    assert ends[0].style.record.painting != ends[1].style.record.painting


def test_learning_that_cannot_be_resumed_gives_a_sentence(
    shared_engine: StyleEngine, shared_pixel_engine: StyleEngine, cat: Image.Image, tmp_path: Path
) -> None:
    learning = Learning(Runner(shared_engine), StyleLibrary(tmp_path))
    with pytest.raises(StyleEngineError, match="no unfinished style “gone”"):
        learning.resume("gone")
    with pytest.raises(StyleEngineError, match="has no text encoder"):
        Learning(Runner(shared_pixel_engine), StyleLibrary(tmp_path)).begin(cat, InSTLearningSettings(), "a", None)
    place = StyleLibrary(tmp_path).begin(
        cat, "cut", {"settings": InSTLearningSettings(**LEARN).model_dump(), "model": shared_engine.backbone.name}
    )
    place.partial.write_bytes(b"cut off")
    learning.resume("cut")
    *_, failed = watched(learning, "cut")
    assert failed.phase == "failed"
    assert "is not a usable style" in failed.sentence
