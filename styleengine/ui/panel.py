"""The output side of a tab: Run and Cancel, a frame with the status and what a subclass shows, and the download."""

from abc import ABC, abstractmethod
from html import escape
from typing import Any

import gradio as gr

from styleengine.phases import Stage
from styleengine.stylization import StepEvent
from styleengine.ui.runs import Report

Updates = dict[Any, Any]

WAITING_WORDS = "Waiting in the queue …"


class Panel(ABC):
    """Creates its components at the place of the call. Its methods return the states of a run as Gradio updates.

    `show` creates what a subclass shows in the frame below the status, and returns these components.
    """

    def __init__(self, hint: str, download: str, run: str = "Run", cancel: str = "Cancel") -> None:
        with gr.Row():
            self.run = gr.Button(run, variant="primary", scale=3, elem_classes="run")
            self.cancel = gr.Button(cancel, variant="secondary", scale=1, min_width=96, interactive=False)
        self.clock: gr.Timer | None = None  # active during a run
        with gr.Column(elem_classes="frame"):
            self.status = gr.HTML(line(hint), elem_classes="status")
            shown = self.show()
        self.download = gr.DownloadButton(download, interactive=False)
        self.outputs: list[Any] = [self.run, self.cancel, self.status, *shown, self.download]

    @abstractmethod
    def show(self) -> list[Any]: ...

    def waiting(self) -> Updates:
        return {**self.busy(True), self.status: line(WAITING_WORDS)}

    def working(self, report: Any, content: Any, /) -> Updates:
        return {self.status: progress_bar(report)}

    @abstractmethod
    def finished(self, result: Any, content: Any, /) -> Updates: ...

    def stopped(self, *sentences: str, file: str | None = None) -> Updates:
        """The end of a run: sentences for the status, and the file to download if there is one."""
        updates: Updates = {**self.busy(False), self.status: "".join(map(line, sentences))}
        return {**updates, self.download: gr.DownloadButton(value=file, interactive=True)} if file else updates

    def kept(self) -> list[Any]:
        """The components with a finished run's files, which the browser keeps small copies of."""
        return [self.download]

    def busy(self, busy: bool) -> Updates:
        updates: Updates = {self.run: gr.Button(interactive=not busy), self.cancel: gr.Button(interactive=busy)}
        return {**updates, self.clock: gr.Timer(active=busy)} if self.clock else updates

    def connect_comparison(self, run: Any) -> None:  # noqa: B027 - most panels compute nothing more
        """Adds what is computed after `run`: by default nothing."""


def strip(label: str, columns: int, buttons: list[Any], elem_classes: str, first: Any = None) -> gr.Gallery:
    """Images side by side: the `first` ones, or none and not yet visible."""
    return gr.Gallery(
        first or None,
        label=label,
        columns=columns,
        height="auto",
        object_fit="contain",
        interactive=False,
        visible=bool(first),
        buttons=buttons,
        elem_classes=elem_classes,
    )


def progress_words(report: Report | StepEvent) -> str:
    if report.phase.stage is Stage.WAITING:
        return WAITING_WORDS
    if report.phase.stage is Stage.LOADING:
        return loading_words(report)
    if report.phase.stage is Stage.PREVIEW:
        return f"{report.phase.title}."
    return f"{report.phase.title}: step {report.step} of {report.total}"


def loading_words(event: Report | StepEvent) -> str:
    """“Loading Stable Diffusion 1.5 … 43 %”; without a share before the download, after it, and where there is none."""
    share = f" {100 * event.step / event.total:.0f} %" if 0 < event.step < event.total else ""
    return f"{event.phase.title} …{share}"


def progress_bar(report: Report | StepEvent) -> str:
    percent = 100 * report.step / max(1, report.total)
    named = f'role="progressbar" aria-label="Progress" aria-valuenow="{percent:.0f}"'
    bar = f'<div class="bar" {named}><div style="width: {percent:.1f}%"></div></div>'
    return f"{line(progress_words(report))}{bar}"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def line(text: str) -> str:
    """A line of the status, as HTML."""
    return f"<p>{escape(text)}</p>"
