"""Unconditional diffusion models in pixel space (DDPM)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from styleengine.backbones.base import Backbone


@dataclass
class PixelBackbone(Backbone):
    """An unconditional diffusion model in pixel space (DDPM): latents are images."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        return (self.unet,)

    @property
    def multiple(self) -> int:
        """The U-Net's downsampling factor. The size it was trained at works best."""
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return (
            self.finite(pixels, "the image").to(self.device, torch.float32).contiguous()
        )  # kernels round by memory layout

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """An empty condition, whatever the prompts: (batch, 0, 0)."""
        return torch.empty(len(prompts), 0, 0, dtype=torch.float32, device=self.device)

    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        return self.noise_of(self.unet(latents.to(self.dtype), timestep).sample.float(), latents, timestep)
