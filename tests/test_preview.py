"""The instant preview: StyTr²'s result while Z-STAR+ runs, in the page alone, and only if it is wanted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_app import PATIENCE, expect_status, fill, run, upload

from styleengine import Style, StyleEngineError, Stylization, ZStarSettings
from styleengine.phases import PREVIEW, STYLIZING, WAITING
from styleengine.ui import preview
from styleengine.ui.preview import MOST_PIXELS, Previewed, with_preview
from styleengine.ui.result import PREVIEW_LABEL
from styleengine.ui.runs import Job, Report

SETTINGS = ZStarSettings(size=768, steps=4, feather=0.1)


@pytest.fixture
def job(cat: Image.Image, coffee: Image.Image) -> Job:
    return Job("zstar", {"content": cat, "style": [Style(coffee)], "mask": None}, SETTINGS)


def result(image: Image.Image, method: str) -> Stylization:
    return Stylization(image, method, {}, "mini", "0", [], 1.0, {})


def test_the_preview_comes_first_and_the_jobs_own_outcomes_follow(job: Job, rocket: Image.Image) -> None:
    jobs: list[Job] = []

    def outcomes(given: Job) -> Iterator[Any]:
        jobs.append(given)
        yield Report(WAITING, 0, 1)
        yield Report(STYLIZING, 1, 2)
        yield result(rocket, given.method)

    program = with_preview(job, True)
    assert program.content is job.content
    found = list(program.outcomes(outcomes))
    assert [one.phase if isinstance(one, Report) else one.method for one in found] == [
        WAITING,
        PREVIEW,
        WAITING,
        STYLIZING,
        "zstar",
    ]
    assert found[1].preview is rocket
    assert jobs[1] == job
    assert jobs[0].inputs == job.inputs
    assert (jobs[0].settings.size, jobs[0].settings.feather) == (MOST_PIXELS, 0.1)


def test_what_prevents_the_preview_does_not_prevent_the_run(job: Job, rocket: Image.Image) -> None:
    def outcomes(given: Job) -> Iterator[Any]:
        if given.method == "stytr2":
            raise StyleEngineError("There is not enough memory.")
        yield result(rocket, given.method)

    assert [one.method for one in with_preview(job, True).outcomes(outcomes)] == ["zstar"]


def test_there_is_none_where_it_is_not_wanted_or_needs_a_gpu_of_its_own(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_preview(job, False) is job
    assert isinstance(with_preview(job, True), Previewed)
    monkeypatch.setattr(preview, "ZERO", True)
    assert with_preview(job, True) is job


# In the app


@pytest.fixture
def open_page(browser: Browser, address: str, files: dict[str, Path]) -> Iterator[Callable[[], Page]]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)

    def opened() -> Page:
        page.goto(address)
        upload(page, "Content", files["content"])
        upload(page, "Style", files["style"])
        fill(page, size=64, steps=200)
        return page

    yield opened
    page.close()


# Notes all labels of the result, since the run's own preview soon replaces this one.
WATCH = """() => {
    window.labels = new Set();
    const note = () => document.querySelectorAll(".result label, .result [data-testid=block-label]").forEach(
        element => window.labels.add(element.innerText.trim()));
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_the_page_shows_it_and_then_the_runs_own(open_page: Callable[[], Page]) -> None:
    page = open_page()
    page.evaluate(WATCH)
    run(page)
    expect_status(page, "of 600")
    page.wait_for_function("label => window.labels.has(label)", arg=PREVIEW_LABEL, timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    fill(page, steps=2)
    run(page)
    expect_status(page, "96×64 pixels in")
    expect(page.locator(".result:visible").get_by_text("Before and after")).to_be_visible()


def test_the_download_is_always_the_result_that_is_shown(open_page: Callable[[], Page]) -> None:
    page = open_page()
    download = page.get_by_role("button", name="Download PNG").locator("visible=true")
    page.evaluate(WATCH)
    fill(page, steps=2)
    run(page)
    expect_status(page, "96×64 pixels in")
    expect(download).to_be_enabled()
    page.evaluate("window.labels.clear()")
    fill(page, steps=200)
    run(page)
    page.wait_for_function("label => window.labels.has(label)", arg=PREVIEW_LABEL, timeout=PATIENCE)
    expect(download).to_be_disabled()
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect_status(page, "Cancelled.")
    expect(download).to_be_disabled()


def test_the_page_does_not_show_it_if_it_is_switched_off(
    open_page: Callable[[], Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    page.evaluate(WATCH)
    monkeypatch.setattr(Previewed, "outcomes", None)
    page.get_by_role("checkbox", name="Instant preview").uncheck()
    fill(page, steps=2)
    run(page)
    expect_status(page, "96×64 pixels in")
    assert not page.evaluate("label => window.labels.has(label)", PREVIEW_LABEL)


def test_the_api_has_none(address: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(address, verbose=False)
    monkeypatch.setattr(Previewed, "outcomes", None)
    content, style = (handle_file(files[name]) for name in ("content", "style"))
    _, record = client.predict(content=content, style=style, size=64, steps=2, api_name="/zstar")
    assert record["method"] == "zstar"
    known = client.view_api(return_format="dict")["named_endpoints"]["/zstar"]["parameters"]
    assert "preview" not in {parameter["parameter_name"] for parameter in known}
