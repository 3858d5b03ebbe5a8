"""Image inputs: uploads, which the engine checks itself, and a mask painted on the content."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import check_size, open_image
from styleengine.ui.uploads import path_of

__all__ = ["painted_mask", "painter", "path_of", "picture"]

PAINTER_SIDE = 640
PAINTER_QUEUE = {"concurrency_id": "painter", "concurrency_limit": 2}  # images decoded at a time
LAYER_FORMATS = ("PNG", "WEBP")


UPLOAD_WORDS = {
    "Content": "# A photo\nDrop or choose a file",
    "Style": "# A painting\nDrop or choose a file",
    "Painting": "# A painting\nDrop or choose a file",
    "Preview image": "# A photo\nOptional",
}  # by label; other inputs have Gradio's words


def picture(label: str, height: int) -> gr.Image:
    """An image input for upload, drag and drop, or paste."""
    return gr.Image(
        label=label,
        height=height,
        min_width=140,
        sources=["upload", "clipboard"],
        buttons=[],
        placeholder=UPLOAD_WORDS.get(label.partition(" (")[0]),
    )


def painter(content: gr.Image, accent: str, label: str = "Paint where the style applies") -> gr.ImageMask:
    """A canvas with `content` as background, for painting a mask."""
    canvas = gr.ImageMask(
        label=label,
        type="pil",
        sources=(),
        transforms=(),
        brush=gr.Brush(colors=[(accent, 0.7)], color_mode="fixed", default_size=40),
        height=360,
        buttons=[],
        elem_classes="painter",
    )
    content.change(
        _canvas,
        inputs=content,
        outputs=canvas,
        preprocess=False,
        api_name="painter_canvas",
        api_visibility="undocumented",
        show_progress="hidden",
        **PAINTER_QUEUE,
    )
    return canvas


def painted_mask(painting: Mapping[str, Any] | None) -> Image.Image | None:
    """The painted mask, white under the brush strokes; None if nothing is painted.

    Raises StyleEngineError for layers that cannot be decoded.
    """
    layers = [_painted(path_of(layer)) for layer in (painting or {}).get("layers") or []]
    if not any(layer.any() for layer in layers):
        return None
    if len({layer.shape for layer in layers}) > 1:
        raise StyleEngineError("The painted layers have different sizes. Paint the mask again.")
    return Image.fromarray(np.logical_or.reduce(layers).astype(np.uint8) * 255)


def _painted(path: str | None) -> np.ndarray:
    """Whether each pixel of a layer is opaque to any degree: booleans (height, width)."""
    try:
        with Image.open(path or "", formats=LAYER_FORMATS) as layer:
            check_size(layer.size, "painted mask")
            return np.asarray(layer.convert("RGBA"))[..., 3] > 0
    except StyleEngineError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise StyleEngineError("The painted mask could not be decoded. Paint it again.") from error


def _canvas(upload: Mapping[str, Any] | None) -> Image.Image | None:
    """A small copy of the content to paint on; None if it cannot be opened, which the run reports."""
    path = path_of(upload)
    try:
        image = open_image(path, "content image") if path else None
    except StyleEngineError:
        return None
    if image:
        image.thumbnail((PAINTER_SIDE, PAINTER_SIDE))
    return image
