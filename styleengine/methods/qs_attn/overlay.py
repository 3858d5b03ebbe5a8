"""A visualization of the anchors."""

import numpy as np
from PIL import Image, ImageDraw

from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_tensor, working_size
from styleengine.methods.qs_attn.contrast import Anchors, find_anchors
from styleengine.methods.qs_attn.settings import QSAttnSettings


def anchors_picture(
    backbone: Backbone, content: Image.Image, settings: QSAttnSettings, cache: ByteCache | None = None
) -> Image.Image:
    """The source under its entropy map, with a frame around each anchor: one panel per layer, finest first.

    Blue is low entropy, red is high.
    """
    content = fit(content, working_size(content, settings.size, backbone.multiple))
    cache = cache if cache is not None else ByteCache(0)
    x_0 = backbone.encode(to_tensor(content))
    layers = find_anchors(backbone, x_0, settings, cache, (content_hash(content), backbone.identity)).anchors
    width, height = content.size
    row = Image.new("RGB", (width * len(layers), height))
    for number, layer in enumerate(layers):
        row.paste(_overlay(content, layer), (width * number, 0))
    return row


def _overlay(content: Image.Image, layer: Anchors) -> Image.Image:
    low, high = layer.entropy.min(), layer.entropy.max()
    heat = ((layer.entropy - low) / (high - low).clamp(min=1e-12)).cpu().numpy()
    colors = np.stack([heat, np.zeros_like(heat), 1 - heat], -1)
    shown = Image.fromarray((colors * 255).astype(np.uint8)).resize(content.size, Image.Resampling.NEAREST)
    picture = Image.blend(content.convert("L").convert("RGB"), shown, 0.4)
    draw = ImageDraw.Draw(picture)
    rows, columns = layer.entropy.shape
    step_x, step_y = picture.width / columns, picture.height / rows
    for index in layer.indices.tolist():
        left, top = index % columns * step_x, index // columns * step_y
        draw.rectangle((left, top, left + step_x - 1, top + step_y - 1), outline="white")
    return picture
