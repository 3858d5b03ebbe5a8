"""The panel of a tab with images as results: before/after slider, and a strip of several results."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from styleengine.images import fit
from styleengine.phases import Phase, Stage
from styleengine.stylization import Stylization, VideoStylization
from styleengine.ui.examples import EXAMPLE_WORDS, first_result
from styleengine.ui.panel import Panel, Updates, strip
from styleengine.ui.runs import Report

Drawn: TypeAlias = Stylization | list[Stylization]

RESULTS = "styleengine-results"  # a folder in Gradio's cache
RESULT_AGE = 24 * 3600  # seconds after which results are deleted
HINT = "Choose a content and a style image, or click an example."
LABEL, PREVIEW_LABEL = "Before and after", "Preview by StyTr², until there is one of the run itself"

DETAIL_WORDS = {
    "autoencoder_psnr": "autoencoder reconstruction {:.1f} dB PSNR",
    "reconstruction_psnr": "unstyled reconstruction {:.1f} dB PSNR",
    "similarity_before": "CLIP similarity to the prompt {:.3f} before",
    "similarity_after": "{:.3f} after",
}


class ResultPanel(Panel):
    """A panel with a before/after slider. At first it shows the example result of `method`, if there is one."""

    def __init__(self, hint: str = HINT, download: str = "Download PNG", method: str = "") -> None:
        self.method = method
        self.first = self.example()
        super().__init__(f"{hint} {EXAMPLE_WORDS}" if self.first else hint, download)

    def show(self) -> list[Any]:
        self.slider = gr.ImageSlider(
            self.first,
            label=LABEL,
            interactive=False,
            height=560,
            max_height=560,
            buttons=["fullscreen"],
            elem_classes="result",
        )
        return [self.slider]

    def example(self) -> tuple[Image.Image, Image.Image] | None:
        """What the slider shows at first: a content and its result."""
        return first_result(self.method)

    def working(self, report: Report, content: Image.Image | None) -> Updates:
        """A preview takes the place of an earlier result, which is no longer what the button downloads."""
        updates = super().working(report, content)
        if report.preview:
            updates[self.slider] = slider(content, report.preview, report.phase)
            updates[self.download] = gr.DownloadButton(value=None, interactive=False)
        return updates

    def finished(self, result: Drawn, content: Image.Image | None) -> Updates:
        """Compares the last result with the content, or with itself if there is no content."""
        results = result if isinstance(result, list) else [result]
        path = str(save(results[-1], self.slider.GRADIO_CACHE))
        return {
            **self.stopped(summary(results), *notes(results), file=path),
            self.slider: gr.ImageSlider((before(content, results[-1].image), path), label=LABEL),
        }


class StripPanel(ResultPanel):
    """A panel that also shows several results side by side, labelled by one setting."""

    def __init__(self, setting: str, symbol: str, hint: str = HINT, method: str = "") -> None:
        self.setting, self.symbol = setting, symbol
        super().__init__(hint, method=method)

    def show(self) -> list[Any]:
        shown = super().show()
        buttons = ["download", "download_all", "fullscreen"]
        self.strip = strip(f"{self.symbol} from low to high", 3, buttons, "strip")
        return [*shown, self.strip]

    def waiting(self) -> Updates:
        return {**super().waiting(), self.strip: gr.Gallery(value=None, visible=False)}

    def kept(self) -> list[Any]:
        return [*super().kept(), self.strip]

    def finished(self, result: Drawn, content: Image.Image | None) -> Updates:
        updates = super().finished(result, content)
        if isinstance(result, list):
            pictures = [
                (str(save(one, self.slider.GRADIO_CACHE)), f"{self.symbol} {one.settings[self.setting]:g}")
                for one in result
            ]
            updates[self.strip] = gr.Gallery(value=pictures, visible=True)
        return updates


def slider(content: Image.Image | None, preview: Image.Image, phase: Phase) -> gr.ImageSlider:
    """A preview beside the content. Its label says whether it is StyTr²'s."""
    label = PREVIEW_LABEL if phase.stage is Stage.PREVIEW else LABEL
    return gr.ImageSlider((before(content, preview), preview), label=label)


def before(content: Image.Image | None, image: Image.Image) -> Image.Image:
    return fit(content, image.size) if content else image


def save(result: Stylization, folder: str) -> Path:
    """Saves the result with its record in Gradio's cache, as a PNG or an MP4."""
    if isinstance(result, VideoStylization):
        return result.path  # written to a path from `place`
    return result.save(place(folder, f"styleengine-{result.method}.png"))


def place(folder: str, name: str) -> Path:
    """A path for a new file in Gradio's cache. Deletes results older than a day."""
    results = Path(folder) / RESULTS
    results.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - RESULT_AGE
    for old in results.iterdir():
        with contextlib.suppress(OSError):  # another call deletes it at the same time
            if old.stat().st_mtime < oldest:
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(dir=results)) / name


def notes(results: Sequence[Stylization]) -> list[str]:
    """The notes of all results, without duplicates."""
    return list(dict.fromkeys(note for result in results for note in result.notes))


def summary(results: Sequence[Stylization]) -> str:
    """Size, time and quality in one line."""
    width, height = results[0].image.size
    seconds, known = sum(result.seconds for result in results), results[0].details
    count = f"{len(results)} images, " if len(results) > 1 else ""
    details = [words.format(known[name]) for name, words in DETAIL_WORDS.items() if name in known]
    return "; ".join([f"{count}{width}×{height} pixels in {seconds:.1f} s", *details]) + "."
