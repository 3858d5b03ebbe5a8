"""Shared fixtures: a small random model, a backbone and engines on it, and real pictures."""

import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers share two cores; so do the processes that tests start
    os.environ["OMP_NUM_THREADS"] = "1"


import styleengine.networks  # noqa: F401 - before diffusers is imported, which would import xformers

# isort: split

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from models import write_random_model, write_random_pixel_model
from PIL import Image
from playwright.sync_api import Browser, Error, sync_playwright
from skimage import data
from transformers.utils import logging as transformers_logging

from styleengine import StyleEngine, ZStarSettings, file_hashes
from styleengine.backbones import Backbone

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
HASHES = Path(tempfile.mkdtemp(prefix="styleengine-hashes-")) / "file-hashes.json"
file_hashes.store = lambda: HASHES


@pytest.fixture(scope="module", autouse=True)
def _own_styles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A library of styles for each test file, since which files share a process differs from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEENGINE_STYLES", str(tmp_path_factory.mktemp("styles")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture(scope="session")
def shared_engine(model_folder: Path) -> StyleEngine:
    return StyleEngine(str(model_folder), device="cpu")


@pytest.fixture
def engine(shared_engine: StyleEngine) -> StyleEngine:
    """An engine with an empty cache; all tests share the networks."""
    shared_engine.cache.clear()
    return shared_engine


@pytest.fixture(scope="session")
def backbone(shared_engine: StyleEngine) -> Backbone:
    return shared_engine.backbone


@pytest.fixture(autouse=True)
def _no_earlier_run(request: pytest.FixtureRequest) -> None:
    """Waits for the current step of a job that an earlier test cancelled: its taps change the U-Net for all threads."""
    for name in {"shared_engine", "shared_pixel_engine"} & set(request.fixturenames):
        with request.getfixturevalue(name)._turns.one():
            pass


@pytest.fixture(scope="session")
def pixel_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_pixel_model(tmp_path_factory.mktemp("pixel-model") / "random")


@pytest.fixture(scope="session")
def shared_pixel_engine(pixel_model_folder: Path) -> StyleEngine:
    return StyleEngine(str(pixel_model_folder), device="cpu")


@pytest.fixture
def pixel_engine(shared_pixel_engine: StyleEngine) -> StyleEngine:
    """As `engine`, on a pixel-space model."""
    shared_pixel_engine.cache.clear()
    return shared_pixel_engine


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((128, 128))


@pytest.fixture(scope="session")
def coffee() -> Image.Image:
    return Image.fromarray(data.coffee()).resize((150, 100))


@pytest.fixture(scope="session")
def cat() -> Image.Image:
    return Image.fromarray(data.chelsea()).resize((113, 75))


@pytest.fixture(scope="session")
def rocket() -> Image.Image:
    return Image.fromarray(data.rocket()).resize((96, 64))


@pytest.fixture(scope="session")
def quick() -> ZStarSettings:
    """Settings for a run of well under a second."""
    return ZStarSettings(size=64, steps=4)


@contextmanager
def counted_evaluations(backbone: Backbone) -> Iterator[list[int]]:
    """Within the context, the batch size of every forward pass of the U-Net is appended to the list."""
    batches: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        batches.append(len(inputs[0]))

    hook = backbone.unet.register_forward_hook(note)
    try:
        yield batches
    finally:
        hook.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Reports are sent to another process as UTF-8, but file names in a test's output may not be UTF-8."""
    report = yield
    report.sections = [(name, _printable(text)) for name, text in report.sections]
    if report.failed and _printable(report.longreprtext) != report.longreprtext:
        report.longrepr = _printable(report.longreprtext)
    return report


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            give_up(f"Chromium could not be started: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(shared_engine: StyleEngine) -> Iterator[str]:
    """The address of the app on the small random model."""
    from styleengine import ui  # only here, since gradio takes long to import

    demo = ui.build(shared_engine)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coffee: Image.Image, cat: Image.Image) -> dict[str, Path]:
    """A content and a style image to upload."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, picture in {"content": coffee, "style": cat}.items():
        picture.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in ("content", "style")}
