"""Regenerates the README's images: a grid of contents and styles, masks, and strengths.

python -m benchmarks.gallery
"""

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.pairs import EXAMPLES, content_image, style_image
from styleengine import Style, StyleEngine, ZStarSettings
from styleengine.images import fit, open_mask

GAP = 6
GRID_CONTENTS = ("temple", "cat", "flower", "astronaut")
GRID_STYLES = ("auvers", "great-wave", "composition-viii", "poppies")


def sheet(rows: list[list[Image.Image | None]], cell: tuple[int, int]) -> Image.Image:
    """The images in a white grid, each cropped to the cell."""
    width, height = cell
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image:
                page.paste(fit(image, cell), (x * (width + GAP), y * (height + GAP)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=0, help="shorter side; 0 = recommended size of the model")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--to", type=Path, default=EXAMPLES / "results")
    arguments = parser.parse_args()
    arguments.to.mkdir(exist_ok=True)
    engine = StyleEngine(arguments.model)
    chosen = ZStarSettings(size=arguments.size) if arguments.size else ZStarSettings()

    rows: list[list[Image.Image | None]] = [[None, *(style_image(name) for name in GRID_STYLES)]]
    for content_name in GRID_CONTENTS:
        content = content_image(content_name)
        results = [engine.zstar(content, [style_image(name)], chosen).image for name in GRID_STYLES]
        rows.append([content, *results])
        print(content_name, flush=True)
    sheet(rows, (300, 210)).save(arguments.to / "grid.jpg", quality=90)

    temple = content_image("temple")
    half = open_mask(EXAMPLES / "mask" / "right-half.png")
    wave, auvers = style_image("great-wave"), style_image("auvers")
    masked = engine.zstar(temple, [wave], chosen, mask=half).image
    two = engine.zstar(temple, [wave, auvers], chosen, mask=half).image
    mixed = engine.zstar(temple, [Style(wave), Style(auvers)], chosen).image
    sheet([[temple, masked, two, mixed]], (300, 210)).save(arguments.to / "masks.jpg", quality=90)

    strengths = [engine.zstar(temple, [auvers], chosen.replace(strength=value)).image for value in (0.8, 1.2, 1.6, 2.0)]
    sheet([list(strengths)], (300, 210)).save(arguments.to / "strengths.jpg", quality=90)


if __name__ == "__main__":
    main()
