"""The app over the API, over MCP, and in a browser."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import asyncio
import base64
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from clips import panned, write_raw
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from mcp import ClientSession, types
from mcp.client.streamable_http import streamablehttp_client
from models import write_random_pixel_model
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_learned_style import made_up

from styleengine import (
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    LearnedStyle,
    QSAttnSettings,
    StyleEngine,
    StyTr2Settings,
    ZStarSettings,
    ui,
)
from styleengine import engine as engine_module
from styleengine.backbones import named_backbones, origins, recommended_settings
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.methods import METHODS
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.phases import STYLIZING, WAITING, Phase
from styleengine.settings import Settings
from styleengine.style_library import StyleLibrary
from styleengine.stylization import METADATA_KEY, StepEvent, Stylization, read_record
from styleengine.ui import examples, runs, tabs
from styleengine.ui import learning as learning_module
from styleengine.ui.controls import Controls
from styleengine.ui.learning import MOST_LEARNING
from styleengine.ui.panel import line
from styleengine.ui.pictures import painted_mask
from styleengine.ui.result import ResultPanel, place
from styleengine.ui.runs import Runner
from styleengine.ui.style_choice import StyleChoice
from styleengine.ui.uploads import REFUSED, sentence
from styleengine.video import open_clip, read_comment

QUICK: dict[str, Any] = {"size": 64, "steps": 4}
LONG: dict[str, Any] = {"size": 64, "steps": 200}
PATIENCE = 60_000  # milliseconds
APP = Path(__file__).parents[1] / "app.py"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a pixel model in a folder beside the embedded one."""
    models = tmp_path_factory.mktemp("models")
    write_random_pixel_model(models / "squares")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origins, "MODELS", models)
        yield "squares"


@pytest.fixture(scope="module", autouse=True)
def _small_previews() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "PREVIEW_SIZE", 64)
        patch.setattr(engine_module, "PREVIEW_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def address(shared_engine: StyleEngine, beside: str) -> Iterator[str]:
    demo = ui.build(shared_engine)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coffee: Image.Image, cat: Image.Image) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    mask = Image.new("L", coffee.size)
    mask.paste(255, (0, 0, coffee.width // 2, coffee.height))
    pictures = {"content": coffee, "style": cat, "mask": mask}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"not an image")
    frames = panned(coffee, 6, (96, 64), 6)
    clip = write_raw(folder / "clip.mp4", frames, sound="aac")
    return {name: folder / f"{name}.png" for name in (*pictures, "broken")} | {"clip": clip}


@pytest.fixture
def zstar(client: Client, files: dict[str, Path]) -> Callable[..., Job]:
    """Submits a run; names of `files` given for pictures become uploads."""

    def submit(**inputs: Any) -> Job:
        given = {"content": "content", "style": "style", **QUICK, **inputs}
        uploads = {name: handle_file(files[value]) for name, value in given.items() if value in files}
        return client.submit(**{**given, **uploads}, api_name="/zstar")

    return submit


@pytest.fixture
def h_space(client: Client, files: dict[str, Path]) -> Callable[..., Job]:
    """As `zstar`, for the h-space tab."""

    def submit(**inputs: Any) -> Job:
        given = {"content": "content", "style": "style", **QUICK, **inputs}
        uploads = {name: handle_file(files[value]) for name, value in given.items() if value in files}
        return client.submit(**{**given, **uploads}, api_name="/h_space")

    return submit


@pytest.fixture
def qs_attn(client: Client, files: dict[str, Path]) -> Callable[..., Job]:
    """As `zstar`, for the QS-Attn tab."""

    def submit(**inputs: Any) -> Job:
        given = {"content": "content", "prompt": "ink", "size": 64, "steps": 2, "patches": 2, **inputs}
        given["content"] = handle_file(files[given["content"]]) if given["content"] else None
        return client.submit(**given, api_name="/qs_attn")

    return submit


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The app in a fresh tab, with quick settings; errors in the page and requests elsewhere fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url, address) else troubles.append(request.url))
    page.goto(address)
    expect(page.locator("button.run")).to_be_enabled(timeout=PATIENCE)
    fill(page, **QUICK)
    yield page
    page.close()
    assert troubles == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def fill(page: Page, **numbers: int) -> None:
    for name, number in numbers.items():
        box = page.get_by_label(f"number input for {name.capitalize()}").locator("visible=true")
        box.fill(str(number))
        box.press("Tab")


def upload(page: Page, label: str, file: Path) -> None:
    block = page.locator(".block:visible").filter(has=page.get_by_text(label, exact=True))
    block.locator("input[type=file]").first.set_input_files(file)
    expect(block.locator("img").first).to_be_visible(timeout=PATIENCE)


def roles(record: dict[str, Any]) -> list[str]:
    return [entry["role"] for entry in record["inputs"]]


def expect_status(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.locator(".status:visible").first).to_contain_text(text, timeout=PATIENCE)


def run(page: Page) -> None:
    page.locator("button.run:visible").click()


def open_tab(page: Page, title: str) -> None:
    page.get_by_role("tab", name=title).click()
    expect(page.locator("button.run:visible")).to_have_count(1, timeout=PATIENCE)
    expect(page.locator(".status:visible").first).to_contain_text("Choose a content")


def test_the_api_gives_a_png_with_the_contents_shape_and_the_record(zstar: Callable[..., Job]) -> None:
    path, record = zstar(strength=1.5, seed=7).result()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (96, 64)  # 150×100, the shorter side at 64
    assert read_record(path) == record
    assert record["settings"]["strength"] == 1.5
    assert record["settings"]["seed"] == 7


def test_omitted_settings_stay_at_the_default(zstar: Callable[..., Job]) -> None:
    _, record = zstar().result()
    assert record["settings"] == ZStarSettings(**QUICK).model_dump()


def test_records_contain_no_folder_of_the_server(zstar: Callable[..., Job]) -> None:
    _, record = zstar(mask="mask").result()
    assert {Path(entry["name"]).name for entry in record["inputs"]} == {entry["name"] for entry in record["inputs"]}
    assert "/tmp" not in json.dumps(record)


def test_an_uploaded_mask_is_used(zstar: Callable[..., Job]) -> None:
    _, record = zstar(mask="mask").result()
    assert roles(record) == ["content", "style", "mask"]


def test_several_styles_come_with_their_weights(zstar: Callable[..., Job]) -> None:
    _, record = zstar(style_2="content", weight_2=0.5).result()
    assert [entry["weight"] for entry in record["inputs"] if entry["role"] == "style"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"content": "broken"}, "is not an image that can be read"),
        ({"style": None}, "No style image was given"),
        ({"strength": 9}, "strength = 9"),
        ({"weight": "heavy"}, "weight is 'heavy': it must be a number"),
        ({"mode": "cubism"}, "mode = 'cubism'"),
        ({"style_2": "style", "style_3": "style", "mask": "mask"}, "One mask serves one or two styles"),
    ],
)
def test_bad_input_gets_the_engines_sentence(zstar: Callable[..., Job], inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AppError, match=sentence):
        zstar(**inputs).result()


def test_a_client_can_cancel_and_run_again(client: Client, zstar: Callable[..., Job]) -> None:
    job = zstar(**LONG)
    while not job.status().progress_data:
        assert not job.done()
        time.sleep(0.1)
    client.predict(api_name="/zstar_cancel")
    with pytest.raises(AppError, match="Cancelled"):
        job.result(timeout=15)
    assert zstar().result()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("zstar", ZStarSettings),
        ("h_space", HSpaceSettings),
        ("qs_attn", QSAttnSettings),
        ("inst_learn", InSTLearningSettings),
        ("inst_apply", InSTSettings),
        ("stytr2", StyTr2Settings),
    ],
)
def test_each_setting_is_described_to_mcp_clients(address: str, name: str, settings: type[Settings]) -> None:
    tools = httpx.get(f"{address}gradio_api/mcp/schema").json()
    (tool,) = [tool for tool in tools if tool["meta"]["endpoint_name"] == name]
    described = tool["inputSchema"]["properties"]
    for knob in settings.knobs():
        assert knob.description in described[knob.name]["description"]


def test_the_h_space_api_gives_a_png_with_the_record(h_space: Callable[..., Job]) -> None:
    path, record = h_space(gamma=0.6, mask="mask").result()
    with Image.open(path) as image:
        assert image.size == (96, 64)
    assert read_record(path) == record
    assert record["method"] == "h_space"
    assert record["settings"] == HSpaceSettings(gamma=0.6, **QUICK).model_dump()
    assert roles(record) == ["content", "style", "mask"]


def test_h_space_runs_on_the_model_that_a_client_names(
    h_space: Callable[..., Job], client: Client, files: dict[str, Path], beside: str
) -> None:
    _, record = h_space(model=beside).result()
    assert record["backbone"] == beside
    uploads = {name: handle_file(files[name]) for name in ("content", "style")}
    _, record = client.predict(**uploads, model=beside, steps=2, api_name="/h_space")
    assert record["settings"]["size"] == 64  # what is left out, this model recommends


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"model": "owner/name"}, "There is no model “owner/name” here. Choose one of"),
        ({"style": None}, "No style image was given"),
        ({"gamma": 2}, "gamma = 2"),
        ({"t_start": 100}, "move the two apart"),
    ],
)
def test_bad_input_to_h_space_gets_the_engines_sentence(
    h_space: Callable[..., Job], inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        h_space(**inputs).result()


def test_the_qs_attn_api_gives_a_png_with_the_record(qs_attn: Callable[..., Job]) -> None:
    path, record = qs_attn(prompt="ink | oil::2", balance=0.7).result()
    with Image.open(path) as image:
        assert image.size == (96, 64)
    assert read_record(path) == record
    assert record["method"] == "qs_attn"
    expected = QSAttnSettings(prompt="ink | oil::2", balance=0.7, size=64, steps=2, patches=2)
    assert record["settings"] == {**expected.model_dump(), "save_memory": "off"}
    assert roles(record) == ["content"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"prompt": ""}, "No style was given"),
        ({"prompt": "🎨"}, "does not know any word of"),
        ({"content": None}, "No content image was given"),
        ({"balance": 2}, "balance = 2"),
        ({"model": "owner/name"}, "There is no model “owner/name” here"),
        ({"model": "squares"}, "has no CLIP"),
    ],
)
def test_bad_input_to_qs_attn_gets_the_engines_sentence(
    qs_attn: Callable[..., Job], inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        qs_attn(**inputs).result()


def test_controls_start_from_what_the_backbone_recommends(
    shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_engine.backbone, "recommended", {"zstar": {"strength": 2.0}})
    sliders = [block for block in ui.build(shared_engine).blocks.values() if isinstance(block, gr.Slider)]
    assert next(slider.value for slider in sliders if slider.label == "Strength λ") == 2.0


def test_an_untouched_canvas_is_no_mask() -> None:
    assert painted_mask(None) is None
    assert painted_mask({"background": None, "layers": [], "composite": None}) is None


def test_a_model_that_cannot_be_loaded_is_explained_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEENGINE_MODEL", "nosuchmodel")
    demo = runpy.run_path(str(APP))["demo"]
    assert "There is no model “nosuchmodel”" in str(demo.get_config_file()["components"])


def test_a_run_in_the_browser_shows_progress_and_then_the_picture(page: Page, files: dict[str, Path]) -> None:
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    fill(page, steps=40)
    run(page)
    expect_status(page, "of 120")
    expect_status(page, "96×64 pixels in")
    expect(page.locator(".result img")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    assert read_record(download.value.path())["settings"]["steps"] == 40


def test_cancel_in_the_browser_stops_and_the_next_run_works(page: Page, files: dict[str, Path]) -> None:
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    fill(page, steps=LONG["steps"])
    for _ in range(3):  # again and again, as fast as the page allows: no run may end another
        run(page)
        expect_status(page, "of 600")
        page.get_by_role("button", name="Cancel").click()
        expect_status(page, "Cancelled.")
    fill(page, steps=QUICK["steps"])
    run(page)
    expect_status(page, "pixels in")


def test_a_run_that_is_cancelled_while_it_waits_never_begins(
    page: Page, files: dict[str, Path], client: Client, zstar: Callable[..., Job]
) -> None:
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    shown = [image.get_attribute("src") for image in page.locator(".result:visible img").all()]
    first = zstar(**LONG)
    while not first.status().progress_data:
        time.sleep(0.05)
    run(page)
    expect_status(page, "Waiting in the queue")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled.")
    client.predict(api_name="/zstar_cancel")
    page.wait_for_timeout(2000)  # its turn comes, and it does not run
    expect_status(page, "Cancelled.")
    assert [image.get_attribute("src") for image in page.locator(".result:visible img").all()] == shown
    run(page)
    expect_status(page, "pixels in")


def test_a_click_on_an_example_fills_the_inputs_and_runs(page: Page) -> None:
    page.locator("#examples td").first.click()
    expect_status(page, "pixels in")
    expect(page.locator(".result img")).to_have_count(2)


def test_the_dice_picks_a_seed(page: Page) -> None:
    page.locator("button.dice").click()
    expect(page.get_by_label("Seed")).not_to_have_value("0")


def test_a_bad_picture_shows_the_engines_sentence(page: Page, files: dict[str, Path]) -> None:
    upload(page, "Content", files["broken"])
    upload(page, "Style", files["style"])
    run(page)
    expect_status(page, "is not an image that can be read")
    assert "Traceback" not in page.inner_text("body")


def test_a_painted_mask_is_used(page: Page, files: dict[str, Path]) -> None:
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    page.get_by_role("button", name="Mask").click()
    canvas = page.locator(".painter canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the canvas takes the content's picture and shape
    paint(page, canvas.bounding_box() or {})
    run(page)
    expect_status(page, "pixels in")
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    assert roles(read_record(download.value.path())) == ["content", "style", "mask"]


def test_h_space_in_the_browser_with_a_painted_mask(page: Page, files: dict[str, Path]) -> None:
    open_tab(page, "Blend content · h-space injection")
    fill(page, **QUICK)
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    page.get_by_role("button", name="Mask").locator("visible=true").click()
    canvas = page.locator(".painter canvas:visible").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    paint(page, canvas.bounding_box() or {})
    run(page)
    expect_status(page, "96×64 pixels in")
    with page.expect_download() as download:
        page.locator("button:visible, a:visible").get_by_text("Download PNG").first.click()
    record = read_record(download.value.path())
    assert record["method"] == "h_space"
    assert roles(record) == ["content", "style", "mask"]


def test_a_strip_in_the_browser_shows_six_pictures_on_the_chosen_model(
    page: Page, files: dict[str, Path], beside: str
) -> None:
    open_tab(page, "Blend content · h-space injection")
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    page.get_by_label("Model", exact=True).locator("visible=true").click()
    page.get_by_role("option", name=beside.capitalize()).click()
    size = page.get_by_label("number input for Size").locator("visible=true")
    expect(size).to_have_value("64", timeout=PATIENCE)  # what this model was trained at
    fill(page, steps=QUICK["steps"])
    page.get_by_label("A strip of γ").check()
    run(page)
    expect_status(page, "6 images, 96×64 pixels in")
    expect(page.locator(".strip img")).to_have_count(6, timeout=PATIENCE)
    expect(page.locator(".strip")).to_contain_text("γ 0.4")


def test_cancel_stops_a_run_of_h_space(page: Page, files: dict[str, Path]) -> None:
    open_tab(page, "Blend content · h-space injection")
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    fill(page, **LONG)
    run(page)
    expect_status(page, "of 600")
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    expect(page.locator("button.run:visible")).to_be_enabled()


def test_qs_attn_in_the_browser_runs_shows_its_anchors_and_can_be_cancelled(page: Page, files: dict[str, Path]) -> None:
    open_tab(page, "Describe a style · QS-Attn")
    upload(page, "Content", files["content"])
    run(page)
    expect_status(page, "No style was given")
    words = page.get_by_label("Style", exact=True).locator("visible=true")
    words.fill("ink")
    words.press("Enter")
    fill(page, size=64, steps=100)
    run(page)
    expect_status(page, "of 200")
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    fill(page, steps=2)
    run(page)
    expect_status(page, "96×64 pixels in")
    expect_status(page, "similarity to the prompt")
    with page.expect_download() as download:
        page.locator("button:visible, a:visible").get_by_text("Download PNG").first.click()
    assert read_record(download.value.path())["settings"]["prompt"] == "ink"
    page.get_by_role("button", name="Anchor positions").click()
    page.locator("button.look").click()
    expect(page.locator(".anchors img").first).to_be_visible(timeout=PATIENCE)


def paint(page: Page, box: Any) -> None:
    """A diagonal stroke in the middle of the canvas."""
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"], steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)


def test_each_tab_is_labelled_with_what_its_method_does_and_its_name() -> None:
    assert [tab.label for tab in tabs()] == [
        "Paint like this picture · Z-STAR+",
        "Video · Z-STAR+",
        "Describe a style · QS-Attn",
        "Blend content · h-space injection",
        "Learn a painting · InST",
        "At once · StyTr²",
        "Compare",
    ]


def test_a_tab_says_what_it_does_and_shows_a_finished_example(page: Page) -> None:
    expect(page.get_by_text("Redraws a content image in the style of one or more other images.")).to_be_visible()
    expect(page.locator("a:visible", has_text="Paper").first).to_have_attribute("href", METHODS["zstar"].paper)
    expect(page.locator(".result:visible img")).to_have_count(2)
    assert examples.first_result("zstar_video") is None
    for name in examples.FIRST:
        before, after = examples.first_result(name) or (None, None)
        assert before
        assert after
        assert before.size == after.size


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# The tab for clips


@pytest.fixture
def zstar_video(client: Client, files: dict[str, Path]) -> Callable[..., Job]:
    """Submits a run on the clip; names of `files` become uploads."""

    def submit(clip: str = "clip", **inputs: Any) -> Job:
        uploads = {"clip": handle_file(files[clip]), "style": handle_file(files["style"])}
        return client.submit(**{"size": 64, "steps": 2, "rate": 0, **uploads, **inputs}, api_name="/zstar_video")

    return submit


def test_the_api_gives_an_mp4_and_its_record(zstar_video: Callable[..., Job]) -> None:
    path, record = zstar_video(frames=3, compare=True).result()
    assert len(open_clip(path).times) == 3
    assert json.loads(read_comment(path))[METADATA_KEY] == record
    assert set(record["differences"]) == {"result", "clip", "alone"}
    assert {Path(entry["name"]).name for entry in record["inputs"]} == {entry["name"] for entry in record["inputs"]}


def test_a_file_that_is_no_clip_gets_the_engines_sentence(zstar_video: Callable[..., Job]) -> None:
    with pytest.raises(AppError, match="is not a video that can be read"):
        zstar_video("broken").result()


def test_a_client_that_cancels_a_clip_gets_the_frames_done(client: Client, zstar_video: Callable[..., Job]) -> None:
    job = zstar_video(steps=60)
    while not any("frame 2 of" in (unit.desc or "") for unit in job.status().progress_data or []):
        assert not job.done()
        time.sleep(0.1)
    client.predict(api_name="/zstar_video_cancel")
    path, record = job.result(timeout=60)
    assert not record["complete"]
    assert 1 <= len(open_clip(path).times) == record["frames"] < 6


@pytest.fixture
def video_page(page: Page, files: dict[str, Path]) -> Page:
    """The tab for clips, with a clip and a style chosen and quick settings."""
    page.get_by_role("tab", name="Video · Z-STAR+").click()
    tab = page.get_by_role("tabpanel").filter(has_text="Steadiness")
    for label, name in (("Clip", "clip"), ("Style", "style")):
        block = tab.locator(".block").filter(has=page.get_by_text(label, exact=True))
        block.locator("input[type=file]").first.set_input_files(files[name])
        expect(block.locator("video, img").first).to_be_visible(timeout=PATIENCE)
    for name, number in (("Size", 64), ("Steps", 2), ("Frame rate", 0)):
        box = tab.get_by_label(f"number input for {name}")
        box.fill(str(number))
        box.press("Tab")
    return page


def test_a_clip_in_the_browser_plays_beside_the_original_with_the_plot(video_page: Page) -> None:
    tab = video_page.get_by_role("tabpanel").filter(has_text="Steadiness")
    tab.locator("button.run").click()
    expect(tab.locator(".status").first).to_contain_text("6 frames of 96×64 pixels", timeout=PATIENCE)
    video = tab.locator(".clip video").first
    expect(video).to_be_visible()
    played = video.evaluate("""async video => {
        video.muted = true;
        await video.play();
        await new Promise(done => video.requestVideoFrameCallback(done));
        return [video.videoWidth, video.videoHeight, video.duration];
    }""")
    assert played[:2] == [192, 64]  # both, side by side
    assert played[2] == pytest.approx(0.6, abs=0.05)
    expect(tab.locator(".chart")).to_be_visible(timeout=PATIENCE)
    with video_page.expect_download() as download:
        tab.get_by_text("Download MP4").click()
    assert open_clip(download.value.path()).poster.size == (96, 64)


def test_cancel_in_the_browser_gives_the_frames_done(video_page: Page) -> None:
    tab = video_page.get_by_role("tabpanel").filter(has_text="Steadiness")
    box = tab.get_by_label("number input for Steps")
    box.fill("60")
    box.press("Tab")
    tab.locator("button.run").click()
    expect(tab.locator(".status").first).to_contain_text("frame 2 of 6", timeout=PATIENCE)
    expect(tab.locator(".status").first).to_contain_text("left.")
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.locator(".status").first).to_contain_text("Cancelled; ", timeout=PATIENCE)
    expect(tab.locator(".clip video").first).to_be_visible()
    expect(tab.locator("button.run")).to_be_enabled()


# The tab for learning a style

LEARN: dict[str, Any] = {"size": 32, "steps": 6, "batch": 2, "views": 2, "check_every": 2, "patience": 0}
SO_LONG = 5000  # steps that no test waits for


@pytest.fixture
def inst_learn(client: Client, files: dict[str, Path]) -> Callable[..., Job]:
    """Submits a painting to learn."""

    def submit(painting: str = "style", **inputs: Any) -> Job:
        return client.submit(**{"painting": handle_file(files[painting]), **LEARN, **inputs}, api_name="/inst_learn")

    return submit


def test_a_style_learned_over_the_api_can_be_applied_mixed_and_uploaded_again(
    client: Client, files: dict[str, Path], inst_learn: Callable[..., Job]
) -> None:
    file, record = inst_learn(name="my cat", seed=3).result()
    style = LearnedStyle.open(file)
    assert style.record.model_dump(mode="json") == {**record, "history": [list(entry) for entry in record["history"]]}
    assert (record["name"], record["step"], record["complete"]) == ("my cat", 6, True)
    assert record["settings"] == {**InSTLearningSettings(**LEARN, seed=3).model_dump(), "save_memory": "off"}
    content = handle_file(files["content"])
    path, drawn = client.predict(content=content, style="my cat", **QUICK, api_name="/inst_apply")
    with Image.open(path) as image:
        assert image.size == (96, 64)
    assert read_record(path) == drawn
    assert drawn["settings"] == InSTSettings(**QUICK).model_dump()
    assert roles(drawn) == ["content", "learnt style"]
    assert drawn["inputs"][1]["sha256"] == style.sha256
    again = client.predict(handle_file(file), api_name="/inst_upload")
    assert again == "my cat 2"
    _, drawn = client.predict(style="my cat", style_2=again, prompt="a *", **QUICK, api_name="/inst_apply")
    assert roles(drawn) == ["learnt style", "learnt style"]
    assert drawn["inputs"][0]["sha256"] == drawn["inputs"][1]["sha256"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"painting": "broken"}, "is not an image that can be read"),
        ({"learning_rate": 7}, "learning_rate = 7"),
        ({"mode": "magic"}, "mode = 'magic'"),
    ],
)
def test_bad_input_to_learning_gets_the_engines_sentence(
    inst_learn: Callable[..., Job], inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        inst_learn(**inputs).result()


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"style": "../../etc/passwd"}, "There is no style “../../etc/passwd” in the library"),
        ({"style": ""}, "No styles were given"),
        ({"style": "no such"}, "There is no style “no such” in the library"),
    ],
)
def test_bad_input_to_applying_gets_the_engines_sentence(client: Client, inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AppError, match=sentence):
        client.predict(**inputs, **QUICK, api_name="/inst_apply")


def test_an_upload_that_is_no_style_is_refused(client: Client, files: dict[str, Path]) -> None:
    with pytest.raises(AppError, match="is not a usable style: it is not a safetensors file"):
        client.predict(handle_file(files["broken"]), api_name="/inst_upload")


def test_several_paintings_are_learned_as_one_style_over_the_api(
    files: dict[str, Path], inst_learn: Callable[..., Job]
) -> None:
    more = [handle_file(files["content"]), handle_file(files["style"])]
    file, record = inst_learn(name="three", more=more).result()
    assert (record["paintings"], record["complete"]) == (3, True)
    assert LearnedStyle.open(file).record.paintings == 3
    _, alone = inst_learn(name="one", more=[]).result()
    _, omitted = inst_learn(name="one again").result()
    assert alone["paintings"] == omitted["paintings"] == 1
    assert alone["painting"] == omitted["painting"] != record["painting"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["style", "broken"], "The 3rd painting .* is not an image that can be read"),
        (["style"] * 16, "17 paintings were given. Choose at most 16"),
        (["style"] * 51, "More than 50 files were sent"),
    ],
)
def test_bad_further_paintings_get_one_sentence(
    files: dict[str, Path], inst_learn: Callable[..., Job], more: list[str], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        inst_learn(more=[handle_file(files[name]) for name in more]).result()


def test_hostile_lists_of_further_paintings_are_refused(
    address: str, client: Client, uploaded: Callable[[str], dict[str, Any]], foreign: dict[str, Any]
) -> None:
    painting, before = uploaded("style"), list(StyleLibrary().unfinished())
    hostile = [[given] for given in foreign.values()] + [[painting, foreign["existing"]], [None], [[painting]], [{}]]
    for more in hostile:
        data = values(client, "inst_learn", painting=painting, more=more)
        assert call(address, "inst_learn", data) == ("error", {**ERROR, "error": REFUSED})
    assert list(StyleLibrary().unfinished()) == before


def test_stopped_learning_returns_the_style_so_far(client: Client, inst_learn: Callable[..., Job]) -> None:
    job = inst_learn(name="stopped", steps=SO_LONG)
    while not any("learning" in (unit.desc or "") for unit in job.status().progress_data or []):
        assert not job.done()
        time.sleep(0.05)
    client.predict("stopped", api_name="/inst_stop")
    file, record = job.result(timeout=60)
    assert not record["complete"]
    assert 1 <= record["step"] < SO_LONG
    assert LearnedStyle.open(file).record.name == "stopped"


def learning_begun(job: Job) -> None:
    while not any("learning" in (unit.desc or "") for unit in job.status().progress_data or []):
        assert not job.done()
        time.sleep(0.05)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_client_that_cancels_its_learning_stops_it_and_finds_it_unfinished(
    address: str, inst_learn: Callable[..., Job], client: Client, files: dict[str, Path]
) -> None:
    own = Client(address, verbose=False)
    given = {"painting": handle_file(files["style"]), **LEARN, "steps": SO_LONG}
    job = own.submit(**given, name="cancelled", api_name="/inst_learn")
    learning_begun(job)
    waiting = own.submit(**given, name="cancelled too", api_name="/inst_learn")
    until(lambda: "cancelled too" in StyleLibrary().unfinished())
    assert job.cancel()
    assert waiting.cancel()
    until(lambda: "cancelled" in StyleLibrary().names())
    assert {"cancelled", "cancelled too"} <= set(StyleLibrary().unfinished())
    assert not StyleLibrary().open("cancelled").record.complete
    assert inst_learn(name="next").result(timeout=60)  # nothing else is in the way


def test_a_client_that_disconnects_stops_its_learning(address: str, client: Client, files: dict[str, Path]) -> None:
    parameters = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/inst_learn"]["parameters"]
    with files["style"].open("rb") as file:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
    painting = {"path": path, "meta": {"_type": "gradio.FileData"}}
    given = {"painting": painting, "name": "vanished", **LEARN, "steps": SO_LONG}
    data = [given.get(entry["parameter_name"], entry.get("parameter_default")) for entry in parameters]
    called = httpx.post(f"{address}gradio_api/call/inst_learn", json={"data": data}).json()
    url = f"{address}gradio_api/call/inst_learn/{called['event_id']}"
    with httpx.stream("GET", url, timeout=60) as stream:
        assert next(stream.iter_lines())
    until(lambda: "vanished" in StyleLibrary().names())
    assert "vanished" in StyleLibrary().unfinished()
    assert not StyleLibrary().open("vanished").record.complete


def test_calls_that_wait_for_learning_do_not_block_the_app(
    client: Client, inst_learn: Callable[..., Job], zstar: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "SLICE_SECONDS", 0.2)
    jobs = [inst_learn(name=f"crowd {number}", steps=SO_LONG) for number in range(MOST_LEARNING + 3)]
    until(lambda: len([job for job in jobs if job.done()]) == 3)
    for job in jobs:
        if job.done():
            with pytest.raises(AppError, match="20 paintings are queued or being learned already"):
                job.result()
    assert client.predict("nobody's", api_name="/inst_stop") is not None
    assert zstar().result(timeout=60)
    for name in [name for name in StyleLibrary().unfinished() if name.startswith("crowd")]:
        client.predict(name, api_name="/inst_stop")
    sentences = [str(job.exception(timeout=60) or "") for job in jobs]
    assert all(re.match("Stopped before|20 paintings|$", sentence) for sentence in sentences)


def test_sixty_pages_can_watch_at_once(address: str, client: Client, inst_learn: Callable[..., Job]) -> None:
    job = inst_learn(name="looked at", steps=SO_LONG)
    learning_begun(job)
    (tick,) = [
        entry for entry in client.config["dependencies"] if any(target[1] == "tick" for target in entry["targets"])
    ]

    def look(page: int) -> float:
        began = time.monotonic()
        asked = {"data": ["looked at", ""], "fn_index": tick["id"], "session_hash": f"page {page}"}
        browsers.post("gradio_api/run/predict", json=asked).raise_for_status()
        return time.monotonic() - began

    with httpx.Client(base_url=address, timeout=60) as browsers, ThreadPoolExecutor(60) as pages:
        assert max(pages.map(look, range(60))) < 20  # on a machine that also learns
    client.predict("looked at", api_name="/inst_stop")
    assert job.result(timeout=60)


def test_no_response_about_styles_contains_a_folder_of_the_server(
    client: Client, files: dict[str, Path], inst_learn: Callable[..., Job]
) -> None:
    file, record = inst_learn(name="private", content=handle_file(files["content"])).result()
    _, drawn = client.predict(style="private", **QUICK, api_name="/inst_apply")
    returned = Path(file).read_bytes().decode(errors="replace") + json.dumps([record, drawn["inputs"]])
    returned += json.dumps({**drawn, "backbone": ""})  # the tests' model is named by its folder
    for folder in (Path.home(), Path(os.environ["STYLEENGINE_STYLES"]), Path(tempfile.gettempdir())):
        assert str(folder) not in returned


def test_helper_endpoints_are_not_tools(address: str) -> None:
    tools = {tool["name"] for tool in httpx.get(f"{address}gradio_api/mcp/schema").json()}
    assert not [name for name in tools if re.search("upload|stop|cancel", name)]


def test_each_choice_of_a_style_is_one_event(shared_engine: StyleEngine) -> None:
    demo = ui.build(shared_engine)
    listening = [target for function in demo.fns.values() for target in function.targets if target[1] == "change"]
    styles = {block._id for block in demo.blocks.values() if getattr(block, "label", "") == "Style"}
    assert len([target for target in listening if target[0] in styles]) == 1


def test_the_file_of_a_style_is_copied_for_the_page_once(
    shared_engine: StyleEngine, cat: Image.Image, tmp_path: Path
) -> None:
    with gr.Blocks():
        choice = StyleChoice(Runner(shared_engine), StyleLibrary(tmp_path / "styles", tmp_path / "none"))
        choice.show()
    choice.style.GRADIO_CACHE = cache = str(tmp_path / "cache")
    file = choice.file(choice.library.add(made_up(shared_engine.backbone, cat)))
    assert {choice.file(choice.library.open("cat")) for _ in range(3)} == {file}
    assert save_file_to_cache(file, cache) == file  # as Gradio does for every file that it sends
    assert len(list(Path(cache).rglob("*.safetensors"))) == 1
    Path(file).unlink()  # Gradio sweeps its folder
    assert Path(choice.file(choice.library.open("cat"))).is_file()


def learn_in_browser(page: Page, files: dict[str, Path], name: str, **numbers: int) -> None:
    """Opens the tab, chooses a painting and begins to learn it."""
    page.get_by_role("tab", name="Learn a painting · InST").click()
    expect_status(page, "Choose a painting")
    upload(page, "Painting", files["style"])
    page.locator(".style-name").locator("textarea, input").fill(name)
    page.get_by_role("button", name="More settings").locator("visible=true").click()
    fill(page, **numbers)
    run(page)


def test_in_the_browser_a_painting_is_learned_stopped_applied_and_downloaded(
    page: Page, files: dict[str, Path]
) -> None:
    learn_in_browser(page, files, "browsed", size=64, batch=1, views=2, steps=SO_LONG)
    expect(page.locator(".status:visible").first).to_have_text(
        re.compile(r"step ([2-9]\d|\d{3,}) of"), timeout=PATIENCE
    )
    expect_status(page, "steps per second")
    expect(page.locator(".learned-strip img").first).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    expect_status(page, "Stopped; learned “browsed” in")
    expect(page.locator(".chart:visible").first).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as download:
        page.locator("button:visible, a:visible").get_by_text("Download the style").first.click()
    learned = LearnedStyle.open(keep(download.value.path()))
    assert learned.record.name == "browsed"
    assert 20 <= learned.record.step < SO_LONG

    page.get_by_role("tab", name="Apply").click()
    expect(page.get_by_label("Style", exact=True).locator("visible=true")).to_have_value("browsed", timeout=PATIENCE)
    upload(page, "Content (leave empty for text-to-image)", files["content"])
    fill(page, **QUICK)
    run(page)
    expect_status(page, "96×64 pixels in")
    with page.expect_download() as download:
        page.locator("button:visible, a:visible").get_by_text("Download PNG").first.click()
    record = read_record(download.value.path())
    assert (record["method"], record["inputs"][1]["sha256"]) == ("inst", learned.sha256)

    uploaded = page.locator(".upload-style input[type=file], input[type=file][accept*=safetensors]").first
    again, other = (files["content"].parent / f"from {name}.safetensors" for name in ("elsewhere", "another model"))
    learned.renamed("elsewhere").save(again)
    uploaded.set_input_files(again)
    expect_status(page, "“elsewhere” is in the library.")
    replace(learned, record=learned.record.replace(name="other", revision="0")).save(other)
    uploaded.set_input_files(other)
    expect_status(page, "it may look different")


def keep(path: Path) -> Path:
    """A download under a name with its ending."""
    return Path(shutil.copy(path, path.with_name(f"{path.name}.safetensors")))


def test_learning_continues_when_the_page_is_closed_and_another_page_can_show_it(
    page: Page, browser: Browser, address: str, files: dict[str, Path], client: Client
) -> None:
    learn_in_browser(page, files, "left alone", size=64, batch=1, views=2, steps=SO_LONG)
    expect_status(page, "steps per second")
    page.goto("about:blank")
    page.goto(address)
    page.get_by_role("tab", name="Learn a painting · InST").click()
    page.get_by_role("button", name="Unfinished").click()
    page.locator(".unfinished input").first.click()
    page.get_by_role("option", name="left alone").click()
    page.locator("button.go-on").click()
    expect_status(page, "steps per second")
    client.predict("left alone", api_name="/inst_stop")
    expect_status(page, "Stopped; learned “left alone” in")


# Untrusted input

GIVEN = "gradio.FileData"


def call(address: str, name: str, data: list[Any]) -> tuple[str, Any]:
    """The last event of a plain HTTP call, and its data."""
    body, head = json.dumps({"data": data}), {"content-type": "application/json"}
    joined = httpx.post(f"{address}gradio_api/call/{name}", content=body, headers=head)
    assert joined.status_code == 200, joined.text
    kind, value = "", None
    with httpx.stream("GET", f"{address}gradio_api/call/{name}/{joined.json()['event_id']}", timeout=60) as lines:
        for text in lines.iter_lines():
            kind = text.removeprefix("event: ") if text.startswith("event: ") else kind
            if text.startswith("data: ") and kind in ("complete", "error"):
                value = json.loads(text.removeprefix("data: "))
    return kind, value


def parameters(client: Client, name: str) -> list[dict[str, Any]]:
    return client.view_api(return_format="dict", print_info=False)["named_endpoints"][f"/{name}"]["parameters"]  # type: ignore[index]


def values(client: Client, name: str, **given: Any) -> list[Any]:
    """Values for all parameters of an endpoint, in order; omitted ones as clients omit them."""
    return [given.get(known["parameter_name"], known["parameter_default"]) for known in parameters(client, name)]


@pytest.fixture
def uploaded(address: str, files: dict[str, Path]) -> Callable[[str], dict[str, Any]]:
    def upload_file(name: str) -> dict[str, Any]:
        with files[name].open("rb") as file:
            (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": (files[name].name, file)}).json()
        return {"path": path, "meta": {"_type": GIVEN}}

    return upload_file


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, coffee: Image.Image) -> dict[str, Any]:
    """Paths and addresses of files that were not uploaded, existing or not."""
    outside = tmp_path_factory.mktemp("private") / "secret.png"
    coffee.save(outside)
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"link-{os.getpid()}.png"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    return {
        "existing": {"path": str(outside)},
        "existing, said to be a file": {"path": str(outside), "meta": {"_type": GIVEN}},
        "missing": {"path": "/nowhere/at/all.png"},
        "missing, said to be a file": {"path": "/nowhere/at/all.png", "meta": {"_type": GIVEN}},
        "system": {"path": "/etc/passwd", "meta": {"_type": GIVEN}},
        "relative": {"path": "examples/content/cat.jpg"},
        "relative, said to be a file": {"path": "pyproject.toml", "meta": {"_type": GIVEN}},
        "upwards": {"path": f"{folder}/../../etc/passwd", "meta": {"_type": GIVEN}},
        "link": {"path": str(link), "meta": {"_type": GIVEN}},
        "folder": {"path": str(folder), "meta": {"_type": GIVEN}},
        "address": {"path": "http://127.0.0.1:9/x.png", "url": "http://127.0.0.1:9/x.png", "meta": {"_type": GIVEN}},
        "address of a file here": {"path": f"http://x/gradio_api/file={outside}", "meta": {"_type": GIVEN}},
        "data": {"path": "data:image/png;base64,AAAA", "meta": {"_type": GIVEN}},
        "url alone": {"url": f"file://{outside}", "meta": {"_type": GIVEN}},
        "null byte": {"path": "a\0b"},
        "long": {"path": "/" + "x" * 5000},
        "empty": {},
        "odd meta": {"path": str(outside), "meta": "gradio.FileData"},
        "stream": {"path": str(outside), "is_stream": True, "meta": {"_type": GIVEN}},
        "text": str(outside),
        "list": [{"path": str(outside)}],
        "number": 7,
        "true": True,
    }


IMAGE_INPUTS = (
    ("zstar", "content"),
    ("zstar", "style_3"),
    ("zstar", "mask"),
    ("zstar_video", "clip"),
    ("zstar_video", "style_2"),
    ("h_space", "style"),
    ("qs_attn", "content"),
    ("inst_apply", "content"),
    ("inst_learn", "painting"),
    ("inst_learn", "more"),
    ("stytr2", "style"),
)


@pytest.mark.parametrize(("name", "parameter"), IMAGE_INPUTS)
def test_only_uploads_are_opened_and_all_else_gets_one_sentence(
    address: str, client: Client, foreign: dict[str, Any], name: str, parameter: str
) -> None:
    answers = {how: call(address, name, values(client, name, **{parameter: given})) for how, given in foreign.items()}
    assert {kind for kind, _ in answers.values()} == {"error"}
    assert {how: answer["error"] for how, (_, answer) in answers.items()} == dict.fromkeys(foreign, REFUSED)


@pytest.mark.parametrize("name", ["painter_canvas", "inst_upload"])
def test_the_helpers_open_no_other_files_either(address: str, foreign: dict[str, Any], name: str) -> None:
    answers = {how: call(address, name, [given]) for how, given in foreign.items()}
    assert {how: answer["error"] for how, (_, answer) in answers.items()} == dict.fromkeys(foreign, REFUSED)


def test_a_painting_cannot_be_another_file_either(
    address: str, foreign: dict[str, Any], uploaded: Callable[[str], dict[str, Any]], shared_engine: StyleEngine
) -> None:
    demo = ui.build(shared_engine)
    (live,) = [fn for fn in demo.fns.values() if fn.api_name == "zstar_live"]
    canvas = next(place for place, block in enumerate(live.inputs) if isinstance(block, gr.ImageMask))
    for part in ("background", "composite", "layers"):
        for given in (foreign["existing, said to be a file"], foreign["link"], foreign["missing"], foreign["text"]):
            data: list[Any] = [None] * len(live.inputs)
            data[canvas] = {"layers": [], part: [given] if part == "layers" else given}
            assert call(address, "zstar_live", data) == ("error", {**ERROR, "error": REFUSED})


ERROR = {"duration": 10, "visible": True, "title": "Error"}


def in_a_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Awaits it in another thread: the browser tests leave an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def test_uploads_are_taken_by_path_and_by_their_address_here(
    address: str, client: Client, uploaded: Callable[[str], dict[str, Any]]
) -> None:
    plain, style = uploaded("content"), uploaded("style")
    by_address = {"path": f"{address}gradio_api/file={style['path']}", "meta": {"_type": GIVEN}}
    kind, answer = call(address, "zstar", values(client, "zstar", content=plain, style=by_address, **QUICK))
    assert kind == "complete", answer
    assert roles(answer[1]) == ["content", "style"]


def test_shipped_examples_may_be_named(address: str) -> None:
    kind, (shown,) = call(address, "painter_canvas", [{"path": examples.pictures("content")[0]}])
    assert kind == "complete"
    assert shown["background"]


def test_few_canvases_are_decoded_at_a_time(shared_engine: StyleEngine) -> None:
    canvases = [fn for fn in ui.build(shared_engine).fns.values() if str(fn.api_name).startswith("painter_canvas")]
    assert len(canvases) == 3
    assert {(fn.queue, fn.concurrency_id, fn.concurrency_limit) for fn in canvases} == {(True, "painter", 2)}


HUGE = "x" * 200_000
ODD = (True, "<img src=x onerror=alert(1)>", HUGE, [1], -1, 10**400, float("nan"))


class ReachedError(StyleEngineError):
    """Raised where the engine would be called."""


@pytest.mark.parametrize("name", ["zstar", "h_space", "qs_attn", "inst_apply", "stytr2"])
def test_odd_values_of_any_parameter_get_a_short_sentence(
    client: Client,
    shared_engine: StyleEngine,
    uploaded: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Called in this process, without the engine: errors are found before it is called."""

    def reach(*_: Any, **__: Any) -> None:
        raise ReachedError("reached")

    monkeypatch.setattr(Runner, "follow", reach)
    demo = ui.build(shared_engine)
    (endpoint,) = [fn for fn in demo.fns.values() if fn.api_name == name]
    known = parameters(client, name)
    pictures = ("content",) if name == "inst_apply" else ("content", "style")
    usual = values(client, name, **{field: uploaded(field) for field in pictures})

    async def answers() -> dict[tuple[str, int], str]:
        responses = {}
        for spot, parameter in enumerate(known):
            for number, odd in enumerate(ODD if parameter["component"] != "Image" else ()):
                data = [odd if index == spot else value for index, value in enumerate(usual)]
                try:
                    await demo.process_api(endpoint, data, request=gr.Request(session_hash="odd"))
                except gr.Error as error:
                    responses[parameter["parameter_name"], number] = error.message
        return responses

    responses = in_a_loop(answers())
    assert responses
    assert max(map(len, responses.values())) <= 501
    assert not [message for message in responses.values() if "unexpected" in message or "Traceback" in message]
    numbers = [field for field in responses if field[0] in ("strength", "size", "steps", "seed", "weight", "gamma")]
    reached = {field for field in numbers if responses[field] == "reached"}
    assert reached <= {("weight", ODD.index(-1))}  # the method checks the range of weights


@pytest.mark.parametrize("odd", [True, "7", [7], {"a": 7}, float("nan"), 1e400, 10**400, HUGE])
def test_a_numeric_setting_must_be_a_number(odd: Any) -> None:
    with gr.Blocks():
        controls = Controls(ZStarSettings())
        controls.show("strength", "steps")
    for name in ("strength", "steps"):
        with pytest.raises(StyleEngineError, match=name) as raised:
            controls.settings({"strength": None, "steps": None, name: odd})
        assert len(str(raised.value)) < 300


def test_html_in_a_value_reaches_the_page_escaped(address: str) -> None:
    _, answer = call(address, "h_space_model", ["<b>bold</b>"])
    assert "&lt;b&gt;bold" in answer["error"]
    noted = line("<script>alert(1)</script>")
    assert "<script>" not in noted


def test_a_preset_sets_the_controls_and_recommended_sets_them_back(address: str) -> None:
    def shown(preset: Any) -> list[Any]:
        kind, updates = call(address, "zstar_preset", [preset])
        assert kind == "complete", (preset, updates)
        return updates

    styleid, recommended = shown("StyleID"), shown("")
    assert len(styleid) == len(METHODS["zstar"].presets["StyleID"])
    assert "style_only" in styleid
    assert "style_only" not in recommended
    assert shown("unknown") == shown(None) == recommended


def test_too_few_values_get_a_sentence(address: str) -> None:
    _, answer = call(address, "zstar", [None])
    assert "values are needed; 1 were sent" in answer["error"]


def test_errors_name_no_folder_of_the_server() -> None:
    message = sentence(
        StyleEngineError("The model “/srv/models/mine” is no model: check the path /srv/a/b.png, or owner/x.")
    )
    assert message == "The model “mine” is no model: check the path b.png, or owner/x."


def test_direct_calls_do_not_bypass_the_queue(address: str, client: Client) -> None:
    answer = httpx.post(f"{address}gradio_api/run/zstar", json={"data": values(client, "zstar")})
    assert answer.status_code == 404


# Given and omitted parameters


def test_values_equal_to_the_pages_initial_values_are_explicit() -> None:
    with gr.Blocks():
        controls = Controls(HSpaceSettings(size=256))
        controls.show(*HSpaceSettings.model_fields)
    left_out = dict.fromkeys(HSpaceSettings.model_fields)
    assert controls.settings({**left_out, "size": 256}).model_fields_set == {"size"}
    assert controls.settings(left_out).model_fields_set == set()


def test_a_client_that_names_the_pages_value_gets_it_on_another_model(
    h_space: Callable[..., Job], shared_engine: StyleEngine, beside: str
) -> None:
    start = shared_engine.settings_for(HSpaceSettings, "h_space", None)
    suits = recommended_settings(beside)["h_space"]
    assert "size" in suits
    _, record = h_space(model=beside, steps=start.steps, size=64, t_boost=start.t_boost).result()
    assert (record["settings"]["steps"], record["settings"]["t_boost"]) == (start.steps, start.t_boost)


@pytest.mark.parametrize("name", ["zstar", "zstar_video", "h_space", "qs_attn", "inst_apply", "stytr2"])
def test_optional_parameters_have_no_default_but_the_models(client: Client, name: str) -> None:
    assert {known["parameter_default"] for known in parameters(client, name)} == {None}


SETTINGS = {
    "zstar": ZStarSettings,
    "zstar_video": ZStarVideoSettings,
    "h_space": HSpaceSettings,
    "qs_attn": QSAttnSettings,
    "inst_learn": InSTLearningSettings,
    "inst": InSTSettings,
    "stytr2": StyTr2Settings,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_control_shows_exactly_the_value_that_is_used(name: str) -> None:
    settings = SETTINGS[name]
    starts = [{}, *(recommended_settings(model).get(name, {}) for model in named_backbones())]
    for values in starts:
        start = settings(**values)
        with gr.Blocks():
            controls = Controls(start)
            controls.show(*settings.model_fields)
        for field, control in controls.components.items():
            value = getattr(start, field)
            assert control.value == value or (control.value is None and not value), field  # type: ignore[attr-defined]
            for other in starts:
                stop = other.get(field, settings.model_fields[field].default)
                if isinstance(control, gr.Slider):
                    offset = (Decimal(str(stop)) - Decimal(str(control.minimum))) / Decimal(str(control.step))
                    assert offset == offset.to_integral_value(), f"{field} {stop} is no stop"
                elif isinstance(control, gr.Number) and isinstance(stop, float):
                    assert control.precision is None, field


# Cancelled runs and clients that disconnect


class SlowRun:
    """Stands in for a method of the engine: many short steps, or one long one, until `on_step` stops it."""

    def __init__(self, phase: Phase = STYLIZING, pause: float = 0.05) -> None:
        self.phase, self.pause = phase, pause
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(
        self, method: str, inputs: Mapping[str, Any], settings: Settings, *, on_step: Callable[[StepEvent], None]
    ) -> None:
        self.began.set()
        try:
            for step in range(2000):
                on_step(StepEvent(self.phase, step, 2000, lambda: inputs["content"]))
                time.sleep(self.pause)
        finally:
            self.ended.set()


@pytest.fixture
def slow(shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch) -> SlowRun:
    run = SlowRun()
    monkeypatch.setattr(shared_engine, "run", run)
    return run


SOON = 8.0  # seconds, on a machine that does other things too


def test_cancelling_a_job_stops_its_run(zstar: Callable[..., Job], slow: SlowRun) -> None:
    job = zstar()
    assert slow.began.wait(SOON)
    job.cancel()
    assert slow.ended.wait(SOON)


def test_a_client_that_disconnects_stops_its_run(
    address: str, client: Client, uploaded: Callable[[str], dict[str, Any]], slow: SlowRun
) -> None:
    data = values(client, "zstar", content=uploaded("content"), style=uploaded("style"))
    event = httpx.post(f"{address}gradio_api/call/zstar", json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{address}gradio_api/call/zstar/{event}", timeout=60):
        assert slow.began.wait(SOON)
    assert slow.ended.wait(SOON)


def test_a_client_that_never_reads_the_events_stops_its_run(
    address: str,
    client: Client,
    uploaded: Callable[[str], dict[str, Any]],
    slow: SlowRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "UNREAD_SECONDS", 1.0)
    data = values(client, "zstar", content=uploaded("content"), style=uploaded("style"))
    httpx.post(f"{address}gradio_api/call/zstar", json={"data": data})
    assert slow.ended.wait(SOON)


def test_a_process_that_is_killed_stops_its_run(address: str, files: dict[str, Path], slow: SlowRun) -> None:
    script = (
        "import sys, time; from gradio_client import Client, handle_file\n"
        "address, content, style = sys.argv[1:]\n"
        "client = Client(address, verbose=False)\n"
        "job = client.submit(handle_file(content), handle_file(style), api_name='/zstar')\n"
        "while not (job.done() or job.status().progress_data): time.sleep(0.05)\n"
        "print('listening', flush=True)\n"
        "job.result()"
    )
    command = [sys.executable, "-c", script, address, str(files["content"]), str(files["style"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        assert not slow.ended.is_set()
        process.kill()
    assert slow.ended.wait(SOON)


def test_a_closed_page_stops_its_run_and_does_not_block_the_server(
    browser: Browser, address: str, files: dict[str, Path], shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SlowRun(pause=6.0)
    monkeypatch.setattr(shared_engine, "run", run)
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("button.run")).to_be_enabled(timeout=PATIENCE)
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    page.locator("button.run:visible").click()
    assert run.began.wait(SOON)
    page.wait_for_timeout(500)
    page.close()
    slowest = 0.0
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        asked = time.monotonic()
        httpx.get(f"{address}config", timeout=30)
        slowest = max(slowest, time.monotonic() - asked)
    assert slowest < 4
    assert run.ended.wait(SOON)


def test_a_run_that_waits_for_the_engine_reports_it_and_can_be_cancelled(
    page: Page, files: dict[str, Path], shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SlowRun(WAITING)
    monkeypatch.setattr(shared_engine, "run", run)
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    page.locator("button.run:visible").click()
    assert run.began.wait(SOON)
    expect_status(page, "Waiting in the queue")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled.")
    assert run.ended.wait(SOON)


def test_tickets_are_of_their_session_and_never_of_a_path(shared_engine: StyleEngine) -> None:
    runner = Runner(shared_engine)
    mine, yours = (gr.Request(session_hash=name) for name in ("mine", "yours"))
    ticket = runner.admit(yours, "zstar")
    for sent in (ticket, "..", "../..", "", None, 7, ["x"], "a\0b", "x" * 100_000, f"{ticket}/../{ticket}"):
        runner.release(runner.admitted(mine, "zstar", sent))
    assert runner.has_admitted(yours, "zstar")
    assert runner.admitted(yours, "zstar", ticket) == ticket
    runner.release(ticket)
    with pytest.raises(Cancelled):
        next(runner.run(ui_job(), ticket, previews=False))


def test_a_ticket_withdrawn_between_two_runs_stops_the_second(
    shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_engine, "run", lambda *_, **__: "result")
    runner = Runner(shared_engine)
    ticket = runner.admit_without_session("zstar")
    for _ in range(2):
        assert list(runner.run(ui_job(), ticket, previews=False)) == ["result"]
    runner.release(ticket)
    with pytest.raises(Cancelled):
        next(runner.run(ui_job(), ticket, previews=False))


def test_waiting_tickets_are_bounded(shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_TICKETS", 10)
    runner = Runner(shared_engine)
    for number in range(30):
        request = gr.Request(session_hash=str(number))
        ticket = runner.admit(request, "zstar")
        if number % 2:
            runner.release(ticket)
    assert len(runner._tickets) <= 10
    assert not list(Path(runner._running.name).iterdir())


def ui_job() -> runs.Job:
    return runs.Job("zstar", {}, ZStarSettings())


def test_results_are_deleted_after_a_day(tmp_path: Path) -> None:
    old, new = place(str(tmp_path), "old.png"), place(str(tmp_path), "new.png")
    for file in (old, new):
        file.write_bytes(b"x")
    yesterday = time.time() - 25 * 3600
    os.utime(old.parent, (yesterday, yesterday))
    place(str(tmp_path), "another.png")
    assert not old.parent.exists()
    assert new.exists()


def test_notes_are_shown_under_the_result(cat: Image.Image, tmp_path: Path) -> None:
    result = Stylization(cat, "zstar", {}, "mini", "0", [], 1.0, {}, notes=("Cut <here>.",))
    with gr.Blocks():
        panel = ResultPanel()
    panel.slider.GRADIO_CACHE = str(tmp_path)
    status = panel.finished(result, cat)[panel.status]
    assert status.endswith("<p>Cut &lt;here&gt;.</p>")


# MCP


def tool_call(
    address: str, name: str, arguments: dict[str, Any], *, watched: bool = False, patience: float = 60
) -> types.CallToolResult:
    async def ask() -> types.CallToolResult:
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            callback = note if watched else None
            return await session.call_tool(name, arguments, timedelta(seconds=patience), progress_callback=callback)

    async def note(*_: Any) -> None:
        pass

    return in_a_loop(ask())


def data_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


@pytest.mark.parametrize("watched", [False, True])
def test_an_mcp_call_gives_the_picture_and_the_record(address: str, files: dict[str, Path], watched: bool) -> None:
    arguments = {name: data_url(files[name]) for name in ("content", "style")}
    answer = tool_call(address, "stylize_image_like_images", {**arguments, **QUICK}, watched=watched)
    assert not answer.isError, answer
    picture, link, record = answer.content
    assert isinstance(picture, types.ImageContent)
    assert Image.open(io.BytesIO(base64.b64decode(picture.data))).size == (96, 64)
    assert isinstance(link, types.TextContent)
    assert isinstance(record, types.TextContent)
    assert json.loads(record.text)["settings"] == ZStarSettings(**QUICK).model_dump()


@pytest.mark.parametrize("given", ["/etc/passwd", "http://127.0.0.1:9/x.png", "nonsense", 7, {"path": "/etc/passwd"}])
def test_mcp_opens_no_other_files_either(address: str, given: Any) -> None:
    answer = tool_call(address, "stylize_image_like_images", {"content": given, "style": given})
    assert answer.isError
    (text,) = answer.content
    assert isinstance(text, types.TextContent)
    assert "/" not in text.text.replace(str(given), "")
    assert "Traceback" not in text.text


def test_an_mcp_client_can_have_several_paintings_learned_but_names_no_other_files(
    address: str, files: dict[str, Path]
) -> None:
    given = {"painting": data_url(files["style"]), "name": "by a tool", **LEARN}
    answer = tool_call(address, "learn_style_of_painting", {**given, "more": [data_url(files["content"])]})
    assert not answer.isError, answer
    records = [json.loads(part.text) for part in answer.content if getattr(part, "text", "").startswith("{")]
    assert [record["paintings"] for record in records] == [2]
    for more in (["/etc/passwd"], [[data_url(files["content"])]], "/etc/passwd", {"path": "/etc/passwd"}, [7]):
        answer = tool_call(address, "learn_style_of_painting", {**given, "more": more})
        assert answer.isError
        assert "Traceback" not in str(answer.content)


def test_an_mcp_client_that_disconnects_stops_its_run(address: str, files: dict[str, Path], slow: SlowRun) -> None:
    script = (
        "import json, sys, httpx\n"
        "arguments = {name: open(file).read() for name, file in zip(('content', 'style'), sys.argv[2:])}\n"
        "call = {'name': 'stylize_image_like_images', 'arguments': arguments}\n"
        "head = {'accept': 'application/json, text/event-stream'}\n"
        "body = {'jsonrpc': '2.0', 'id': 1, 'method': 'tools/call', 'params': call}\n"
        "httpx.post(sys.argv[1] + 'gradio_api/mcp/', json=body, headers=head, timeout=60)\n"
    )
    texts = []
    for name in ("content", "style"):
        text = files[name].with_suffix(".txt")
        text.write_text(data_url(files[name]))
        texts.append(str(text))
    process = subprocess.Popen([sys.executable, "-c", script, address, *texts])
    assert slow.began.wait(30)
    process.kill()
    process.wait()
    assert slow.ended.wait(SOON)


def test_tools_are_named_for_what_they_do_and_helpers_are_hidden(address: str) -> None:
    tools = httpx.get(f"{address}gradio_api/mcp/schema").json()
    assert {tool["name"] for tool in tools} == {
        *(method.tool for method in METHODS.values()),
        "learn_style_of_painting",
        "compare_style_transfer_methods",
    }
    for tool in tools:
        assert len(tool["description"]) > 60
        assert all(known.get("description") for known in tool["inputSchema"]["properties"].values()), tool["name"]


# A clip's comparison


def test_a_clips_comparison_is_made_while_others_use_the_engine(shared_engine: StyleEngine) -> None:
    demo = ui.build(shared_engine)
    comparing = [fn for fn in demo.fns.values() if fn.concurrency_id == "comparing"]
    assert comparing
    assert all(fn.concurrency_id != "engine" for fn in comparing)
