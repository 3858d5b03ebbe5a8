"""Images inverted into noise, kept between runs: what every method starts from."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_tensor
from styleengine.progress import Progress


@dataclass
class Trajectory:
    """An image's inverted latents x_0 … x_T, and what the U-Net's layers made of them when asked."""

    latents: list[torch.Tensor]
    keys_values: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        recorded = (x for layers in list(self.keys_values.values()) for pair in layers.values() for x in pair)
        return sum(x.nbytes for x in self.latents) + sum(x.nbytes for x in recorded)


@dataclass
class Inverter:
    """Inverts images under the null condition, each phase of it reported, each result kept in `cache`.

    `iterations` are those of `ddim.invert`.
    """

    backbone: Backbone
    schedule: ddim.Schedule
    iterations: int
    cache: ByteCache
    progress: Progress

    def __call__(self, image: Image.Image, size: tuple[int, int], phase: str) -> Trajectory:
        """The trajectory of the image brought to `size` (width, height): taken from the cache or made."""

        def make() -> Trajectory:
            x_0 = self.backbone.encode(to_tensor(fit(image, size)))
            null = self.backbone.condition([""])

            def predict_noise(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
                return self.backbone.predict_noise(x_t, timestep, null)

            after = self.progress.after(phase)
            return Trajectory(ddim.invert(x_0, self.schedule, predict_noise, self.iterations, after))

        self.progress.skip_to(phase)
        return self.cache.get_or_make(self.key(image, size), make)

    def key(self, image: Image.Image, size: tuple[int, int]) -> tuple[Hashable, ...]:
        """What the trajectory depends on."""
        return (content_hash(image), size, self.backbone.identity, self.schedule.timesteps, self.iterations)
