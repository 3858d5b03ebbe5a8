"""Image metrics, for benchmarks and for the details of results.

Tensors are (batch, 3, height, width) in [−1, 1]. Higher PSNR and SSIM are better; lower losses are better.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from styleengine.networks import AutoencoderTiny

HISTOGRAM_BINS = 8
SSIM_WINDOW = 11


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, after clipping to the displayable range."""
    error = (image.clamp(-1, 1) - reference.clamp(-1, 1)).div(2).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def ssim(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Structural similarity of the luminances, in an 11-pixel Gaussian window of σ 1.5."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32).view(1, 3, 1, 1)
    x, y = ((picture.float().cpu() * luma).sum(1, keepdim=True).add(1).div(2) for picture in (image, reference))
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float32) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blurred(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, window)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def blockiness(image: torch.Tensor, side: int = 8) -> float:
    """Mean squared luminance difference of neighbours across the borders of side × side blocks, over that inside them.

    1 = no blocks. Guidance by gradients on latents can leave the latents' grid in the image.
    """
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32).view(1, 3, 1, 1)
    grey = (image.float().cpu() * luma).sum(1)
    across, inside = [], []
    for differences in (grey.diff(dim=2), grey.diff(dim=1).mT):
        squares = differences.square()
        border = torch.arange(squares.shape[-1]) % side == side - 1
        across.append(squares[..., border].flatten())
        inside.append(squares[..., ~border].flatten())
    return float(torch.cat(across).mean() / torch.cat(inside).mean().clamp(min=1e-12))


def color_distance(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Half the L1 distance of the joint RGB histograms (8³ bins): 0 = same colours, 1 = none shared."""

    def histogram(picture: torch.Tensor) -> torch.Tensor:
        bins = picture.add(1).div(2).mul(HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
        flat = (bins[:, 0] * HISTOGRAM_BINS + bins[:, 1]) * HISTOGRAM_BINS + bins[:, 2]
        counts = torch.bincount(flat.flatten().cpu(), minlength=HISTOGRAM_BINS**3).float()
        return counts / counts.sum()

    return float((histogram(image) - histogram(reference)).abs().sum() / 2)


def frame_differences(frames: Iterable[torch.Tensor]) -> list[float]:
    """Diff = mean |F_i − F_{i−1}| of each pair of neighbours, for values in [0, 1]: lower is steadier."""
    differences, previous = [], None
    for frame in frames:
        if previous is not None:
            differences.append(float((frame - previous).abs().mean() / 2))
        previous = frame
    return differences


@torch.no_grad()
def encoder_features(vae: AutoencoderTiny, picture: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of an AutoencoderTiny encoder after each change of resolution, finest first.

    Replaces VGG19's φ_1 … φ_5, whose weights are not part of the embedded model; reported values state this.
    """
    hidden = picture.to(next(vae.parameters())).add(1).div(2)
    features = []
    for layer in vae.encoder.layers:
        if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1):
            features.append(hidden)
        hidden = layer(hidden)
    return [*features, hidden]


def content_loss(features: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """L_c (Eq. 20): root mean square distance of the deepest features."""
    return float((features[-1] - reference[-1]).float().square().mean().sqrt())


def style_loss(features: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """L_s (Eq. 21): distances of the channels' means and standard deviations, averaged over depths.

    Each channel is in units of the reference's standard deviation at that depth, so that all depths count equally.
    """
    total = 0.0
    for one, other in zip(features, reference, strict=True):
        unit = other.float().std().clamp(min=1e-6)
        means = (one.float().mean((2, 3)) - other.float().mean((2, 3))) / unit
        stds = (one.float().std((2, 3)) - other.float().std((2, 3))) / unit
        total += float(means.square().mean().sqrt() + stds.square().mean().sqrt())
    return total / len(features)
