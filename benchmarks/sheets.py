"""Contact sheets."""

from PIL import Image

from styleengine.images import fit

GAP = 6

Rows = list[list[Image.Image | None]]


def sheet(rows: Rows, cell: tuple[int, int]) -> Image.Image:
    """The images in a white grid, each cropped to the cell."""
    width, height = cell
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image:
                page.paste(fit(image, cell), (x * (width + GAP), y * (height + GAP)))
    return page
