"""Contact sheets: images in a grid, with captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from styleengine.images import fit

GAP = 6
TEXT = 14  # pixels
LINE = 19

Rows = Sequence[Sequence[Image.Image | None]]


def contact_sheet(rows: Rows, cell: tuple[int, int], captions: Sequence[Sequence[str]] | None = None) -> Image.Image:
    """The images in a white grid, each cropped to the cell (width, height), None for an empty one.

    `captions` has one text per cell, which may have several lines and stands below its image.
    """
    width, height = cell
    lines = max((text.count("\n") + 1 for row in captions or () for text in row), default=0)
    tall = height + lines * LINE
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (tall + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            left, top = x * (width + GAP), y * (tall + GAP)
            if image:
                page.paste(fit(image, cell), (left, top))
            if captions:
                for number, line in enumerate(captions[y][x].split("\n")):
                    place = (left + 2, top + height + 2 + number * LINE)
                    draw.text(place, shortened_to(line, width - 4, font), "black", font)
    return page


def shortened_to(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, cut with “…” to so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
