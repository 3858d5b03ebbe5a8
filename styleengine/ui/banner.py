"""The banner at the top of the page: how far the loading of the app's model is, or why it failed."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.backbones import short_title
from styleengine.engine import StyleEngine
from styleengine.phases import Stage, loading
from styleengine.ui.panel import Updates, progress_bar
from styleengine.ui.runs import Report

POLL_SECONDS = 1.0  # between two looks of a page at the state

Follow = tuple[Callable[[], Updates], Sequence[Component]]


class Banner:
    """Creates its components at the place of the call. It is empty once the model is loaded."""

    def __init__(self, engine: StyleEngine) -> None:
        self.engine = engine
        self.shown = gr.HTML("", visible=False, elem_classes="model-loading")
        self.clock = gr.Timer(POLL_SECONDS)

    def connect(self, following: Sequence[Follow]) -> None:
        """Keeps the banner current. `following` are updates of other components that depend on the loaded model."""

        def state() -> Updates:
            updates = self.state()
            if self.engine.loaded:
                for follow, _ in following:
                    updates |= follow()
            return updates

        outputs = [self.shown, self.clock, *(component for _, components in following for component in components)]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(None, state, outputs=outputs, **quiet)
        self.clock.tick(state, outputs=outputs, **quiet)

    def state(self) -> Updates:
        if self.engine.loaded:
            return {self.shown: gr.HTML("", visible=False), self.clock: gr.Timer(active=False)}
        event, problem = self.engine.loading
        title = short_title(self.engine.model)
        if problem:
            words = f"<strong>{escape(title)} could not be loaded.</strong> {escape(problem)} Each run tries it again."
            return {self.shown: gr.HTML(f'<p role="alert">{words}</p>', visible=True)}
        counted = event is not None and event.phase.stage is Stage.LOADING
        step, total = (event.step, event.total) if event and counted else (0, 1)
        return {self.shown: gr.HTML(progress_bar(Report(loading(title), step, total)), visible=True)}
