"""Style images with their weights and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps

from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, content_hash, lay_over, open_image, open_mask, stretch_note, to_tensor
from styleengine.stylization import InputRecord, file_name, mask_record

MOST_WEIGHT = 1e6
TINY = 1e-30


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


def check_weights(styles: Sequence[Style]) -> None:
    """StyleEngineError for no style, an impossible weight, or no weight above 0."""
    if not styles:
        raise StyleEngineError("No style image was given. Choose at least one.")
    if not all(0 <= style.weight <= MOST_WEIGHT for style in styles) or not any(style.weight for style in styles):
        raise StyleEngineError(
            "Style weights must be numbers from 0 up to a million, and at least one must be above 0."
        )


def region(mask: Image.Image | None, size: tuple[int, int], feather: float) -> Image.Image | None:
    """The mask at `size` (width, height) with its border blurred; None if it is white everywhere.

    `feather` is the blur's radius as a share of the shorter side.
    """
    if mask is None:
        return None
    grey = lay_over(mask.convert("L"), size)
    if grey.getextrema() == (255, 255):
        return None
    radius = feather * min(size)
    return grey.filter(ImageFilter.GaussianBlur(radius)) if radius > 0 else grey


def reduced(mask: Image.Image | None, height: int, width: int) -> torch.Tensor:
    """The mask averaged to (height, width), in [0, 1]; ones for None."""
    if mask is None:
        return torch.ones(height, width, dtype=torch.float32)
    pixels = to_tensor(mask)[:, :1].add(1).div(2)
    return F.interpolate(pixels, (height, width), mode="area")[0, 0]


def shares_of(styles: Sequence[Style], masks: Sequence[Image.Image | None], height: int, width: int) -> torch.Tensor:
    """Each style's share at each latent position (styles, height, width): weight × mask, normalised.

    Where the masks sum to less than 1, so do the shares.
    """
    reduced_masks = torch.stack([reduced(mask, height, width) for mask in masks])
    weighted = reduced_masks * torch.tensor([style.weight for style in styles], dtype=torch.float32)[:, None, None]
    return weighted / weighted.sum(0).clamp(min=TINY) * reduced_masks.sum(0).clamp(max=1)


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
