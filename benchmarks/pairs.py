"""The images and prompts of the benchmarks. The images are from examples/; its SOURCES.md lists the training images."""

from pathlib import Path

from PIL import Image

from styleengine.images import open_image

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTENTS = ("astronaut", "cat", "coffee", "flower", "rocket", "temple")
STYLES = (
    "auvers", "composition-viii", "great-wave", "harvesters",
    "poppies", "ryogoku-bridge", "shrine-in-snow", "summertime",
)  # fmt: skip
PROMPTS = (
    "a sketch with crayon", "golden", "a watercolor painting", "wooden", "red bricks",
    "a mosaic", "a stained glass window", "a pencil sketch",
)  # fmt: skip


def content_image(name: str) -> Image.Image:
    return open_image(EXAMPLES / "content" / f"{name}.jpg")


def style_image(name: str) -> Image.Image:
    return open_image(EXAMPLES / "style" / f"{name}.jpg")


def pairs(count: int) -> list[tuple[str, str]]:
    """`count` different (content, style) pairs, spread evenly over both lists (at most 48)."""
    every = [(CONTENTS[i % len(CONTENTS)], STYLES[(i + i // 24) % len(STYLES)]) for i in range(48)]
    return every[:count]
