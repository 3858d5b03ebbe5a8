"""The layout of the h-space tab: one result for one γ, or a strip over several."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from styleengine.methods import H_SPACE
from styleengine.methods.h_space import HSpaceSettings
from styleengine.stylization import model_name
from styleengine.ui.examples import FIGURES, h_space_examples
from styleengine.ui.form import Form
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.result import StripPanel
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab

START_MODELS = {"mini": FIGURES}  # γ changes almost nothing on mini
MASK_WORDS = "Paint where the content is injected. The style image is unchanged elsewhere."


def build(runner: Runner) -> None:
    own = model_name(runner.engine.model)
    form = Form(runner, H_SPACE, model=START_MODELS.get(own))
    with columns():
        with inputs_part():
            with gr.Row():
                pair = [form.show("content"), form.show("style")]
            place_of_examples = gr.Column()
            with gr.Accordion("Mask", open=False):
                form.show_mask(MASK_WORDS, "Paint where the content is injected")
        with result_part():
            panel = StripPanel("gamma", "γ", method=H_SPACE.name)
        with settings_part():
            form.controls.show("gamma")
            strip = gr.Checkbox(label="A strip of γ = 0, 0.2, … 1 instead of one γ")
            with gr.Row():
                form.controls.show("t_start", "t_edit")
            with gr.Row():
                form.controls.show("calibration", "omega")
            form.controls.show("t_boost")
            model = form.show_model()
            with gr.Row():
                form.controls.show("size", "steps", "injections")
            form.controls.show_seed()
            form.controls.show_rare()
    with place_of_examples:  # they also set the model and the size, which come later on the page
        shown = [*pair, model, form.controls.components["size"]]
        size = runner.engine.settings_for(HSpaceSettings, H_SPACE.name, None).size
        examples = h_space_examples(shown, own, size)

    def prepare_page(values: Mapping[str, Any]) -> Job:
        job = form.job(values)
        return replace(job, method="h_space_strip") if values["strip"] is True else job

    form.connect(panel, examples, prepare_page, strip=strip)


TAB = Tab(H_SPACE, order=4, build=build)
