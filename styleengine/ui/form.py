"""A method on the page: a component for each input and setting, and the job built from their values.

A tab file defines the layout. A method without a tab file gets `plain_tab`.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.helpers import Examples

from styleengine.backbones import recommended_settings
from styleengine.errors import StyleEngineError
from styleengine.images import open_image, open_mask
from styleengine.method import Kind, Method, Role
from styleengine.style_library import StyleLibrary
from styleengine.styles import Style
from styleengine.ui.clip_slices import in_slices
from styleengine.ui.controls import Controls, short
from styleengine.ui.endpoints import Prepare, add_api, connect_page
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.models import chosen_model, model_choice, model_info
from styleengine.ui.page import ACCENT
from styleengine.ui.pictures import painted_mask, painter, path_of, picture
from styleengine.ui.result import ResultPanel, place
from styleengine.ui.runs import Job, Program, Runner
from styleengine.ui.video_result import VideoPanel
from styleengine.video import open_clip

MOST_WEIGHT = 3
NUMBERS = ("first", "second", "third", "fourth")
MODEL_HELP = "The model to use, in latent or in pixel space."
OWN_PRESET = "Recommended"
PRESET_WORDS = "Sets the controls to another published method's values."
MASK_WORDS = "Leave empty for no mask. An uploaded mask (white = painted) overrides the painted one."


class Form:
    """The inputs and settings of one method.

    The `show` methods create components at the place of the call. `inputs` maps API names to components, in
    the order of creation. The page starts with `model`, or with the app's own; the API always uses the app's own unless
    a call names another.
    """

    def __init__(
        self, runner: Runner, method: Method, library: StyleLibrary | None = None, model: str | None = None
    ) -> None:
        self.runner, self.method, self.library, self.start_model = runner, method, library, model
        own = runner.engine.settings_for(method.settings, method.name, None)
        start = method.settings(**method.recommended(recommended_settings(model))) if model else own
        self.controls: Controls[Any] = Controls(start)
        self.inputs: dict[str, Component] = {}
        self.model: gr.Dropdown | None = None
        self.presets: gr.Dropdown | None = None
        self.painting: gr.ImageMask | None = None

    def show(self, name: str, height: int = 240, label: str = "") -> Any:
        """The component of an input: an image, a clip, a mask, or one of several styles such as "style_2"."""
        label = label or name.replace("_", " ").capitalize()
        if self._role(name).kind is Kind.CLIP:
            self.inputs[name] = gr.Video(label=label, height=height, sources=["upload"], buttons=[])
        else:
            self.inputs[name] = picture(label, height=height)
        return self.inputs[name]

    def show_more_styles(self, height: int = 180) -> None:
        """The second and further styles, and the weights of all."""
        slots = self._slots(self._of(Kind.STYLES)[0])
        with gr.Row():
            for (name, _), number in zip(slots[1:], NUMBERS[1:], strict=False):
                self.show(name, height, f"{number.capitalize()} style")
        with gr.Row():
            for (_, weight), number in zip(slots, NUMBERS, strict=False):
                label = f"{number.capitalize()} weight"
                self.inputs[weight] = gr.Slider(
                    0, MOST_WEIGHT, value=Style.weight, step=0.05, label=label, min_width=120
                )

    def show_mask(self, words: str, label: str = "Paint where the style applies") -> None:
        """The mask, painted on the content or uploaded."""
        gr.Markdown(f"{words} {MASK_WORDS}")
        content: Any = self.inputs["content"]
        self.painting = painter(content, ACCENT, label)
        self.show(self._of(Kind.MASK, Kind.STYLE_MASK)[0].name, 160, "Or upload a mask")

    def show_model(self) -> gr.Dropdown:
        self.inputs["model"] = self.model = model_choice(self.runner.engine, self.start_model)
        return self.model

    def show_presets(self) -> None:
        """A choice of presets, which sets the controls."""
        choices = [(OWN_PRESET, ""), *((name, name) for name in self.method.presets)]
        self.presets = gr.Dropdown(choices, value="", label="Preset", info=PRESET_WORDS, interactive=True)

    def job(self, values: Mapping[str, Any]) -> Job:
        """The job for these values, with opened and checked inputs; StyleEngineError for invalid ones."""
        inputs = {role.name: self._given(role, values) for role in self.method.roles}
        settings, options = self.controls.settings(values), {}
        if self.method.suffix == ".mp4":
            output = place(self.panel.video.GRADIO_CACHE, f"styleengine-{self.method.name}.mp4")
            options = {"output": output, "keep_partial": True}
        model = chosen_model(self.runner.engine, self.model, values["model"]) if self.model else None
        return Job(self.method.name, inputs, settings, options, model)

    def connect(self, panel: Any, examples: Examples | None = None, prepare_page: Prepare | None = None, **more: Any):
        """Connects the page and the API to the method. `more` are components that only `prepare_page` uses."""
        self.panel = panel
        required = [*(role.name for role in self.method.roles if role.required), *self.method.typed]
        everything = self.inputs | self.controls.components
        self.inputs = {name: everything[name] for name in [*required, *everything]}  # required parameters first
        on_page = {**self.inputs, **more} | ({"painting": self.painting} if self.painting else {})
        name, clip = self.method.endpoint, self.method.suffix == ".mp4"

        def program(values: Mapping[str, Any]) -> Program:
            return in_slices(self.job(values))

        page, title = prepare_page or program, f"{self.method.title}, clip" if clip else self.method.title
        connect_page(name, self.runner, panel, page, on_page, examples, title=title, keeps_partial=clip)
        add_api(
            name,
            self.runner,
            program,
            self.inputs,
            required=required,
            tool=self.method.tool,
            summary=f"{self.method.summary.removesuffix('.')} ({self.method.title}).",
            note=self.method.note,
            descriptions=self._descriptions(),
            result=gr.Video if clip else gr.Image,
        )
        if self.model:
            self._follow_model(self.model)
        if self.presets:
            self._follow_presets(self.presets)

    def _follow_model(self, model: gr.Dropdown) -> None:
        """Sets the controls to the chosen model's recommended values; typed inputs such as the prompt stay."""
        shown = {name: value for name, value in self.controls.components.items() if name not in self.method.typed}

        def show_what_suits(choice: Any) -> dict[Any, Any]:
            chosen = chosen_model(self.runner.engine, model, choice)
            start = self.method.settings(**self.method.recommended(recommended_settings(chosen)))
            updates: dict[Any, Any] = {component: getattr(start, name) for name, component in shown.items()}
            return {**updates, model: gr.Dropdown(info=model_info(chosen))}

        self._on_choice(model, show_what_suits, [*shown.values(), model], "model")

    def _follow_presets(self, presets: gr.Dropdown) -> None:
        """Sets the controls to the chosen preset's values, and to the recommended ones without a preset."""
        controls, known = self.controls, self.method.presets
        changed = {name for preset in known.values() for name in preset}
        shown = {name: component for name, component in controls.components.items() if name in changed}

        def show_preset(choice: Any) -> dict[Any, Any]:
            chosen = controls.start.replace(**known.get(choice, {}) if isinstance(choice, str) else {})
            return {component: getattr(chosen, name) for name, component in shown.items()}

        self._on_choice(presets, show_preset, shown.values(), "preset")

    def _on_choice(
        self, dropdown: gr.Dropdown, show: Callable[[Any], Any], outputs: Iterable[Component], name: str
    ) -> None:
        """Calls `show` with each new choice of a dropdown."""
        dropdown.change(
            show,
            inputs=dropdown,
            outputs=list(outputs),
            preprocess=False,
            api_name=f"{self.method.name}_{name}",
            api_visibility="undocumented",
            queue=False,
            show_progress="hidden",
        )

    def _of(self, *kinds: Kind) -> list[Role]:
        return [role for role in self.method.roles if role.kind in kinds]

    def _role(self, name: str) -> Role:
        """The role of an input, or of one of several styles."""
        return next(role for role in self.method.roles if name == role.name or name.startswith(f"{role.name}_"))

    @staticmethod
    def _slots(role: Role) -> list[tuple[str, str]]:
        """The names of several styles and of their weights."""
        endings = ["", *(f"_{number}" for number in range(2, role.most + 1))]
        return [(f"{role.name}{ending}", f"weight{ending}") for ending in endings]

    def _given(self, role: Role, values: Mapping[str, Any]) -> Any:
        """The input of a role, opened."""
        if role.kind is Kind.LEARNED_STYLES:
            names = (values.get(name) for name, _ in self._slots(role))
            return [self.library.open(name) for name in names if name] if self.library else []
        if role.kind is Kind.STYLES:
            named: list[Any] = [(path_of(values.get(name)), values.get(weight)) for name, weight in self._slots(role)]
            return [Style(open_image(path, "style image"), _weight(weight)) for path, weight in named if path]
        path = path_of(values.get(role.name))
        if role.kind in (Kind.MASK, Kind.STYLE_MASK):
            return open_mask(path) if path else painted_mask(values.get("painting"))
        if path is None and not role.required:
            return None
        source: Any = path
        return open_clip(source) if role.kind is Kind.CLIP else open_image(source, f"{role.title.lower()} image")

    def _descriptions(self) -> dict[str, str]:
        """A description of each API parameter."""
        words = {knob.name: knob.description for knob in self.controls.knobs.values()} | {"model": MODEL_HELP}
        for role in self.method.roles:
            for (name, weight), number in zip(self._slots(role), NUMBERS, strict=False):
                words[weight] = f"The weight of the {number} style among several."
                words[name] = role.help if name == role.name else f"The {number} style (optional)."
        return words


def plain_tab(method: Method) -> Callable[[Runner], None]:
    """Builds the tab of a method without a tab file: all inputs, then all settings."""

    def build(runner: Runner) -> None:
        form = Form(runner, method)
        common = [name for name in ("size", "steps") if name in form.controls.knobs]
        named = [knob.name for knob in form.controls.knobs.values() if not knob.rare]
        with columns():
            with inputs_part():
                with gr.Row():
                    for role in form._of(Kind.IMAGE, Kind.CLIP, Kind.STYLES):
                        form.show(role.name)
                if any(role.most > 1 for role in form._of(Kind.STYLES)):
                    with gr.Accordion("More styles", open=False):
                        form.show_more_styles()
                for role in form._of(Kind.MASK, Kind.STYLE_MASK):
                    form.show(role.name, height=160)
            with result_part():
                panel = VideoPanel() if method.suffix == ".mp4" else ResultPanel("Choose the inputs.")
            with settings_part():
                form.controls.show(*(name for name in named if name not in (*common, "seed")))
                if method.models:
                    form.show_model()
                with gr.Row():
                    form.controls.show(*common)
                if "seed" in form.controls.knobs:
                    form.controls.show_seed()
                form.controls.show_rare()
        form.connect(panel)

    return build


def _weight(value: Any) -> float:
    """A style's weight, 1 if omitted. The method checks its range."""
    if value is None:
        return Style.weight
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise StyleEngineError(f"A style's weight is {short(value)}: it must be a number.")
    return float(value)
