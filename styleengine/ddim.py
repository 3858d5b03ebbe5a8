"""DDIM schedule, step, inversion and sampling, as functions over tensors.

`ᾱ` is the cumulative alpha. A latent is (batch, channels, height, width); noise predictors take
(latents, level) and return a tensor of the same shape. Everything is float32.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

NoisePredictor = Callable[[torch.Tensor, int], torch.Tensor]
BeforeStep = Callable[[torch.Tensor, int], torch.Tensor]
AfterStep = Callable[[int, torch.Tensor, torch.Tensor], None]

TRAINED_STEPS = 1000  # of DDPM's linear schedule
SAME_LEVEL = 1e-5  # relative difference of two ᾱ that count as equal


@dataclass(frozen=True)
class Schedule:
    """Evenly spaced timesteps of a trained diffusion model ("leading" spacing, offset 1, as in Stable Diffusion).

    `levels` are ᾱ at noise level 0 (cleanest: that of training step 0) up to level `steps`;
    `timesteps[level]` is the U-Net's timestep at level 1, …, `steps`.
    """

    levels: torch.Tensor
    timesteps: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.timesteps) - 1

    @classmethod
    def spaced(cls, alphas_cumprod: torch.Tensor, steps: int, share: float = 1.0) -> "Schedule":
        """`steps` timesteps over the lower `share` of the trained ones: ⌊(level − 1)·share·trained / steps⌋ + 1.

        If `steps` divides the number of trained timesteps, these are diffusers' timesteps. Otherwise diffusers rounds
        the spacing down and never reaches the upper part of the schedule.
        """
        train_steps = len(alphas_cumprod)
        covered = round(share * train_steps, 6)
        most = min(train_steps - 1, int(covered))
        if not 1 <= steps <= most:
            raise ValueError(f"steps must lie between 1 and {most}, not {steps}")
        timesteps = [math.floor(round(level * covered / steps, 6)) + 1 for level in range(steps)]
        levels = torch.stack([alphas_cumprod[0], *(alphas_cumprod[t] for t in timesteps)])
        return cls(levels.float(), (-1, *timesteps))

    def lowest(self, steps: int) -> "Schedule":
        """The cleanest `steps` levels above level 0: for an image that is noised only that far."""
        return Schedule(self.levels[: steps + 1], self.timesteps[: steps + 1])


@functools.cache
def linear_alphas() -> list[float]:
    """ᾱ of DDPM's linear schedule at the timesteps 0 … 999, and 0 for timestep 1000, which is pure noise."""
    betas = torch.linspace(1e-4, 0.02, TRAINED_STEPS, dtype=torch.float32)
    return [*torch.cumprod(1 - betas, 0).tolist(), 0.0]


def reached(alpha: float, timestep: int) -> bool:
    """Whether ᾱ is at least as noisy as a timestep of the linear schedule, on which papers give their timesteps."""
    return alpha <= linear_alphas()[timestep] * (1 + SAME_LEVEL)


def passed(alpha: float, timestep: int) -> bool:
    """Whether ᾱ is noisier than a timestep of the linear schedule."""
    return alpha < linear_alphas()[timestep] * (1 - SAME_LEVEL)


def predict_x0(x_t: torch.Tensor, noise: torch.Tensor, alpha_t: torch.Tensor) -> torch.Tensor:
    """x̂0 = (x_t − √(1−ᾱ_t)·ε) / √ᾱ_t."""
    return (x_t - (1 - alpha_t).sqrt() * noise) / alpha_t.sqrt()


def move(x_t: torch.Tensor, noise: torch.Tensor, alpha_from: torch.Tensor, alpha_to: torch.Tensor) -> torch.Tensor:
    """The deterministic DDIM map between two noise levels, in either direction (η = 0)."""
    return alpha_to.sqrt() * predict_x0(x_t, noise, alpha_from) + (1 - alpha_to).sqrt() * noise


def step_noise(alpha_t: torch.Tensor, alpha_prev: torch.Tensor, eta: float = 1.0) -> torch.Tensor:
    """σ = η·√((1−ᾱ_prev)/(1−ᾱ_t))·√(1−ᾱ_t/ᾱ_prev): the standard deviation of a step's noise; η = 1 is DDPM."""
    return eta * ((1 - alpha_prev) / (1 - alpha_t)).sqrt() * (1 - alpha_t / alpha_prev).sqrt()


def step(
    x_t: torch.Tensor,
    noise: torch.Tensor,
    alpha_t: torch.Tensor,
    alpha_prev: torch.Tensor,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    direction: torch.Tensor | None = None,
) -> torch.Tensor:
    """One denoising step: √ᾱ_prev·x̂0 + √(1−ᾱ_prev−σ²)·ε + σ·z with σ from η (η = 1: DDPM).

    With `direction` the step is asymmetric: x̂0 comes from `noise`, the second term's ε is `direction`.
    """
    clean, direction = predict_x0(x_t, noise, alpha_t), noise if direction is None else direction
    if eta == 0:
        return alpha_prev.sqrt() * clean + (1 - alpha_prev).sqrt() * direction
    sigma = step_noise(alpha_t, alpha_prev, eta)
    z = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype).to(x_t.device)
    return alpha_prev.sqrt() * clean + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * direction + sigma * z


@torch.no_grad()
def invert(
    x_0: torch.Tensor,
    schedule: Schedule,
    predict_noise: NoisePredictor,
    iterations: int = 1,
    after_step: AfterStep | None = None,
) -> list[torch.Tensor]:
    """The trajectory [x_0, …, x_T] of the deterministic map run upwards, one entry per level.

    Plain inversion (`iterations` = 1) evaluates ε at the lower level's latent, while sampling evaluates it
    at the upper level's, so it drifts. Each further iteration evaluates ε at the current estimate of the
    upper latent. This converges to the fixed point, from which sampling returns exactly. With several
    iterations the first estimate uses the previous level's ε, at no cost.
    `after_step(level, x_t, x̂0)` is called after each level.
    """
    trajectory, noise = [x_0], torch.zeros_like(x_0)
    for level in range(1, schedule.steps + 1):
        below, alpha_below, alpha = trajectory[-1], schedule.levels[level - 1], schedule.levels[level]
        x_t = below if iterations == 1 else move(below, noise, alpha_below, alpha)
        for _ in range(iterations):
            noise = predict_noise(x_t, level)
            x_t = move(below, noise, alpha_below, alpha)
        trajectory.append(x_t)
        if after_step:
            after_step(level, x_t, predict_x0(x_t, noise, alpha))
    return trajectory


@torch.no_grad()
def sample(
    x_T: torch.Tensor,  # noqa: N803 - the papers' symbol
    schedule: Schedule,
    predict_noise: NoisePredictor,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    before_step: BeforeStep | None = None,
    after_step: AfterStep | None = None,
) -> torch.Tensor:
    """Samples x_0 from x_T. `before_step(x_t, level)` may change x_t; `after_step(step, x_t, x̂0)` counts from 1."""
    x_t = x_T
    for level in range(schedule.steps, 0, -1):
        alpha = schedule.levels[level]
        x_t = before_step(x_t, level) if before_step else x_t
        noise = predict_noise(x_t, level)
        clean = predict_x0(x_t, noise, alpha)
        x_t = step(x_t, noise, alpha, schedule.levels[level - 1], eta, generator)
        if after_step:
            after_step(schedule.steps - level + 1, x_t, clean)
    return x_t
