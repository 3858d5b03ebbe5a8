"""Training data from one or several paintings: square crops as latents and CLIP embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from styleengine.backbones import LatentBackbone
from styleengine.cache import ByteCache
from styleengine.disk_cache import storable
from styleengine.images import fit, to_tensor
from styleengine.method import several
from styleengine.methods.inst.draws import VIEWS_DRAW, generator_of
from styleengine.methods.inst.paintings import Paintings, hash_of
from styleengine.methods.inst.settings import InSTLearningSettings
from styleengine.perceptual import Clip

SMALLEST_VIEW = 0.6  # of the painting's largest square, on a side


@storable
@dataclass(frozen=True)
class TrainingViews:
    """The training data: `latents` (views, channels, height, width) of the paintings' crops, and CLIP's
    embeddings of each: `pooled` (views, width) and `tokens` (views, patches, width).

    The first crops are the centres of the paintings; the saved embedding is computed from these alone.
    """

    latents: torch.Tensor
    pooled: torch.Tensor
    tokens: torch.Tensor
    paintings: int = 1

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + self.pooled.nbytes + self.tokens.nbytes

    def tensors(self) -> dict[str, torch.Tensor]:
        paintings = torch.tensor(self.paintings, dtype=torch.int64)
        return {"latents": self.latents, "pooled": self.pooled, "tokens": self.tokens, "paintings": paintings}

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor]) -> "TrainingViews":
        return cls(named["latents"], named["pooled"], named["tokens"], int(named["paintings"]))


def prepare(
    backbone: LatentBackbone,
    paintings: Paintings,
    clip: Callable[[], Clip],
    settings: InSTLearningSettings,
    cache: ByteCache | None = None,
) -> TrainingViews:
    """The paintings' crops as latents and CLIP embeddings, computed once if there is a cache."""

    @torch.no_grad()
    def make() -> TrainingViews:
        squares = cut(paintings, settings, backbone.multiple)
        pictures, encoder = [to_tensor(square) for square in squares], clip()
        latents = torch.cat([backbone.encode(picture) for picture in pictures])
        embeddings = [encoder.embed(picture.to(backbone.device)) for picture in pictures]
        pooled, tokens = (torch.cat(part).float() for part in zip(*embeddings, strict=True))
        return TrainingViews(latents, pooled, tokens, len(several(paintings)))

    key = ("views", hash_of(paintings), backbone.identity, settings.size, settings.views, settings.seed)
    return (cache if cache is not None else ByteCache(0)).get_or_make(key, make)


def cut(paintings: Paintings, settings: InSTLearningSettings, multiple: int) -> list[Image.Image]:
    """The central crop of each painting, then random crops of each in turn, every other one of a painting mirrored.

    There are `views` crops, but at least one of each painting.
    """
    paintings, side = several(paintings), max(multiple, settings.size // multiple * multiple)
    generator = generator_of(settings.seed, VIEWS_DRAW)
    views = [fit(painting, (side, side)) for painting in paintings]
    for number in range(len(paintings), settings.views):
        cycle, place = divmod(number, len(paintings))
        painting = paintings[place]
        share, left, top = torch.rand(3, generator=generator, dtype=torch.float32).tolist()
        length = min(painting.size) * (SMALLEST_VIEW + (1 - SMALLEST_VIEW) * share)
        left, top = left * (painting.width - length), top * (painting.height - length)
        box = (left, top, left + length, top + length)
        view = painting.resize((side, side), Image.Resampling.LANCZOS, box)
        views.append(ImageOps.mirror(view) if cycle % 2 else view)
    return views
