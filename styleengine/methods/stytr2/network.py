"""The network of StyTr²: two transformer encoders, a transformer decoder, and positions that depend on the content.

After "StyTr²: Image Style Transfer with Transformers" (Deng et al., CVPR 2022). Tokens are the embedded
autoencoder's latents, one for 8×8 pixels, in place of linearly projected patches. Its decoder, trained along, is in
place of the paper's CNN decoder.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from styleengine.attention import attend
from styleengine.networks import ConfigMixin, DecoderTiny, ModelMixin, register_to_config

MOST_KEYS = 1024  # of one attention; above it, keys and values are average-pooled
SMALLEST_SPREAD = 1e-5
DECODER_BLOCKS, DECODER_WIDTH = (5, 2, 1, 0), 48  # of the embedded autoencoder
SCALING_FACTOR = 2.0  # latents of unit variance to those of its decoder


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ/√d)·V over maps (batch, height, width, channels)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        context = pooled(context)
        q, k, v = self._heads(self.to_q(x)), self._heads(self.to_k(context)), self._heads(self.to_v(context))
        return self.to_out(attend(q, k, v).transpose(1, 2).reshape(x.shape))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)


def pooled(x: torch.Tensor) -> torch.Tensor:
    """The map (batch, height, width, channels), average-pooled to at most about `MOST_KEYS` places.

    Ours: attention at 512 px then costs a quarter. Training at 128 px never pools.
    """
    stride = 1
    while x.shape[1] * x.shape[2] > MOST_KEYS * stride**2:
        stride += 1
    if stride == 1:
        return x
    return F.avg_pool2d(x.permute(0, 3, 1, 2), stride, ceil_mode=True, count_include_pad=False).permute(0, 2, 3, 1)


def feed_forward(width: int, expansion: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, expansion * width), nn.ReLU(), nn.Linear(expansion * width, width))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection (Eq. 3). Normalisation comes first."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.ffn = MultiHeadAttention(width, heads), feed_forward(width, expansion)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm_1(x)
        x = x + self.attention(normed, normed)
        return x + self.ffn(self.norm_2(x))


class DecoderLayer(nn.Module):
    """Two attentions, queries from the content, keys and values from the style, and a feed-forward network (Eq. 6)."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention_1, self.attention_2 = (MultiHeadAttention(width, heads) for _ in range(2))
        self.ffn = feed_forward(width, expansion)

    def forward(self, x: torch.Tensor, style: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = x + self.attention_1(self.norm_1(x) + positions, style)
        x = x + self.attention_2(self.norm_2(x) + positions, style)
        return x + self.ffn(self.norm_3(x))


class ContentAwarePositions(nn.Module):
    """Content-aware positional encoding (CAPE, Eq. 2).

    The content's embeddings are average-pooled to a fixed grid, passed through a 1×1 convolution, and interpolated
    to the content's size. So positions do not depend on the image's size in pixels.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid, self.convolution = grid, nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) → the same shape."""
        coarse = self.convolution(F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.grid))
        return F.interpolate(coarse, tuple(x.shape[1:3]), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


class StyTr2(ModelMixin, ConfigMixin):
    """Latents of a content and of a style → latents of the content in that style, and their decoder.

    `cape` = False omits the positional encoding, for the ablation.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        width: int = 192,
        heads: int = 6,
        layers: int = 3,
        expansion: int = 4,
        grid: int = 18,
        cape: bool = True,
    ) -> None:
        super().__init__()
        shape = width, heads, expansion
        self.embed_content, self.embed_style = (nn.Linear(latent_channels, width) for _ in range(2))
        self.positions = ContentAwarePositions(width, grid) if cape else None
        self.content_encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.style_encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(*shape) for _ in range(layers))
        self.norm_style, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_latents = nn.Linear(width, latent_channels)
        nn.init.zeros_(self.to_latents.weight)
        nn.init.zeros_(self.to_latents.bias)
        self.image_decoder = DecoderTiny(
            latent_channels, 3, DECODER_BLOCKS, (DECODER_WIDTH,) * 4, upsampling_scaling_factor=2, act_fn="relu",
            upsample_fn="nearest",
        )  # fmt: skip

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Latents (batch, channels, height, width) of unit variance; the style's may have another size.

        The output is added to the content's latents, which are moved halfway to the style's mean and standard
        deviation.
        """
        return half_adain(content, style) + self.change(content, self.encoded_style(style))

    def encoded_style(self, style: torch.Tensor) -> torch.Tensor:
        """The style sequence Y_s of the style's latents. It has no positional encoding."""
        y_s = self.embed_style(style.permute(0, 2, 3, 1))
        for layer in self.style_encoder:
            y_s = layer(y_s)
        return self.norm_style(y_s)

    def change(self, content: torch.Tensor, y_s: torch.Tensor) -> torch.Tensor:
        """What the transformer adds to the content's latents."""
        x = self.embed_content(content.permute(0, 2, 3, 1))
        positions = self.positions(x) if self.positions is not None else torch.zeros_like(x)
        x = x + positions
        for layer in self.content_encoder:
            x = layer(x)
        for layer in self.decoder_layers:
            x = layer(x, y_s, positions)
        return self.to_latents(self.norm_out(x)).permute(0, 3, 1, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, height, width) in about [−1, 1]."""
        scaled = (latents / SCALING_FACTOR).contiguous(memory_format=torch.channels_last)
        return self.image_decoder(scaled)


def half_adain(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """The mean of the content's latents and of those with the style's channel means and deviations (AdaIN)."""
    mean, spread = _statistics(content)
    mean_s, spread_s = _statistics(style)
    return torch.lerp(content, (content - mean) / spread * spread_s + mean_s, 0.5)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True).clamp(min=SMALLEST_SPREAD)
