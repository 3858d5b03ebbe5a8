"""The layout of the video tab."""

import gradio as gr

from styleengine.methods import ZSTAR_VIDEO
from styleengine.ui.examples import clip_style_examples
from styleengine.ui.form import Form
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.runs import Runner
from styleengine.ui.tab import Tab
from styleengine.ui.video_result import VideoPanel


def build(runner: Runner) -> None:
    form = Form(runner, ZSTAR_VIDEO)
    with columns():
        with inputs_part():
            with gr.Row():
                pair = [form.show("clip"), form.show("style")]
            examples = clip_style_examples(pair)
            with gr.Accordion("Second style and mask", open=False), gr.Row():
                form.show("style_2", 180, "Second style")
                form.show("mask", 180)
        with result_part():
            panel = VideoPanel()
        with settings_part():
            form.controls.show("strength", "query_preservation", "energy")
            with gr.Row():
                form.controls.show("frames", "rate", "begin")
            with gr.Row():
                form.controls.show("size", "steps")
            form.controls.show("compare")
            form.controls.show_seed()
            form.controls.show_rare()
    form.connect(panel, examples)


TAB = Tab(ZSTAR_VIDEO, order=2, build=build)
