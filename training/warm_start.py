"""A closed-form initialisation of the autoencoder: principal components in the encoder, least squares in the decoder.

Sixteen principal components reconstruct an 8×8 patch with about 30 dB, but gradient descent through strided
convolutions finds them slowly. So the encoder's strided convolutions are set to gather the pixels of a patch,
and its last layer to project them on the components. The decoder's layers, which are linear between the
residual blocks, are fitted one by one by least squares. The residual blocks start as the identity.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

LATENT_STD = 0.5  # keeps nearly all latents in the linear range of the decoder's clamp


def convolutions(network: nn.Sequential) -> list[nn.Conv2d]:
    """The convolutions between the residual blocks, in order."""
    return [layer for layer in network if isinstance(layer, nn.Conv2d)]


def gather(pixels: torch.Tensor) -> torch.Tensor:
    """(batch, channels, 2h, 2w) → (batch, 4·channels, h, w), in the order row, column, channel."""
    parts = [pixels[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.cat(parts, 1)


def set_taps(layer: nn.Conv2d, rows: torch.Tensor, noise: float = 0.02) -> None:
    """Sets the weights of the layer's first channels to `rows` (out, in, 3, 3), plus a little noise everywhere."""
    weight = noise * torch.randn_like(layer.weight) / (9 * layer.in_channels) ** 0.5
    out, inputs = rows.shape[:2]
    weight[:out, :inputs] += rows
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.zero_()


def fit(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The least-squares 3×3 convolution (out, in, 3, 3) from features to targets, with ridge regularization."""
    inputs = features.shape[1]
    windows = F.unfold(features, 3, padding=1).transpose(1, 2).reshape(-1, inputs * 9).double()
    wanted = targets.flatten(2).transpose(1, 2).reshape(-1, targets.shape[1]).double()
    gram = windows.T @ windows
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, windows.T @ wanted).T.reshape(-1, inputs, 3, 3).float()


def pick(out: int, inputs: int, source: int, row: int = 1, column: int = 1) -> torch.Tensor:
    taps = torch.zeros(out, inputs, 3, 3)
    taps[torch.arange(out), torch.arange(out) % source, row, column] = 1
    return taps


@torch.no_grad()
def warm_start(model: AutoencoderTiny, pixels: torch.Tensor) -> None:
    """Initializes an 8× AutoencoderTiny from `pixels` (batch, 3, height, width) in [−1, 1]."""
    for block in model.modules():
        if isinstance(block, AutoencoderTinyBlock):
            block.conv[-1].weight.zero_()
            block.conv[-1].bias.zero_()
    pixels = (pixels + 1) / 2
    width, latent_channels = model.config.encoder_block_out_channels[0], model.config.latent_channels
    whole, half, quarter = pixels, gather(pixels), gather(gather(pixels))

    first, to_half, to_quarter, to_eighth, out = convolutions(model.encoder.layers)
    set_taps(first, pick(3, 3, 3))
    for layer, channels in ((to_half, 3), (to_quarter, 12)):
        groups = [pick(channels, channels, channels, 1 + r, 1 + c) for r in (0, 1) for c in (0, 1)]
        set_taps(layer, torch.cat(groups))

    eighth = gather(quarter)
    flat = eighth.transpose(0, 1).flatten(1)
    mean = flat.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((flat - mean) @ (flat - mean).T / flat.shape[1])
    basis = vectors[:, -latent_channels:].flip(1).T  # (latent, 192)
    spread = values[-latent_channels:].flip(0).sqrt()
    taps = torch.zeros(latent_channels, 48, 3, 3)
    for position, (row, column) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2))):
        taps[:, :, row, column] = basis[:, 48 * position : 48 * (position + 1)]
    set_taps(to_eighth, torch.cat([taps, -taps]), noise=0.2)
    signed = torch.cat([torch.eye(latent_channels), -torch.eye(latent_channels)], 1)
    scaled = signed * (LATENT_STD / spread)[:, None]
    set_taps(out, F.pad(scaled[:, :, None, None], (1, 1, 1, 1)))
    out.bias.copy_(-(basis @ mean)[:, 0] * LATENT_STD / spread)

    into, to_quarter, to_half, to_whole, last = convolutions(model.decoder.layers)
    set_taps(into, F.pad(signed.T[:, :, None, None], (1, 1, 1, 1)), noise=0.2)
    into.bias[2 * latent_channels] = 1  # a constant channel, since the next layers have no bias
    into.weight[2 * latent_channels].zero_()
    hidden = model.encoder(pixels * 2 - 1)
    hidden = F.relu(into(torch.tanh(hidden / 3) * 3))
    used = 2 * latent_channels + 1
    for layer, target in ((to_quarter, quarter), (to_half, half), (to_whole, whole)):
        hidden = F.interpolate(hidden[:, :used], scale_factor=2)
        taps = fit(hidden, target)
        set_taps(layer, taps)
        hidden, used = F.conv2d(hidden, taps, padding=1), target.shape[1]
        if used > 3:
            hidden = F.relu(hidden)
    set_taps(last, pick(3, width, 3))
