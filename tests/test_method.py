"""A method declared in the test, and everything that is derived from the declaration."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, expect
from test_app import upload

from styleengine import StyleEngine, StyleEngineError, ddim
from styleengine.cli import main
from styleengine.images import fit
from styleengine.method import Call, Kind, Method, Role
from styleengine.methods import METHODS
from styleengine.phases import STYLIZING
from styleengine.run import Run
from styleengine.settings import Settings, knob
from styleengine.stylization import StepEvent, Stylization, read_record
from styleengine.ui import build, launch_options

# The whole of a method: under 40 lines.


class BlendSettings(Settings):
    share: float = knob(0.5, "Share of the second image.", ge=0, le=1)
    size: int = knob(64, "Length of the result's shorter side in pixels.", ge=64, le=512)


def blend(call: Call) -> Stylization:
    run = Run(call.backbone, ddim.Schedule.spaced(call.backbone.alphas_cumprod, 2), call.on_step, call.cache)
    run.plan([STYLIZING], call.inputs["first"])
    size = run.working_size(call.inputs["first"], call.settings.size)
    run.begin(STYLIZING)
    first, second = (fit(call.inputs[role], size) for role in ("first", "second"))
    return run.result(Image.blend(first, second, call.settings.share), "blend", call.settings, call.inputs.records)


BLEND = Method(
    "blend",
    "Blend",
    "Blends two images.",
    BlendSettings,
    (Role("first", Kind.IMAGE, "The first image."), Role("second", Kind.IMAGE, "The image that is blended in.")),
    blend,
)


@pytest.fixture(autouse=True)
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "blend", BLEND)


@pytest.fixture
def files(tmp_path: Path, cat: Image.Image, coffee: Image.Image) -> list[Path]:
    paths = [tmp_path / "cat.png", tmp_path / "coffee.png"]
    for image, path in zip((cat, coffee), paths, strict=True):
        image.save(path)
    return paths


def blended(files: list[Path], share: float, size: tuple[int, int]) -> bytes:
    first, second = (fit(Image.open(file).convert("RGB"), size) for file in files)
    return Image.blend(first, second, share).tobytes()


def test_the_engine_runs_it(engine: StyleEngine, files: list[Path]) -> None:
    events: list[StepEvent] = []
    given = {"first": files[0], "second": files[1]}
    result = engine.run("blend", given, BlendSettings(share=0.25), on_step=events.append)
    assert result.image.tobytes() == blended(files, 0.25, result.image.size)
    assert [event.phase for event in events] == ["stylizing"]
    assert [(entry.role, entry.name) for entry in result.inputs] == [("first", "cat.png"), ("second", "coffee.png")]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "No first image was given"),
        ({"first": "cat.png", "third": 1}, "There is no input “third”. The inputs are: first, second."),
    ],
)
def test_errors_in_its_inputs_are_reported(engine: StyleEngine, inputs: dict[str, object], sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        engine.run(BLEND, inputs)


def test_it_is_a_command_that_rerun_repeats(
    files: list[Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    with pytest.raises(SystemExit):
        main(["blend", "--help"])
    printed = capsys.readouterr().out
    assert "Blends two images" in printed
    assert "The image that is blended in." in printed
    assert "--share" in printed
    assert main(["blend", *map(str, files), "-o", str(out), "--share", "0.25", "--model", str(model_folder)]) == 0
    assert read_record(out)["settings"] == {"share": 0.25, "size": 64}
    assert main(["rerun", str(out), "-o", str(again), "--model", str(model_folder)]) == 0
    assert "Identical" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(files[1], elsewhere)
    assert main(["rerun", str(out), "-o", str(again), "--model", str(model_folder)]) == 2
    assert "the second image “coffee.png” (--second FILE)" in capsys.readouterr().err
    second = ["--second", str(elsewhere / "coffee.png")]
    assert main(["rerun", str(out), "-o", str(again), "--model", str(model_folder), *second]) == 0


@pytest.fixture
def address(shared_engine: StyleEngine, _declared: None) -> Iterator[str]:
    demo = build(shared_engine)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield address
    demo.close()


def test_it_is_an_endpoint_a_tool_and_a_tab(address: str, browser: Browser, files: list[Path]) -> None:
    client = Client(address, verbose=False)
    first, second = map(handle_file, files)
    file, record = client.predict(first=first, second=second, share=0.25, api_name="/blend")
    with Image.open(file) as image:
        assert image.convert("RGB").tobytes() == blended(files, 0.25, image.size)
    assert record["settings"] == {"share": 0.25, "size": 64}

    tools = {tool["name"]: tool for tool in httpx.get(f"{address}gradio_api/mcp/schema").json()}
    assert tools["blend"]["description"].startswith("Blends two images (Blend).")
    assert {"first", "second", "share", "size"} <= tools["blend"]["inputSchema"]["properties"].keys()
    assert "The image that is blended in." in json.dumps(tools["blend"])

    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.goto(address)
    page.get_by_role("tab", name="Blend", exact=True).click()
    for label, path in zip(("First", "Second"), files, strict=True):
        upload(page, label, path)
    page.locator("button.run:visible").click()
    expect(page.locator(".status:visible").first).to_contain_text("pixels in", timeout=60_000)
    page.close()


def test_it_takes_under_forty_lines() -> None:
    lines = Path(__file__).read_text().splitlines()
    start, end = (next(i for i, line in enumerate(lines) if line.startswith(begin)) for begin in ("class Blend", "@"))
    assert 0 < end - start < 40
