"""The layout of the QS-Attn tab, and the image of the anchors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.methods import QS_ATTN
from styleengine.methods.qs_attn import SUGGESTIONS
from styleengine.ui.endpoints import ENGINE_QUEUE
from styleengine.ui.endpoints import shown as error_shown
from styleengine.ui.examples import content_words_examples
from styleengine.ui.form import Form
from styleengine.ui.gpu import on_gpu, refusal
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.result import StripPanel
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab

HINT = "Choose a content image and type a style, or click an example."
MOST_VARIATIONS = 6
ANCHOR_SECONDS = 5  # of GPU time on ZeroGPU
VARIATION_WORDS = "Results with different seeds, from the seed above on."
ANCHOR_WORDS = (
    "The anchors, framed in each layer that is used, from fine to coarse. The contrast loss preserves the content's "
    "features there. Blue = low attention entropy. Anchors are the positions of lowest entropy."
)


def build(runner: Runner) -> None:
    form = Form(runner, QS_ATTN)
    with columns():
        with inputs_part():
            content = form.show("content")
            form.controls.show("prompt")
            shown = [content, form.controls.components["prompt"]]
            examples = content_words_examples(shown, SUGGESTIONS, "qs-attn-examples")
        with result_part():
            panel = StripPanel("seed", "seed", HINT, QS_ATTN.name)
            with gr.Accordion("Anchor positions", open=False):
                gr.Markdown(ANCHOR_WORDS)
                show = gr.Button("Show the anchors", elem_classes="look")
                overlay = gr.Image(label="Anchors", interactive=False, buttons=["fullscreen"], elem_classes="anchors")
        with settings_part():
            form.controls.show("balance", "source_text")
            form.show_model()
            with gr.Row():
                form.controls.show("size", "steps")
            form.controls.show("depth")
            form.controls.show_seed()
            count = gr.Slider(1, MOST_VARIATIONS, value=1, step=1, label="Variations", info=VARIATION_WORDS)
            form.controls.show_rare()

    def prepare_page(values: Mapping[str, Any]) -> Job:
        job, wanted = form.job(values), values["count"]
        if not isinstance(wanted, int) or not 1 < wanted <= MOST_VARIATIONS:
            return job
        return replace(job, method="qs_attn_variations", options={"count": wanted})

    form.connect(panel, examples, prepare_page, count=count)
    _connect_anchors(form, show, overlay)


def _connect_anchors(form: Form, show: gr.Button, overlay: gr.Image) -> None:
    @on_gpu
    def anchors(job: Job) -> Image.Image | StyleEngineError:
        try:
            return form.runner.engine.with_model(job.model).qs_attn_anchors(job.content, job.settings)
        except StyleEngineError as error:
            return error

    def show_anchors(*values: Any) -> Image.Image:
        try:
            job = form.job(dict(zip(form.inputs, values, strict=True)))
            shown = anchors(replace(job, options={"seconds": ANCHOR_SECONDS}))
        except gr.Error as error:  # of ZeroGPU
            raise refusal(error) from error
        except StyleEngineError as error:
            shown = error
        if isinstance(shown, StyleEngineError):
            raise error_shown(shown)
        return shown

    show.click(
        show_anchors,
        inputs=list(form.inputs.values()),
        outputs=overlay,
        preprocess=False,
        api_name="qs_attn_anchors",
        api_visibility="undocumented",
        **ENGINE_QUEUE,
    )


TAB = Tab(QS_ATTN, order=3, build=build)
