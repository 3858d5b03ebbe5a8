"""Shared by the latent and the pixel U-Net: initialisation, loss, and use of the bottleneck.

Both predict the velocity v = √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2022). At high noise levels, where composition
is decided, the noise ε is nearly x_t itself: a U-Net trained to predict it left its deeper levels unused.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from diffusers.training_utils import compute_snr

UNet = UNet2DConditionModel | UNet2DModel
WARM_UP = 200  # steps
FROM_BELOW = 0.8  # initial gain of the input from the level below
REVIVED = 0.5  # that gain where reinitialised levels join trained ones
LAST_TIMESTEPS = 920  # sampling may start at this or a later timestep
SEEN_SHARE = 0.95  # weight of the pixel metric in the loss at pure noise
SNR_CAP = 5.0  # errors of x̂0 weigh SNR + 1, up to this cap + 1 (after min-SNR, Hang et al. 2023)


def training_options(description: str, **defaults: float) -> argparse.ArgumentParser:
    """The common options of both trainings; `defaults` sets batch, rate, decay_share, skip_dropout and ema."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--minutes", type=float, default=60, help="duration of the whole schedule")
    parser.add_argument("--batch", type=int, help="total over all processes")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--decay-share", type=float, help="share of the training in which the learning rate decays")
    parser.add_argument("--skip-dropout", type=float, help="share of the images with dropped deep skips")
    parser.add_argument("--ema", type=float)
    parser.add_argument("--report-minutes", type=float, default=6)
    parser.add_argument("--resume", action="store_true")
    parser.set_defaults(**defaults)
    return parser


def rate_at(step: int, spent: float, rate: float, decay_share: float) -> float:
    """The learning rate: warm-up over the first steps, linear decay in the last `decay_share` of the time."""
    return rate * min((step + 1) / WARM_UP, max(0.02, remaining(spent, decay_share)))


def remaining(spent: float, decay_share: float) -> float:
    """1, with a linear decay to 0 in the last `decay_share` of the time."""
    return min(1.0, (1 - spent) / decay_share)


def start_lively(unet: UNet) -> None:
    """Initializes the weights so that the deepest level affects the output from the first step.

    Residual branches start at zero, other layers keep the scale of their input, and in each up block the
    input from below has gain 0.8. With torch's default initialisation these gains are 0.4 to 0.6: only a
    hundred-thousandth of the mid block reaches the output, which a short training does not correct.
    """
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last = module.conv2
        elif isinstance(module, Transformer2DModel):
            last = module.proj_out
        elif isinstance(module, Attention) and module.residual_connection:
            last = module.to_out[0]
        else:
            last = None
        if last is not None:
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        if isinstance(module, (Downsample2D, Upsample2D)):
            torch.nn.init.kaiming_normal_(module.conv.weight, nonlinearity="linear")
    torch.nn.init.kaiming_normal_(unet.conv_in.weight, nonlinearity="linear")
    for block in unet.down_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut:
                torch.nn.init.orthogonal_(resnet.conv_shortcut.weight)
    below = unet.config.block_out_channels[-1]
    for block in unet.up_blocks:
        for resnet in block.resnets:
            shortcut = resnet.conv_shortcut.weight.data
            torch.nn.init.orthogonal_(shortcut[:, :below], FROM_BELOW)
            torch.nn.init.orthogonal_(shortcut[:, below:], (1 - FROM_BELOW**2) ** 0.5)
            below = len(shortcut)


def with_upper_levels_of(trained: UNet2DConditionModel, fresh: UNet2DConditionModel) -> UNet2DConditionModel:
    """The `trained` U-Net with its two deepest levels and the mid block replaced by those of a `fresh` one.

    For a U-Net whose deeper levels have no effect. The level above gets them at a gain that mostly preserves the
    prediction.
    """
    for blocks, numbers in ((trained.down_blocks, (2, 3)), (trained.up_blocks, (0, 1))):
        source = fresh.down_blocks if blocks is trained.down_blocks else fresh.up_blocks
        for number in numbers:
            blocks[number].load_state_dict(source[number].state_dict())
    trained.mid_block.load_state_dict(fresh.mid_block.state_dict())
    shortcut = trained.up_blocks[2].resnets[0].conv_shortcut.weight.data
    torch.nn.init.orthogonal_(shortcut[:, : trained.config.block_out_channels[-2]], REVIVED)
    return trained


def stratified_timesteps(count: int, power: float = 1.0) -> torch.Tensor:
    """`count` of the 1000 timesteps, stratified over the whole range, in random order.

    The order is random since a batch may be sorted. A `power` below 1 samples more of the late, noisy timesteps,
    where composition is decided.
    """
    return (1000 * ((torch.randperm(count) + torch.rand(count)) / count) ** power).long().clamp(max=999)


def without_traces(x_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: Any) -> torch.Tensor:
    """The noise, adjusted for half of the rows at the last timesteps so that x_t is the given noise alone.

    At its last timestep Stable Diffusion's schedule keeps 7 % of the image, which reveals its brightness. Sampling
    starts from noise alone, which the model would take for an image of medium brightness (Lin et al. 2024).
    """
    alphas = scheduler.alphas_cumprod.to(x_0)[timesteps].view(-1, 1, 1, 1)
    alone = (noise - alphas.sqrt() * x_0) / (1 - alphas).sqrt()
    chosen = (timesteps >= LAST_TIMESTEPS) & (torch.rand(len(timesteps)) < 0.5).to(timesteps.device)
    return torch.where(chosen.view(-1, 1, 1, 1), alone, noise)


def velocity_loss(
    predicted: torch.Tensor,
    x_0: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    scheduler: Any,
    metric: torch.Tensor | None = None,
    seen_share: float = SEEN_SHARE,
) -> tuple[torch.Tensor, float]:
    """The weighted loss, and the unweighted MSE of the velocity v = √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2022).

    With a `metric` (channels, channels) of trace `channels`, errors are weighted by their visibility in the decoded
    image, increasingly with the noise level: (1 − β)·I + β·metric, β = seen_share·(1 − ᾱ)².
    """
    snr = compute_snr(scheduler, timesteps)
    weight = (snr + 1).clamp(max=SNR_CAP + 1) / (snr + 1)
    error = predicted.float() - scheduler.get_velocity(x_0, noise, timesteps)
    errors = plain = error.square().mean((1, 2, 3))
    if metric is not None:
        seen = torch.einsum("bchw,cd,bdhw->b", error, metric, error) / error[0].numel()
        errors = plain.lerp(seen, seen_share / (snr + 1) ** 2)
    return (weight * errors).mean() / weight.mean(), plain.mean().item()


@torch.no_grad()
def pixel_metric(vae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """The effect of each latent direction on the decoded image: (channels, channels), with trace `channels`.

    A·Aᵀ for the least-squares map A from `latents` (count, channels, height, width) to their decoded patches.
    """
    pictures = torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(16)])
    patch = pictures.shape[-1] // latents.shape[-1]
    patches = torch.nn.functional.pixel_unshuffle(pictures, patch)
    rows = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in (latents, patches)]
    latent, pixels = (part - part.mean(0) for part in rows)
    linear = torch.linalg.lstsq(latent.cpu(), pixels.cpu()).solution.to(latents)
    metric = linear @ linear.T
    return metric * len(metric) / metric.trace()


@contextmanager
def dropped_skips(unet: UNet, share: float, levels: int) -> Iterator[None]:
    """Drops the skip connections of the deepest one to `levels` levels for a random `share` of the batch.

    Their information must then pass through the mid block. Without this, a briefly trained U-Net leaves its
    bottleneck unused.
    """
    deepest: dict[int, torch.Tensor] = {}

    def drop(level: int, skips: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if level == 0:
            rows = len(skips[0])
            drawn = torch.randint(1, levels + 1, (rows,)) * (torch.rand(rows) < share)
            deepest[0] = drawn.to(skips[0])[:, None, None, None]
        return tuple(skip * (deepest[0] <= level) for skip in skips)

    def before(level: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if "res_hidden_states_tuple" in kwargs:
                kwargs["res_hidden_states_tuple"] = drop(level, kwargs["res_hidden_states_tuple"])
                return args, kwargs
            sample, skips, *others = args
            return (sample, drop(level, skips), *others), kwargs

        return hook

    hooks = [
        block.register_forward_pre_hook(before(level), with_kwargs=True)
        for level, block in enumerate(unet.up_blocks[:levels])
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def zeroed_bottleneck(unet: UNet) -> Iterator[None]:
    """Within the context the mid block outputs zeros."""
    hook = unet.mid_block.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def bottleneck_share(unet: UNet, x_0: torch.Tensor, scheduler: Any, *condition: torch.Tensor) -> float:
    """The share of the prediction that depends on the mid block: ‖v − v without it‖ / ‖v‖ at t = 700."""
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0)
    timesteps = torch.full((len(x_0),), 700, device=x_0.device)
    arguments = scheduler.add_noise(x_0, noise, timesteps), timesteps, *condition
    whole = unet(*arguments).sample
    with zeroed_bottleneck(unet):
        without = unet(*arguments).sample
    return ((whole - without).norm() / whole.norm()).item()
