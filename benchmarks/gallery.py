"""Regenerates the pictures in examples/results/ with the models' recommended settings.

python -m benchmarks.gallery                    # all of them
python -m benchmarks.gallery --only grid masks
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.pairs import EXAMPLES, PROMPTS, content_image, style_image
from styleengine import Style, StyleEngine
from styleengine.contact_sheet import Rows, contact_sheet
from styleengine.images import open_image, open_mask
from styleengine.learned_style import LearnedStyle
from styleengine.style_library import SHIPPED
from styleengine.ui.examples import FIRST

GRID_CONTENTS = ("temple", "cat", "flower", "astronaut")
GRID_STYLES = ("auvers", "great-wave", "composition-viii", "poppies")
FIGURE_PAIRS = (("boar", "death-knight"), ("orc", "mermaid"), ("goblin", "death-knight"), ("dwarf", "goblin"))
LEARNED = ("temple", "cat")


def grid() -> Image.Image:
    """Contents on the left, styles on top, results of Z-STAR+ between."""
    engine, styles = StyleEngine("mini"), [style_image(name) for name in GRID_STYLES]
    rows: Rows = [[None, *styles]]
    for content in map(content_image, GRID_CONTENTS):
        rows.append([content, *(engine.zstar(content, style).image for style in styles)])
    return contact_sheet(rows, (300, 210))


def masks() -> Image.Image:
    """A content; one style on its right half; two styles, one on each half; both styles mixed."""
    engine, temple = StyleEngine("mini"), content_image("temple")
    half = open_mask(EXAMPLES / "mask" / "right-half.png")
    wave, auvers = style_image("great-wave"), style_image("auvers")
    masked = engine.zstar(temple, wave, mask=half).image
    two = engine.zstar(temple, [wave, auvers], mask=half).image
    mixed = engine.zstar(temple, [Style(wave), Style(auvers)]).image
    return contact_sheet([[temple, masked, two, mixed]], (300, 210))


def prompts() -> Image.Image:
    """Two contents on the left, each redrawn by QS-Attn with eight prompts."""
    engine = StyleEngine("mini")
    rows: Rows = []
    for content in map(content_image, ("temple", "cat")):
        rows.append([content, *(engine.qs_attn(content, prompt).image for prompt in PROMPTS)])
    return contact_sheet(rows, (160, 120))


def learned() -> Image.Image:
    """Contents on the left, and each redrawn by InST in the bundled learned styles, whose paintings are on top."""
    engine, styles = StyleEngine("mini"), [LearnedStyle.open(file) for file in sorted(SHIPPED.glob("*.safetensors"))]
    rows: Rows = [[None, *(style.thumbnail for style in styles)]]
    for content in map(content_image, LEARNED):
        rows.append([content, *(engine.inst_apply(content, style).image for style in styles)])
    return contact_sheet(rows, (300, 210))


def h_space() -> Image.Image:
    """Pairs of figures: left the style image, right the content, between them γ = 0, 0.2, … 1."""
    engine, rows = StyleEngine("figures"), list[list[Image.Image | None]]()
    for content, style in FIGURE_PAIRS:
        pair = [open_image(EXAMPLES / "figures" / f"{name}.png") for name in (style, content)]
        results = [result.image for result in engine.h_space_strip(pair[1], pair[0])]
        rows.append([pair[0], *results, pair[1]])
    return contact_sheet(rows, (128, 128))


def first(method: str) -> Callable[[], Image.Image]:
    """The result that a method's tab shows at first. Its content is named in the app (`styleengine/ui/examples.py`)."""

    def make() -> Image.Image:
        engine, content = StyleEngine("figures" if method == "h_space" else "mini"), open_image(FIRST[method])
        if method == "zstar":
            return engine.zstar(content, [style_image("auvers")]).image
        if method == "qs_attn":
            return engine.qs_attn(content, "golden").image
        if method == "inst":
            return engine.inst_apply(content, "Auvers").image
        return engine.h_space(content, open_image(EXAMPLES / "figures" / "death-knight.png")).image

    return make


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "grid": grid,
    "masks": masks,
    "qs_attn": prompts,
    "inst": learned,
    "h-space": h_space,
    **{f"first-{method}": first(method) for method in FIRST},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--to", type=Path, default=EXAMPLES / "results")
    arguments = parser.parse_args()
    arguments.to.mkdir(exist_ok=True)
    for name in arguments.only:
        PICTURES[name]().save(arguments.to / f"{name}.jpg", quality=90)
        print(name, flush=True)


if __name__ == "__main__":
    main()
