"""The base class of diffusion models that predict noise, in latent or pixel space."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from styleengine.errors import StyleEngineError
from styleengine.images import to_images, to_tensor
from styleengine.stylization import model_name

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass
class Backbone(ABC):
    """A diffusion model that predicts noise, in latent or pixel space.

    Images are float32 (batch, 3, height, width) in [−1, 1]; latents float32 (batch, channels,
    height, width); the networks run in `dtype`, schedules and arithmetic between them in float32.
    """

    name: str
    revision: str
    unet: Any  # UNet2DConditionModel or UNet2DModel
    alphas_cumprod: torch.Tensor
    device: torch.device
    dtype: torch.dtype
    recommended: Mapping[str, Mapping[str, Any]]
    folder: Path
    prediction_type: str  # of PREDICTION_TYPES: the U-Net's output, converted to noise by `predict_noise`

    @property
    def identity(self) -> str:
        """Identifies the weights and the precision: results of equal identity can be cached together."""
        return f"{self.name}@{self.revision}/{self.precision}"

    @property
    def title(self) -> str:
        """The display name; for a local folder its last part."""
        return model_name(self.name)

    @property
    def precision(self) -> str:
        """The networks' dtype, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """The size of the networks' weights in bytes."""
        return sum(weight.nbytes for network in self.networks for weight in network.parameters())

    def finite(self, x: torch.Tensor, what: str) -> torch.Tensor:
        """x itself; StyleEngineError if it has non-finite values. `what` names them in the message.

        All network outputs of a run are checked here, so that no such image is returned.
        """
        if bool(x.isfinite().all()):
            return x
        better = {"float16": "Load the model in bfloat16 or float32", "bfloat16": "Load the model in float32"}
        others = f"{better[self.precision]}, or try" if self.precision in better else "Try"
        raise StyleEngineError(
            f"The model “{self.title}” computed numbers that are not finite ({what}, in {self.precision}). "
            f"{others} gentler settings: less strength or guidance, or another size."
        )

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]: ...

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Image sides must be a multiple of this many pixels."""

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images → latents, deterministic; StyleEngineError if they are not finite."""

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → images; StyleEngineError if they are not finite."""
        return self.finite(self.decode_with_gradient(latents), "the image")

    @abstractmethod
    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        """`decode`, differentiable with respect to the latents if gradients are enabled."""

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """The U-Net's conditioning on the prompts; that of "" is the null condition."""

    @abstractmethod
    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """`predict_noise`, differentiable with respect to latents and condition if gradients are enabled.

        `timestep` may be a tensor (batch,), one for each row.
        """

    def noise_of(self, output: torch.Tensor, latents: torch.Tensor, timestep: int | torch.Tensor) -> torch.Tensor:
        """The noise from the U-Net's output: itself, or ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t (Salimans & Ho 2022, App. D).

        With hooks, the output may be the batch repeated several times, each with other values.
        """
        if self.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[timestep].view(-1, 1, 1, 1).expand(len(latents), -1, -1, -1)
        alpha, latents = (x.repeat(len(output) // len(latents), 1, 1, 1) for x in (alpha, latents))
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents

    @torch.no_grad()
    def predict_noise(self, latents: torch.Tensor, timestep: int, condition: torch.Tensor) -> torch.Tensor:
        """ε_θ(x_t, t, c); a batch of 1 is expanded. StyleEngineError if it is not finite."""
        noise = self.predict_noise_with_gradient(latents, timestep, condition)
        return self.finite(noise, f"the noise at timestep {timestep}")


def reconstruct(backbone: Backbone, image: Image.Image) -> Image.Image:
    """A PIL image encoded and decoded: the upper bound on the quality of any method on this backbone."""
    return to_images(backbone.decode(backbone.encode(to_tensor(image))))[0]
