"""The tab for clips: Z-STAR+ frame by frame, without flicker."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.images import open_image, open_mask
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.styles import Style
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import add_api, connect_page
from styleengine.ui.examples import clip_style_examples
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.result import place
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab
from styleengine.ui.video_result import VideoPanel
from styleengine.video import open_clip

NAME = "zstar_video"
SUMMARY = "Redraws a clip in the style of one or two images, steadily (Z-STAR+ for video)."
DESCRIPTIONS = {
    "clip": "The video to redraw.",
    "style": "The picture whose style is taken.",
    "style_2": "A second style, if any.",
    "mask": "With one style: white where it applies. With two: white for the second, black for the first.",
}


def build(runner: Runner) -> None:
    controls = Controls(runner.engine.settings_for(ZStarVideoSettings, NAME, None))
    inputs: dict[str, Component] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                inputs["clip"] = gr.Video(label="Clip", height=240, sources=["upload"], buttons=[])
                inputs["style"] = picture("Style", height=240)
            with gr.Accordion("Second style and mask", open=False), gr.Row():
                inputs["style_2"] = picture("Second style", height=180)
                inputs["mask"] = picture("Mask", height=180)
            controls.show("strength", "energy")
            with gr.Row():
                controls.show("frames", "rate", "begin")
            with gr.Row():
                controls.show("size", "steps")
            controls.show("compare")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = VideoPanel()
            examples = clip_style_examples([inputs["clip"], inputs["style"]])

    def prepare(values: Mapping[str, Any]) -> Job:
        paths = {name: path_of(values[name]) for name in DESCRIPTIONS}
        clip = open_clip(paths["clip"])
        styles = [Style(open_image(path, "style image")) for name in ("style", "style_2") if (path := paths[name])]
        arguments = {
            "styles": styles,
            "settings": controls.settings(values),
            "mask": open_mask(paths["mask"]) if paths["mask"] else None,
            "output": place(panel.video.GRADIO_CACHE, f"styleengine-{NAME}.mp4"),
            "keep_partial": True,
        }
        return Job(NAME, clip, arguments)

    inputs |= controls.components
    connect_page(NAME, runner, panel, prepare, inputs, examples, keeps_partial=True)
    descriptions = DESCRIPTIONS | {name: knob.description for name, knob in controls.knobs.items()}
    add_api(
        NAME,
        runner,
        prepare,
        inputs,
        required=("clip", "style"),
        summary=SUMMARY,
        descriptions=descriptions,
        result=gr.Video,
    )


TAB = Tab("Video", order=2, build=build)
