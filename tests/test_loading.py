"""Loading a model from the hub while the app serves: the engine's part, and the page's."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import NAME, FakeHub, fake_hub
from PIL import Image

from styleengine import StyleEngine, ZStarSettings
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.loads import UNEXPECTED, Load, Loads
from styleengine.methods import METHODS
from styleengine.stylization import StepEvent

PATIENCE = 60.0
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with the small random model, and an empty cache."""
    with fake_hub(model_folder, tmp_path / "hub") as served:
        yield served


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def share(event: StepEvent | None) -> float:
    return event.step / event.total if event else 0


# The engine


def test_a_lazy_engine_loads_at_its_first_run_and_reports_the_share(
    hub: FakeHub, engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    lazy, events = StyleEngine(NAME, device="cpu", lazy=True), list[StepEvent]()
    assert lazy.loaded is None
    assert lazy.loading == (None, "")
    assert UNET not in hub.sent

    def on_step(event: StepEvent) -> None:
        events.append(event)
        if share(event) > 0.5:
            hub.open.set()

    hub.open.clear()
    result = lazy.zstar(astronaut, [coffee], quick, on_step=on_step)
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["loading owner/name", "content 1", "style 1", "stylizing"]
    assert phases[0].title == "Loading owner/name"
    shares = [share(event) for event in events if event.phase == phases[0]]
    assert shares == sorted(shares)
    assert 0.4 < shares[-1] <= 1
    expected = engine.zstar(astronaut, [coffee], quick)
    assert result.image.tobytes() == expected.image.tobytes()
    assert lazy.loaded is lazy.backbone


def test_settings_are_known_before_the_weights(tmp_path: Path, pixel_model_folder: Path) -> None:
    with fake_hub(pixel_model_folder, tmp_path) as hub:
        lazy = StyleEngine(NAME, device="cpu", lazy=True)
        settings = lazy.settings_for(METHODS["h_space"].settings, "h_space", None)
        assert settings.size == 64  # at which this model was trained
        assert not [file for file in hub.sent if file.endswith(".safetensors")]


def test_a_lazy_engine_of_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(StyleEngineError, match="There is no model “nosuchmodel”"):
        StyleEngine("nosuchmodel", lazy=True)


def test_a_preload_that_fails_gives_its_reason_and_the_next_run_tries_again(hub: FakeHub) -> None:
    lazy = StyleEngine(NAME, device="cpu", lazy=True)
    hub.status = 500
    lazy.preload()
    until(lambda: lazy.loading[1])
    assert lazy.loading[0] is None
    assert "broke off" in lazy.loading[1]
    with pytest.raises(StyleEngineError, match="broke off"):
        lazy.with_model(None)
    hub.status = 200
    assert lazy.with_model(None).loaded
    assert lazy.loading == (None, "")


def test_one_load_serves_all_who_wait_and_goes_on_when_one_of_them_leaves(hub: FakeHub) -> None:
    lazy = StyleEngine(NAME, device="cpu", lazy=True)

    def leave(event: StepEvent) -> None:
        raise Cancelled

    hub.open.clear()
    lazy.preload()
    with ThreadPoolExecutor(2) as others:
        until(lambda: share(lazy.loading[0]) > 0.3)
        staying = others.submit(lazy.with_model, None)
        with pytest.raises(Cancelled):
            lazy.with_model(None, on_step=leave)
        assert lazy.loading[0]
        hub.open.set()
        assert staying.result(PATIENCE).loaded
    assert hub.sent.count(UNET) == 1


def test_a_load_that_nobody_waits_for_ends(hub: FakeHub) -> None:
    lazy = StyleEngine(NAME, device="cpu", lazy=True)

    def leave(event: StepEvent) -> None:
        if share(event) > 0.3:
            raise Cancelled

    hub.open.clear()
    with pytest.raises(Cancelled):
        lazy.with_model(None, on_step=leave)
    assert lazy.loading == (None, "")
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "styleengine-loading"])
    hub.open.set()
    assert lazy.with_model(None).loaded
    assert hub.sent.count(UNET) == 2


def test_runs_go_on_while_another_model_is_downloaded(
    hub: FakeHub, model_folder: Path, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    engine = StyleEngine(str(model_folder), device="cpu")
    hub.open.clear()
    with ThreadPoolExecutor(1) as others:
        other = others.submit(engine.with_model, NAME)
        until(lambda: UNET in hub.sent)
        assert engine.zstar(astronaut, [coffee], quick)
        assert not other.done()
        hub.open.set()
        assert other.result(PATIENCE).backbone.name == NAME


def test_a_load_waits_for_its_turn_and_says_so(hub: FakeHub) -> None:
    engine, events = StyleEngine(NAME, device="cpu", lazy=True), list[StepEvent]()

    def on_step(event: StepEvent) -> None:
        events.append(event)
        if event.phase == "waiting":
            raise Cancelled

    with engine._turns.one(), pytest.raises(Cancelled):
        engine.with_model(None, on_step=on_step)
    assert (events[-1].step, events[-1].total) == (0, 1)


def test_the_clip_of_a_model_is_loaded_with_progress_too(
    hub: FakeHub, engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[StepEvent] = []

    def slow(backbone: Backbone, on_bytes: Callable[[int, int], None]) -> SimpleNamespace:
        on_bytes(3, 10)
        until(lambda: events)
        return SimpleNamespace(nbytes=1)

    monkeypatch.setattr(engine, "_backbones", ByteCache(1 << 30))
    monkeypatch.setattr("styleengine.engine_core.Clip", slow)
    assert engine.clip(events.append).nbytes == 1
    assert events[0].phase.startswith("loading CLIP of")
    assert share(events[0]) == 0.3


def test_an_unexpected_error_is_raised_but_not_told_to_visitors() -> None:
    loads = Loads()

    def make(load: Load) -> None:
        raise OSError("/home/somebody/private")

    with pytest.raises(OSError, match="private"):
        loads.result("a", "A", make, None)
    assert loads.state("a") == (None, UNEXPECTED)
