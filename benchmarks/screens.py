"""Pictures of every tab of the app, empty, running and done, on a wide screen and on a phone.

    python -m benchmarks.screens --to screens
    python -m benchmarks.screens --to screens --tabs Compare --widths 390

It uses the embedded model with small sizes, and the system's Chromium. “running” shows what is in view, the others the
whole page.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.pairs import EXAMPLES
from styleengine import StyleEngine, ui

WIDTHS = {1280: 900, 390: 844}  # width and height of the window in pixels
PATIENCE = 180_000  # milliseconds
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
PHOTO, PAINTING = EXAMPLES / "content" / "flower.jpg", EXAMPLES / "style" / "great-wave.jpg"
CLIP = EXAMPLES / "video" / "cup.mp4"
SMALL: Mapping[str, int] = {"Size": 128, "Steps": 8}


@dataclass(frozen=True)
class Screen:
    """A tab by part of its label, the tab within it, its files by label, its numbers, and the words at the end."""

    tab: str
    files: Mapping[str, Path]
    inner: str = ""
    numbers: Mapping[str, int] = field(default_factory=lambda: SMALL)
    text: str = ""
    ends: str = "pixels in"
    runs: bool = True  # long enough for a picture of “running”


PAIR = {"Content": PHOTO, "Style": PAINTING}
SCREENS = (
    Screen("Paint like", PAIR),
    Screen("Video", {"Clip": CLIP, "Style": PAINTING}, numbers={"Size": 64, "Steps": 4, "Frames": 4}),
    Screen("Describe", {"Content": PHOTO}, text="golden"),
    Screen("Blend", PAIR, numbers={"Size": 64, "Steps": 20}),
    Screen("Learn", {"Painting": PAINTING}, inner="Learn", numbers={"Steps": 30}, ends="earned “"),
    Screen("Learn", {"Content (leave empty for text-to-image)": PHOTO}, inner="Apply"),
    Screen("At once", PAIR, numbers={"Size": 512}, runs=False),
    Screen("Compare", PAIR, numbers={"Size": 128}, ends="4 of 4 methods"),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_screen(page: Page, address: str, screen: Screen) -> None:
    page.goto(address)
    page.get_by_role("tab", name=screen.tab).click()
    if screen.inner:
        page.get_by_role("tab", name=screen.inner, exact=True).click()
    expect(page.locator("button.run:visible")).to_have_count(1)
    page.wait_for_timeout(1500)  # images and clips are decoded


def fill(page: Page, screen: Screen) -> None:
    for label, file in screen.files.items():
        block = page.locator(".block:visible").filter(has=page.get_by_text(label, exact=True))
        block.locator("input[type=file]").first.set_input_files(file)
        expect(block.locator("img, video").first).to_be_visible()
    if screen.text:
        words = page.get_by_label("Style", exact=True).locator("visible=true")
        words.fill(screen.text)
        words.press("Enter")
    for label, number in screen.numbers.items():
        box = page.get_by_label(f"number input for {label}").locator("visible=true")
        box.fill(str(number))
        box.press("Tab")


def photograph(browser: Browser, address: str, screen: Screen, width: int, folder: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    name = f"{screen.tab.split()[0].lower()}{'-' + screen.inner.lower() if screen.inner else ''}-{width}"
    open_screen(page, address, screen)
    page.screenshot(path=folder / f"{name}-1-empty.png", full_page=True)
    fill(page, screen)
    page.locator("button.run:visible").click()
    if screen.runs:
        expect(page.locator(".bar:visible").first).to_be_visible()
        page.wait_for_timeout(1000)  # scrolling has ended
        page.screenshot(path=folder / f"{name}-2-running.png")
    expect(page.locator(".status:visible").first).to_contain_text(screen.ends)
    page.wait_for_timeout(1500)
    page.screenshot(path=folder / f"{name}-3-done.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    print(f"{name}{f': {wide} pixels wide' if wide > width else ''}", flush=True)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, required=True, help="a folder")
    parser.add_argument("--tabs", nargs="+", default=[""], help="beginnings of tabs' labels (default: all)")
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    demo = ui.build(StyleEngine("mini"))
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options())
    with chromium() as browser:
        for screen in SCREENS:
            if screen.tab.startswith(tuple(arguments.tabs)):
                for width in arguments.widths:
                    photograph(browser, address, screen, width, arguments.to)
    demo.close()


if __name__ == "__main__":
    main()
