"""StyTr²: style transfer by a transformer, in one forward pass.

A content and a style image are encoded to latents, whose positions are the tokens. Two transformer encoders process
them; a transformer decoder redraws the content's tokens by attention to the style's (`network.py`).
After "StyTr²: Image Style Transfer with Transformers" (Deng et al., CVPR 2022).

The networks are this project's own and independent of the engine's model, of which only the device is used.
"""

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from styleengine.backbones import MODELS, Backbone, embedded_autoencoder, embedded_network, folder_revision
from styleengine.images import content_hash, fit, to_images, to_tensor, working_size
from styleengine.method import Call, Kind, Method, Role, styles_and_mask
from styleengine.methods.stytr2.network import SCALING_FACTOR, StyTr2
from styleengine.phases import STYLIZING
from styleengine.settings import Settings, knob, size_knob
from styleengine.styles import Style, check_weights, mask_notes, reduced, region, shares_of, style_records
from styleengine.stylization import InputRecord, OnStep, StepEvent, Stylization

NAME = "stytr2"
MULTIPLE = 8  # pixels of an image for one latent
MOST_STYLE = 1.5  # longest side of a style image as a multiple of `size`


class StyTr2Settings(Settings):
    """Settings of StyTr². The paper has none; these are ours."""

    size: int = size_knob(512, most=1536)
    strength: float = knob(
        1.0, "Share of the stylized image in a blend with the content: 0 is the content.", ge=0, le=1
    )
    feather: float = knob(
        0.02, "Blur of a mask's border, as a share of the image's shorter side.", rare=True, ge=0, le=0.25
    )


@dataclass(frozen=True)
class Networks:
    """The autoencoder's encoder and StyTr² on one device, in float32."""

    autoencoder: Any
    stytr2: StyTr2
    device: torch.device

    @classmethod
    @functools.cache
    def on(cls, device: torch.device) -> "Networks":
        """The networks on a device, loaded once."""
        networks: tuple[Any, Any] = embedded_autoencoder(), embedded_network(StyTr2, NAME)
        copies = (copy.deepcopy(network) for network in networks)
        autoencoder, stytr2 = (network.to(device, memory_format=torch.channels_last) for network in copies)
        return cls(autoencoder, stytr2, device)

    def encode(self, image: Image.Image) -> torch.Tensor:
        """The latents (1, channels, height / 8, width / 8) of an image whose sides are multiples of 8."""
        pixels = to_tensor(image).to(self.device, memory_format=torch.channels_last)  # faster convolutions
        return self.autoencoder.encode(pixels).latents * SCALING_FACTOR

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The images (batch, 3, height, width) in [−1, 1] of latents, on the CPU."""
        return self.stytr2.decode(latents).clamp(-1, 1).cpu()


@functools.cache
def revision() -> str:
    """A short hash of the weights."""
    return folder_revision(MODELS / NAME)


@torch.no_grad()
def stylize(
    backbone: Backbone,
    content: Image.Image,
    styles: Sequence[Style],
    settings: StyTr2Settings,
    *,
    on_step: OnStep | None = None,
    name: str = "",
    networks: Networks | None = None,
) -> Stylization:
    """The content in one or more styles. Only the device of `backbone` is used.

    Several styles are mixed in latent space by their weights and masks. Outside all masks the content's pixels are
    unchanged. `on_step` is called before and after the pass and may raise `Cancelled`. `name` is the content's file
    name. `networks` are the embedded ones by default.

    Raises StyleEngineError for no style, or no positive weight.
    """
    began = time.perf_counter()
    check_weights(styles)
    styles = [style for style in styles if style.weight > 0]
    report(on_step, 0, content)
    networks, size = networks or Networks.on(backbone.device), working_size(content, settings.size, MULTIPLE)
    shown = fit(content, size)
    masks = [region(style.mask, size, settings.feather) for style in styles]

    z_c = networks.encode(shown)
    z_cs = [networks.stytr2(z_c, networks.encode(scaled(style.image, settings.size))) for style in styles]
    shares = shares_of(styles, masks, *z_c.shape[2:]).to(z_c.device)
    mixed = torch.stack([share * z for share, z in zip(shares, z_cs, strict=True)]).sum(0) / shares.sum(0)
    mixed = torch.where(shares.sum(0) > 0, mixed, z_c)
    share = settings.strength * covered(masks, size)
    image = to_images(torch.lerp(to_tensor(shown), networks.decode(mixed), share))[0]

    report(on_step, 1, image)
    return Stylization(
        image=image,
        method=NAME,
        settings=settings.model_dump(),
        backbone=NAME,
        revision=revision(),
        device=backbone.device.type,
        dtype="float32",
        inputs=[InputRecord("content", content_hash(content), name), *style_records(styles)],
        seconds=time.perf_counter() - began,
        details={},
        notes=mask_notes(styles, content),
    )


def scaled(style: Image.Image, size: int) -> Image.Image:
    """The style image with a shorter side of `size` pixels, cut in the middle if it is much longer."""
    width, height = working_size(style, size, MULTIPLE)
    most = int(MOST_STYLE * size) // MULTIPLE * MULTIPLE
    return fit(style, (min(width, max(most, MULTIPLE)), min(height, max(most, MULTIPLE))))


def covered(masks: Sequence[Image.Image | None], size: tuple[int, int]) -> torch.Tensor:
    """How much of each pixel (height, width) the masks cover together, in [0, 1]."""
    width, height = size
    return torch.stack([reduced(mask, height, width) for mask in masks]).sum(0).clamp(max=1)


def report(on_step: OnStep | None, step: int, image: Image.Image) -> None:
    if on_step:
        on_step(StepEvent(STYLIZING, step, 1, lambda: image))


def _run(call: Call) -> Stylization:
    content, styles = call.inputs["content"], call.inputs["style"]
    return stylize(
        call.backbone, content, styles, call.settings, on_step=call.on_step, name=call.inputs.name("content")
    )


STYTR2 = Method(
    NAME,
    "StyTr²",
    "Redraws a content image in the style of one or more other images at once, by a small feed-forward transformer "
    "with weights of its own.",
    StyTr2Settings,
    (
        Role("content", Kind.IMAGE, "The image to redraw."),
        *styles_and_mask(most=3),
    ),
    _run,
    plain_title="At once",
    paper="https://arxiv.org/abs/2105.14576",
    own_weights=True,
    tool="stylize_image_at_once",
)
