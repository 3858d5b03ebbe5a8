"""The painting whose style is learned, or several paintings of one artist."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, content_hash, open_image
from styleengine.learned_style import MOST_PAINTINGS
from styleengine.method import several

Paintings: TypeAlias = Image.Image | Sequence[Image.Image]  # one, or several of one artist

ENDINGS = {1: "st", 2: "nd", 3: "rd"}  # of ordinal numbers


def opened_paintings(given: ImageSource | Iterable[ImageSource]) -> list[Image.Image]:
    """The painting, or each of several, as `open_image` opens it.

    Raises StyleEngineError for no painting, more than `MOST_PAINTINGS`, and one that cannot be used: the sentence
    names it, by its number if there are several.
    """
    sources: list[ImageSource] = several(given)
    if len(sources) > MOST_PAINTINGS:
        raise StyleEngineError(f"{len(sources)} paintings were given. Choose at most {MOST_PAINTINGS} of one artist.")
    if len(sources) < 2:
        return [open_image(sources[0] if sources else None, "painting")]  # type: ignore[arg-type] - None raises
    names = (f"{number}{ENDINGS.get(number, 'th')} painting" for number in range(1, len(sources) + 1))
    return [open_image(source, name) for source, name in zip(sources, names, strict=True)]


def hash_of(paintings: Paintings) -> str:
    """The `content_hash` of a painting. For several, in their order, the SHA-256 over their hashes."""
    hashes = [content_hash(painting) for painting in several(paintings)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
