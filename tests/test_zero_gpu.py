"""Runs as on ZeroGPU: each in a forked process, with pickled arguments and results, and for a stated time."""

import contextvars
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from clips import panned, write_raw
from gradio.context import LocalContext
from PIL import Image

from styleengine import (
    HSpaceSettings,
    InSTLearningSettings,
    LearnedStyle,
    QSAttnSettings,
    Style,
    StyleEngine,
    StyleEngineError,
    Stylization,
    ZStarSettings,
)
from styleengine.errors import Cancelled, TimeUp
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.ui import clip_slices, gpu, kept_clips
from styleengine.ui.clip_slices import ClipSlices
from styleengine.ui.kept_clips import KeptClips
from styleengine.ui.runs import Job, Report, Runner
from styleengine.video import VideoClip, open_clip

END = b""


class ForkedGPU:
    """Stands in for `spaces.GPU`: runs a function in a forked process. `asked` are the durations."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def decorated(function: Callable) -> Callable:
            assert inspect.isgeneratorfunction(function) or function.__name__ == "anchors"

            def forked(*arguments: Any) -> Iterator[Any]:
                self.asked.append(duration(*arguments))
                return _outcomes(function, pickle.dumps(arguments))

            return forked

        return decorated


def _outcomes(function: Callable, arguments: bytes) -> Iterator[Any]:
    """The outcomes, pickled as ZeroGPU pickles them. Only this test's own objects are unpickled, never a file.

    A pipe's own pickler would share tensors between the processes instead of copying them.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)  # the parent's threads do not exist here
        for outcome in function(*pickle.loads(arguments)):
            sender.send_bytes(pickle.dumps(outcome))
        sender.send_bytes(END)

    process = context.Process(target=work)
    process.start()
    sender.close()  # so that a process that fails ends the pipe
    try:
        while (received := receiver.recv_bytes()) != END:
            yield pickle.loads(received)
    finally:
        process.join(60)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> ForkedGPU:
    gpu.freeze_forks()
    made = ForkedGPU()
    monkeypatch.setattr(gpu, "spaces", SimpleNamespace(GPU=made))
    return made


def jobs(content: Image.Image, style: Image.Image) -> dict[str, Job]:
    """One job of each kind; `style` also as a learned one."""
    zstar = ZStarSettings(size=64, steps=3)
    mask = Image.linear_gradient("L")
    return {
        "zstar": Job("zstar", {"content": content, "style": [Style(style, 0.5, mask)]}, zstar),
        "h_space_strip": Job(
            "h_space_strip", {"content": content, "style": style}, HSpaceSettings(size=64, steps=4), {"gammas": (0, 1)}
        ),
        "qs_attn": Job("qs_attn", {"content": content}, QSAttnSettings(size=64, steps=2, patches=2, prompt="ink")),
        "inst_learn": Job("inst_learn", {"painting": style}, InSTLearningSettings(steps=2, size=32, batch=1, views=1)),
    }


def value(result: Any) -> Any:
    """What must be equal: pixels, or a learned style's embedding."""
    if isinstance(result, list):
        return [value(one) for one in result]
    return result.image.tobytes() if isinstance(result, Stylization) else result.word.tolist()


def test_four_parallel_runs_in_forked_processes_give_the_same_results(
    engine: StyleEngine, forked: ForkedGPU, astronaut: Image.Image, coffee: Image.Image
) -> None:
    expected = {name: job.run(engine, lambda _: None) for name, job in jobs(astronaut, coffee).items()}
    engine.cache.clear()
    runner = Runner(engine)

    def run(job: Job) -> list[Any]:
        return list(runner.run(job, runner.admit_without_session(job.method), previews=True))

    with ThreadPoolExecutor(4) as threads:
        outcomes = dict(zip(expected, threads.map(run, jobs(astronaut, coffee).values()), strict=True))
    for name, (*reports, result) in outcomes.items():
        assert value(result) == value(expected[name])
        assert all(isinstance(report, Report) for report in reports)
    assert outcomes["zstar"][0].preview is None or isinstance(outcomes["zstar"][0].preview, Image.Image)
    assert isinstance(outcomes["inst_learn"][-1], LearnedStyle)
    assert len(forked.asked) == 4


def test_errors_and_cancelling_reach_the_other_process(
    engine: StyleEngine, forked: ForkedGPU, astronaut: Image.Image, coffee: Image.Image
) -> None:
    runner = Runner(engine)
    empty = Job("zstar", {"content": astronaut, "style": []}, ZStarSettings(size=64))
    with pytest.raises(StyleEngineError, match="No style image"):
        list(runner.run(empty, runner.admit_without_session("zstar"), previews=False))
    long = Job("zstar", {"content": astronaut, "style": [Style(coffee)]}, ZStarSettings(size=64, steps=200))
    ticket = runner.admit_without_session("zstar")
    outcomes = runner.run(long, ticket, previews=False)
    next(outcomes)
    runner.release(ticket)
    with pytest.raises(Cancelled):
        list(outcomes)


COLLECT_IN_A_FORK = """
import gc, multiprocessing, sys
from unittest.mock import MagicMock
import av
from styleengine.ui import gpu

gc.disable()  # what is garbage stays so until the fork collects it
container = av.open(sys.argv[1])
stream = container.streams.video[0]
stream.thread_type, stream.codec_context.thread_count = "FRAME", 2
frames = container.decode(stream)
next(frames)  # its threads have begun
cycle = [frames]
cycle.append(cycle)
del container, stream, frames, cycle
gpu.ZERO = sys.argv[2] == "zero"
gpu.prepare(MagicMock())  # an engine
process = multiprocessing.get_context("fork").Process(target=gc.collect)
process.start()
process.join(float(sys.argv[3]))
print("hung" if process.is_alive() else process.exitcode)
process.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize(("place", "seconds", "ended"), [("zero", 60, "0"), ("elsewhere", 3, "hung")])
def test_a_forked_process_does_not_free_a_decoder_whose_threads_it_lacks(
    place: str, seconds: float, ended: str, astronaut: Image.Image, tmp_path: Path
) -> None:
    clip = write_raw(tmp_path / "pan.mp4", panned(astronaut, 6, (96, 64), 6))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COLLECT_IN_A_FORK, str(clip), place, str(seconds)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.stdout.split() == [ended], done.stderr


@pytest.fixture
def clip(astronaut: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoClip:
    """A clip of six frames, of which each slice redraws one. Unfinished runs are kept in a folder of the test."""
    monkeypatch.setattr(clip_slices, "SLICE_SECONDS", 0.0)
    monkeypatch.setenv("STYLEENGINE_DISK_CACHE", str(tmp_path / "cache"))
    return open_clip(write_raw(tmp_path / "pan.mp4", panned(astronaut, 6, (96, 64), 6)))


def test_a_clip_in_slices_is_that_of_one_run(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, tmp_path: Path
) -> None:
    settings = ZStarVideoSettings(size=64, steps=2, rate=0, frames=4)
    inputs, whole = {"clip": clip, "style": [Style(coffee)]}, tmp_path / "whole.mp4"
    expected = engine.zstar_video(clip, [Style(coffee)], settings, output=whole)
    engine.cache.clear()
    output, runner = tmp_path / "sliced.mp4", Runner(engine)
    job = Job("zstar_video", inputs, settings, {"output": output, "keep_partial": True})
    ticket, asked = runner.admit_without_session("zstar_video"), list[int]()

    def run(part: Job) -> Iterator[Any]:
        asked.append(gpu.seconds(part))
        return runner.run(part, ticket, previews=False)

    *reports, result = ClipSlices(job).outcomes(run)
    assert len(asked) == 4  # a frame in each
    assert max(asked) < gpu.MOST_SECONDS
    assert result.complete
    assert result.differences == expected.differences
    assert result.image.tobytes() == expected.image.tobytes()
    assert len(list(open_clip(output).select(0, 0, 4).frames())) == 4
    steps, totals = [report.step for report in reports], {report.total for report in reports}
    assert steps == sorted(steps)
    assert len(totals) == 1
    assert not list(kept_folder().iterdir())


def test_a_cancelled_clip_in_slices_keeps_the_frames_of_all_of_them(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, tmp_path: Path
) -> None:
    settings = ZStarVideoSettings(size=64, steps=8, rate=0, frames=6)
    options = {"output": tmp_path / "out.mp4", "keep_partial": True}
    runner = Runner(engine)
    ticket = runner.admit_without_session("zstar_video")
    job = Job("zstar_video", {"clip": clip, "style": [Style(coffee)]}, settings, options)
    slices = list[Job]()

    def run(part: Job) -> Iterator[Any]:
        slices.append(part)
        return runner.run(part, ticket, previews=False)

    result: Any = None
    for outcome in ClipSlices(job).outcomes(run):
        if isinstance(outcome, Report) and len(slices) == 3:
            runner.release(ticket)
        result = outcome
    assert not result.complete
    assert result.frames >= 2


def clip_job(clip: VideoClip, style: Image.Image, tmp_path: Path, **settings: Any) -> Job:
    chosen = ZStarVideoSettings(size=64, steps=2, rate=0, frames=4).replace(**settings)
    options = {"output": tmp_path / "out.mp4", "keep_partial": True}
    return Job("zstar_video", {"clip": clip, "style": [Style(style)]}, chosen, options)


def kept_folder() -> Path:
    """The folder of the test's kept clips."""
    folder = KeptClips.usual().folder
    assert folder
    return folder


class Slices:
    """Runs the slices of a clip, of which the one after `most` is refused, and keeps count of them."""

    def __init__(self, engine: StyleEngine, most: int = 99) -> None:
        self.runner, self.most, self.count = Runner(engine), most, 0
        self.ticket = self.runner.admit_without_session("zstar_video")

    def __call__(self, part: Job) -> Iterator[Any]:
        if self.count == self.most:
            raise gpu.refusal(gr.Error("You have exceeded your free ZeroGPU quota (35s requested vs. 3s left). "))
        self.count += 1
        return self.runner.run(part, self.ticket, previews=False)


def refused_after(slices: int, job: Job, engine: StyleEngine, words: str = "left.. The finished frames are") -> None:
    """Runs a clip until its next slice is refused."""
    with pytest.raises(StyleEngineError, match=words):
        list(ClipSlices(job).outcomes(Slices(engine, slices)))


def test_a_refused_clip_continues_after_its_finished_frames(
    engine: StyleEngine, forked: ForkedGPU, clip: VideoClip, coffee: Image.Image, tmp_path: Path
) -> None:
    job = clip_job(clip, coffee, tmp_path)
    expected = engine.zstar_video(clip, [Style(coffee)], job.settings, output=tmp_path / "whole.mp4")
    refused_after(2, job, engine)
    refused_after(0, job, engine)  # nothing more, but what was kept before stays
    run = Slices(engine)
    *reports, result = ClipSlices(job).outcomes(run)
    assert run.count == 2  # of four frames
    assert result.complete
    assert result.differences == expected.differences
    assert result.image.tobytes() == expected.image.tobytes()
    phases = 1 + 2 + 4  # inversions of the style, of the first frame and of the others; the frames
    assert {report.total for report in reports} == {phases * job.settings.steps}
    assert reports[0].step >= 3 * job.settings.steps  # the first frame's inversion, and two frames
    assert not list(kept_folder().iterdir())


def test_only_the_same_run_continues_a_kept_clip(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, astronaut: Image.Image, tmp_path: Path
) -> None:
    refused_after(2, clip_job(clip, coffee, tmp_path), engine)
    for other in (clip_job(clip, astronaut, tmp_path), clip_job(clip, coffee, tmp_path, strength=0.5)):
        run = Slices(engine)
        *_, result = ClipSlices(other).outcomes(run)
        assert (run.count, result.complete) == (4, True)
    run = Slices(engine)
    list(ClipSlices(clip_job(clip, coffee, tmp_path)).outcomes(run))
    assert run.count == 2


def test_a_cancelled_clip_continues_after_its_finished_frames(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, tmp_path: Path
) -> None:
    job, run = clip_job(clip, coffee, tmp_path, steps=4), Slices(engine)
    last: Any = None
    for outcome in ClipSlices(job).outcomes(run):
        if run.count == 3:
            run.runner.release(run.ticket)
        last = outcome
    assert not last.complete
    again = Slices(engine)
    *_, result = ClipSlices(job).outcomes(again)
    assert result.complete
    assert again.count < 4


@pytest.mark.parametrize("file", ["first.safetensors", "run.json"])
def test_a_kept_clip_that_is_damaged_starts_from_the_first_frame(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, tmp_path: Path, file: str
) -> None:
    job = clip_job(clip, coffee, tmp_path)
    refused_after(2, job, engine)
    (kept,) = kept_folder().iterdir()
    (kept / file).write_bytes(b"damaged")
    run = Slices(engine)
    *_, result = ClipSlices(job).outcomes(run)
    assert result.complete
    assert run.count == 1 + 4


def test_what_is_not_kept_is_not_promised(
    engine: StyleEngine, clip: VideoClip, coffee: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, alone = clip_job(clip, coffee, tmp_path), r"left\)\.$"
    refused_after(0, job, engine, alone)  # no frame is finished
    monkeypatch.setattr(kept_clips, "MOST_BYTES", 100)
    refused_after(2, job, engine, alone)
    assert not list(kept_folder().iterdir())
    monkeypatch.setenv("STYLEENGINE_DISK_CACHE", "off")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refused_after(2, job, engine, alone)
    assert not list(tmp_path.glob("styleengine-clip*"))


def kept_run(clips: KeptClips, number: int, nbytes: int = 10) -> str:
    """The name of a new kept folder of that size."""
    name = f"{number:064x}"
    work = clips.take(name)
    (work / "frame").write_bytes(bytes(nbytes))
    assert clips.keep(name, work)
    return name


def test_the_latest_clips_are_kept_within_number_bytes_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clips"
    clips = KeptClips(folder)

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def age(name: str, seconds: float) -> None:
        os.utime(folder / name, (time.time() - seconds,) * 2)

    kept = [kept_run(clips, number) for number in range(kept_clips.MOST_CLIPS)]
    for number, name in enumerate(kept):
        age(name, 1000 - number)
    kept.append(kept_run(clips, 99))
    assert names() == kept[1:]
    monkeypatch.setattr(kept_clips, "MOST_BYTES", sum(map(_size, folder.iterdir())) - 1)
    clips.sweep()
    assert names() == kept[2:]
    running = clips.take("0" * 63 + "f")
    age(kept[-1], kept_clips.MOST_SECONDS + 1)
    clips.sweep()
    assert names() == [*kept[2:-1], running.name]
    age(running.name, kept_clips.MOST_SECONDS + 1)  # of a run that was killed
    (folder / "other").mkdir()
    age("other", kept_clips.MOST_SECONDS + 1)
    clips.sweep()
    assert names() == [*kept[2:-1], "other"]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def test_a_kept_clip_is_private_and_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir(mode=0o755)
    clips = KeptClips(folder)
    name = kept_run(clips, 1)
    assert folder.stat().st_mode & 0o777 == 0o700
    first, second = clips.take(name), clips.take(name)
    assert ((first / "frame").exists(), (second / "frame").exists()) == (True, False)
    link = tmp_path / "link"
    link.symlink_to(folder)
    elsewhere = KeptClips(link).take(name)
    assert folder not in elsewhere.resolve().parents
    assert not KeptClips(link).keep(name, elsewhere)
    elsewhere.rmdir()


def test_only_on_zero_gpu_is_a_clip_run_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, image = Job("zstar_video", {}, ZStarVideoSettings()), Job("zstar", {}, ZStarSettings())
    assert clip_slices.in_slices(clip) is clip
    monkeypatch.setattr(clip_slices, "ZERO", True)
    assert isinstance(clip_slices.in_slices(clip), ClipSlices)
    assert clip_slices.in_slices(image) is image


def test_each_slice_asks_in_the_name_of_the_latest_request(engine: StyleEngine) -> None:
    runner, names = Runner(engine), list[Any]()

    def outcomes(*_: Any) -> Iterator[Any]:
        names.append(LocalContext.request.get(None))
        yield TimeUp()

    runner._outcomes = outcomes
    ticket = runner.admit_without_session("zstar_video")
    first, second = gr.Request(), gr.Request()

    def slices() -> None:
        LocalContext.request.set(first)
        for _ in range(2):
            with pytest.raises(TimeUp):
                list(runner.run(Job("zstar_video", {}, None), ticket, previews=False))
            runner.renew(ticket, second)

    contextvars.copy_context().run(slices)
    assert names == [first, second]
    runner.forget(ticket)
    runner.renew(ticket, second)
    assert not runner._requests


@pytest.mark.parametrize(
    ("words", "kind", "shown"),
    [
        ("You have exceeded your free ZeroGPU quota (60s requested vs. 3s left).", StyleEngineError, "60s requested"),
        ("GPU task aborted", StyleEngineError, "fewer steps"),
        ("Expired ZeroGPU proxy token", StyleEngineError, "Reload the page"),
        ("No GPU was available", StyleEngineError, r"No GPU was available\.$"),
        ("ZeroDivisionError", RuntimeError, "ZeroDivisionError"),  # in the process: shown as unexpected
    ],
)
def test_what_zero_gpu_refuses_is_told_to_the_user(
    engine: StyleEngine, words: str, kind: type[Exception], shown: str
) -> None:
    def refused(*_: Any) -> Iterator[Any]:
        raise gr.Error(words)
        yield

    runner = Runner(engine)
    runner._outcomes = refused
    with pytest.raises(kind, match=shown):
        list(runner.run(Job("zstar", {}, None), runner.admit_without_session("zstar"), previews=False))


def test_the_time_that_is_asked_for_grows_with_steps_size_frames_and_variations() -> None:
    def asked(method: str, settings: Any, **options: Any) -> int:
        return gpu.seconds(Job(method, {}, settings, options), "ticket", True)

    default = asked("zstar", ZStarSettings())
    assert gpu.LEAST_SECONDS <= asked("zstar", ZStarSettings(steps=2)) <= default < gpu.MOST_SECONDS
    assert default < asked("zstar", ZStarSettings(steps=120))
    assert default < asked("zstar", ZStarSettings(size=1024))
    assert default < asked("zstar_video", ZStarVideoSettings(frames=8))
    assert asked("zstar_video", ZStarVideoSettings(frames=48)) == gpu.MOST_SECONDS
    assert asked("qs_attn", QSAttnSettings()) < asked("qs_attn_variations", QSAttnSettings(), count=4)
    assert asked("inst_learn", InSTLearningSettings()) == gpu.MOST_SECONDS
    assert asked("inst_learn", InSTLearningSettings(), seconds=30.0) == gpu.START_SECONDS + 30


def test_without_the_package_functions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "spaces", None)
    assert gpu.on_gpu(len) is len


def test_the_app_imports_spaces_before_torch(tmp_path: Path) -> None:
    (tmp_path / "spaces.py").write_text("import sys\nassert 'torch' not in sys.modules\nprint('spaces came first')\n")
    app = Path(__file__).parents[1] / "app.py"
    imports = app.read_text().split("silence_libraries()")[0]
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); exec({imports!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=app.parent, capture_output=True, text=True, check=False)
    assert "spaces came first" in done.stdout, done.stderr
