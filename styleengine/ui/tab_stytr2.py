"""The layout of the StyTr² tab."""

import gradio as gr

from styleengine.methods import STYTR2
from styleengine.ui.examples import content_style_examples
from styleengine.ui.form import Form
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.result import ResultPanel
from styleengine.ui.runs import Runner
from styleengine.ui.tab import Tab
from styleengine.ui.tab_zstar import MASK_WORDS


def build(runner: Runner) -> None:
    form = Form(runner, STYTR2)
    with columns():
        with inputs_part():
            with gr.Row():
                pair = [form.show("content"), form.show("style")]
            examples = content_style_examples(pair, "stytr2-examples")
            with gr.Accordion("More styles", open=False):
                form.show_more_styles()
            with gr.Accordion("Mask", open=False):
                form.show_mask(MASK_WORDS)
        with result_part():
            panel = ResultPanel(method=STYTR2.name)
        with settings_part():
            form.controls.show("strength", "size")
            form.controls.show_rare()
    form.connect(panel, examples)


TAB = Tab(STYTR2, order=6, build=build)
