"""The panel of the video tab: the last frame during a run, then the clip beside the original."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import fit
from styleengine.stylization import VideoStylization
from styleengine.ui.charts import lines
from styleengine.ui.examples import EXAMPLE_WORDS, first_clip
from styleengine.ui.gpu import ZERO
from styleengine.ui.panel import Panel, Updates, duration, line, progress_bar
from styleengine.ui.result import notes, place
from styleengine.ui.runs import Report
from styleengine.video import Selection, VideoClip, beside, open_clip, write_clip

COMPARING_QUEUE = {"concurrency_id": "comparing", "concurrency_limit": 1}
STATE_SECONDS = 3600.0
RENEW_SECONDS = 10.0  # between two requests of a page on ZeroGPU, in whose name the next slice asks for a GPU
NO_POSTER = Image.new("RGB", (1, 1))
HINT = "Choose a clip and a style image, or click an example."
SERIES = {"result": "result", "alone": "per-frame stylization", "clip": "original clip"}


@dataclass(frozen=True)
class Compared:
    """A finished clip and the corresponding part of the original."""

    original: Selection
    result: Path
    size: tuple[int, int]
    rate: Fraction


class VideoPanel(Panel):
    """A panel with the last frame during a run, then the clip beside the original and a plot of the differences."""

    def __init__(self) -> None:
        self.first = first_clip()
        super().__init__(f"{HINT} {EXAMPLE_WORDS}" if self.first else HINT, "Download MP4")

    def show(self) -> list[Any]:
        self.frame = gr.Image(label="Last finished frame", interactive=False, height=320, visible=False, buttons=[])
        self.video = gr.Video(
            self.first,
            label="Before and after",
            interactive=False,
            height=420,
            loop=True,
            buttons=[],
            elem_classes="clip",
        )
        self.plot = gr.HTML(visible=False)
        self.compared = gr.State(None, time_to_live=STATE_SECONDS)
        shown = [self.frame, self.video, self.plot, self.compared]
        if not ZERO:
            return shown
        self.clock = gr.Timer(RENEW_SECONDS, active=False)
        return [*shown, self.clock]

    def waiting(self) -> Updates:
        return {**super().waiting(), self.compared: None}

    def working(self, report: Report, content: VideoClip) -> Updates:
        left = "" if report.seconds_left is None else f"About {duration(report.seconds_left)} left."
        updates: Updates = {self.status: progress_bar(report) + line(left)}
        if report.preview:
            updates[self.frame] = gr.Image(report.preview, visible=True)
        return updates

    def finished(self, result: VideoStylization, content: VideoClip) -> Updates:
        """All updates but the side-by-side clip, which `connect_comparison` adds."""
        settings, clip = result.settings, replace(content, poster=NO_POSTER)
        original = clip.select(settings["rate"], settings["begin"], result.frames)
        return {
            **self.stopped(summary(result), *notes([result]), file=str(result.path)),
            self.frame: gr.Image(None, visible=False),
            self.video: None,
            self.plot: gr.HTML(differences(result), visible=result.frames > 1),
            self.compared: Compared(original, result.path, result.image.size, result.rate),
        }

    def connect_comparison(self, run: Any) -> None:
        """Encodes both clips side by side after `run`, when the engine is free for other runs."""

        def side_by_side(compared: Compared | None) -> Any:
            try:
                return comparison(compared, self.video.GRADIO_CACHE) if compared else gr.skip()
            except StyleEngineError:  # the original has been deleted in the meantime
                return str(compared.result) if compared else gr.skip()

        run.then(
            side_by_side,
            inputs=self.compared,
            outputs=self.video,
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="multiple",
            **COMPARING_QUEUE,
        )


def comparison(compared: Compared, folder: str) -> str:
    """One MP4 with the original on the left and the result on the right, so that both stay in sync."""
    before = (fit(frame, compared.size) for frame in compared.original.frames())
    after = open_clip(compared.result).select(0, 0, compared.original.count).frames()
    pairs = zip(before, after, strict=False)
    return str(write_clip(place(folder, "before-and-after.mp4"), beside(pairs), compared.rate, sound=compared.original))


def differences(result: VideoStylization) -> str:
    """A chart of the difference of each frame to the previous one, one line per series."""
    series = {SERIES[name]: list(enumerate(values, start=2)) for name, values in result.differences.items()}
    return lines(series, "Difference to the previous frame", "frame", "difference")


def summary(result: VideoStylization) -> str:
    """Size, length and time in one line."""
    width, height = result.image.size
    shown = f"{result.frames} frames of {width}×{height} pixels in {result.seconds:.1f} s."
    return shown if result.complete else f"Cancelled; {shown}"
