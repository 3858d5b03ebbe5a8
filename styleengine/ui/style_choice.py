"""The choice of learned styles from the library."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import hash_bytes

from styleengine.backbones import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import write_whole
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.style_library import StyleLibrary
from styleengine.ui.panel import Updates
from styleengine.ui.pictures import path_of
from styleengine.ui.runs import Runner

LIBRARY_WORDS = "All users of this app share the library."


class StyleChoice:
    """Two dropdowns with the library's styles, an upload and a download."""

    def __init__(self, runner: Runner, library: StyleLibrary) -> None:
        self.runner, self.library = runner, library

    def show(self) -> None:
        names = self.names()
        with gr.Row():
            self.style = gr.Dropdown(names, value=names[0] if names else None, label="Style", interactive=True)
            self.style_2 = gr.Dropdown(names, value=None, label="Second style", interactive=True)
        with gr.Row():
            self.upload = gr.UploadButton("Upload a style", file_types=[SUFFIX], size="sm", elem_classes="upload-style")
            self.download = gr.DownloadButton("Download the style", size="sm", interactive=False)
        gr.Markdown(LIBRARY_WORDS)

    def names(self) -> list[Any]:
        """The styles that fit the model; none before it is loaded."""
        backbone = self.runner.engine.loaded
        return self.library.names(backbone) if isinstance(backbone, LatentBackbone) else []

    def refreshed(self, chosen: str | None = None) -> Updates:
        """Updates with the current styles; `chosen` is selected in the first dropdown."""
        names = self.names()
        picked: dict[str, Any] = {"value": chosen} if chosen in names else {}
        return {self.style: gr.Dropdown(choices=names, **picked), self.style_2: gr.Dropdown(choices=names)}

    def begun(self) -> Updates:
        """Updates for a page on which no style could be chosen yet: the current styles, and the first one selected."""
        names = self.names()
        return self.refreshed(names[0] if names else None)

    def note(self, style: LearnedStyle) -> str:
        """A note on using the style with this model; empty if there is none, or before the model is loaded."""
        backbone = self.runner.engine.loaded
        return style.note_for(backbone) if isinstance(backbone, LatentBackbone) else ""

    def file(self, style: LearnedStyle) -> str:
        """The style's file in Gradio's cache, at the path Gradio itself would use for this content."""
        content = style.to_bytes()
        path = Path(self.style.GRADIO_CACHE, hash_bytes(content), f"{style.record.name}{SUFFIX}")
        try:
            os.utime(path)  # Gradio deletes old files
        except OSError:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        return str(path)

    def add(self, upload: Mapping[str, Any] | None) -> LearnedStyle:
        """Adds an uploaded file to the library; StyleEngineError for a style that does not fit the loaded model."""
        path = path_of(upload)
        if not path:
            raise StyleEngineError("No style was given. Choose a file that StyleEngine has saved.")
        style = LearnedStyle.open(path)
        backbone = self.runner.engine.loaded
        if isinstance(backbone, LatentBackbone):
            style.check_fits(backbone)
        return self.library.add(style)
