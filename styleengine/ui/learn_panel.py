"""The Learn tab of InST: the paintings, the training settings, and the progress."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.processing_utils import save_file_to_cache

from styleengine.errors import StyleEngineError
from styleengine.images import open_image
from styleengine.learned_style import MOST_PAINTINGS, SUFFIX, LearnedStyle
from styleengine.methods.inst import InSTLearningSettings, opened_paintings
from styleengine.phases import Stage
from styleengine.style_library import SHIPPED
from styleengine.ui.charts import lines
from styleengine.ui.controls import Controls
from styleengine.ui.endpoints import shown, signature
from styleengine.ui.examples import EXAMPLE_WORDS, FIRST_LEARNED, first_previews
from styleengine.ui.gpu import ZERO
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.learning import HEARTBEAT, LEARN, MOST_LEARNING, Learning, LearningStatus
from styleengine.ui.panel import Panel, Updates, duration, line, loading_words, progress_bar, strip
from styleengine.ui.parameter import parameter
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.runs import Report, Runner
from styleengine.ui.style_choice import StyleChoice

LEARN_TOOL = "learn_style_of_painting"
LEARN_SUMMARY = """Learns a painting's style as a new token (InST). Adds the style to the library and returns its file.

If the call is cancelled or its client disconnects, training stops at the next step and its progress is kept. Any
client can also stop it by `/inst_stop` with the style's name; this call then returns the style learned so far."""
LEARN_DESCRIPTIONS = {
    "painting": "The painting whose style is learned.",
    "name": "The style's name. A number is appended if the library already has that name.",
    "content": "An image on which to preview the style (optional).",
    "more": f"Further paintings of the same artist (optional): with the first, at most {MOST_PAINTINGS}.",
}
WORDS = (
    "Train a style on a painting here, then redraw photos in it under Apply, where some learned styles are ready. "
    "During the training you see previews and the validation loss, which falls as the style fits the painting better."
)
NAME_WORDS = "The style's name in the library. Without one, it is the name of the painting's file."
CHART_TITLE = "Validation loss"
LEARN_HINT = "Choose a painting. Training continues when this page is closed."
POLL_EVERY = 2.0  # seconds between two status requests of a page
# Concurrent `/inst_learn` calls. Gradio runs 40 calls of all kinds at once, so some remain for others. There are more
# than paintings that may be queued, so that an excess call is rejected at once instead of waiting.
LEARNING_CALLS = MOST_LEARNING + 4


class LearnPanel(Panel):
    """The Learn tab: the paintings, the training settings, and the progress."""

    def __init__(self, runner: Runner, learning: Learning) -> None:
        gr.Markdown(WORDS)
        self.controls = controls = Controls(runner.engine.settings_for(InSTLearningSettings, LEARN, None))
        with columns():
            with inputs_part():
                with gr.Row():
                    painting = picture("Painting", height=240)
                    content = picture("Preview image", height=240)
                with gr.Accordion("More paintings (optional)", open=False):
                    more = gr.File(
                        label=f"Up to {MOST_PAINTINGS - 1} of the same artist",
                        file_count="multiple",
                        file_types=["image"],
                        height=160,
                    )
                name = gr.Textbox(label="Name", info=NAME_WORDS, elem_classes="style-name")
            with result_part():
                super().__init__(f"{LEARN_HINT} {EXAMPLE_WORDS}", "Download the style", "Learn", "Stop")
                with gr.Accordion("Unfinished", open=False):
                    gr.Markdown("Styles whose training was stopped or interrupted by a restart.")
                    self.unfinished = gr.Dropdown(
                        learning.unfinished(), value=None, label="Style", interactive=True, elem_classes="unfinished"
                    )
                    self.resume = gr.Button("Resume", elem_classes="go-on")
            with settings_part():
                controls.show("steps")
                controls.show_seed()
                controls.show_rare()
        self.inputs: dict[str, Component] = {
            "painting": painting, "name": name, "content": content, **controls.components, "more": more
        }  # fmt: skip
        self.carried, self.seen = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        self.clock: gr.Timer = gr.Timer(POLL_EVERY, active=False)  # while busy, the page requests the status
        self.outputs += [self.unfinished, self.carried, self.seen, self.clock]

    def show(self) -> list[Any]:
        """At first, the validation losses and previews of a bundled style's training."""
        previews, style = first_previews(), LearnedStyle.open(SHIPPED / f"{FIRST_LEARNED}{SUFFIX}")
        chart = lines({"loss": style.record.history}, CHART_TITLE, "step", "loss")
        self.plot = gr.HTML(chart)
        first = [(style.thumbnail, "painting"), *previews] if previews else None
        self.strip = strip("Previews", 4, ["fullscreen"], "learned-strip", first)
        return [self.plot, self.strip]

    def waiting(self) -> Updates:
        return {
            **super().waiting(),
            self.seen: "",
            self.plot: gr.HTML(visible=False),
            self.strip: gr.Gallery(value=None, visible=False),
            self.download: gr.DownloadButton(interactive=False),
        }

    def working(self, known: LearningStatus, seen: str) -> Updates:
        """The progress, as far as it is newer than `seen`. The plot appears from two points on."""
        validations = known.report.validations
        new = f"{len(validations)} {[words for _, words in known.previews]}"
        updates: Updates = {self.status: progress_bar(known.report) + line(pace(known.report))}
        if new != seen:
            chart = lines({"loss": validations}, CHART_TITLE, "step", "loss")
            updates |= {self.seen: new, self.plot: gr.HTML(chart, visible=len(validations) > 1)}
            drawn = [(file, words) for preview, words in known.previews if (file := self._shown(preview))]
            if drawn:
                updates[self.strip] = gr.Gallery(value=drawn, visible=True)
        return updates

    def finished(self, known: LearningStatus, file: str | None) -> Updates:
        return {**self.working(known, ""), **self.stopped(ending(known), file=file)}

    def _shown(self, preview: Path) -> str | None:
        """The preview in Gradio's cache, from where it is served; None if it has been deleted."""
        try:
            return save_file_to_cache(preview, self.strip.GRADIO_CACHE)
        except OSError:
            return None


def connect_learning(learning: Learning, panel: LearnPanel, choice: StyleChoice) -> None:
    def begin(values: Mapping[str, Any]) -> str:
        path, content = path_of(values["painting"]), path_of(values["content"])
        paths: Any = [path, *(path_of(file) for file in values["more"] or [])] if path else path
        first, *more = opened_paintings(paths)
        name = str(values["name"] or Path(path or "").stem)
        on = open_image(content, "content image to try it on") if content else None
        return learning.begin(first, panel.controls.settings(values), name, on, more)

    def waiting(name: str) -> Updates:
        return {**panel.waiting(), panel.carried: name}

    def begin_on_page(*values: Any) -> Updates:
        try:
            return waiting(begin(dict(zip(panel.inputs, values, strict=True))))
        except StyleEngineError as error:
            raise shown(error) from None

    def resume(name: str | None) -> Updates:
        if not name:
            raise shown(StyleEngineError("Choose an unfinished style first."))
        try:
            return waiting(learning.resume(str(name)))
        except StyleEngineError as error:
            raise shown(error) from None

    def show_status(request: gr.Request, name: str, seen: str) -> Updates:
        """The page's current updates, requested by its timer, so that no thread waits."""
        learning.renew(name, request)
        try:
            known = learning.status(name)
        except StyleEngineError as error:
            return panel.stopped(str(error))
        if not known.ended:
            return panel.working(known, seen)
        file = choice.file(known.style) if known.style else None
        unfinished = {panel.unfinished: gr.Dropdown(choices=learning.unfinished(), value=None)}
        return {**panel.finished(known, file), **unfinished, **choice.refreshed(name)}

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # Only queued requests carry ZeroGPU's tokens.
    named = {**quiet, "queue": True, "concurrency_limit": None} if ZERO else quiet
    panel.run.click(begin_on_page, list(panel.inputs.values()), panel.outputs, preprocess=False, **named)
    panel.resume.click(resume, panel.unfinished, panel.outputs, preprocess=False, **named)
    panel.clock.tick(show_status, [panel.carried, panel.seen], [*panel.outputs, choice.style, choice.style_2], **named)
    panel.cancel.click(learning.stop, panel.carried, **quiet)
    gr.on(None, lambda: gr.Dropdown(choices=learning.unfinished()), outputs=panel.unfinished, **quiet)

    _add_learning_api(learning, panel, choice, begin)


def _add_learning_api(learning: Learning, panel: LearnPanel, choice: StyleChoice, begin: Callable[..., str]) -> None:
    """`/inst_learn` takes the painting and settings by name and returns the style's file and record.

    `/inst_stop` stops it. While it waits, it holds no thread and yields two empty outputs every few seconds:
    Gradio detects a disconnected client only when there is output to send.
    """

    async def endpoint(request: gr.Request, *values: Any) -> AsyncIterator[tuple[str | None, dict[str, Any] | None]]:
        *given, progress = values
        try:
            name = await _begun(learning, begin, dict(zip(panel.inputs, given, strict=True)))
            known = learning.status(name)
            try:
                given_at = time.monotonic()
                async for known in learning.watch(name):
                    progress((known.report.step, known.report.total), desc=words(known))
                    if not known.ended and time.monotonic() - given_at > HEARTBEAT:
                        given_at = time.monotonic()
                        yield None, None
            finally:  # also if the call is cancelled or its client disconnects
                if not known.ended:
                    learning.stop(name)
            if known.style is None:
                raise StyleEngineError(known.sentence)
        except StyleEngineError as error:
            raise shown(error) from None
        yield await asyncio.to_thread(choice.file, known.style), known.style.record.model_dump()

    def inst_stop(name: str) -> None:
        """Stops the training of a style at its next step and keeps the progress."""
        learning.stop(name)

    descriptions = LEARN_DESCRIPTIONS | {name: knob.description for name, knob in panel.controls.knobs.items()}
    endpoint.__name__ = LEARN_TOOL
    endpoint.__signature__ = signature(panel.inputs, ("painting",))  # type: ignore[attr-defined]
    endpoint.__annotations__ = {"request": gr.Request}
    lines = [f"    {field}: {descriptions[field]}" for field in panel.inputs]
    endpoint.__doc__ = "\n".join([LEARN_SUMMARY, "", "Args:", *lines])
    file, record = gr.File(label="Style", visible=False), gr.JSON(label="Record", visible=False)
    waiting: dict[str, Any] = {"api_name": LEARN, "concurrency_id": LEARN, "concurrency_limit": LEARNING_CALLS}
    given = [parameter(component) for component in panel.inputs.values()]
    gr.on([], endpoint, given, [file, record], preprocess=False, **waiting)
    name = gr.Textbox(visible=False)
    gr.on([], inst_stop, name, api_name="inst_stop", api_visibility="undocumented", queue=False)


async def _begun(learning: Learning, begin: Callable[..., str], values: Mapping[str, Any]) -> str:
    """Calls `begin` and returns the style's name; stops its training if the call is cancelled meanwhile."""
    beginning = asyncio.create_task(asyncio.to_thread(begin, values))

    def stop(begun: asyncio.Task[str]) -> None:
        if not begun.cancelled() and not begun.exception():
            learning.stop(begun.result())

    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(stop)
        raise


def words(known: LearningStatus) -> str:
    """What the training does, for clients of the API."""
    loads = known.report.phase.stage is Stage.LOADING
    return f"“{known.name}”: {loading_words(known.report) if loads else known.phase}"


def pace(report: Report) -> str:
    if not report.steps_per_second:
        return ""
    left = (report.total - report.step) / report.steps_per_second
    return f"{report.steps_per_second:.2f} steps per second, at most {duration(left)} left."


def ending(known: LearningStatus) -> str:
    """The outcome of the training, in one line."""
    if known.style is None:
        return known.sentence
    history = known.style.record.history
    begun, best = history[0][1], min(loss for _, loss in history)
    how, steps = "Learned" if known.phase == "finished" else "Stopped; learned", known.style.record.step
    return f"{how} “{known.name}” in {steps} steps: validation loss {begun:.4f} at the start, {best:.4f} at best."
