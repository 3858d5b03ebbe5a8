"""The h-space tab: a content image drawn as a style image is, on a model of choice, for one γ or a strip of them."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.backbones import recommended_settings
from styleengine.images import open_image, open_mask
from styleengine.methods.h_space import HSpaceSettings
from styleengine.stylization import model_name
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import add_api, connect_page
from styleengine.ui.examples import h_space_examples
from styleengine.ui.models import chosen_model, model_choice
from styleengine.ui.page import ACCENT
from styleengine.ui.pictures import painted_mask, painter, path_of, picture
from styleengine.ui.result import StripPanel
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab

NAME = "h_space"
STRIP = "h_space_strip"
SUMMARY = (
    "Draws what a content image shows as a style image is drawn, by injection into the U-Net's bottleneck (h-space)."
)
DESCRIPTIONS = {
    "content": "The picture that says what is shown.",
    "style": "The picture that says how it looks; it is cut to the content's shape.",
    "mask": "White where the content comes in; elsewhere the style image stays.",
    "model": "The model to run on; latent and pixel-space models both serve.",
}
MASK_WORDS = (
    "Paint where the content comes in; the style image stays elsewhere. Leave it empty for everywhere. "
    "An uploaded mask, white for painted, overrides the painted one."
)


def build(runner: Runner) -> None:
    controls = Controls(runner.engine.settings_for(HSpaceSettings, NAME, None))
    inputs: dict[str, Component] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                inputs["content"] = content = picture("Content", height=240)
                inputs["style"] = picture("Style", height=240)
            with gr.Accordion("Mask", open=False):
                gr.Markdown(MASK_WORDS)
                painting = painter(content, ACCENT, "Paint where the content comes in")
                inputs["mask"] = picture("Or upload a mask", height=160)
            controls.show("gamma")
            strip = gr.Checkbox(label="A strip of γ = 0, 0.2, … 1 in one go, instead of one γ")
            with gr.Row():
                controls.show("t_start", "t_edit")
            with gr.Row():
                controls.show("calibration", "omega")
            controls.show("t_boost")
            inputs["model"] = model = model_choice(runner.engine)
            with gr.Row():
                controls.show("size", "steps")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = StripPanel("Run", "gamma", "γ")
            shown = [inputs["content"], inputs["style"], model, controls.components["size"]]
            examples = h_space_examples(shown, model_name(runner.engine.backbone.name), controls.start.size)

    def preparing(method: str) -> Callable[..., Job]:
        def prepare(values: Mapping[str, Any]) -> Job:
            paths: dict[str, Any] = {name: path_of(values[name]) for name in ("content", "style", "mask")}
            content, style = (open_image(paths[name], f"{name} image") for name in ("content", "style"))
            mask = open_mask(paths["mask"]) if paths["mask"] else painted_mask(values.get("painting"))
            arguments = {"style": style, "settings": controls.settings(values), "mask": mask}
            return Job(method, content, arguments, chosen_model(runner.engine, model, values["model"]))

        return prepare

    def prepare_page(values: Mapping[str, Any]) -> Job:
        return preparing(STRIP if values["strip"] is True else NAME)(values)

    inputs |= controls.components
    connect_page(NAME, runner, panel, prepare_page, {**inputs, "painting": painting, "strip": strip}, examples)
    descriptions = DESCRIPTIONS | {name: knob.description for name, knob in controls.knobs.items()}
    add_api(
        NAME,
        runner,
        preparing(NAME),
        inputs,
        required=("content", "style"),
        summary=SUMMARY,
        descriptions=descriptions,
    )

    def show_what_suits(choice: Any) -> dict[Any, Any]:
        recommended = recommended_settings(chosen_model(runner.engine, model, choice)).get(NAME, {})
        return controls.starting_from(HSpaceSettings(**recommended))

    model.change(
        show_what_suits,
        inputs=model,
        outputs=list(controls.components.values()),
        preprocess=False,
        api_name="h_space_model",
        api_visibility="undocumented",
        queue=False,
        show_progress="hidden",
    )


TAB = Tab("h-space", order=4, build=build)
