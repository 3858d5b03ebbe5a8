"""The comparison of methods: in Python, on the command line, over the API and MCP, and in the browser."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_app import PATIENCE, data_url, expect_status, tool_call, upload

from styleengine import (
    Cancelled,
    InSTLearningSettings,
    LearnedStyle,
    StepEvent,
    StyleEngine,
    StyleEngineError,
    comparison,
)
from styleengine.cli import main
from styleengine.comparison import Comparison, compare, contenders
from styleengine.contact_sheet import GAP, LINE, contact_sheet
from styleengine.images import fit, open_image
from styleengine.measures import SIDE, measures
from styleengine.methods.zstar import PRESETS, ZStarSettings
from styleengine.stylization import read_record
from styleengine.ui.compare_panel import ranked

ALL = ["zstar", "StyleID", "qs_attn", "h_space", "inst", "stytr2"]
WITHOUT_WORDS = ["zstar", "StyleID", "h_space", "inst", "stytr2"]
SMALL = 64


@pytest.fixture(autouse=True)
def _short_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of learning on small crops."""

    def quick(**values: Any) -> InSTLearningSettings:
        return InSTLearningSettings(**{**values, "steps": 2, "size": 32, "batch": 1, "views": 1})

    monkeypatch.setattr(comparison, "InSTLearningSettings", quick)


@pytest.fixture(scope="module")
def learned(shared_engine: StyleEngine, coffee: Image.Image) -> LearnedStyle:
    return shared_engine.inst_learn(coffee, InSTLearningSettings(steps=2, size=32, batch=1, views=1), name="coffee")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, cat: Image.Image, coffee: Image.Image) -> list[Path]:
    paths = [tmp_path_factory.mktemp("pair") / name for name in ("cat.png", "coffee.png")]
    for image, path in zip((cat, coffee), paths, strict=True):
        image.save(path)
    return paths


def names(result: Comparison) -> list[str]:
    return [entry.contender.name for entry in result.entries]


# Measures and contact sheets


def test_measures_of_the_content_itself_and_of_the_style_itself(cat: Image.Image, coffee: Image.Image) -> None:
    untouched, style = measures(cat, cat, coffee), measures(fit(coffee, cat.size), cat, fit(coffee, cat.size))
    assert (untouched.content_loss, untouched.ssim) == (0, pytest.approx(1))
    assert untouched.style_loss > 0 < untouched.color_distance
    assert (style.style_loss, style.color_distance) == (0, 0)
    assert style.content_loss > 0
    assert style.ssim < 0.5


def test_measures_do_not_depend_on_the_size_of_the_result(cat: Image.Image, coffee: Image.Image) -> None:
    large = cat.resize((2 * SIDE * 113 // 75, 2 * SIDE))
    one, other = measures(large, cat, coffee), measures(large.resize((SIDE * 113 // 75, SIDE)), cat, coffee)
    assert one.style_loss == pytest.approx(other.style_loss, abs=0.05)
    assert one.ssim == pytest.approx(other.ssim, abs=0.05)


def test_a_contact_sheet_has_each_image_in_its_cell_and_the_caption_below() -> None:
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (8, 8), "blue")
    page = contact_sheet([[red, None], [blue]], (100, 60), [["one\ntwo", ""], ["a text that is far too long for it"]])
    assert page.size == (200 + GAP, 2 * (60 + 2 * LINE) + GAP)
    assert page.getpixel((50, 30)) == (255, 0, 0)
    assert page.getpixel((150, 30)) == (255, 255, 255)
    assert page.getpixel((50, 60 + 2 * LINE + GAP + 30)) == (0, 0, 255)
    below = page.crop((0, 60, 100, 60 + 2 * LINE)).convert("L").getextrema()
    assert below[0] < 100
    assert page.crop((100, 60, 200 + GAP, 60 + 2 * LINE)).convert("L").getextrema() == (255, 255)


# In Python


def test_all_methods_for_which_the_inputs_are_given_are_compared() -> None:
    assert list(contenders()) == ALL
    assert contenders()["StyleID"].values == PRESETS["StyleID"]


def test_each_result_is_that_of_the_method_alone(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, learned: LearnedStyle
) -> None:
    events: list[StepEvent] = []
    result = compare(engine, cat, coffee, prompt="ink", learned=learned, size=SMALL, on_step=events.append)
    assert names(result) == ALL
    assert result.finished
    assert not [entry.problem for entry in result.entries if entry.problem]
    alone = engine.zstar(cat, coffee, ZStarSettings(size=SMALL))
    assert result.entries[0].result
    assert result.entries[0].result.image.tobytes() == alone.image.tobytes()
    for entry in result.entries:
        assert entry.result
        assert entry.measures == measures(entry.result.image, cat, coffee)
        assert min(entry.result.image.size) == SMALL
        assert not entry.learning_seconds
    assert {"Z-STAR+ (1 of 6), inverting content 1", "StyTr² (6 of 6), stylizing"} <= {e.phase for e in events}


def test_a_style_is_learned_where_none_is_given(engine: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    result = compare(engine, cat, coffee, ["inst"], size=SMALL)
    (entry,) = result.entries
    assert entry.result
    assert entry.learning_seconds > 0
    assert "learning" in comparison.caption(entry)


def test_qs_attn_is_left_out_without_a_prompt(engine: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    given = comparison.Given(cat, coffee)
    assert [one.name for one in comparison.chosen_contenders(None, given)] == WITHOUT_WORDS
    with pytest.raises(StyleEngineError, match=r"QS-Attn needs a text prompt"):
        compare(engine, cat, coffee, ["zstar", "qs_attn"], prompt=" ")


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (["nonsense"], "There is no method “nonsense” to compare. Choose from: zstar, StyleID"),
        ([], "No method was chosen"),
    ],
)
def test_unknown_methods_are_refused(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, methods: list[str], sentence: str
) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        compare(engine, cat, coffee, methods)


def test_a_method_that_fails_leaves_the_others_and_says_why(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine.run

    def run(method: Any, *given: Any, **options: Any) -> Any:
        if method == "h_space":
            raise StyleEngineError("There is not enough memory.")
        return plain(method, *given, **options)

    monkeypatch.setattr(engine, "run", run)
    result = compare(engine, cat, coffee, ["h_space", "zstar"], size=SMALL)
    assert [(entry.contender.name, entry.problem) for entry in result.entries] == [
        ("zstar", ""),
        ("h_space", "There is not enough memory."),
    ]
    assert "There is not enough memory." in result.csv()
    assert result.sheet()


def test_the_best_methods_are_those_of_the_best_measures() -> None:
    measured = [
        {"title": "Content", "style_loss": 0.9, "content_loss": 0.0},
        {"title": "A", "seconds": 3.0, "learning_seconds": 0.0, "style_loss": 0.2, "content_loss": 0.4},
        {"title": "B", "seconds": 2.0, "learning_seconds": 20.0, "style_loss": 0.3, "content_loss": 0.3},
        {"title": "C", "problem": "There is not enough memory."},
    ]
    assert ranked(measured) == ["Nearest to the style: A; most of the content kept: B; fastest: A."]
    assert ranked(measured[:2]) == []


def test_a_cancelled_comparison_keeps_what_is_done(engine: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    def stop_at(title: str) -> Any:
        def on_step(event: StepEvent) -> None:
            if event.phase.startswith(title) and event.step > 1:
                raise Cancelled

        return on_step

    result = compare(engine, cat, coffee, ["zstar", "StyleID", "h_space"], size=SMALL, on_step=stop_at("h-space"))
    assert names(result) == ["zstar", "StyleID"]
    assert not result.finished
    with pytest.raises(Cancelled):
        compare(engine, cat, coffee, ["zstar"], size=SMALL, on_step=stop_at("Z-STAR+"))


# On the command line


def test_the_command_writes_results_with_records_a_sheet_and_a_table(
    model_folder: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    options = ["--methods", "zstar", "inst", "--size", "64", "--model", str(model_folder), "-o", str(out)]
    assert main(["compare", *map(str, files), *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.png", "inst.png", "zstar.png"]
    assert read_record(out / "zstar.png")["method"] == "zstar"
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert [row["method"] for row in rows] == ["content", "zstar", "inst"]
    assert float(rows[2]["learning_seconds"]) > 0
    assert re.match(r"Z-STAR\+, [\d.]+ s; style loss", capsys.readouterr().out)
    assert main(["compare", *map(str, files), "--methods", "nonsense", "-o", str(out)]) == 2
    assert main(["compare", *map(str, files), "-o", str(files[0])]) == 2
    assert "cannot be used as a folder" in capsys.readouterr().err


def test_ctrl_c_keeps_the_finished_results(
    model_folder: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = StyleEngine.run

    def run(self: StyleEngine, method: Any, *given: Any, **options: Any) -> Any:
        if method == "h_space":
            raise KeyboardInterrupt
        return plain(self, method, *given, **options)

    monkeypatch.setattr(StyleEngine, "run", run)
    options = ["--methods", "zstar", "h_space", "--size", "64", "--model", str(model_folder), "-o", str(tmp_path)]
    assert main(["compare", *map(str, files), *options]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"zstar.png", "comparison.png", "comparison.csv"}


# Over the API and MCP, and in the browser


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def test_the_endpoint_returns_sheet_measures_results_and_table(client: Client, files: list[Path]) -> None:
    content, style = map(handle_file, files)
    answer = client.predict(content=content, style=style, methods=["zstar", "StyleID"], size=64, api_name="/compare")
    sheet, measured, results, table = answer
    assert open_image(sheet).width > 600
    assert [row["method"] for row in measured["results"]] == ["content", "zstar", "StyleID"]
    assert measured["results"][2]["record"]["settings"]["mode"] == "style_only"
    assert [entry["caption"] for entry in results] == ["Z-STAR+", "StyleID"]
    assert min(open_image(results[0]["image"]).size) == 64
    assert Path(table).read_text().startswith("method,title,model,seconds")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"methods": ["nonsense"]}, "There is no method “nonsense”"),
        ({"methods": "zstar"}, "must be a list of names"),
        ({"methods": ["qs_attn"]}, "needs a text prompt"),
        ({"methods": []}, "No method was chosen"),
        ({"size": 3}, "size"),
        ({"size": "wide"}, "whole number of pixels"),
        ({"learned": "nobody's"}, "nobody's"),
        ({"prompt": ["a"]}, "A list or an object was sent"),
    ],
)
def test_the_endpoint_refuses_bad_values(
    client: Client, files: list[Path], given: dict[str, Any], sentence: str
) -> None:
    content, style = map(handle_file, files)
    with pytest.raises(AppError, match=sentence):
        client.predict(content=content, style=style, **given, api_name="/compare")


def test_the_tool_returns_the_measures(address: str, client: Client, files: list[Path]) -> None:
    arguments = {"content": data_url(files[0]), "style": data_url(files[1]), "methods": ["zstar"], "size": 64}
    answer = tool_call(address, "compare_style_transfer_methods", arguments)
    assert not answer.isError, answer
    texts = [json.loads(part.text) for part in answer.content if part.type == "text" and part.text.startswith("{")]
    assert [row["method"] for row in texts[0]["results"]] == ["content", "zstar"]


@pytest.fixture
def page(address: str, browser: Browser, files: list[Path]) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("tab", name="Compare", exact=True).click()
    upload(page, "Content", files[0])
    upload(page, "Style", files[1])
    yield page
    page.close()


def run(page: Page) -> None:
    """Starts a run and waits until the example's results have gone, so that the next ones are its own."""
    strip = page.locator(".strip:visible button img")
    example = strip.first.get_attribute("src")
    page.locator("button.run:visible").click()
    expect(page.locator(f'.strip:visible img[src="{example}"]')).to_have_count(0, timeout=PATIENCE)


def test_results_appear_one_by_one_and_a_click_compares_one(page: Page) -> None:
    page.get_by_label("Size", exact=False).locator("visible=true").first.fill("64")
    run(page)
    expect(page.locator(".strip:visible button img").first).to_be_visible(timeout=PATIENCE)
    expect_status(page, "4 of 4 methods in")
    expect(page.locator(".strip:visible button img")).to_have_count(4)
    expect(page.locator(".measures:visible").first).to_contain_text("StyleID")
    expect(page.locator(".status:visible").first).to_contain_text("Nearest to the style: ")
    expect(page.locator(".result:visible").get_by_text("Before and after: StyTr²")).to_be_visible()
    before = page.locator(".result:visible img").last.get_attribute("src")
    page.locator(".strip:visible button img").first.click()
    expect(page.locator(".result:visible img").last).not_to_have_attribute("src", before or "", timeout=PATIENCE)
    expect(page.locator(".result:visible").get_by_text("Before and after: Z-STAR+")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download contact sheet").locator("visible=true").click()
    assert download.value.suggested_filename.endswith(".png")


def test_cancelling_half_way_keeps_the_finished_results(page: Page) -> None:
    page.get_by_label("Size", exact=False).locator("visible=true").first.fill("64")
    page.get_by_role("checkbox", name="h-space injection").locator("visible=true").check()
    run(page)
    expect(page.locator(".strip:visible button img").first).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    assert 1 <= page.locator(".strip:visible button img").count() < 5
