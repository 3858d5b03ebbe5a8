"""Regenerates the files in examples/results/ with the models' recommended settings.

python -m benchmarks.gallery                    # all of them
python -m benchmarks.gallery --only grid masks
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.pairs import EXAMPLES, PROMPTS, content_image, style_image
from styleengine import Style, StyleEngine, ZStarVideoSettings
from styleengine.comparison import compare
from styleengine.contact_sheet import Rows, contact_sheet
from styleengine.images import fit, open_image, open_mask
from styleengine.learned_style import LearnedStyle
from styleengine.style_library import SHIPPED
from styleengine.stylization import StepEvent
from styleengine.ui.examples import FIRST, FIRST_COMPARED, FIRST_LEARNED
from styleengine.ui.tab_compare import START
from styleengine.ui.video_result import Compared, comparison
from styleengine.video import open_clip

GRID_CONTENTS = ("temple", "cat", "flower", "astronaut")
GRID_STYLES = ("auvers", "great-wave", "composition-viii", "poppies")
FIGURE_PAIRS = (("boar", "death-knight"), ("orc", "mermaid"), ("goblin", "death-knight"), ("dwarf", "goblin"))
LEARNED = ("temple", "cat")
PREVIEWED = (1, 25, 100)  # steps of the first training with a preview
PREVIEW_WIDTH = 320


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
        if method == "stytr2":
            return engine.stytr2(content, style_image("auvers")).image
        return engine.h_space(content, open_image(EXAMPLES / "figures" / "death-knight.png")).image

    return make


def first_clip(folder: Path) -> None:
    """The clip that the video tab shows at first: the original on the left, the result on the right."""
    clip, settings = EXAMPLES / "video" / "cup.mp4", ZStarVideoSettings(size=256, frames=24)
    with tempfile.TemporaryDirectory() as work:
        result = StyleEngine("mini").zstar_video(clip, [style_image("auvers")], settings, output=Path(work, "out.mp4"))
        original = open_clip(clip).select(settings.rate, settings.begin, result.frames)
        compared = Compared(original, result.path, result.image.size, result.rate)
        shutil.copy(comparison(compared, work), folder / "first-zstar_video.mp4")


def first_comparison(folder: Path) -> None:
    """The results and the table that the tab Compare shows at first."""
    result = compare(StyleEngine("mini"), open_image(FIRST_COMPARED), style_image("great-wave"), START)
    for entry in result.entries:
        assert entry.result, entry.problem
        entry.result.image.save(folder / f"first-compare-{entry.contender.name}.jpg", quality=90)
    (folder / "first-compare.csv").write_text(result.csv())


def first_training(folder: Path) -> None:
    """The previews that the tab Learn shows at first: a content in the style that is being learned, by step."""

    def on_step(event: StepEvent) -> None:
        if event.phase.previewed and event.step in PREVIEWED and event.step not in made:
            made.append(event.step)
            preview = fit(event.preview(), (PREVIEW_WIDTH, round(PREVIEW_WIDTH * content.height / content.width)))
            preview.save(folder / f"first-inst_learn-{event.step:04d}.jpg", quality=90)

    content, made = content_image("temple"), list[int]()
    painting = style_image(FIRST_LEARNED.lower())
    StyleEngine("mini").inst_learn(painting, name=FIRST_LEARNED, preview_on=content, on_step=on_step)


FILES: dict[str, Callable[[Path], None]] = {
    "first-zstar_video": first_clip,
    "first-compare": first_comparison,
    "first-inst_learn": first_training,
}
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
    names = [*PICTURES, *FILES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--to", type=Path, default=EXAMPLES / "results")
    arguments = parser.parse_args()
    arguments.to.mkdir(exist_ok=True)
    for name in arguments.only:
        if name in FILES:
            FILES[name](arguments.to)
        else:
            PICTURES[name]().save(arguments.to / f"{name}.jpg", quality=90)
        print(name, flush=True)


if __name__ == "__main__":
    main()
