"""The InST tab: learn a painting's style as a new token, then apply it to images or prompts."""

from typing import Any

import gradio as gr

from styleengine.errors import StyleEngineError
from styleengine.methods import INST
from styleengine.style_library import StyleLibrary
from styleengine.ui.endpoints import shown
from styleengine.ui.examples import content_examples
from styleengine.ui.form import Form
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.learn_panel import LearnPanel, connect_learning
from styleengine.ui.learning import Learning
from styleengine.ui.panel import Updates, line
from styleengine.ui.result import ResultPanel
from styleengine.ui.runs import Runner
from styleengine.ui.style_choice import StyleChoice
from styleengine.ui.tab import Tab

APPLY_HINT = "Choose a style, and a content image or a prompt, or click an example."


def build(runner: Runner) -> None:
    library = StyleLibrary()
    learning = Learning(runner, library)
    with gr.Tab("Learn"):
        learn_panel = LearnPanel(runner, learning)
    with gr.Tab("Apply"):
        choice = StyleChoice(runner, library)
        _build_apply(runner, library, choice)
    connect_learning(learning, learn_panel, choice)
    runner.following.append((choice.begun, [choice.style, choice.style_2]))


def _build_apply(runner: Runner, library: StyleLibrary, choice: StyleChoice) -> None:
    form = Form(runner, INST, library)
    controls = form.controls
    with columns():
        with inputs_part():
            content = form.show("content", label="Content (leave empty for text-to-image)")
            examples = content_examples([content], "inst-examples")
            choice.show()
            controls.show("prompt")
        with result_part():
            panel = ResultPanel(APPLY_HINT, method=INST.name)
        with settings_part():
            controls.show("mix", "strength", "guidance", "adain")
            with gr.Row():
                controls.show("size", "steps")
            controls.show_seed()
            controls.show_rare()

    form.inputs = {"style": choice.style, "content": content, "style_2": choice.style_2}
    form.connect(panel, examples)

    def upload_style(upload: Any) -> Updates:
        try:
            style = choice.add(upload)
        except StyleEngineError as error:
            raise shown(error) from None
        return {**choice.refreshed(style.record.name), panel.status: line(f"“{style.record.name}” is in the library.")}

    def show_choice(name: str | None) -> Updates:
        """The download of the chosen style, and the note about it."""
        try:
            style = library.open(name) if name else None
        except StyleEngineError:
            style = None
        button = gr.DownloadButton(value=choice.file(style) if style else None, interactive=bool(style))
        note = choice.note(style) if style else ""
        return {choice.download: button, panel.status: line(note) if note else gr.skip()}

    quiet: dict[str, Any] = {"preprocess": False, "queue": False, "show_progress": "hidden"}
    quiet["api_visibility"] = "private"
    lists, offered = [choice.style, choice.style_2], [choice.download, panel.status]
    choice.upload.upload(upload_style, choice.upload, [*lists, panel.status], **quiet)
    choice.style.change(show_choice, choice.style, offered, **quiet)
    # On page load. With inputs, Gradio would also call it at each change of these.
    gr.on(None, lambda: choice.refreshed(), outputs=lists, **quiet).then(show_choice, choice.style, offered, **quiet)

    def inst_upload(file: Any) -> str:
        """Adds a style file to the library and returns the style's name for `/inst_apply`."""
        try:
            return choice.add(file).record.name
        except StyleEngineError as error:
            raise shown(error) from None

    file, name = gr.File(visible=False), gr.Textbox(visible=False)
    hidden: dict[str, Any] = {"api_name": "inst_upload", "api_visibility": "undocumented"}
    gr.on([], inst_upload, file, name, preprocess=False, queue=False, **hidden)


TAB = Tab(INST, order=5, build=build)
