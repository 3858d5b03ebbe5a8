"""The Z-STAR+ tab: a content image in one to three styles, everywhere or where a mask says."""

import sys
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.errors import StyleEngineError
from styleengine.images import open_image, open_mask
from styleengine.methods.zstar import ZStarSettings
from styleengine.styles import Style
from styleengine.ui.controls import Controls, short
from styleengine.ui.endpoints import add_api, connect_page
from styleengine.ui.examples import content_style_examples
from styleengine.ui.page import ACCENT
from styleengine.ui.pictures import painted_mask, painter, path_of, picture
from styleengine.ui.result import ResultPanel
from styleengine.ui.runs import Job, Runner
from styleengine.ui.tab import Tab

NAME = "zstar"
SUMMARY = "Redraws a content image in the style of one to three other images (Z-STAR+)."
DESCRIPTIONS = {
    "content": "The picture to redraw.",
    "style": "The picture whose style is taken.",
    "style_2": "A second style, if any.",
    "style_3": "A third style, if any.",
    "weight": "How much the first style counts among several.",
    "weight_2": "How much the second style counts.",
    "weight_3": "How much the third style counts.",
    "mask": "With one style: white where it applies. With two: white for the second, black for the first.",
}
MASK_WORDS = (
    "With one style, paint where it applies. With two, paint where the second applies; the first takes the rest. "
    "Leave it empty for no mask. An uploaded mask, white for painted, overrides the painted one."
)
PICTURES = ("content", "style", "style_2", "style_3", "mask")
STYLE_SLOTS = (("style", "weight"), ("style_2", "weight_2"), ("style_3", "weight_3"))
MOST_WEIGHT = 3


def build(runner: Runner) -> None:
    controls = Controls(runner.engine.settings_for(ZStarSettings, NAME, None))
    pictures: dict[str, Component] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                pictures["content"] = content = picture("Content", height=240)
                pictures["style"] = picture("Style", height=240)
            with gr.Accordion("More styles", open=False):
                _more_styles(pictures)
            with gr.Accordion("Mask", open=False):
                gr.Markdown(MASK_WORDS)
                painting = painter(content, ACCENT)
                pictures["mask"] = picture("Or upload a mask", height=160)
            controls.show("strength")
            with gr.Row():
                controls.show("size", "steps")
            controls.show("variation")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = ResultPanel("Run")
            examples = content_style_examples([pictures["content"], pictures["style"]])

    def prepare(values: Mapping[str, Any]) -> Job:
        paths: dict[str, Any] = {name: path_of(values[name]) for name in PICTURES}
        content = open_image(paths["content"], "content image")
        given = [(path, _weight(values[weight])) for slot, weight in STYLE_SLOTS if (path := paths[slot])]
        styles = [Style(open_image(path, "style image"), weight) for path, weight in given]
        mask = open_mask(paths["mask"]) if paths["mask"] else painted_mask(values.get("painting"))
        return Job(NAME, content, {"styles": styles, "settings": controls.settings(values), "mask": mask})

    inputs = pictures | controls.components
    connect_page(NAME, runner, panel, prepare, {**inputs, "painting": painting}, examples)
    descriptions = DESCRIPTIONS | {name: knob.description for name, knob in controls.knobs.items()}
    add_api(
        NAME,
        runner,
        prepare,
        inputs,
        required=("content", "style"),
        summary=SUMMARY,
        descriptions=descriptions,
    )


def _more_styles(pictures: dict[str, Component]) -> None:
    """Slots for a second and a third style, and the weight of each."""
    with gr.Row():
        pictures["style_2"] = picture("Second style", height=180)
        pictures["style_3"] = picture("Third style", height=180)
    with gr.Row():
        for (_, weight), title in zip(STYLE_SLOTS, ("First", "Second", "Third"), strict=True):
            label = f"{title} weight"
            pictures[weight] = gr.Slider(0, MOST_WEIGHT, value=Style.weight, step=0.05, label=label, min_width=120)


def _weight(value: Any) -> float:
    """A style's weight; what is left out counts as one. The method checks its range."""
    if value is None:
        return Style.weight
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise StyleEngineError(f"A style's weight is {short(value)}: it must be a number.")
    return float(value)


TAB = Tab("Z-STAR+", order=1, build=build)
