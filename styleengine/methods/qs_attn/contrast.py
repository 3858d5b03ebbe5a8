"""The query-selected contrastive loss: preserves features at the positions with the lowest attention entropy."""

import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.methods.qs_attn.settings import Features, QSAttnSettings

TEMPERATURE = 0.07
RESOLUTIONS = 4  # of the U-Net's encoder that the loss uses
FEATURE_SIDE = 64  # larger feature maps are pooled, because all pairs of positions are compared
ROWS_AT_ONCE = 512  # of the attention matrix
FLAT = 1e-5  # added to variances


@dataclass(frozen=True)
class Anchors:
    """The anchors in one layer of the U-Net's encoder, from the source alone.

    `entropy` is H(i) as (height, width); `indices` (N,) are the selected positions; `routing`
    (N, positions) is A_QS; `positives` (N, channels) are the source's routed features, of unit norm.
    """

    entropy: torch.Tensor
    indices: torch.Tensor
    routing: torch.Tensor
    positives: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.entropy, self.indices, self.routing, self.positives))


@dataclass(frozen=True)
class Layers:
    """The anchors of all layers, as stored in the cache."""

    anchors: tuple[Anchors, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.anchors)


def find_anchors(
    backbone: Backbone,
    x_0: torch.Tensor,
    settings: QSAttnSettings,
    cache: ByteCache,
    hashed: tuple[str, str],
) -> Layers:
    """The anchors of each layer for the source's latents, cached; `hashed` identifies source and backbone."""

    @torch.no_grad()
    def make() -> Layers:
        features = encoder_features(backbone, x_0, backbone.condition([""]), settings.features)
        generator = torch.Generator().manual_seed(settings.seed)
        return Layers(tuple(select(layer, settings, generator) for layer in features))

    chance = settings.seed if settings.selection == "random" else None
    key = ("anchors", *hashed, settings.features, settings.selection, settings.anchors, settings.window, chance)
    return cache.get_or_make(key, make)


def select(features: torch.Tensor, settings: QSAttnSettings, generator: torch.Generator) -> Anchors:
    """The anchors of one layer's source features (1, channels, height, width).

    `global`: the N rows of softmax(F·Fᵀ) with the smallest entropy. `local`: the same for attention to a window
    around each position. `local_global`: selected by local entropy, routed by global attention. `random`: N random
    positions, not routed. N is at most the number of positions. Instance-normalised features have logits F·Fᵀ/√C.
    """
    _, channels, height, width = features.shape
    if settings.features == "instance_norm":
        features = features / channels**0.25  # logits F·Fᵀ/√C
    flat = features[0].flatten(1).T.double()  # (positions, channels); float64, because dot products reach hundreds
    count = min(settings.anchors, len(flat))
    local = settings.selection in ("local", "local_global")
    h = entropy(local_attention(features, settings.window)[0]) if local else global_entropy(flat)
    if settings.selection == "random":
        indices = torch.randperm(len(flat), generator=generator)[:count].to(flat.device)
        routing = F.one_hot(indices, len(flat)).to(features)
    else:
        indices = h.sort(stable=True).indices[:count]
        if settings.selection == "local":
            routing = _spread(local_attention(features, settings.window), indices, len(flat)).to(features)
        else:
            routing = global_attention(flat, indices).to(features)
    return Anchors(h.view(height, width).float(), indices, routing, _routed(routing, features))


def global_attention(flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of A_g = softmax(F·Fᵀ), F being (positions, channels): (rows, positions)."""
    return (flat[rows] @ flat.T).softmax(-1)


def global_entropy(flat: torch.Tensor) -> torch.Tensor:
    """H_g(i) of all positions (Eq. 6); the full matrix is never built."""
    every = torch.arange(len(flat), device=flat.device)
    return torch.cat([entropy(global_attention(flat, rows)) for rows in every.split(ROWS_AT_ONCE)])


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """H(i) = −Σ_j A(i, j)·log A(i, j), where 0·log 0 is 0."""
    return torch.special.entr(attention).sum(-1)


def local_attention(features: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each position to the window around it, and the window's positions: both (positions, window²).

    Outside the feature map the attention is 0 and the position is 0.
    """
    _, _, height, width = features.shape
    here = features[0].double()
    reach = window // 2
    padded = F.pad(here, (reach,) * 4)
    places = torch.arange(height * width, device=features.device).view(1, height, width)
    numbered = F.pad(places, (reach,) * 4, value=-1)[0]
    logits, indices = [], []
    for top in range(window):
        for left in range(window):
            there = padded[:, top : top + height, left : left + width]
            logits.append((here * there).sum(0).flatten())
            indices.append(numbered[top : top + height, left : left + width].flatten())
    index = torch.stack(indices, 1)
    attention = torch.stack(logits, 1).masked_fill(index < 0, -torch.inf).softmax(-1)
    return attention, index.clamp(min=0)


def _spread(local: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, places: int) -> torch.Tensor:
    """Rows of a local attention as rows over all positions: (rows, positions)."""
    attention, index = (part[rows] for part in local)
    return attention.new_zeros(len(rows), places).scatter_add_(1, index, attention)


def _routed(routing: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """A_QS·F, each row of unit norm: (N, channels)."""
    return F.normalize(routing @ features[0].flatten(1).T, dim=-1)


def contrastive_loss(features: Sequence[torch.Tensor], layers: Sequence[Anchors]) -> torch.Tensor:
    """InfoNCE of the current image's routed features against the source's: the mean over anchors, summed over layers.

    The positive of an anchor is the source's feature of the same row of A_QS; those of the other rows
    are its negatives. The sum is ZeCon's, to which its weight of 500 belongs.
    """
    losses = []
    for current, source in zip(features, layers, strict=True):
        logits = _routed(source.routing, current) @ source.positives.T / TEMPERATURE
        losses.append(F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)))
    return torch.stack(losses).sum()


class _EncoderDone(Exception):  # noqa: N818 - nothing went wrong
    """Ends a forward pass of the U-Net before its mid block."""


def encoder_features(
    backbone: Backbone, x_0: torch.Tensor, null: torch.Tensor, kind: Features = "raw"
) -> list[torch.Tensor]:
    """The features of the U-Net's encoder for x_0 at t = 0: after `conv_in` and after its first four resolutions.

    With two blocks per resolution these are ZeCon's input blocks 0, 2, 5, 8 and 11. Maps larger than
    64×64 are average-pooled. Nothing after the encoder is computed. `kind` "instance_norm" normalises each channel
    over the positions, as the generator of the original QS-Attn (a GAN) does.
    """
    unet = backbone.unet
    layers: list[nn.Module] = [unet.conv_in, *(_last_layer(block) for block in unet.down_blocks[:RESOLUTIONS])]
    outputs: list[torch.Tensor] = []

    def note(layer: nn.Module, given: Any, output: Any) -> None:
        features = output[0] if isinstance(output, tuple) else output
        pooled = _averaged_down(features.float())
        outputs.append(instance_norm(pooled) if kind == "instance_norm" else pooled)

    def stop(block: nn.Module, given: Any) -> None:
        raise _EncoderDone

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(note).remove)
        hooks.callback(unet.mid_block.register_forward_pre_hook(stop).remove)
        with suppress(_EncoderDone):
            backbone.predict_noise_with_gradient(x_0, 0, null)
    return outputs


def instance_norm(features: torch.Tensor) -> torch.Tensor:
    """Each channel with mean 0 and variance 1 over the positions; a single position gives 0."""
    variance, mean = torch.var_mean(features, (2, 3), keepdim=True, unbiased=False)
    return (features - mean) / (variance + FLAT).sqrt()


def _last_layer(block: Any) -> nn.Module:
    """The last layer of an encoder block at its resolution: an attention if it has any, else a ResNet block."""
    attentions = getattr(block, "attentions", None)
    return attentions[-1] if attentions else block.resnets[-1]


def _averaged_down(features: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    factor = math.ceil(max(height, width) / FEATURE_SIDE)
    return F.avg_pool2d(features, factor, ceil_mode=True) if factor > 1 else features
