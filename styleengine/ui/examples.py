"""Examples at the bottom of a tab, from the images and clips in `examples/`."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

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
}  # contents of the results that tabs show at first, by method


def pictures(kind: str) -> list[str]:
    """The files of `examples/<kind>`; empty if the package was installed without them."""
    return sorted(str(path) for path in (FOLDER / kind).glob("*") if path.suffix.lower() in SUFFIXES)


def first_result(method: str) -> tuple[Image.Image, Image.Image] | None:
    """The content and the result that a method's tab shows before the first run; None without the files."""
    content, result = FIRST.get(method, FOLDER), FOLDER / "results" / f"first-{method}.jpg"
    if not content.is_file() or not result.is_file():
        return None
    after = open_image(result)
    return fit(open_image(content), after.size), after


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
