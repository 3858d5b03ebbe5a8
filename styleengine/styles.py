"""Style images with their weights and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, content_hash, open_image, open_mask, stretch_note
from styleengine.stylization import InputRecord, file_name, mask_record


@dataclass(frozen=True)
class Style:
    """A style image, its weight among several, and its mask on the content.

    `mask` is grey, of any size: white = fully, black = not at all; None = everywhere.
    """

    image: Image.Image
    weight: float = 1.0
    mask: Image.Image | None = None
    name: str = ""
    mask_name: str = ""
    mask_inverted: bool = False

    @classmethod
    def open(cls, image: ImageSource, weight: float = 1.0, mask: ImageSource | None = None) -> "Style":
        """A style from files, bytes, arrays or PIL images; StyleEngineError for anything that is not an image."""
        return cls(
            open_image(image, "style image"),
            weight,
            open_mask(mask) if mask is not None else None,
            file_name(image),
            file_name(mask) if mask is not None else "",
        )


def with_shared_mask(styles: Sequence[Style], mask: Image.Image | None, name: str = "") -> list[Style]:
    """Applies one mask: where one style applies, or which of two (white = second, black = first)."""
    if mask is None:
        return list(styles)
    if len(styles) == 1:
        return [replace(styles[0], mask=mask, mask_name=name)]
    if len(styles) == 2:
        first = replace(styles[0], mask=ImageOps.invert(mask), mask_name=name, mask_inverted=True)
        return [first, replace(styles[1], mask=mask, mask_name=name)]
    raise StyleEngineError(
        f"One mask serves one or two styles, not {len(styles)}. Give each style a mask of its own instead."
    )


def mask_notes(styles: Sequence[Style], content: Image.Image) -> list[str]:
    """Notes on the styles' masks, without duplicates."""
    notes = [stretch_note(style.mask, content) for style in styles if style.mask is not None]
    return list(dict.fromkeys(filter(None, notes)))


def style_records(styles: Sequence[Style]) -> list[InputRecord]:
    """The record entries of the styles, each followed by its mask's, if any."""
    records = []
    for style in styles:
        records.append(InputRecord("style", content_hash(style.image), style.name, style.weight))
        if style.mask is not None:
            records.append(mask_record(style.mask, style.mask_name, style.mask_inverted))
    return records
