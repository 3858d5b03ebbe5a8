"""Examples beside a tab's inputs and the results that it shows at first, from the files in `examples/`."""

import csv
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.helpers import Examples
from PIL import Image

from styleengine.backbones import recommended_settings
from styleengine.images import fit, open_image

FOLDER = Path(__file__).parents[2] / "examples"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".mp4"}
MOST = 6
LABEL = "Examples (click to run)"
FIGURES = "figures"  # a model
FIRST = {
    "zstar": FOLDER / "content" / "temple.jpg",
    "qs_attn": FOLDER / "content" / "cat.jpg",
    "h_space": FOLDER / "figures" / "boar.png",
    "inst": FOLDER / "content" / "temple.jpg",
    "stytr2": FOLDER / "content" / "temple.jpg",
}  # contents of the results that tabs show at first, by method
FIRST_LEARNED = "Auvers"  # the bundled style whose training the tab Learn shows at first
FIRST_COMPARED = FOLDER / "content" / "flower.jpg"  # the content of the comparison that the page shows at first
EXAMPLE_WORDS = "What is shown here is a finished example."
RESULTS = FOLDER / "results"


def pictures(kind: str) -> list[str]:
    """The files of `examples/<kind>`; empty if the package was installed without them."""
    return sorted(str(path) for path in (FOLDER / kind).glob("*") if path.suffix.lower() in SUFFIXES)


def first_result(method: str) -> tuple[Image.Image, Image.Image] | None:
    """The content and the result that a method's tab shows before the first run; None without the files."""
    return beside_content(FIRST.get(method, FOLDER), RESULTS / f"first-{method}.jpg")


def beside_content(content: Path, result: Path) -> tuple[Image.Image, Image.Image] | None:
    """Both images, the content at the result's size; None without the files."""
    if not content.is_file() or not result.is_file():
        return None
    after = open_image(result)
    return fit(open_image(content), after.size), after


def first_clip() -> str | None:
    """The clip beside its original that the video tab shows at first; None without the file."""
    file = RESULTS / "first-zstar_video.mp4"
    return str(file) if file.is_file() else None


def first_previews() -> list[tuple[str, str]]:
    """Previews of a training, with their steps as captions."""
    return [(str(file), f"step {int(file.stem[-4:])}") for file in sorted(RESULTS.glob("first-inst_learn-*.jpg"))]


def first_comparison() -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The results with their titles, and the table's rows, of the comparison that the page shows at first.

    The rows have no seconds, which are those of another machine.
    """
    table = RESULTS / "first-compare.csv"
    if not table.is_file():
        return [], []
    with table.open(newline="") as file:
        read = csv.DictReader(file)
        rows: list[dict[str, Any]] = [
            {key: _number(value) for key, value in row.items() if value and not key.endswith("seconds")} for row in read
        ]
    files = [(RESULTS / f"first-compare-{row['method']}.jpg", str(row["title"])) for row in rows]
    return [(str(file), title) for file, title in files if file.is_file()], rows


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def content_style_examples(inputs: Sequence[Component], elem_id: str = "examples") -> Examples | None:
    """Pairs of content and style. Every image is used once before any is repeated.

    `elem_id` must be unique on the page and end in "examples", which the style sheet selects by.
    """
    return _pairs(pictures("content"), inputs, elem_id)


def h_space_examples(inputs: Sequence[Component], model: str, size: int) -> Examples | None:
    """Pairs of figures for the model "figures", then pairs for the app's own model.

    Each row also has a model and a size column, which the style sheet hides.
    """
    own = [[*pair, model, size] for pair in zip(pictures("content"), pictures("style"), strict=False)]
    drawn, suits = pictures("figures"), recommended_settings(FIGURES)["h_space"]
    figures = [[*pair, FIGURES, suits["size"]] for pair in zip(drawn, drawn[1:] + drawn[:1], strict=True)]
    rows = figures[: MOST // 2] + own[: MOST // 2]
    if not rows:
        return None
    return gr.Examples(rows, list(inputs), label=LABEL, elem_id="h-space-examples", preload=False)


def content_examples(inputs: Sequence[Component], elem_id: str) -> Examples | None:
    """Contents alone; `elem_id` as in `content_style_examples`."""
    contents = [[content] for content in pictures("content")[:MOST]]
    return gr.Examples(contents, list(inputs), label=LABEL, elem_id=elem_id, preload=False) if contents else None


def clip_style_examples(inputs: Sequence[Component]) -> Examples | None:
    """Pairs of clip and style."""
    return _pairs(pictures("video"), inputs, "clip-examples")


def _pairs(contents: Sequence[str], inputs: Sequence[Component], elem_id: str) -> Examples | None:
    styles = pictures("style")
    if not contents or not styles:
        return None
    count = min(MOST, max(len(contents), len(styles)))
    pairs = [list(pair) for pair in islice(zip(cycle(contents), cycle(styles), strict=False), count)]
    return gr.Examples(pairs, list(inputs), label=LABEL, elem_id=elem_id, preload=False)


def content_words_examples(inputs: Sequence[Component], words: Sequence[str], elem_id: str) -> Examples | None:
    """Contents with prompts; `elem_id` as in `content_style_examples`."""
    contents = pictures("content")
    if not contents:
        return None
    pairs = [list(pair) for pair in islice(zip(contents, cycle(words), strict=False), MOST)]
    return gr.Examples(pairs, list(inputs), label=LABEL, elem_id=elem_id, preload=False)
