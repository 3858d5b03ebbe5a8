"""Z-STAR+ for clips: the image method frame by frame, with two kinds of temporal consistency.

Inter-frame attention: a frame's self-attention uses the keys and values of the first and the
previous frame in place of its own (Eq. 18), together with the styles'. Energy: at each step x̂0 is
moved towards the previous frame's x̂0 (Eq. 19), but, unlike in the paper, not where the clip moves.
Frame i needs only frames 0 and i − 1 at each step and layer, so memory does not depend on the clip's length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from styleengine import ddim
from styleengine.attention import KeysValues, attend, tapped
from styleengine.methods.zstar_video.settings import ZStarVideoSettings
from styleengine.run import Run, Trajectory
from styleengine.style_attention import (
    StyleAttention,
    StyleInjection,
)
from styleengine.styles import Style

TINY = 1e-12
MOTION = 0.3  # change of a frame's latents, in standard deviations, that counts as motion


@dataclass
class FrameRecord:
    """What later frames need of a frame: its content latents; by noise level each layer's keys and values, and x̂0."""

    content: torch.Tensor
    keys_values: dict[int, KeysValues] = field(default_factory=dict)
    clean: dict[int, torch.Tensor] = field(default_factory=dict)

    def forget(self, level: int) -> None:
        """Deletes the data of a noise level."""
        self.keys_values.pop(level, None)
        self.clean.pop(level, None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The record as named tensors."""
        named = {"content": self.content} | {f"clean.{level}": x for level, x in self.clean.items()}
        for level, layers in self.keys_values.items():
            for layer, (k, v) in layers.items():
                named |= {f"keys.{level}.{layer}": k, f"values.{level}.{layer}": v}
        return named

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor], device: torch.device) -> "FrameRecord":
        """The record from its `tensors`."""
        record = cls(named["content"].to(device))
        for name, x in named.items():
            if name == "content":
                continue
            kind, *numbers = name.split(".")
            level = int(numbers[0])
            if kind == "clean":
                record.clean[level] = x.to(device)
            elif kind == "keys":
                v = named[f"values.{level}.{numbers[1]}"]
                record.keys_values.setdefault(level, {})[int(numbers[1])] = (x.to(device), v.to(device))
        return record


class FrameAttention:
    """The tap of a frame: stores its keys and values, and attends to those of earlier frames and the styles.

    `references` are the keys and values of the first and the previous frame (none for the first),
    `injection` the styles', or None if they do not apply.
    """

    def __init__(
        self,
        references: Sequence[KeysValues],
        joined_layers: range,
        injection: StyleInjection | None,
        styled_layers: range,
    ) -> None:
        self.references, self.joined_layers = references, joined_layers
        self.injection, self.styled_layers = injection, styled_layers
        self.own: KeysValues = {}

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer in self.joined_layers:
            self.own[layer] = (k.detach(), v.detach())
            if self.references:  # Eq. 18
                k = torch.cat([reference[layer][0] for reference in self.references], 2)
                v = torch.cat([reference[layer][1] for reference in self.references], 2)
        if self.injection and layer in self.styled_layers:
            return self.injection(layer, q, k, v)
        return attend(q, k, v)


def energy_gradient(clean: torch.Tensor, reference: torch.Tensor, alpha_t: torch.Tensor) -> torch.Tensor:
    """∇E for E = ‖x̂0_i − x̂0_{i−1}‖² by x_t with ε held fixed, where ∂x̂0/∂x_t = 1/√ᾱ_t."""
    return 2 * (clean - reference) / alpha_t.sqrt()


def stillness(content: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """How static the clip is at each position, from nearly 0 to 1: exp(−d²/τ²) (1, 1, height, width).

    d is the root mean square difference of two neighbouring frames' latents (1, channels, height, width)
    in standard deviations, τ is MOTION. Eq. 19 moves all positions towards the previous frame, which is
    wrong where something moves.
    """
    change = (content - previous).square().mean(1, keepdim=True) / previous.var().clamp(min=TINY)
    return torch.exp(-change / MOTION**2)


def step_width(pull: float | torch.Tensor, alpha_t: torch.Tensor, alpha_prev: torch.Tensor) -> torch.Tensor:
    """w of Eq. 19, such that each step removes the share `pull` of x̂0's difference.

    ∇E is proportional to 1/√ᾱ_t, and x_{t−1} contains √ᾱ_{t−1}·x̂0; with w = pull·√(ᾱ_t·ᾱ_{t−1})/2 and ε held
    fixed, f ← f − w·∇E is x̂0 ← x̂0 − pull·(x̂0 − x̂0_{i−1}).
    """
    return pull * (alpha_t * alpha_prev).sqrt() / 2


class FrameStylizer:
    """Redraws frames one by one, each from its inverted noise, with one set of styles and settings."""

    def __init__(
        self,
        run: Run,
        styles: Sequence[Style],
        paths: Sequence[Trajectory],
        settings: ZStarVideoSettings,
        size: tuple[int, int],
    ) -> None:
        self.run, self.settings = run, settings
        heavier = [replace(style, weight=settings.balance * style.weight) for style in styles]
        self.attention = StyleAttention(run, settings, styles, paths, size)
        self.joined_attention = StyleAttention(run, settings, heavier, paths, size)

    def alone(self, frame: Trajectory, after_step: ddim.AfterStep | None) -> torch.Tensor:
        """x_0 of an inverted frame by the image method."""
        return self._denoised(frame, [], None, after_step)

    def first(self, frame: Trajectory, after_step: ddim.AfterStep | None) -> tuple[torch.Tensor, FrameRecord]:
        """x_0 of the first frame, by the image method, and its record."""
        record = FrameRecord(frame.latents[0])
        return self._denoised(frame, [], record, after_step), record

    def next(
        self, frame: Trajectory, first: FrameRecord, previous: FrameRecord, after_step: ddim.AfterStep | None
    ) -> tuple[torch.Tensor, FrameRecord]:
        """x_0 of a later frame, and its record. `previous` is emptied level by level, unless it is the first."""
        record = FrameRecord(frame.latents[0])
        return self._denoised(frame, [first, previous], record, after_step), record

    @torch.no_grad()
    def _denoised(
        self,
        frame: Trajectory,
        references: Sequence[FrameRecord],
        record: FrameRecord | None,
        after_step: ddim.AfterStep | None,
    ) -> torch.Tensor:
        x_t, pull = self.attention.start([frame]), self.settings.pull()
        local_pull: float | torch.Tensor = pull
        if self.settings.spare_motion and references and record is not None:
            local_pull = pull * stillness(record.content, references[-1].content)
        schedule = self.run.schedule
        for level in range(schedule.steps, 0, -1):
            alpha, alpha_prev = schedule.levels[level], schedule.levels[level - 1]
            x_t = self.attention.pulled(x_t, level, [frame])
            tap = self._tap(level, references, frame)
            reference = references[-1].clean[level] if references and pull > 0 else None
            if reference is None:
                noise, gradient = self._noise(x_t, level, tap), None
            elif self.settings.gradient == "closed_form":
                noise = self._noise(x_t, level, tap)
                gradient = energy_gradient(ddim.predict_x0(x_t, noise, alpha), reference, alpha)
            else:
                noise, gradient = self._backpropagated(x_t, level, tap, reference)
            clean = ddim.predict_x0(x_t, noise, alpha)
            x_t = ddim.step(x_t, noise, alpha, alpha_prev)
            if gradient is not None:  # Eq. 19
                x_t = x_t - step_width(local_pull, alpha, alpha_prev) * gradient
            if record is not None:
                record.keys_values[level], record.clean[level] = tap.own, clean
                if references and references[-1] is not references[0]:
                    references[-1].forget(level)
            if after_step:
                after_step(schedule.steps - level + 1, x_t, clean)
        return x_t

    def _tap(self, level: int, references: Sequence[FrameRecord], frame: Trajectory) -> FrameAttention:
        joined = self.settings.joined_layers()
        joined_with = [record.keys_values[level] for record in references] if joined else []
        attention = self.joined_attention if joined_with else self.attention
        return FrameAttention(joined_with, joined, attention.at(level, [frame]), self.settings.styled_layers())

    def _noise(self, x_t: torch.Tensor, level: int, tap: FrameAttention) -> torch.Tensor:
        with self._tapped(tap):
            return self.run.noise(x_t, level)

    def _backpropagated(
        self, x_t: torch.Tensor, level: int, tap: FrameAttention, reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ε and ∇E by x_t, the latter through the U-Net."""
        with torch.enable_grad(), self._tapped(tap):
            x_t = x_t.detach().requires_grad_()
            noise = self.run.noise_with_gradient(x_t, level)
            clean = ddim.predict_x0(x_t, noise, self.run.schedule.levels[level])
            (gradient,) = torch.autograd.grad((clean - reference).square().sum(), x_t)
        return noise.detach(), gradient

    def _tapped(self, tap: FrameAttention) -> Any:
        layers = {*tap.joined_layers, *(tap.styled_layers if tap.injection else ())}
        return tapped(self.run.backbone.unet, tap, sorted(layers))
