"""SAIN of Z-STAR+ (Eq. 15–17): the content's latents with the channel statistics of the styles'."""

from collections.abc import Sequence

import torch

FLAT = 1e-5  # added to variances, for constant channels


def align_colors(
    latents: torch.Tensor,
    styles: Sequence[torch.Tensor],
    shares: Sequence[torch.Tensor | float],
    mode: str,
    factor: float = 1.0,
    weights: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Latents (batch, channels, height, width) of a noise level, aligned to the styles' latents of that level.

    Mode "sain": x̂ = x_c − w·μ_c + w·μ_s (Eq. 15) with w of `sain_weight`, or `weights`, one tensor per style.
    Mode "mean": w = 1. Mode "adain": mean and standard deviation, as StyleID does. Mode "none" returns `latents`.
    `shares` are the styles' shares, a number each, or with masks one number per position, so that colours change only
    where the style applies. `factor` in [0, 1] scales the change.
    """
    if mode == "none" or factor == 0:
        return latents
    aligned = latents.clone()
    mean, deviation = statistics(latents)
    for index, (style, share) in enumerate(zip(styles, shares, strict=True)):
        style_mean, style_deviation = statistics(style)
        if mode == "adain":
            change = (latents - mean) * (style_deviation / deviation - 1) + style_mean - mean
        elif mode == "sain":
            change = (weights[index] if weights else sain_weight(latents, style)) * (style_mean - mean)
        else:
            change = style_mean - mean
        aligned += factor * share * change
    return aligned


def sain_weight(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """w = exp(−KL(style‖content)) of each channel, in (0, 1]: (batch, channels, 1, 1).

    The paper prints w = exp(KL) (Eq. 17), but states that the weight decreases with the difference. Only
    exp(−KL) does. It computes KL between value histograms, whose sampling error makes w depend on the image's size:
    for two samples of one distribution it is 0.86 at 128 pixels and 0.99 at 512. So KL is that of normal
    distributions with the channels' means and variances, which inverted noise is close to:
    KL = ½·(log(σ_c²/σ_s²) + (σ_s² + (μ_s − μ_c)²)/σ_c² − 1).
    """
    (mean, deviation), (style_mean, style_deviation) = statistics(content.float()), statistics(style.float())
    ratio = (style_deviation / deviation).square()
    divergence = (ratio - ratio.log() - 1 + ((style_mean - mean) / deviation).square()) / 2
    return torch.exp(-divergence.clamp(min=0)).to(content)


def statistics(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over its positions: (batch, channels, 1, 1) each."""
    mean = latents.mean((2, 3), keepdim=True)
    return mean, (latents.var((2, 3), keepdim=True, unbiased=False) + FLAT).sqrt()
