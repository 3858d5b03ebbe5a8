"""The InST tab: learn a painting as a word, then redraw pictures with it or draw prompts that say it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from gradio.processing_utils import hash_bytes, save_file_to_cache

from styleengine.backbones import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import open_image, write_whole
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.methods import INST
from styleengine.methods.inst import InSTLearningSettings
from styleengine.phases import LEARNING
from styleengine.style_library import StyleLibrary
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import shown, signature
from styleengine.ui.form import Form
from styleengine.ui.learning import HEARTBEAT, MOST_LEARNING, Learning, Learnt
from styleengine.ui.parameter import parameter
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.result import ResultPanel, Updates, line, progress_bar
from styleengine.ui.runs import Report, Runner
from styleengine.ui.tab import Tab

LEARN = "inst_learn"
LEARN_TOOL = "learn_style_of_painting"
LEARN_SUMMARY = """Learns a painting as a new word (InST); the style goes into the library, its file comes back.

A call that is cancelled, or whose client goes away, stops at the next step; what is learnt by then is kept. So does
`/inst_stop`, given the style's name, for whoever calls it; the call that learns then gives the style as it is."""
LEARN_DESCRIPTIONS = {
    "painting": "The painting whose style is learnt.",
    "name": "What to call the style; it is numbered where the library has one of that name.",
    "content": "A picture on which previews are drawn, if any.",
}
LEARN_HINT = "Choose a painting. Learning goes on when this page is closed."
APPLY_HINT = "Choose a style, and a content image or a prompt."
LIBRARY_WORDS = "Everyone who can open this app sees the library."
LOOK_EVERY = 2.0  # seconds between two looks of a page at what it is learning
# Calls that wait for what they learn. Gradio runs 40 calls of all kinds at once, so these leave room for others, and
# some beyond the paintings that may wait, so that one too many is refused and does not queue.
LEARNING_CALLS = MOST_LEARNING + 4


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
        """The style's file where Gradio may send it from: one for each content, where Gradio itself would put it."""
        content = style.to_bytes()
        path = Path(self.style.GRADIO_CACHE, hash_bytes(content), f"{style.record.name}{SUFFIX}")
        try:
            os.utime(path)  # Gradio sweeps what is old
        except OSError:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        return str(path)

    def add(self, upload: Mapping[str, Any] | None) -> LearnedStyle:
        """Takes an uploaded file into the library; StyleEngineError for one that the model cannot read."""
        path = path_of(upload)
        if not path:
            raise StyleEngineError("No style was given. Choose a file that StyleEngine has saved.")
        style = LearnedStyle.open(path)
        backbone = self.runner.engine.backbone
        if isinstance(backbone, LatentBackbone):
            style.check_fits(backbone)
        return self.library.add(style)


def _build_apply(runner: Runner, library: StyleLibrary, shelf: Shelf) -> None:
    form = Form(runner, INST, library)
    controls = form.controls
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            content = form.show("content", label="Content (none draws the prompt alone)")
            shelf.show()
            controls.show("mix", "prompt", "strength", "guidance", "adain")
            with gr.Row():
                controls.show("size", "steps")
            controls.show_seed()
            controls.show_rare()
        with gr.Column(scale=6, min_width=320):
            panel = ResultPanel("Run", APPLY_HINT)

    form.inputs = {"style": shelf.style, "content": content, "style_2": shelf.style_2}
    form.connect(panel)

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
    quiet["api_visibility"] = "private"
    lists, offered = [shelf.style, shelf.style_2], [shelf.download, panel.status]
    shelf.upload.upload(take_up, shelf.upload, [*lists, panel.status], **quiet)
    shelf.style.change(offer, shelf.style, offered, **quiet)
    # On loading the page. Without inputs: with some, Gradio would call it at each of their changes too.
    gr.on(None, lambda: shelf.refreshed(), outputs=lists, **quiet).then(offer, shelf.style, offered, **quiet)

    def inst_upload(file: Any) -> str:
        """Takes a style file into the library; its name there, for `/inst_apply`."""
        try:
            return shelf.add(file).record.name
        except StyleEngineError as error:
            raise shown(error) from None

    file, name = gr.File(visible=False), gr.Textbox(visible=False)
    hidden: dict[str, Any] = {"api_name": "inst_upload", "api_visibility": "undocumented"}
    gr.on([], inst_upload, file, name, preprocess=False, queue=False, **hidden)


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
        self.carried, self.seen = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        self.clock = gr.Timer(LOOK_EVERY, active=False)

    @property
    def inputs(self) -> dict[str, Component]:
        return {
            "painting": self.painting, "name": self.name, "content": self.content, **self.controls.components
        }  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        shown = [self.run, self.stop, self.status, self.plot, self.strip, self.download, self.unfinished]
        return [*shown, self.carried, self.seen, self.clock]

    def waiting(self, name: str) -> Updates:
        return {
            **self._busy(True),
            self.carried: name,
            self.seen: "",
            self.status: line("Waiting for its turn …"),
            self.plot: gr.LinePlot(visible=False),
            self.strip: gr.Gallery(value=None, visible=False),
            self.download: gr.DownloadButton(interactive=False),
        }

    def going(self, known: Learnt, seen: str) -> Updates:
        """How far it has come, where that is not what was `seen` already; a curve needs two points."""
        new = f"{len(known.judged)} {[words for _, words in known.previews]}"
        updates: Updates = {}
        if new != seen:
            updates = {self.seen: new, self.plot: gr.LinePlot(losses(known), visible=len(known.judged) > 1)}
            drawn = [(file, words) for preview, words in known.previews if (file := self._shown(preview))]
            if drawn:
                updates[self.strip] = gr.Gallery(value=drawn, visible=True)
        if known.phase == "learning":
            updates[self.status] = progress_bar(Report(LEARNING, known.step, known.total)) + line(pace(known))
        return updates or {self.seen: seen}

    def ended(self, known: Learnt, seen: str, unfinished: list[str], file: str | None) -> Updates:
        updates = {**self._busy(False), **self.going(known, seen), self.status: line(ending(known))}
        updates[self.unfinished] = gr.Dropdown(choices=unfinished, value=None)
        if file:
            updates[self.download] = gr.DownloadButton(value=file, interactive=True)
        return updates

    def stopped(self, sentence: str) -> Updates:
        return {**self._busy(False), self.status: line(sentence)}

    def _shown(self, preview: Path) -> str | None:
        """The preview where Gradio may send it from; None for one that is gone, with all of its painting's."""
        try:
            return save_file_to_cache(preview, self.strip.GRADIO_CACHE)
        except OSError:
            return None

    def _busy(self, busy: bool) -> Updates:
        """The page looks on, by its clock, as long as it is busy."""
        return {
            self.run: gr.Button(interactive=not busy),
            self.stop: gr.Button(interactive=busy),
            self.clock: gr.Timer(active=busy),
        }


def _connect_learning(learning: Learning, desk: Desk, shelf: Shelf) -> None:
    def begin(values: Mapping[str, Any]) -> str:
        path, content = path_of(values["painting"]), path_of(values["content"])
        painting = open_image(path, "painting")  # type: ignore[arg-type] - None is worded too
        name = str(values["name"] or Path(path or "").stem)
        on = open_image(content, "content image to try it on") if content else None
        return learning.begin(painting, desk.controls.settings(values), name, on)

    def begin_on_page(*values: Any) -> Updates:
        try:
            return desk.waiting(begin(dict(zip(desk.inputs, values, strict=True))))
        except StyleEngineError as error:
            raise shown(error) from None

    def go_on(name: str | None) -> Updates:
        if not name:
            raise shown(StyleEngineError("Choose an unfinished style first."))
        try:
            return desk.waiting(learning.go_on(str(name)))
        except StyleEngineError as error:
            raise shown(error) from None

    def look(name: str, seen: str) -> Updates:
        """What the page shows now: it asks by its clock, and no thread waits for it."""
        try:
            known = learning.look(name)
        except StyleEngineError as error:
            return desk.stopped(str(error))
        if not known.ended:
            return desk.going(known, seen)
        file = shelf.file(known.style) if known.style else None
        return {**desk.ended(known, seen, learning.unfinished(), file), **shelf.refreshed(name)}

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    desk.run.click(begin_on_page, list(desk.inputs.values()), desk.outputs, preprocess=False, **quiet)
    desk.go_on.click(go_on, desk.unfinished, desk.outputs, preprocess=False, **quiet)
    desk.clock.tick(look, [desk.carried, desk.seen], [*desk.outputs, shelf.style, shelf.style_2], **quiet)
    desk.stop.click(learning.stop, desk.carried, **quiet)
    gr.on(None, lambda: gr.Dropdown(choices=learning.unfinished()), outputs=desk.unfinished, **quiet)

    _add_learning_api(learning, desk, shelf, begin)


def _add_learning_api(learning: Learning, desk: Desk, shelf: Shelf, begin: Callable[..., str]) -> None:
    """`/inst_learn`: the painting and settings by name in, the style's file and record out; `/inst_stop` ends it.

    While it waits it holds no thread, and gives two empty outputs now and then: without them Gradio
    would not find out that the client is gone.
    """

    async def endpoint(request: gr.Request, *values: Any) -> AsyncIterator[tuple[str | None, dict[str, Any] | None]]:
        *given, progress = values
        try:
            name = await _begun(learning, begin, dict(zip(desk.inputs, given, strict=True)))
            known = learning.look(name)
            try:
                given_at = time.monotonic()
                async for known in learning.watch(name):
                    progress((known.step, known.total), desc=f"“{known.name}”: {known.phase}")
                    if not known.ended and time.monotonic() - given_at > HEARTBEAT:
                        given_at = time.monotonic()
                        yield None, None
            finally:  # also when the call is cancelled, or its client is gone
                if not known.ended:
                    learning.stop(name)
            if known.style is None:
                raise StyleEngineError(known.sentence)
        except StyleEngineError as error:
            raise shown(error) from None
        yield await asyncio.to_thread(shelf.file, known.style), known.style.record.model_dump()

    def inst_stop(name: str) -> None:
        """Ends the learning of a style at its next step; what is learnt by then is kept."""
        learning.stop(name)

    descriptions = LEARN_DESCRIPTIONS | {name: knob.description for name, knob in desk.controls.knobs.items()}
    endpoint.__name__ = LEARN_TOOL
    endpoint.__signature__ = signature(desk.inputs, ("painting",))  # type: ignore[attr-defined]
    endpoint.__annotations__ = {"request": gr.Request}
    lines = [f"    {field}: {descriptions[field]}" for field in desk.inputs]
    endpoint.__doc__ = "\n".join([LEARN_SUMMARY, "", "Args:", *lines])
    file, record = gr.File(label="Style", visible=False), gr.JSON(label="Record", visible=False)
    waiting: dict[str, Any] = {"api_name": LEARN, "concurrency_id": LEARN, "concurrency_limit": LEARNING_CALLS}
    given = [parameter(component) for component in desk.inputs.values()]
    gr.on([], endpoint, given, [file, record], preprocess=False, **waiting)
    name = gr.Textbox(visible=False)
    gr.on([], inst_stop, name, api_name="inst_stop", api_visibility="undocumented", queue=False)


async def _begun(learning: Learning, begin: Callable[..., str], values: Mapping[str, Any]) -> str:
    """The name of what `begin` has begun, which stops again if the call is cancelled meanwhile."""
    beginning = asyncio.create_task(asyncio.to_thread(begin, values))

    def stop(begun: asyncio.Task[str]) -> None:
        if not begun.cancelled() and not begun.exception():
            learning.stop(begun.result())

    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(stop)
        raise


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


TAB = Tab("InST", order=5, build=build, method="inst")
