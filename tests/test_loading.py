"""Loading a model from the hub while the app serves: the engine's part, and the page's."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import NAME, FakeHub, fake_hub
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_app import QUICK, expect_status, fill, run, upload
from test_learned_style import made_up

from styleengine import StyleEngine, ZStarSettings, ui
from styleengine.backbones import BACKBONES, Backbone
from styleengine.backbones.origins import Origin
from styleengine.cache import ByteCache
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.loads import UNEXPECTED, Load, Loads
from styleengine.methods import METHODS
from styleengine.style_library import StyleLibrary
from styleengine.stylization import StepEvent

PATIENCE = 60.0  # seconds
SLOW = {"timeout": PATIENCE * 1000}
BANNER = ".block.model-loading"
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


PROGRAM = """
import time
from huggingface_hub import constants
from styleengine import StyleEngine
constants.DOWNLOAD_CHUNK_SIZE = 8192
engine = StyleEngine("owner/name", device="cpu", lazy=True)
engine.preload()
while not engine.loading[0] or engine.loading[0].step < 0.4 * engine.loading[0].total:
    time.sleep(0.05)
print("ends")
"""


def test_a_program_that_ends_does_not_wait_for_the_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.open.clear()
    hub.pause = 1.0  # minutes for the whole file
    variables = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stderr
        assert program.stdout.readline() == "ends\n"
        assert program.wait(20) == 0
        assert "Traceback" not in program.stderr.read()


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


# The page


@contextmanager
def launched(engine: StyleEngine) -> Iterator[str]:
    """The app's address."""
    demo = ui.build(engine)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options())
    yield url
    demo.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens an address in a fresh tab."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)

    def opened(address: str) -> Page:
        page.goto(address)
        return page

    yield opened
    page.close()


@pytest.fixture
def address(hub: FakeHub) -> Iterator[str]:
    """The app on a lazy engine, whose model comes slowly from the hub."""
    hub.open.clear()
    hub.pause = 1.0
    with launched(StyleEngine(NAME, device="cpu", lazy=True)) as url:
        yield url
        hub.open.set()


@pytest.fixture
def page(visit: Callable[[str], Page], address: str) -> Page:
    return visit(address)


@pytest.fixture
def files(tmp_path: Path, coffee: Image.Image, cat: Image.Image) -> dict[str, Path]:
    for name, picture in {"content": coffee, "style": cat}.items():
        picture.save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in ("content", "style")}


def choose(page: Page, files: dict[str, Path]) -> None:
    for name, label in (("content", "Content"), ("style", "Style")):
        upload(page, label, files[name])
    fill(page, **QUICK)


def test_the_page_is_there_before_the_model_shows_the_share_and_works_without_a_reload(
    hub: FakeHub, page: Page, files: dict[str, Path]
) -> None:
    banner = page.locator(BANNER)
    expect(banner).to_contain_text(re.compile(r"Loading owner/name … \d\d %"), **SLOW)
    expect(page.locator(".masthead .model")).to_contain_text("Model: ", **SLOW)
    bar = banner.get_by_role("progressbar")
    before = int(bar.get_attribute("aria-valuenow") or 0)
    assert 40 < before < 95
    expect(bar).not_to_have_attribute("aria-valuenow", str(before), **SLOW)
    choose(page, files)
    run(page)
    expect_status(page, re.compile(r"Loading owner/name … \d\d %"))
    hub.open.set()
    expect_status(page, "96×64 pixels in")
    expect(banner).to_be_hidden(**SLOW)
    page.reload()
    expect(page.locator("button.run:visible")).to_be_enabled(**SLOW)
    expect(banner).to_be_hidden(**SLOW)
    assert hub.sent.count(UNET) == 1


def test_a_run_that_waits_for_the_model_can_be_cancelled_and_the_model_still_comes(
    hub: FakeHub, page: Page, files: dict[str, Path]
) -> None:
    choose(page, files)
    run(page)
    expect_status(page, "Loading owner/name …")
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    expect(page.locator(BANNER)).to_contain_text("Loading owner/name …", **SLOW)
    hub.open.set()
    expect(page.locator(BANNER)).to_be_hidden(**SLOW)
    run(page)
    expect_status(page, "96×64 pixels in")


def test_a_failure_is_told_on_the_page_and_run_tries_again(
    hub: FakeHub, visit: Callable[[str], Page], files: dict[str, Path]
) -> None:
    hub.status = 500
    with launched(StyleEngine(NAME, device="cpu", lazy=True)) as url:
        page = visit(url)
        banner = page.locator(BANNER)
        expect(banner).to_contain_text("owner/name could not be loaded. The download of the model", **SLOW)
        choose(page, files)
        run(page)
        expect_status(page, "broke off")
        hub.status = 200
        run(page)
        expect_status(page, "96×64 pixels in")
        expect(banner).to_be_hidden(**SLOW)


def test_calls_of_the_api_wait_for_the_model_with_the_same_words(
    hub: FakeHub, address: str, files: dict[str, Path]
) -> None:
    client = Client(address, verbose=False, download_files=str(files["content"].parent / "downloads"))
    inputs = {name: handle_file(file) for name, file in files.items()}
    job = client.submit(**inputs, **QUICK, api_name="/zstar")
    words: set[str] = set()

    def noted() -> bool:
        words.update(unit.desc or "" for unit in job.status().progress_data or ())
        return any(re.fullmatch(r"Loading owner/name … \d\d %", text) for text in words)

    until(noted)
    hub.open.set()
    path, record = job.result(PATIENCE)
    assert Path(path).is_file()
    assert record["backbone"] == NAME


def test_another_model_that_a_visitor_chooses_is_loaded_with_the_same_progress(
    hub: FakeHub,
    shared_engine: StyleEngine,
    visit: Callable[[str], Page],
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = {"far": Origin(NAME, title="A far model (large)")}
    monkeypatch.setattr("styleengine.backbones.origins.BACKBONES", {**BACKBONES, **named})
    hub.open.clear()
    with launched(shared_engine) as url:
        page = visit(url)
        page.get_by_role("tab", name="h-space").click()
        choose(page, files)
        page.get_by_label("Model").locator("visible=true").click()
        page.get_by_role("option", name="A far model").click()
        page.wait_for_timeout(500)  # the controls change to the model's values
        fill(page, **QUICK)
        run(page)
        expect_status(page, re.compile(r"Loading A far model … \d\d %"))
        hub.open.set()
        expect_status(page, "96×64 pixels in")
        assert page.locator(BANNER).count() == 0


def test_the_styles_that_fit_are_offered_when_the_model_is_there(
    hub: FakeHub, page: Page, engine: StyleEngine, cat: Image.Image
) -> None:
    style = StyleLibrary().add(made_up(engine.backbone, cat))
    page.get_by_role("tab", name="InST").click()
    page.get_by_role("tab", name="Apply").click()
    box = page.get_by_label("Style", exact=True).locator("visible=true")
    expect(box).to_have_value("", **SLOW)
    hub.open.set()
    expect(box).to_have_value(style.record.name, **SLOW)


def test_a_training_waits_for_the_model_and_says_so(hub: FakeHub, address: str, files: dict[str, Path]) -> None:
    client = Client(address, verbose=False, download_files=str(files["content"].parent / "downloads"))
    quick = {"steps": 2, "size": 32, "batch": 2, "views": 2}
    job = client.submit(painting=handle_file(files["style"]), name="slow", **quick, api_name="/inst_learn")
    words: set[str] = set()

    def noted() -> bool:
        assert not job.done()
        words.update(unit.desc or "" for unit in job.status().progress_data or ())
        return any(re.fullmatch(r"“slow.*”: Loading owner/name … \d\d %", text) for text in words)

    until(noted)
    hub.open.set()
    assert job.result(PATIENCE)[1]["name"].startswith("slow")
