"""The U-Net's bottleneck ("h-space"): its output h captured, changed, and blended with another image's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NEARLY_PARALLEL = 1e-5  # sine of an angle: below it slerp is linear interpolation
TINY = 1e-12

Blend = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def captured(unet: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the context, the list receives h at every forward pass of a `UNet2DModel` or `UNet2DConditionModel`."""
    outputs: list[torch.Tensor] = []
    with _hooked(unet, lambda h: outputs.append(h)):
        yield outputs


@contextmanager
def injection(unet: nn.Module, change: Blend) -> Iterator[None]:
    """Within the context, the U-Net returns 2B rows for a batch of B: with h unchanged, then with `change(h)`.

    The down blocks run once. From the mid block on, each row is duplicated, with the same skip
    connections. The U-Net is restored on exit.
    """
    batch = 0

    def fork(h: torch.Tensor) -> torch.Tensor:
        nonlocal batch
        batch = len(h)
        return torch.cat([h, change(h)])

    def twice(value: Any) -> Any:
        """Duplicates the rows of skip connections and embeddings."""
        if isinstance(value, tuple):
            return tuple(twice(part) for part in value)
        if isinstance(value, torch.Tensor) and len(value) == batch:
            return torch.cat([value, value])
        return value

    def before_up_block(block: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return twice(given), {name: twice(value) for name, value in named.items()}

    blocks: Any = unet.up_blocks
    with _hooked(unet, fork), ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(before_up_block, with_kwargs=True).remove)
        yield


@contextmanager
def _hooked(unet: nn.Module, hook: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Within the context, `hook` gets the mid block's output, and a tensor that it returns replaces it."""
    middle: Any = unet.mid_block
    handle = middle.register_forward_hook(lambda block, given, h: hook(h))
    try:
        yield
    finally:
        handle.remove()


def blend(
    h_style: torch.Tensor,
    h_content: torch.Tensor,
    gamma: torch.Tensor,
    region: torch.Tensor | None = None,
) -> torch.Tensor:
    """h̃ = slerp(h_style, h_content brought to h_style's norm; γ), with h_style's shape and dtype.

    Each row of h is one vector. With `region` (1, 1, any height and width) only the part of h inside it
    is interpolated, γ is lower on the soft border, and outside h_style is unchanged bit for bit.
    """
    here, there = h_style.float(), h_content.float().expand_as(h_style)
    if region is None:
        return slerp(here, match_norm(there, here), gamma).to(h_style.dtype)
    shares = F.interpolate(region.to(here), h_style.shape[2:], mode="area")
    inside = shares > 0
    here, there = here * inside, there * inside
    return torch.where(inside, slerp(here, match_norm(there, here), gamma * shares).to(h_style.dtype), h_style)


def match_norm(h: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """h scaled so that each row has the norm of the reference's row."""
    return h * (_norm(reference) / _norm(h).clamp(min=TINY))


def slerp(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """sin((1−s)θ)/sin θ · a + sin(sθ)/sin θ · b, θ the angle between the rows of a and b.

    For parallel vectors the limit is (1−s)·a + s·b, which is also used for opposite ones, where the great
    circle is not unique. `share` may differ between rows and positions.
    """
    unit_a, unit_b = (x / _norm(x).clamp(min=TINY) for x in (a, b))
    theta = 2 * torch.atan2(_norm(unit_a - unit_b), _norm(unit_a + unit_b))  # accurate also where acos is not
    sine = theta.sin()
    chord = sine < NEARLY_PARALLEL
    safe = torch.where(chord, 1.0, sine)
    of_a = torch.where(chord, 1 - share, ((1 - share) * theta).sin() / safe)
    of_b = torch.where(chord, share, (share * theta).sin() / safe)
    return of_a * a + of_b * b


def _norm(x: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each row: (batch, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
