"""Attention-based textual inversion: from CLIP's embeddings of a painting to a token embedding.

After Zhang et al., "Inversion-based Style Transfer with Diffusion Models" (CVPR 2023), section 3.2. A plain
embedding in place of the attention is textual inversion (Gal et al., 2022).
"""

import torch
import torch.nn.functional as F
from torch import nn

from styleengine.methods.inst.draws import WEIGHTS_DRAW, generator_of
from styleengine.methods.inst.settings import InSTLearningSettings


class AttentionInversion(nn.Module):
    """The attention-based inversion: v_0 = τ(y) pooled; v_{i+1} = Attention(W_Q v_i, W_K τ(y), W_V τ(y)).

    K and V come from CLIP's patch tokens: with the pooled token alone the softmax would be over a
    single entry and each layer a linear map. The last v, normalised, is projected to the width of the
    text encoder's token embeddings and scaled to their root mean square: the initial embedding.
    """

    def __init__(
        self,
        pooled_width: int,
        token_width: int,
        word_width: int,
        word_size: float,
        settings: InSTLearningSettings,
    ) -> None:
        super().__init__()
        self.word_size, self.dropout = word_size, settings.dropout
        self.layers = nn.ModuleList(
            CrossAttention(pooled_width, token_width, settings.heads) for _ in range(settings.layers)
        )
        self.to_word = _linear(pooled_width, word_width)
        _initialise(self)

    def forward(
        self, pooled: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Token embeddings (batch, word_width) from `pooled` (batch, width) and `tokens` (batch, patches, width).

        With a generator, dropout is applied after every layer.
        """
        v, tokens = _unit(pooled), _unit(tokens)
        for layer in self.layers:
            v = layer(v, tokens)
            if generator and self.dropout:
                kept = torch.rand(v.shape, generator=generator, dtype=torch.float32).to(v.device) >= self.dropout
                v = v * kept / (1 - self.dropout)
        return self.to_word(_unit(v)) * self.word_size


class CrossAttention(nn.Module):
    """softmax(Q Kᵀ/√d)·V with one query per image, followed by W_O."""

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * max(1, -(-width // heads))  # the next multiple of heads
        self.to_q, self.to_out = _linear(width, inner), _linear(inner, width)
        self.to_k, self.to_v = _linear(token_width, inner), _linear(token_width, inner)

    def forward(self, v: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        q, k, values = (x.unflatten(-1, (self.heads, -1)) for x in (self.to_q(v), self.to_k(tokens), self.to_v(tokens)))
        logits = torch.einsum("bhd,bphd->bhp", q, k) / q.shape[-1] ** 0.5
        return self.to_out(torch.einsum("bhp,bphd->bhd", logits.softmax(-1), values).flatten(1))


class PlainWord(nn.Module):
    """Textual inversion: the embedding is the only parameter, initialised as the attention's initial embedding."""

    def __init__(self, word: torch.Tensor) -> None:
        super().__init__()
        self.word = nn.Parameter(word)

    def forward(
        self, pooled: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.word.expand(len(pooled), -1)


def _initialise(module: nn.Module) -> None:
    """Draws initial weights, scaled so that outputs are about as large as inputs.

    They are the same for every seed, so that learning with neighbouring seeds starts and ends alike.
    """
    generator = generator_of(0, WEIGHTS_DRAW)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)


def _linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False, dtype=torch.float32)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """x with mean 0 and mean square 1 along the last axis."""
    return F.layer_norm(x, x.shape[-1:])
