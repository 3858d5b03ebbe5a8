"""Pictures going in: uploads that the engine checks itself, and a mask painted over the content."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorData
from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import open_image

PAINTER_SIDE = 640


def picture(label: str, height: int) -> gr.Image:
    """A slot to drop, choose or paste a picture into."""
    return gr.Image(label=label, height=height, min_width=140, sources=["upload", "clipboard"], buttons=[])


def path_of(upload: Mapping[str, Any] | None) -> str | None:
    """The uploaded file as it was: the engine opens it, and words what is wrong with it."""
    return upload["path"] if upload else None


def painter(content: gr.Image, accent: str, label: str = "Paint where the style applies") -> gr.ImageMask:
    """A canvas showing `content`, to paint a mask on."""
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
        queue=False,
        show_progress="hidden",
    )
    return canvas


def painted_mask(canvas: gr.ImageMask, painting: Mapping[str, Any] | None) -> Image.Image | None:
    """White where the brush has been on what `canvas` sent; None where it has not been used."""
    painted = canvas.preprocess(EditorData(**painting)) if painting else None
    layers = [np.asarray(layer)[..., 3] > 0 for layer in (painted or {}).get("layers", [])]  # RGBA
    if not any(layer.any() for layer in layers):
        return None
    return Image.fromarray(np.logical_or.reduce(layers).astype(np.uint8) * 255)


def _canvas(upload: Mapping[str, Any] | None) -> Image.Image | None:
    """A small copy of the content to paint over; what is wrong with it, the run will say."""
    try:
        image = open_image(upload["path"], "content image") if upload else None
    except StyleEngineError:
        return None
    if image:
        image.thumbnail((PAINTER_SIDE, PAINTER_SIDE))
    return image
