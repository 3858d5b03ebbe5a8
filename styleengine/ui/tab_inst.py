"""The InST tab: learn a painting as a word, then redraw pictures with it or draw prompts that say it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component

from styleengine.backbone import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import open_image
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.methods.inst import InSTSettings
from styleengine.methods.inst_training import InSTLearningSettings
from styleengine.style_library import StyleLibrary
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import add_api, connect_page, shown, signature
from styleengine.ui.learning import Learning, Learnt
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.result import ResultPanel, Updates, line, place, progress_bar
from styleengine.ui.runs import Job, Report, Runner
from styleengine.ui.tab import Tab

LEARN, APPLY = "inst_learn", "inst_apply"
LEARN_SUMMARY = "Learns a painting as a new word (InST); the style goes into the library, its file comes back."
APPLY_SUMMARY = "Redraws a content image, or draws a prompt, in a learnt style or between two (InST)."
LEARN_DESCRIPTIONS = {
    "painting": "The painting whose style is learnt.",
    "name": "What to call the style; it is numbered where the library has one of that name.",
    "content": "A picture on which previews are drawn, if any.",
}
APPLY_DESCRIPTIONS = {
    "content": "The picture to redraw; without one the prompt is drawn from nothing.",
    "style": "The name of a style in the library.",
    "style_2": "A second style to mix in, if any.",
}
LEARN_HINT = "Choose a painting. Learning goes on when this page is closed."
APPLY_HINT = "Choose a style, and a content image or a prompt."
LIBRARY_WORDS = "Everyone who can open this app sees the library."
WATCHING: dict[str, Any] = {"concurrency_limit": None}  # pages that look on do not keep others from the engine


def build(runner: Runner) -> None:
    library = StyleLibrary()
    learning = Learning(runner, library)
    with gr.Tab("Learn"):
        desk = Desk(runner, learning)
    with gr.Tab("Apply"):
        shelf = Shelf(runner, library)
        _build_apply(runner, library, shelf)
    _connect_learning(learning, desk, shelf)


class Shelf:
    """Choosing among the library's styles: two lists, an upload and a download."""

    def __init__(self, runner: Runner, library: StyleLibrary) -> None:
        self.runner, self.library = runner, library

    def show(self) -> None:
        names = self.names()
        with gr.Row():
            self.style = gr.Dropdown(names, value=names[0] if names else None, label="Style", interactive=True)
            self.style_2 = gr.Dropdown(names, value=None, label="Second style", interactive=True)
        with gr.Row():
            self.upload = gr.UploadButton("Upload a style", file_types=[SUFFIX], size="sm", elem_classes="upload-style")
            self.download = gr.DownloadButton("Download the style", size="sm", interactive=False)
        gr.Markdown(LIBRARY_WORDS)

    def names(self) -> list[Any]:
        backbone = self.runner.engine.backbone
        return self.library.names(backbone) if isinstance(backbone, LatentBackbone) else []

    def refreshed(self, chosen: str | None = None) -> Updates:
        """The lists as they are now; `chosen` is picked in the first one."""
        names = self.names()
        picked: dict[str, Any] = {"value": chosen} if chosen in names else {}
        return {self.style: gr.Dropdown(choices=names, **picked), self.style_2: gr.Dropdown(choices=names)}

    def note(self, style: LearnedStyle) -> str:
        """What there is to know about using it on this model, if anything."""
        backbone = self.runner.engine.backbone
        return style.note_for(backbone) if isinstance(backbone, LatentBackbone) else ""

    def file(self, style: LearnedStyle) -> str:
        """The style's file where Gradio may send it from."""
        return str(style.save(place(self.style.GRADIO_CACHE, f"{style.record.name}{SUFFIX}")))

    def add(self, upload: Mapping[str, Any] | str | None) -> LearnedStyle:
        """Takes an uploaded file into the library; StyleEngineError for one that the model cannot read."""
        if not upload:
            raise StyleEngineError("No style was given. Choose a file that StyleEngine has saved.")
        style = LearnedStyle.open(upload if isinstance(upload, str) else upload["path"])
        backbone = self.runner.engine.backbone
        if isinstance(backbone, LatentBackbone):
            style.check_fits(backbone)
        return self.library.add(style)


def _build_apply(runner: Runner, library: StyleLibrary, shelf: Shelf) -> None:
    controls = Controls(runner.engine.settings_for(InSTSettings, "inst", None))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            content = picture("Content (none draws the prompt alone)", height=240)
            shelf.show()
            controls.show("mix", "prompt", "strength", "guidance", "adain")
            with gr.Row():
                controls.show("size", "steps")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = ResultPanel("Run", APPLY_HINT)

    def prepare(values: Mapping[str, Any]) -> Job:
        path = path_of(values["content"])
        image = open_image(path, "content image") if path else None
        names = [name for name in (values["style"], values["style_2"]) if name]
        arguments = {"styles": [library.open(name) for name in names], "settings": controls.settings(values)}
        return Job(APPLY, image, arguments)

    inputs: dict[str, Component] = {"style": shelf.style, "content": content, "style_2": shelf.style_2}
    inputs |= controls.components
    connect_page(APPLY, runner, panel, prepare, inputs)
    add_api(
        APPLY,
        runner,
        prepare,
        inputs,
        required=("style",),
        summary=APPLY_SUMMARY,
        descriptions=APPLY_DESCRIPTIONS | {name: knob.description for name, knob in controls.knobs.items()},
    )

    def take_up(upload: Any) -> Updates:
        try:
            style = shelf.add(upload)
        except StyleEngineError as error:
            raise shown(error) from None
        return {**shelf.refreshed(style.record.name), panel.status: line(f"“{style.record.name}” is in the library.")}

    def offer(name: str | None) -> Updates:
        """The chosen style to download, and what there is to know about it."""
        try:
            style = library.open(name) if name else None
        except StyleEngineError:
            style = None
        button = gr.DownloadButton(value=shelf.file(style) if style else None, interactive=bool(style))
        note = shelf.note(style) if style else ""
        return {shelf.download: button, panel.status: line(note) if note else gr.skip()}

    quiet: dict[str, Any] = {"preprocess": False, "queue": False, "show_progress": "hidden"}
    lists = [shelf.style, shelf.style_2]
    shelf.upload.upload(take_up, shelf.upload, [*lists, panel.status], api_visibility="private", **quiet)
    shelf.style.change(offer, shelf.style, [shelf.download, panel.status], api_visibility="private", **quiet)
    # On loading the page, and with what is then chosen.
    gr.on(None, lambda: shelf.refreshed(), outputs=lists, api_visibility="private", **quiet)
    gr.on(None, offer, shelf.style, [shelf.download, panel.status], api_visibility="private", **quiet)

    def upload_for_client(file: Any) -> str:
        """Takes a style file into the library; its name there, for `/inst_apply`."""
        try:
            return shelf.add(file).record.name
        except StyleEngineError as error:
            raise shown(error) from None

    file, name = gr.File(visible=False), gr.Textbox(visible=False)
    gr.on([], upload_for_client, file, name, preprocess=False, api_name="inst_upload", api_visibility="undocumented")


class Desk:
    """The Learn side: a painting, how to learn it, and how it goes."""

    def __init__(self, runner: Runner, learning: Learning) -> None:
        self.controls = Controls(runner.engine.settings_for(InSTLearningSettings, LEARN, None))
        controls = self.controls
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    self.painting = picture("Painting", height=240)
                    self.content = picture("Try it on", height=240)
                self.name = gr.Textbox(label="Name", info="What to call the style.", elem_classes="style-name")
                controls.show("steps")
                with gr.Row():
                    controls.show("size", "batch")
                controls.show("learning_rate", "views")
                controls.show_seed()
                controls.show_rare()
            with gr.Column(scale=6, min_width=320):
                with gr.Row():
                    self.run = gr.Button("Learn", variant="primary", scale=3, elem_classes="run")
                    self.stop = gr.Button("Stop", variant="secondary", scale=1, min_width=96, interactive=False)
                self.status = gr.HTML(line(LEARN_HINT), elem_classes="status")
                self.plot = gr.LinePlot(
                    x="step",
                    y="loss",
                    title="Loss on the fixed set",
                    x_title="Step",
                    y_title="Loss",
                    height=220,
                    visible=False,
                )
                self.strip = gr.Gallery(
                    label="Drawn on the way",
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    visible=False,
                    buttons=["fullscreen"],
                    elem_classes="learnt-strip",
                )
                self.download = gr.DownloadButton("Download the style", interactive=False)
                with gr.Accordion("Unfinished", open=False):
                    gr.Markdown("Paintings that were stopped, or interrupted by a restart.")
                    self.unfinished = gr.Dropdown(
                        learning.unfinished(), value=None, label="Style", interactive=True, elem_classes="unfinished"
                    )
                    self.go_on = gr.Button("Go on", elem_classes="go-on")
        self.carried = gr.Textbox("", visible=False)

    @property
    def inputs(self) -> dict[str, Component]:
        return {
            "painting": self.painting, "name": self.name, "content": self.content, **self.controls.components
        }  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        return [self.run, self.stop, self.status, self.plot, self.strip, self.download, self.unfinished]

    def waiting(self) -> Updates:
        return {
            **self._busy(True),
            self.status: line("Waiting for its turn …"),
            self.plot: gr.LinePlot(visible=False),
            self.strip: gr.Gallery(value=None, visible=False),
            self.download: gr.DownloadButton(interactive=False),
        }

    def going(self, known: Learnt) -> Updates:
        """How far it has come; a curve needs two points."""
        updates: Updates = {self.plot: gr.LinePlot(losses(known), visible=len(known.judged) > 1)}
        if known.previews:
            updates[self.strip] = gr.Gallery(value=list(known.previews), visible=True)
        if known.phase == "learning":
            updates[self.status] = progress_bar(Report("learning", known.step, known.total)) + line(pace(known))
        return updates

    def ended(self, known: Learnt, unfinished: list[str], file: str | None) -> Updates:
        updates = {**self._busy(False), **self.going(known), self.status: line(ending(known))}
        updates[self.unfinished] = gr.Dropdown(choices=unfinished, value=None)
        if file:
            updates[self.download] = gr.DownloadButton(value=file, interactive=True)
        return updates

    def _busy(self, busy: bool) -> Updates:
        return {self.run: gr.Button(interactive=not busy), self.stop: gr.Button(interactive=busy)}


def _connect_learning(learning: Learning, desk: Desk, shelf: Shelf) -> None:
    def begin(values: Mapping[str, Any]) -> str:
        path, content = path_of(values["painting"]), path_of(values["content"])
        painting = open_image(path, "painting")  # type: ignore[arg-type] - None is worded too
        name = values["name"] or Path(path or "").stem
        on = open_image(content, "content image to try it on") if content else None
        return learning.begin(painting, desk.controls.settings(values), name, on)

    def begin_on_page(*values: Any) -> Updates:
        try:
            name = begin(dict(zip(desk.inputs, values, strict=True)))
        except StyleEngineError as error:
            raise shown(error) from None
        return {**desk.waiting(), desk.carried: name}

    def go_on(name: str | None) -> Updates:
        if not name:
            raise shown(StyleEngineError("Choose an unfinished style first."))
        try:
            return {**desk.waiting(), desk.carried: learning.go_on(name)}
        except StyleEngineError as error:
            raise shown(error) from None

    def watch(name: str) -> Iterator[Updates]:
        for known in learning.watch(name):
            if not known.ended:
                yield desk.going(known)
                continue
            file = shelf.file(known.style) if known.style else None
            yield {**desk.ended(known, learning.unfinished(), file), **shelf.refreshed(name)}

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    outputs = [*desk.outputs, desk.carried]
    watching: dict[str, Any] = {
        "inputs": desk.carried,
        "outputs": [*desk.outputs, shelf.style, shelf.style_2],
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": "multiple",
        **WATCHING,
    }
    desk.run.click(begin_on_page, list(desk.inputs.values()), outputs, preprocess=False, **quiet).success(
        watch, **watching
    )
    desk.go_on.click(go_on, desk.unfinished, outputs, preprocess=False, **quiet).success(watch, **watching)
    desk.stop.click(learning.stop, desk.carried, **quiet)
    gr.on(None, lambda: gr.Dropdown(choices=learning.unfinished()), outputs=desk.unfinished, **quiet)

    _add_learning_api(learning, desk, shelf, begin)


def _add_learning_api(learning: Learning, desk: Desk, shelf: Shelf, begin: Any) -> None:
    """`/inst_learn`: the painting and settings by name in, the style's file and record out; `/inst_stop` ends it."""

    def endpoint(request: gr.Request, *values: Any) -> tuple[str, dict[str, Any]]:
        *given, progress = values
        try:
            known = None
            for known in learning.watch(begin(dict(zip(desk.inputs, given, strict=True)))):
                progress((known.step, known.total), desc=f"“{known.name}”: {known.phase}")
            if known is None or known.style is None:
                raise StyleEngineError(known.sentence if known else "")
        except StyleEngineError as error:
            raise shown(error) from None
        return shelf.file(known.style), known.style.record.model_dump()

    def stop(name: str) -> None:
        """Ends the learning of a style at its next step; what is learnt by then is kept."""
        learning.stop(name)

    descriptions = LEARN_DESCRIPTIONS | {name: knob.description for name, knob in desk.controls.knobs.items()}
    endpoint.__name__ = LEARN
    endpoint.__signature__ = signature(desk.inputs, ("painting",))  # type: ignore[attr-defined]
    endpoint.__annotations__ = {"request": gr.Request}
    lines = [f"    {field}: {descriptions[field]}" for field in desk.inputs]
    endpoint.__doc__ = "\n".join([LEARN_SUMMARY, "", "Args:", *lines])
    file, record = gr.File(label="Style", visible=False), gr.JSON(label="Record", visible=False)
    gr.on(
        [], endpoint, list(desk.inputs.values()), [file, record], preprocess=False, api_name=LEARN, **WATCHING
    )  # fmt: skip
    name = gr.Textbox(visible=False)
    gr.on([], stop, name, api_name="inst_stop", api_visibility="undocumented", queue=False)


def losses(known: Learnt) -> pd.DataFrame:
    """The curve's points."""
    return pd.DataFrame(list(known.judged), columns=["step", "loss"])


def pace(known: Learnt) -> str:
    if not known.steps_per_second:
        return ""
    left = (known.total - known.step) / known.steps_per_second
    shown_left = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{known.steps_per_second:.2f} steps per second; at most {shown_left} left."


def ending(known: Learnt) -> str:
    """How learning ended, in one plain line."""
    if known.style is None:
        return known.sentence
    history = known.style.record.history
    begun, best = history[0][1], min(loss for _, loss in history)
    how = "Learnt" if known.phase == "finished" else "Stopped; learnt"
    return f"{how} “{known.name}” in {known.step} steps: loss {begun:.4f} at first, {best:.4f} at best."


TAB = Tab("InST", order=5, build=build)
