"""Settings → controls: each slider, number, choice and box is derived from a settings class."""

import secrets
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import gradio as gr
from gradio.components import Component

from styleengine.settings import Knob, Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

FLOAT_STEPS = (0.05, 0.01, 0.005, 0.001)
FEWEST_STOPS, MOST_STOPS = 50, 250
LARGEST_SLIDER = 10_000  # beyond it a number is typed


class Controls(Generic[AnySettings]):
    """The controls of one settings class, starting from the values the backbone recommends.

    `show` and `show_rare` make the controls where they are called; `components` maps the names of
    the fields to them, in the order in which they were shown.
    """

    def __init__(self, start: AnySettings) -> None:
        self.start = start
        self.knobs = {knob.name: knob for knob in start.knobs()}
        self.components: dict[str, Component] = {}

    def show(self, *names: str) -> None:
        for name in names:
            self.components[name] = _control(self.knobs[name], getattr(self.start, name))

    def show_rare(self) -> None:
        """The rare ones that are not shown yet, folded away."""
        with gr.Accordion("More settings", open=False):
            self.show(*(name for name, knob in self.knobs.items() if knob.rare and name not in self.components))

    def show_seed(self, name: str = "seed") -> None:
        """The seed, with a dice beside it."""
        with gr.Row(equal_height=False):
            self.show(name)
            dice = gr.Button("⚄", min_width=44, scale=0, elem_classes="dice")
        highest = int(self.knobs[name].high or 0)
        dice.click(
            lambda: secrets.randbelow(highest + 1),
            outputs=self.components[name],
            api_name="roll_seed",
            api_visibility="undocumented",
            queue=False,
            show_progress="hidden",
        )

    def settings(self, values: Mapping[str, Any]) -> AnySettings:
        """Checked settings that hold only what was moved: the rest stays as the backbone recommends."""
        moved = {
            name: values[name]
            for name, component in self.components.items()
            if values[name] is not None and values[name] != component.value
        }
        return type(self.start)(**moved)

    def as_shown(self, values: Mapping[str, Any]) -> AnySettings:
        """Checked settings that hold all that the page shows: for a page that has since been given other values."""
        shown = {name: values[name] for name in self.components if values[name] is not None}
        return type(self.start)(**shown)

    def starting_from(self, start: AnySettings) -> dict[Any, Any]:
        """Updates that make the controls show other values."""
        return {component: getattr(start, name) for name, component in self.components.items()}


def _control(knob: Knob, value: Any) -> Component:
    words = {"label": knob.title, "info": knob.description, "interactive": True}
    if knob.choices:
        return gr.Radio([(choice.replace("_", " "), choice) for choice in knob.choices], value=value, **words)
    if knob.type is bool:
        return gr.Checkbox(value=value, **words)
    if knob.suggestions:
        return gr.Dropdown(list(knob.suggestions), value=value or None, allow_custom_value=True, **words)
    if knob.type is str:
        return gr.Textbox(value=value, **words)
    low, high = knob.low or 0, knob.high or 0
    if high > LARGEST_SLIDER:
        return gr.Number(value=value, minimum=low, maximum=high, precision=0, **words)
    step = _step(knob.type, high - low)
    if 0 < value < step:  # a slider would show it as 0
        return gr.Number(value=value, minimum=low, maximum=high, **words)
    return gr.Slider(low, high, value=round(round(value / step) * step, 4), step=step, **words)


def _step(kind: type, span: float) -> float:
    """A round step: powers of two for whole numbers, the coarsest that leaves enough stops for others."""
    if kind is int:
        step = 1
        while span / step > MOST_STOPS:
            step *= 2
        return step
    return next((step for step in FLOAT_STEPS if span / step >= FEWEST_STOPS), FLOAT_STEPS[-1])
