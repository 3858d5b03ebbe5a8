"""The layout of the Z-STAR+ tab."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from styleengine.methods import ZSTAR
from styleengine.ui.examples import content_style_examples
from styleengine.ui.form import Form
from styleengine.ui.gpu import ZERO
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.preview import with_preview
from styleengine.ui.result import ResultPanel
from styleengine.ui.runs import Program, Runner
from styleengine.ui.tab import Tab

MASK_WORDS = (
    "With one style, paint where it applies. With two, paint where the second applies; the first applies elsewhere."
)

PREVIEW_WORDS = "First shows the result of StyTr², a feed-forward transformer, within about a second."


def build(runner: Runner) -> None:
    form = Form(runner, ZSTAR)
    with columns():
        with inputs_part():
            with gr.Row():
                pair = [form.show("content"), form.show("style")]
            examples = content_style_examples(pair)
            with gr.Accordion("More styles", open=False):
                form.show_more_styles()
            with gr.Accordion("Mask", open=False):
                form.show_mask(MASK_WORDS)
        with result_part():
            panel = ResultPanel(method=ZSTAR.name)
        with settings_part():
            form.controls.show("strength", "query_preservation")
            with gr.Row():
                form.controls.show("size", "steps")
            form.controls.show("variation")
            form.controls.show_seed()
            form.show_presets()
            preview = gr.Checkbox(True, label="Instant preview", info=PREVIEW_WORDS, visible=not ZERO)
            form.controls.show_rare()

    def prepare_page(values: Mapping[str, Any]) -> Program:
        return with_preview(form.job(values), values["preview"] is True)

    form.connect(panel, examples, prepare_page, preview=preview)


TAB = Tab(ZSTAR, order=1, build=build)
