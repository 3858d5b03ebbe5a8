"""The output side of a tab: Run and Cancel, progress bar, before/after slider, download."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from styleengine.images import fit
from styleengine.phases import Stage
from styleengine.stylization import Stylization, VideoStylization
from styleengine.ui.runs import Report

Updates = dict[Any, Any]
Drawn: TypeAlias = Stylization | list[Stylization]

WAITING_WORDS = "Waiting in the queue …"
RESULTS = "styleengine-results"  # a folder in Gradio's cache
RESULT_AGE = 24 * 3600  # seconds after which results are deleted
HINT = "Choose a content and a style image, or click an example below."

DETAIL_WORDS = {
    "autoencoder_psnr": "autoencoder reconstruction {:.1f} dB PSNR",
    "reconstruction_psnr": "unstyled reconstruction {:.1f} dB PSNR",
    "similarity_before": "CLIP similarity to the prompt {:.3f} before",
    "similarity_after": "{:.3f} after",
}


class ResultPanel:
    """Creates its components at the place of the call. Its methods return the states of a run as Gradio updates."""

    def __init__(self, action: str, hint: str = HINT) -> None:
        with gr.Row():
            self.run = gr.Button(action, variant="primary", scale=3, elem_classes="run")
            self.cancel = gr.Button("Cancel", variant="secondary", scale=1, min_width=96, interactive=False)
        self.status = gr.HTML(line(hint), elem_classes="status")
        self.slider = gr.ImageSlider(
            label="Before and after",
            interactive=False,
            height=560,
            max_height=560,
            buttons=["fullscreen"],
            elem_classes="result",
        )
        self.download = gr.DownloadButton("Download PNG", interactive=False)

    @property
    def outputs(self) -> list[Any]:
        return [self.run, self.cancel, self.status, self.slider, self.download]

    def waiting(self) -> Updates:
        return {**self._busy(True), self.status: line(WAITING_WORDS), self.download: gr.skip()}

    def working(self, report: Report, content: Image.Image | None) -> Updates:
        updates: Updates = {self.status: progress_bar(report)}
        if report.preview:
            updates[self.slider] = (_before(content, report.preview), report.preview)
        return updates

    def finished(self, result: Drawn, content: Image.Image | None) -> Updates:
        """Compares the last result with the content, or with itself if there is no content."""
        results = result if isinstance(result, list) else [result]
        path = save(results[-1], self.slider.GRADIO_CACHE)
        return {
            **self._busy(False),
            self.status: "".join(map(line, [summary(results), *notes(results)])),
            self.slider: (_before(content, results[-1].image), str(path)),
            self.download: gr.DownloadButton(value=str(path), interactive=True),
        }

    def stopped(self, sentence: str) -> Updates:
        return {**self._busy(False), self.status: line(sentence)}

    def connect_comparison(self, run: Any) -> None:
        """Nothing to do: the slider shows the comparison."""

    def _busy(self, busy: bool) -> Updates:
        return {self.run: gr.Button(interactive=not busy), self.cancel: gr.Button(interactive=busy)}


class StripPanel(ResultPanel):
    """A panel that also shows several results side by side, labelled by one setting."""

    def __init__(self, action: str, setting: str, symbol: str) -> None:
        super().__init__(action)
        self.setting, self.symbol = setting, symbol
        self.strip = gr.Gallery(
            label=f"{symbol} from low to high",
            columns=3,
            height="auto",
            object_fit="contain",
            interactive=False,
            visible=False,
            buttons=["download", "download_all", "fullscreen"],
            elem_classes="strip",
        )

    @property
    def outputs(self) -> list[Any]:
        return [*super().outputs, self.strip]

    def waiting(self) -> Updates:
        return {**super().waiting(), self.strip: gr.Gallery(visible=False)}

    def finished(self, result: Drawn, content: Image.Image | None) -> Updates:
        updates = super().finished(result, content)
        if isinstance(result, list):
            pictures = [
                (str(save(one, self.slider.GRADIO_CACHE)), f"{self.symbol} {one.settings[self.setting]:g}")
                for one in result
            ]
            updates[self.strip] = gr.Gallery(value=pictures, visible=True)
        return updates


def _before(content: Image.Image | None, image: Image.Image) -> Image.Image:
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


def progress_words(report: Report) -> str:
    if report.phase.stage is Stage.WAITING:
        return WAITING_WORDS
    return f"{report.phase.title}: step {report.step} of {report.total}"


def progress_bar(report: Report) -> str:
    percent = 100 * report.step / max(1, report.total)
    return f'{line(progress_words(report))}<div class="bar"><div style="width: {percent:.1f}%"></div></div>'


def line(text: str) -> str:
    """A line of the status, as HTML."""
    return f"<p>{escape(text)}</p>"
