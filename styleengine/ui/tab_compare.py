"""The tab that runs several methods on one content and one style image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.comparison import (
    LEARNING_STEPS,
    Comparison,
    Contender,
    Given,
    Part,
    chosen_contenders,
    compared,
    contenders,
)
from styleengine.errors import StyleEngineError
from styleengine.images import open_image
from styleengine.style_library import StyleLibrary
from styleengine.ui.compare_panel import ComparePanel, files
from styleengine.ui.endpoints import add_api, connect_page
from styleengine.ui.examples import content_style_examples
from styleengine.ui.layout import columns, inputs_part, result_part, settings_part
from styleengine.ui.pictures import path_of, picture
from styleengine.ui.result import save
from styleengine.ui.runs import Job, Report, RunJob, Runner
from styleengine.ui.style_choice import StyleChoice
from styleengine.ui.tab import Tab

NAME = "compare"
WORDS = (
    "Which method suits an image? The chosen methods run one after another. An inversion that an earlier method or run "
    "has computed is not computed again, which makes the later ones faster."
)
START = ("zstar", "StyleID", "inst", "stytr2")
SUMMARY = "Redraws a content image in the style of another image with several methods, with measures of each result."
RETURNS = (
    "Returns a contact sheet, the measures and records of the results, the results, and the measures as CSV. Without "
    "`methods` all run for which the inputs are given."
)
LEARNED_WORDS = f"Learned in {LEARNING_STEPS} steps"
DESCRIPTIONS = {
    "content": "The image to redraw.",
    "style": "The image whose style is taken.",
    "methods": "Names of the methods and presets to compare.",
    "prompt": "The style in words, for QS-Attn.",
    "learned": "A learned style from the library, for InST. Without it, one is learned from the style image.",
    "size": "Shorter side of all results in pixels; 0 is the size recommended for each method.",
}


@dataclass(frozen=True)
class CompareJob:
    """Several jobs, one after another, and a comparison after each."""

    given: Given
    chosen: Sequence[Contender]

    @property
    def content(self) -> Any:
        return self.given.content

    def outcomes(self, run: RunJob) -> Iterator[Any]:
        def run_part(part: Part) -> Iterator[Any]:
            for outcome in run(Job(part.method, part.inputs, part.settings)):
                yield replace(outcome, phase=part.phase(outcome.phase)) if isinstance(outcome, Report) else outcome

        return compared(self.given, self.chosen, run_part)


def build(runner: Runner) -> None:
    library, inputs = StyleLibrary(), {}
    known = [(contender.title, name) for name, contender in contenders().items()]
    gr.Markdown(WORDS)
    with columns():
        with inputs_part():
            with gr.Row():
                pair = [picture("Content", height=240), picture("Style", height=240)]
                inputs["content"], inputs["style"] = pair
            examples = content_style_examples(pair, "compare-examples")
        with result_part():
            panel = ComparePanel()
        with settings_part():
            inputs["methods"] = gr.CheckboxGroup(known, value=list(START), label="Methods")
            info = "QS-Attn takes the style from these words, not from the style image."
            inputs["prompt"] = gr.Textbox("", label="Prompt for QS-Attn", info=info, max_lines=2)
            learned = gr.Dropdown(learned_choices(runner, library), value="", label="Style for InST")
            runner.following.append((lambda: {learned: gr.Dropdown(learned_choices(runner, library))}, [learned]))
            inputs["learned"] = learned
            info = "0 is the size recommended for each method."
            inputs["size"] = gr.Slider(0, 1024, value=0, step=8, label="Size", info=info)
    connect(runner, library, panel, inputs, examples)


def learned_choices(runner: Runner, library: StyleLibrary) -> list[tuple[str, str]]:
    """A style that is learned for the comparison, and those of the library that fit the model."""
    return [(LEARNED_WORDS, ""), *((name, name) for name in StyleChoice(runner, library).names())]


def connect(
    runner: Runner, library: StyleLibrary, panel: ComparePanel, inputs: Mapping[str, Component], examples: Any
) -> None:
    def prepare(values: Mapping[str, Any]) -> CompareJob:
        return job(library, values)

    def outputs(comparison: Comparison, folder: str) -> Sequence[Any]:
        sheet, table = files(comparison, folder)
        records = {entry.contender.name: entry.result.record() for entry in comparison.entries if entry.result}
        rows = [{**row, "record": records.get(row["method"])} for row in comparison.rows()]
        pictures = [
            (str(save(entry.result, folder)), entry.contender.title) for entry in comparison.entries if entry.result
        ]
        return str(sheet), {"results": rows}, pictures, str(table)

    content: Any = inputs["content"]
    connect_page(NAME, runner, panel, prepare, inputs, examples, title="")
    panel.connect_click(content)
    more = [gr.Gallery(label="Results", visible=False), gr.File(label="Measures", visible=False)]
    add_api(
        NAME,
        runner,
        prepare,
        inputs,
        required=("content", "style"),
        tool="compare_style_transfer_methods",
        summary=SUMMARY,
        descriptions=DESCRIPTIONS,
        returns=RETURNS,
        more=more,
        finish=outputs,
    )


def job(library: StyleLibrary, values: Mapping[str, Any]) -> CompareJob:
    """The job for these values; StyleEngineError for invalid ones."""
    content, style = (
        open_image(path_of(values.get(name)), f"{name} image")  # type: ignore[arg-type] - None is reported
        for name in ("content", "style")
    )
    methods, prompt, size = values.get("methods"), values.get("prompt") or "", values.get("size") or 0
    if methods is not None and not isinstance(methods, list):
        raise StyleEngineError(f"`methods` must be a list of names: {', '.join(contenders())}.")
    if not isinstance(prompt, str):
        raise StyleEngineError("The prompt must be a text.")
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size != int(size):
        raise StyleEngineError("The size must be a whole number of pixels; 0 is the recommended size.")
    name = values.get("learned")
    learned = library.open(name) if name else None
    given = Given(content, style, prompt, learned, int(size))
    chosen = chosen_contenders(methods, given)
    for contender in chosen:
        given.settings(contender)  # checked before the first run
    return CompareJob(given, chosen)


TAB = Tab(None, order=7, build=build, title="Compare")
