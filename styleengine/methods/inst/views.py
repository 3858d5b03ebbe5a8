"""Training data from a painting: square crops as latents and CLIP embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from styleengine.backbones import LatentBackbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_tensor
from styleengine.methods.inst.draws import VIEWS_DRAW, generator_of
from styleengine.methods.inst.settings import InSTLearningSettings
from styleengine.perceptual import Clip

SMALLEST_VIEW = 0.6  # of the painting's largest square, on a side


@dataclass(frozen=True)
class TrainingViews:
    """The training data of a painting: `latents` (views, channels, height, width) of its crops, and
    CLIP's embeddings of each: `pooled` (views, width) and `tokens` (views, patches, width).

    The first crop is the centre of the painting; the saved embedding is computed from it alone.
    """

    latents: torch.Tensor
    pooled: torch.Tensor
    tokens: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + self.pooled.nbytes + self.tokens.nbytes


def prepare(
    backbone: LatentBackbone,
    painting: Image.Image,
    clip: Callable[[], Clip],
    settings: InSTLearningSettings,
    cache: ByteCache | None = None,
) -> TrainingViews:
    """The painting's crops as latents and CLIP embeddings, computed once if there is a cache."""

    @torch.no_grad()
    def make() -> TrainingViews:
        squares = cut(painting, settings, backbone.multiple)
        pictures, encoder = [to_tensor(square) for square in squares], clip()
        latents = torch.cat([backbone.encode(picture) for picture in pictures])
        embeddings = [encoder.embed(picture.to(backbone.device)) for picture in pictures]
        return TrainingViews(latents, *(torch.cat(part).float() for part in zip(*embeddings, strict=True)))

    key = ("lesson", content_hash(painting), backbone.identity, settings.size, settings.views, settings.seed)
    return (cache if cache is not None else ByteCache(0)).get_or_make(key, make)


def cut(painting: Image.Image, settings: InSTLearningSettings, multiple: int) -> list[Image.Image]:
    """The central crop of the painting, then `views` − 1 random crops, every other one mirrored."""
    side = max(multiple, settings.size // multiple * multiple)
    generator = generator_of(settings.seed, VIEWS_DRAW)
    views = [fit(painting, (side, side))]
    for number in range(1, settings.views):
        share, left, top = torch.rand(3, generator=generator, dtype=torch.float32).tolist()
        length = min(painting.size) * (SMALLEST_VIEW + (1 - SMALLEST_VIEW) * share)
        left, top = left * (painting.width - length), top * (painting.height - length)
        box = (left, top, left + length, top + length)
        view = painting.resize((side, side), Image.Resampling.LANCZOS, box)
        views.append(ImageOps.mirror(view) if number % 2 else view)
    return views
