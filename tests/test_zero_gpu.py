"""Runs as on ZeroGPU: each in a forked process, with pickled arguments and results, and for a stated time."""

import inspect
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
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
from styleengine.errors import Cancelled
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.ui import gpu
from styleengine.ui.runs import Job, Report, Runner

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
    try:
        while (received := receiver.recv_bytes()) != END:
            yield pickle.loads(received)
    finally:
        process.join(60)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> ForkedGPU:
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
