"""Settings → controls: each slider, number, radio and checkbox is derived from a settings class."""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Generic, TypeVar

import gradio as gr
from gradio.components import Component

from styleengine.backbones import named_backbones, recommended_settings
from styleengine.errors import StyleEngineError
from styleengine.settings import Knob, Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

FLOAT_STEPS = (0.05, 0.01, 0.005, 0.001)
FEWEST_STOPS, MOST_STOPS = 50, 250
LARGEST_SLIDER = 10_000  # above it, a number field is used
MOST_CHARACTERS = 4000  # of a value
MOST_DIGITS = 40  # of a number
MOST_QUOTED = 80  # characters of a value in an error


class Controls(Generic[AnySettings]):
    """The controls of one settings class. Their initial values are those the backbone recommends.

    `show` and `show_rare` create the controls at the place of the call. `components` maps field names to
    controls, in the order of creation.
    """

    def __init__(self, start: AnySettings) -> None:
        self.start = start
        self.knobs = {knob.name: knob for knob in start.knobs()}
        self.components: dict[str, Component] = {}

    def show(self, *names: str) -> None:
        for name in names:
            self.components[name] = _control(self.knobs[name], getattr(self.start, name))

    def show_rare(self) -> None:
        """The remaining rare settings, in a closed accordion."""
        with gr.Accordion("More settings", open=False):
            self.show(*(name for name, knob in self.knobs.items() if knob.rare and name not in self.components))

    def show_seed(self, name: str = "seed") -> None:
        """The seed, with a button for a random one."""
        with gr.Row(equal_height=False):
            self.show(name)
            dice = gr.Button("⚄ Random", min_width=110, scale=0, elem_classes="dice")
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
        """The checked settings. A value of None falls back to the model's recommended one.

        Raises StyleEngineError for values of a wrong type or out of range.
        """
        given = {name: values[name] for name in self.components if values[name] is not None}
        for name, value in given.items():
            _check(self.knobs[name], value)
        return type(self.start)(**given)

    def starting_from(self, start: AnySettings) -> dict[Any, Any]:
        """Updates that set the controls to other values."""
        return {component: getattr(start, name) for name, component in self.components.items()}


def _control(knob: Knob, value: Any) -> Component:
    words = {"label": knob.title, "info": plain_markdown(knob.description), "interactive": True}
    if knob.choices:
        return gr.Radio([(choice.replace("_", " "), choice) for choice in knob.choices], value=value, **words)
    if knob.type is bool:
        return gr.Checkbox(value=value, **words)
    if knob.suggestions:
        return gr.Dropdown(list(knob.suggestions), value=value or None, allow_custom_value=True, **words)
    if knob.type is str:
        return gr.Textbox(value=value, **words)
    low, high = knob.low or 0, knob.high or 0
    precision = 0 if knob.type is int else None
    step = _step(knob, low, high, {value, *_starts(knob)}) if high <= LARGEST_SLIDER else None
    if step is None:
        return gr.Number(value=value, minimum=low, maximum=high, precision=precision, **words)
    return gr.Slider(low, high, value=value, step=step, **words)


def _starts(knob: Knob) -> set[float]:
    """All possible initial values of a control: its default and each model's recommended value."""
    recommended = (values for name in named_backbones() for values in recommended_settings(name).values())
    return {knob.default, *(values[knob.name] for values in recommended if knob.name in values)}


def _step(knob: Knob, low: float, high: float, starts: Collection[float]) -> float | None:
    """The coarsest slider step with enough stops that hits every start; None (a number field) if none does."""
    span, fewest = high - low, FEWEST_STOPS
    steps: Sequence[float] = FLOAT_STEPS
    if knob.type is int:
        coarsest = max(0, math.ceil(math.log2(span / MOST_STOPS))) if span else 0
        steps, fewest = [2**power for power in range(coarsest, -1, -1)], 0
    offsets = [Decimal(str(start)) - Decimal(str(low)) for start in starts if low <= start <= high]
    fitting = (step for step in steps if span / step >= fewest and not any(o % Decimal(str(step)) for o in offsets))
    return next(fitting, None)


def short(value: Any) -> str:
    """A value, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…"


def _check(knob: Knob, value: Any) -> None:
    """StyleEngineError for values that pydantic would coerce to a number or quote in full."""
    if knob.type in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        kind, fits = "a number", number and len(repr(value)) <= MOST_DIGITS
    else:
        kind, fits = "a single value", isinstance(value, (bool, int, float, str))
    if not fits:
        raise StyleEngineError(f"“{knob.name}” is {short(value)}: it must be {kind}.")
    if len(str(value)) > MOST_CHARACTERS:
        raise StyleEngineError(f"“{knob.name}” has more than {MOST_CHARACTERS} characters. Send a shorter one.")


def plain_markdown(text: str) -> str:
    """Help text in which an asterisk before a space stays one.

    Gradio knows no escape, and takes two asterisks on a line for emphasis. Browsers show a carriage return as a space.
    """
    return text.replace("* ", "*\r")
