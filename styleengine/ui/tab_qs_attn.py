"""The QS-Attn tab: a content image in a style said in words, and where the content is held."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from styleengine.backbones import recommended_settings
from styleengine.errors import StyleEngineError
from styleengine.images import open_image
from styleengine.methods.qs_attn import SUGGESTIONS, QSAttnSettings
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import ENGINE_QUEUE, add_api, connect_page
from styleengine.ui.endpoints import shown as error_shown
from styleengine.ui.examples import content_words_examples
from styleengine.ui.gpu import on_gpu
from styleengine.ui.models import chosen_model, model_choice
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.result import ResultPanel
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab

NAME = "qs_attn"
SUMMARY = "Redraws a content image in a style said in words (QS-Attn)."
DESCRIPTIONS = {
    "content": "The picture to redraw.",
    "model": "The model to run on; latent and pixel-space models both serve.",
}
HINT = "Choose a content image and type a style, or click an example below."
ANCHOR_WORDS = (
    "The positions whose features are kept, framed in each layer that is used, from fine to coarse. "
    "Blue is low entropy of attention. Anchors are the positions of lowest entropy."
)


def build(runner: Runner) -> None:
    controls = Controls(runner.engine.settings_for(QSAttnSettings, NAME, None))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            content = picture("Content", height=240)
            controls.show("prompt", "balance", "source_text")
            model = model_choice(runner.engine)
            with gr.Row():
                controls.show("size", "steps")
            controls.show("depth")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = ResultPanel("Run", HINT)
            with gr.Accordion("What is kept: anchors", open=False):
                gr.Markdown(ANCHOR_WORDS)
                look = gr.Button("Show the anchors", elem_classes="look")
                overlay = gr.Image(label="Anchors", interactive=False, buttons=["fullscreen"], elem_classes="anchors")
            prompt = controls.components["prompt"]
            examples = content_words_examples([content, prompt], SUGGESTIONS, "qs-attn-examples")

    def prepare(values: Mapping[str, Any]) -> Job:
        image = open_image(path_of(values["content"]), "content image")  # type: ignore[arg-type] - None is worded too
        return Job(
            NAME, image, {"settings": controls.settings(values)}, chosen_model(runner.engine, model, values["model"])
        )

    inputs: dict[str, Component] = {"content": content, **controls.components, "model": model}
    connect_page(NAME, runner, panel, prepare, inputs, examples)
    add_api(
        NAME,
        runner,
        prepare,
        inputs,
        required=("content", "prompt"),
        summary=SUMMARY,
        descriptions=DESCRIPTIONS | {name: knob.description for name, knob in controls.knobs.items()},
    )

    @on_gpu
    def anchors(job: Job) -> Image.Image | StyleEngineError:
        try:
            return runner.engine.with_model(job.model).qs_attn_anchors(job.content, **job.arguments)
        except StyleEngineError as error:
            return error

    def show_anchors(*values: Any) -> Image.Image:
        try:
            shown = anchors(prepare(dict(zip(inputs, values, strict=True))))
        except StyleEngineError as error:
            shown = error
        if isinstance(shown, StyleEngineError):
            raise error_shown(shown)
        return shown

    look.click(
        show_anchors,
        inputs=list(inputs.values()),
        outputs=overlay,
        preprocess=False,
        api_name=f"{NAME}_anchors",
        api_visibility="undocumented",
        **ENGINE_QUEUE,
    )

    def show_what_suits(choice: Any) -> dict[Any, Any]:
        recommended = recommended_settings(chosen_model(runner.engine, model, choice)).get(NAME, {})
        shown = controls.starting_from(QSAttnSettings(**recommended))
        del shown[prompt]  # what has been typed stays
        return shown

    model.change(
        show_what_suits,
        inputs=model,
        outputs=[component for component in controls.components.values() if component is not prompt],
        preprocess=False,
        api_name=f"{NAME}_model",
        api_visibility="undocumented",
        queue=False,
        show_progress="hidden",
    )


TAB = Tab("QS-Attn", order=3, build=build)
