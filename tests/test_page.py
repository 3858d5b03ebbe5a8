"""The page: what it shows at first, on a phone, to a keyboard and a screen reader, and what the browser keeps."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect
from test_app import PATIENCE, QUICK, expect_status, fill, is_local, run, upload

from styleengine import InSTLearningSettings, StyleEngine, ui
from styleengine.ui import tabs
from styleengine.ui.models import model_info
from styleengine.ui.page import licence_of, model_words

KEY = "styleengine-results"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
NAMELESS = """() => [...document.querySelectorAll("button, a[href], input, textarea, select, img, [role=slider]")]
    .filter(element => element.offsetParent && !element.closest("[aria-hidden=true]"))
    .filter(element => !(element.ariaLabel || element.alt || element.title || element.innerText?.trim()
        || element.querySelector("img[alt]:not([alt=''])")
        || element.labels?.length || element.getAttribute("aria-labelledby")))
    .map(element => element.outerHTML.slice(0, 200))"""
UNREACHABLE = """() => [...document.querySelectorAll("button, input, textarea, select, a[href]")]
    .filter(element => element.offsetParent && !element.disabled && element.tabIndex < 0)
    .filter(element => !element.closest("[aria-hidden=true]"))
    .map(element => element.outerHTML.slice(0, 200))"""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor with an empty storage."""
    context = browser.new_context(viewport=DESK)  # type: ignore[arg-type]
    yield context
    context.close()


@pytest.fixture
def visit(context: BrowserContext, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the app; errors in the page and requests elsewhere fail the test."""
    troubles: list[str] = []

    def opened(phone: bool = False, script: str = "") -> Page:
        page = context.new_page()
        page.set_viewport_size(PHONE if phone else DESK)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if is_local(request.url, address) else troubles.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(address)
        expect(page.locator("button.run")).to_be_enabled(timeout=PATIENCE)
        return page

    yield opened
    assert troubles == []


def open_tab(page: Page, label: str, inner: str = "") -> None:
    page.get_by_role("tab", name=label, exact=True).click()
    if inner:
        page.get_by_role("tab", name=inner, exact=True).click()
    expect(page.locator("button.run:visible")).to_have_count(1, timeout=PATIENCE)


def every_tab(page: Page) -> Iterator[str]:
    for tab in tabs():
        open_tab(page, tab.label)
        yield tab.label
    open_tab(page, "Learn a painting · InST", "Apply")
    yield "Apply"


def kept(page: Page) -> list[str]:
    return page.locator(".kept-results li").all_inner_texts()


def png(color: str, size: tuple[int, int] = (64, 48)) -> str:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def keep(page: Page, title: str, url: str) -> None:
    page.evaluate("([title, url]) => styleengine.keep(title, {url})", [title, url])


# What it says and shows


def test_every_tab_shows_a_finished_example_at_first(visit: Callable[..., Page]) -> None:
    page = visit()
    for label in every_tab(page):
        if "Video" in label:
            expect(page.locator(".clip:visible video").first).to_be_visible(timeout=PATIENCE)
        elif "Learn" in label:
            chart = page.locator(".chart:visible")
            expect(chart).to_have_attribute("aria-label", re.compile("Validation loss. At the end"), timeout=PATIENCE)
            expect(page.locator(".learned-strip:visible button img")).to_have_count(4, timeout=PATIENCE)
        else:
            expect(page.locator(".result:visible img")).to_have_count(2, timeout=PATIENCE)
        if label == "Apply":
            expect(page.get_by_text("The prompt, with * for the learned style").first).to_be_visible()
        expect_status(page, "What is shown here is a finished example.")
        if label == "Compare":
            expect(page.locator(".strip:visible button img")).to_have_count(4)
            expect(page.locator(".measures:visible").first).to_contain_text("StyleID")
            before = page.locator(".result:visible img").last.get_attribute("src")
            page.locator(".strip:visible button img").last.click()
            expect(page.locator(".result:visible img").last).not_to_have_attribute("src", before or "")


def test_the_page_names_the_models_licence() -> None:
    assert licence_of("mini")[:2] == ("Weights: this project's, under", "CC BY-SA 4.0")
    assert licence_of("sd15")[:2] == ("Weights: under", "CreativeML OpenRAIL-M")
    assert licence_of("owner/name@abc")[2].endswith("/owner/name")
    assert licence_of("/home/somebody/private")[1:] == ("", "")
    assert "[Apache 2.0](" in model_info("ddpm-church-256")


def test_a_models_name_is_escaped() -> None:
    assert "<script>" not in model_words("owner/<script>", torch.device("cpu"))


def test_a_space_has_a_button_that_duplicates_it(shared_engine: StyleEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def buttons() -> list[Any]:
        return [block for block in ui.build(shared_engine).blocks.values() if isinstance(block, gr.DuplicateButton)]

    assert buttons() == []
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "somebody/StyleEngine")
    (button,) = buttons()
    assert "duplicate" in button.value.lower()


def test_a_beginner_sees_only_the_steps_and_the_seed_of_a_training() -> None:
    assert [knob.name for knob in InSTLearningSettings.knobs() if not knob.rare] == ["steps", "seed"]


# On a phone


def test_on_a_phone_all_tabs_are_labelled_and_nothing_is_wider_than_the_screen(visit: Callable[..., Page]) -> None:
    page = visit(phone=True)
    for tab in tabs():
        label = page.get_by_role("tab", name=tab.label, exact=True)
        expect(label).to_be_in_viewport(ratio=1)
        assert label.evaluate("element => element.scrollWidth <= element.clientWidth")
    for label in every_tab(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], label


def test_on_a_phone_run_and_an_example_bring_the_progress_into_view(
    visit: Callable[..., Page], files: dict[str, Path]
) -> None:
    page = visit(phone=True)
    fill(page, size=64, steps=40)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#examples tbody tr").first.click()
    expect(page.locator(".bar:visible")).to_be_in_viewport(timeout=PATIENCE)
    expect_status(page, "pixels in")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("button.run:visible").evaluate("button => button.click()")
    expect(page.locator(".bar:visible")).to_be_in_viewport(timeout=PATIENCE)


def test_the_upload_button_opens_the_file_dialogue_and_cannot_remove_an_image(
    visit: Callable[..., Page], files: dict[str, Path]
) -> None:
    page = visit()
    block = page.locator(".block:visible").filter(has=page.get_by_text("Content", exact=True)).first
    with page.expect_file_chooser() as dialogue:
        block.get_by_role("button", name="Content: Upload file").click()
    dialogue.value.set_files(files["content"])
    expect(block.locator("img").first).to_be_visible()
    expect(block.get_by_role("button", name="Content: Upload file")).to_be_hidden()
    expect(block.get_by_role("button", name="Content: Paste from clipboard")).to_be_visible()


# Keyboard and screen reader


def test_every_control_has_a_name_and_is_reachable_by_tab(visit: Callable[..., Page]) -> None:
    page = visit()
    for label in every_tab(page):
        for accordion in page.locator("button.label-wrap:visible").all():
            accordion.click()
        page.wait_for_timeout(300)
        assert page.evaluate(NAMELESS) == [], label
        assert page.evaluate(UNREACHABLE) == [], label


def test_an_example_is_chosen_by_keyboard_and_its_progress_announced(visit: Callable[..., Page]) -> None:
    page = visit()
    fill(page, **QUICK)
    page.locator("#examples td").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".announcer")).to_contain_text("pixels in", timeout=PATIENCE)
    expect(page.locator("#examples img").first).to_have_attribute("alt", "astronaut")


def test_the_slider_is_moved_by_keyboard(visit: Callable[..., Page]) -> None:
    page = visit()
    slider = page.locator(".result:visible [data-testid=slider]")
    expect(slider).to_have_attribute("role", "slider", timeout=PATIENCE)
    page.wait_for_timeout(500)  # its place is measured
    slider.focus()
    expect(slider).to_have_attribute("aria-valuenow", "50")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "55")
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".result:visible img").last).to_have_attribute("style", re.compile(r"0px 100%\)"))


# The visitor's last results


def test_results_are_kept_in_this_browser_until_cleared(
    visit: Callable[..., Page], browser: Browser, address: str, files: dict[str, Path]
) -> None:
    page = visit()
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    fill(page, **QUICK)
    for number in (1, 2):
        run(page)
        expect(page.locator(".kept-results li")).to_have_count(number, timeout=PATIENCE)
    page.reload()
    expect(page.locator(".kept-results li")).to_have_count(2, timeout=PATIENCE)
    page.locator(".kept-results li button").first.click()
    large = page.locator(".kept-results dialog img")
    assert large.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [96, 64]
    page.keyboard.press("Escape")
    expect(large).to_have_count(0)
    other = browser.new_page()
    other.goto(address)
    expect(other.locator("button.run")).to_be_enabled(timeout=PATIENCE)
    assert kept(other) == []
    other.close()
    page.locator(".kept-results li button").first.click()
    page.get_by_role("button", name="Remove").click()
    assert kept(page) == ["Z-STAR+"]
    page.get_by_role("button", name="Clear all").click()
    assert kept(page) == []
    page.reload()
    expect(page.locator("button.run")).to_be_enabled(timeout=PATIENCE)
    assert kept(page) == []


def test_a_cancelled_or_failed_run_keeps_nothing(visit: Callable[..., Page], files: dict[str, Path]) -> None:
    page = visit()
    run(page)
    expect_status(page, "No content image was given")
    upload(page, "Content", files["content"])
    upload(page, "Style", files["style"])
    fill(page, size=64, steps=200)
    run(page)
    expect_status(page, "of 600")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled.")
    page.wait_for_timeout(1000)
    assert kept(page) == []


def test_the_newest_results_are_kept_and_each_is_small(visit: Callable[..., Page]) -> None:
    page = visit()
    for number in range(20):
        keep(page, f"run {number}", png(f"rgb({number}, 0, 0)", (2000, 1000)))
    keep(page, "run 19", png("rgb(19, 0, 0)", (2000, 1000)))  # the same file again
    keep(page, "no picture", "data:text/plain,nothing")
    assert kept(page) == [f"run {number}" for number in range(19, 3, -1)]
    stored = json.loads(page.evaluate(f"localStorage.getItem('{KEY}')"))
    copy = Image.open(io.BytesIO(base64.b64decode(stored[0]["image"].partition(",")[2])))
    assert (copy.format, copy.size) == ("JPEG", (768, 384))


def test_of_several_results_each_is_kept_once_under_its_caption(visit: Callable[..., Page]) -> None:
    page = visit()
    gallery = [{"image": {"url": png(color)}, "caption": f"seed {color}"} for color in ("red", "blue")]
    sheet = {"url": png("green")}
    keep_all = "([sheet, gallery]) => styleengine.keep('QS-Attn', sheet, gallery)"
    page.evaluate(keep_all, [sheet, gallery])
    page.evaluate(keep_all, [sheet, gallery])  # a cancelled run leaves the files of the one before
    assert kept(page) == ["QS-Attn, seed blue", "QS-Attn, seed red"]


@pytest.mark.parametrize(
    "garbage",
    [
        "not JSON",
        "null",
        '{"a": 1}',
        '[null, 1, {"title": 3}, {"title": "t", "time": 0, "image": "https://elsewhere.example/x.jpg"}]',
        '[{"title": "<img src=x onerror=alert(1)>", "time": 1e99, "image": "data:image/jpeg;base64,AAAA"}]',
        '[{"title": "t", "time": 0, "image": "data:image/svg+xml;base64,AAAA"}]',
    ],
)
def test_stored_garbage_is_ignored_and_replaced(visit: Callable[..., Page], garbage: str) -> None:
    page = visit(script=f"localStorage.setItem('{KEY}', {json.dumps(garbage)})")
    assert kept(page) == []
    keep(page, "new", png("red"))
    assert kept(page) == ["new"]


def test_a_title_from_the_storage_is_text(visit: Callable[..., Page]) -> None:
    title = "<img src=x onerror=document.title='run'>"
    entry = [{"title": title, "time": 0, "image": "data:image/jpeg;base64,AAAA"}]
    page = visit(script=f"localStorage.setItem('{KEY}', {json.dumps(json.dumps(entry))})")
    assert kept(page) == [title]
    page.locator(".kept-results li button").click()
    assert page.title() == "StyleEngine"


@pytest.mark.parametrize(
    "script",
    [
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})",
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }",
    ],
)
def test_without_storage_results_last_as_long_as_the_page(visit: Callable[..., Page], script: str) -> None:
    page = visit(script=script)
    keep(page, "one", png("red"))
    keep(page, "two", png("blue"))
    assert kept(page) == ["two", "one"]
    expect(page.locator(".kept-results p")).to_contain_text("gone when it is reloaded")
    page.get_by_role("button", name="Clear all").click()
    assert kept(page) == []


def test_a_full_storage_keeps_the_newest(visit: Callable[..., Page]) -> None:
    script = """const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, value) {
            if (value.length > 2500) throw new DOMException("full", "QuotaExceededError");
            set.call(this, key, value);
        }"""
    page = visit(script=script)
    for number in range(6):
        keep(page, f"run {number}", png(f"rgb({40 * number}, 0, 0)"))
    stored = [entry["title"] for entry in json.loads(page.evaluate(f"localStorage.getItem('{KEY}')"))]
    assert stored == kept(page)[: len(stored)]
    assert 1 <= len(stored) < 6
