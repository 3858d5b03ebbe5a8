"""Z-STAR+: zero-shot style transfer by reweighted attention.

Content and styles are inverted into noise. On the way back the content's self-attention also sees
the styles' keys and values of the same timestep, and decides by itself what to take from them.
Equation numbers are those of the paper, "Z-STAR+: A Zero-shot Style Transfer Method via Adjusting
Style Distribution".
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps

from styleengine import ddim
from styleengine.attention import (
    Recorder,
    StyleTokens,
    attend,
    attend_with_styles,
    log_mask,
    self_attention_layers,
    tapped,
)
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import StyleEngineError
from styleengine.images import (
    ImageSource,
    content_hash,
    fit,
    lay_over,
    open_image,
    open_mask,
    stretch_note,
    to_images,
    to_tensor,
    working_size,
)
from styleengine.inversion import Inverter, Trajectory
from styleengine.metrics import psnr
from styleengine.progress import Progress
from styleengine.settings import Settings, knob
from styleengine.stylization import InputRecord, OnStep, Stylization, file_name, mask_record

LAYERS = 16
HISTOGRAM_BINS = 64
MOST_WEIGHT = 1e6  # of a style
TINY = 1e-30
LARGEST_STYLE_RECORD = 1 << 30  # bytes; beyond it a style's keys and values are made anew each run


class StyleAttentionSettings(Settings):
    """What pictures and videos have in common; the defaults are the paper's for Stable Diffusion 1.5."""

    strength: float = knob(
        1.2, "How much more the styles count than the content's own detail (λ).", title="Strength λ", ge=0, le=4
    )
    size: int = knob(512, "Length of the result's shorter side in pixels.", ge=64, le=1536)
    steps: int = knob(30, "Denoising steps; more is slower and finer.", ge=2, le=200)
    seed: int = knob(0, "Picks one variation. Without variation every seed gives the same picture.", ge=0, le=2**32 - 1)
    variation: float = knob(
        0.0, "Share of fresh noise mixed into the content's; 0 keeps its structure exactly.", rare=True, ge=0, le=1
    )
    color: Literal["sain", "mean", "none"] = knob(
        "sain", "How colours are aligned before the first step: as the paper does, fully, or not.", rare=True
    )
    mode: Literal["reweight", "simple_addition", "style_only"] = knob(
        "reweight", "How style and content attention meet; the other two are the paper's ablations.", rare=True
    )
    addition_weight: float = knob(
        0.5, "Share of the style's attention in mode “simple_addition”.", rare=True, ge=0, le=1
    )
    first_layer: int = knob(10, "First self-attention layer that sees the styles.", rare=True, ge=0, le=15)
    last_layer: int = knob(15, "Last self-attention layer that sees the styles.", rare=True, ge=0, le=15)
    start: float = knob(1 / 6, "Part of the run after which the styles come in (step 5 of 30).", rare=True, ge=0, le=1)
    end: float = knob(1.0, "Part of the run after which the styles leave again.", rare=True, ge=0, le=1)
    feather: float = knob(
        0.03, "Width of the soft border of masks, as a share of the shorter side.", rare=True, ge=0, le=0.25
    )
    inversion_iterations: int = knob(
        1, "Refinements of each inversion step; 1 is plain, 3 comes back nearly exactly.", rare=True, ge=1, le=8
    )

    def styled_steps(self) -> range:
        """The steps, counted from 0, in which the styles are seen."""
        return range(round(self.start * self.steps), round(self.end * self.steps))

    def styled_layers(self) -> range:
        """The self-attention layers, in the order of execution, that see the styles."""
        return range(self.first_layer, self.last_layer + 1)


class ZStarSettings(StyleAttentionSettings):
    """Settings of Z-STAR+ for pictures."""

    measure_reconstruction: bool = knob(
        False, "Also sample the content back unstyled and report its PSNR (costs one more pass).", rare=True
    )


@dataclass(frozen=True)
class Style:
    """A style image, how much it weighs among several, and where on the content it applies.

    `mask` is grey, of any size: white = fully, black = not at all; None = everywhere.
    """

    image: Image.Image
    weight: float = 1.0
    mask: Image.Image | None = None
    name: str = ""
    mask_name: str = ""
    mask_inverted: bool = False

    @classmethod
    def open(cls, image: ImageSource, weight: float = 1.0, mask: ImageSource | None = None) -> "Style":
        """A style from files, bytes, arrays or PIL images; StyleEngineError for what is no picture."""
        return cls(
            open_image(image, "style image"),
            weight,
            open_mask(mask) if mask is not None else None,
            file_name(image),
            file_name(mask) if mask is not None else "",
        )


def with_shared_mask(styles: Sequence[Style], mask: Image.Image | None, name: str = "") -> list[Style]:
    """One mask for all: where one style applies, or which of two (white = second, black = first)."""
    if mask is None:
        return list(styles)
    if len(styles) == 1:
        return [replace(styles[0], mask=mask, mask_name=name)]
    if len(styles) == 2:
        first = replace(styles[0], mask=ImageOps.invert(mask), mask_name=name, mask_inverted=True)
        return [first, replace(styles[1], mask=mask, mask_name=name)]
    raise StyleEngineError(
        f"One mask serves one or two styles, not {len(styles)}. Give each style a mask of its own instead."
    )


def stylize(
    backbone: Backbone,
    content: Image.Image,
    styles: Sequence[Style],
    settings: ZStarSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
) -> Stylization:
    """One content image in one or more styles. See `stylize_all`."""
    return stylize_all(backbone, [content], styles, settings, on_step=on_step, cache=cache)[0]


def stylize_all(
    backbone: Backbone,
    contents: Sequence[Image.Image],
    styles: Sequence[Style],
    settings: ZStarSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    names: Sequence[str] = (),
) -> list[Stylization]:
    """Contents of one shape, as a batch, all in the same styles.

    `contents` are RGB images with the same aspect ratio. `on_step` is called after each U-Net step
    and may raise `Cancelled`. `cache` keeps inversions and styles' keys and values between runs.

    Raises StyleEngineError for no style, no weight at all, or an empty range of layers or steps.
    """
    began = time.perf_counter()
    check(backbone, styles, settings)
    size = working_size(contents[0], settings.size, backbone.multiple)
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
    null = backbone.condition([""])
    cache = cache if cache is not None else ByteCache(0)

    def predict_noise(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
        return backbone.predict_noise(x_t, timestep, null)

    styles = [style for style in styles if style.weight > 0]
    phases = [f"content {i + 1}" for i in range(len(contents))]
    phases += [f"style {i + 1}" for i in range(len(styles))]
    phases += ["stylizing"] + ["reconstruction"] * settings.measure_reconstruction
    progress = Progress(backbone, phases, settings.steps, on_step, contents[0])
    invert = Inverter(backbone, schedule, settings.inversion_iterations, cache, progress)

    inverted = [invert(image, size, f"content {i + 1}") for i, image in enumerate(contents)]
    paths = [
        invert(style.image, working_size(style.image, settings.size, backbone.multiple), f"style {i + 1}")
        for i, style in enumerate(styles)
    ]

    x_T = torch.cat([trajectory.latents[-1] for trajectory in inverted])  # noqa: N806
    masks = [region(style.mask, size, settings.feather) for style in styles]
    tap = StyleInjection(settings, styles, masks, size, backbone.multiple)
    start = align_colors(x_T, [path.latents[-1] for path in paths], tap.shares(x_T), settings.color)
    if settings.variation > 0:
        start = vary(start, settings.variation, settings.seed)

    def styled_noise(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
        level = schedule.timesteps.index(timestep)
        if settings.steps - level not in settings.styled_steps() or not tap.visible:
            return predict_noise(x_t, timestep)
        tap.keys_values = [
            keys_values_at(path, level, timestep, backbone, null, settings) if visible else {}
            for path, visible in zip(paths, tap.visible_styles, strict=True)
        ]
        with tapped(backbone.unet, tap, settings.styled_layers()):
            return predict_noise(x_t, timestep)

    progress.skip_to("stylizing")
    x_0 = ddim.sample(start, schedule, styled_noise, after_step=progress.after("stylizing"))
    images = to_images(backbone.decode(x_0))

    details = [dict[str, float]() for _ in contents]
    targets = [to_tensor(fit(image, size)) for image in contents]
    for i, target in enumerate(targets):
        copy = backbone.decode(inverted[i].latents[0]).cpu()
        details[i]["autoencoder_psnr"] = psnr(copy, target)
    if settings.measure_reconstruction:
        after = progress.after("reconstruction")
        copies = backbone.decode(ddim.sample(x_T, schedule, predict_noise, after_step=after)).cpu()
        for i, target in enumerate(targets):
            details[i]["reconstruction_psnr"] = psnr(copies[i : i + 1], target)
    seconds = time.perf_counter() - began
    return [
        Stylization(
            image=image,
            method="zstar",
            settings=settings.model_dump(),
            backbone=backbone.name,
            revision=backbone.revision,
            device=backbone.device.type,
            dtype=backbone.precision,
            inputs=[
                InputRecord("content", content_hash(content), names[i] if names else ""),
                *style_records(styles),
            ],
            seconds=seconds / len(contents),
            details=details[i],
            notes=mask_notes(styles, content),
        )
        for i, (image, content) in enumerate(zip(images, contents, strict=True))
    ]


class StyleInjection:
    """The tap of Z-STAR+: at each layer, attention over styles and content in one call."""

    def __init__(
        self,
        settings: StyleAttentionSettings,
        styles: Sequence[Style],
        masks: Sequence[Image.Image | None],
        size: tuple[int, int],
        multiple: int,
    ) -> None:
        self.settings, self.styles, self.masks = settings, styles, masks
        self.latent_size = (size[0] // multiple, size[1] // multiple)
        self.keys_values: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = []
        # A style whose mask is black everywhere takes no part at all: the arithmetic stays plain.
        self.visible_styles = [mask is None or mask.getextrema() != (0, 0) for mask in masks]
        self._biases: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def visible(self) -> bool:
        return any(self.visible_styles)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        tokens = [
            StyleTokens(*self.keys_values[i][layer], bias=self.bias(i, q))
            for i, visible in enumerate(self.visible_styles)
            if visible
        ]
        mode = self.settings.mode
        if mode == "reweight":
            return attend_with_styles(q, k, v, tokens, self.settings.strength)
        covered = self.coverage(q)
        style = attend_with_styles(q, k, v, tokens, 1.0, content=False)
        share = self.settings.addition_weight if mode == "simple_addition" else 1.0
        if share == 1 and covered is None:
            return style  # Eq. 7
        weight = share if covered is None else share * covered
        return weight * style + (1 - weight) * attend(q, k, v)  # Eq. 8

    def bias(self, index: int, q: torch.Tensor) -> torch.Tensor | float | None:
        """log(weight) + log(mask) of a style for the queries of one layer (Eq. 22, 23); −∞ where the mask is 0."""
        log_weight = math.log(self.styles[index].weight)
        if self.masks[index] is None:
            return log_weight or None
        key = (index, q.shape[2])
        if key not in self._biases:
            self._biases[key] = log_weight + log_mask(self.mask_at(index, q.shape[2])).to(q.device)
        return self._biases[key]

    def mask_at(self, index: int, tokens: int) -> torch.Tensor:
        """The style's mask, one value in [0, 1] for each of a layer's content tokens."""
        mask = self.masks[index]
        if mask is None:
            return torch.ones(tokens, dtype=torch.float32)
        width, height = self.latent_size
        while width * height > tokens:  # each stride-2 convolution rounds up
            width, height = math.ceil(width / 2), math.ceil(height / 2)
        pixels = to_tensor(mask)[:, :1].add(1).div(2)
        return F.interpolate(pixels, (height, width), mode="area").flatten()

    def shares(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Each style's part at each place of the latents (height, width): weight × mask, shared out.

        Where the masks together leave something open, the parts sum to what they cover, not to 1.
        """
        height, width = latents.shape[2:]
        masks = torch.stack([self.mask_at(i, height * width) for i in range(len(self.styles))])
        weighted = masks * torch.tensor([style.weight for style in self.styles], dtype=torch.float32)[:, None]
        parts = weighted / weighted.sum(0).clamp(min=TINY) * masks.sum(0).clamp(max=1)
        return list(parts.view(-1, height, width).to(latents))

    def coverage(self, q: torch.Tensor) -> torch.Tensor | None:
        """How far any style reaches each query, as (tokens, 1), for the modes without content keys."""
        shown = [i for i, visible in enumerate(self.visible_styles) if visible]
        if any(self.masks[i] is None for i in shown):
            return None
        together = torch.stack([self.mask_at(i, q.shape[2]) for i in shown]).sum(0).clamp(max=1)
        return together[:, None].to(q.device, q.dtype)


def align_colors(
    x_T: torch.Tensor,  # noqa: N803 - the paper's symbol
    style_noises: Sequence[torch.Tensor],
    shares: Sequence[torch.Tensor | float],
    mode: str,
) -> torch.Tensor:
    """SAIN (Eq. 15–17): the content's noise with its channel means drawn towards the styles'.

    x̂ = x_c − w·μ_c + w·μ_s. The paper prints w = exp(KL) and says that the weight is smaller the
    larger the difference; only w = exp(−KL) ∈ (0, 1] does that, so this is what is computed, per
    channel, KL(style‖content) between the histograms of values. Mode "mean" takes w = 1, "none"
    leaves x_T alone. `shares` says how much each style draws: a number, or with masks one number
    per place, so that colours change only where the style applies.
    """
    if mode == "none":
        return x_T
    aligned = x_T.clone()
    content_mean = x_T.mean((2, 3), keepdim=True)
    for noise, share in zip(style_noises, shares, strict=True):
        style_mean = noise.mean((2, 3), keepdim=True)
        weight = sain_weight(x_T, noise) if mode == "sain" else 1.0
        aligned += share * weight * (style_mean - content_mean)
    return aligned


def sain_weight(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """exp(−KL(style‖content)) of each channel's value histogram: (batch, channels, 1, 1).

    Each row of `content` is compared with the style by itself: the histograms' range is that of the two.
    """
    weights = [torch.stack(_channel_weights(row, style[0])) for row in content.float().cpu()]
    return torch.stack(weights).view(*content.shape[:2], 1, 1).to(content)


def _channel_weights(content: torch.Tensor, style: torch.Tensor) -> list[torch.Tensor]:
    """`sain_weight` of two latents (channels, height, width): a number for each channel."""
    style = style.float().cpu()
    low = min(content.min().item(), style.min().item())
    high = max(content.max().item(), style.max().item())

    def histogram(values: torch.Tensor) -> torch.Tensor:
        counts = torch.histc(values, HISTOGRAM_BINS, low, high) + 0.5
        return counts / counts.sum()

    pairs = [(histogram(one), histogram(other)) for one, other in zip(style, content, strict=True)]
    return [torch.exp(-(p * (p / q).log()).sum()) for p, q in pairs]


def vary(x_T: torch.Tensor, share: float, seed: int) -> torch.Tensor:  # noqa: N803
    """x_T mixed with fresh noise at constant variance: √(1−s)·x_T + √s·z."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(x_T.shape[1:], generator=generator, dtype=torch.float32).to(x_T)
    return math.sqrt(1 - share) * x_T + math.sqrt(share) * z


def region(mask: Image.Image | None, size: tuple[int, int], feather: float) -> Image.Image | None:
    """The mask at working size with its border blurred; None where it is white all over."""
    if mask is None:
        return None
    grey = lay_over(mask.convert("L"), size)
    if grey.getextrema() == (255, 255):
        return None
    radius = feather * min(size)
    return grey.filter(ImageFilter.GaussianBlur(radius)) if radius > 0 else grey


def keys_values_at(
    path: Trajectory,
    level: int,
    timestep: int,
    backbone: Backbone,
    null: torch.Tensor,
    settings: StyleAttentionSettings,
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The style path's keys and values at one level, from its own trajectory: it never drifts."""
    known = path.keys_values.get(level, {})
    layers = settings.styled_layers()
    if all(layer in known for layer in layers):
        return known
    recorder = Recorder()
    with tapped(backbone.unet, recorder, layers):
        backbone.predict_noise(path.latents[level], timestep, null)
    recorded = recorder.keys_values
    nbytes = sum(x.nbytes for pair in recorded.values() for x in pair)
    if nbytes * len(settings.styled_steps()) <= LARGEST_STYLE_RECORD:
        path.keys_values[level] = known | recorded
    return recorded


def check(backbone: Backbone, styles: Sequence[Style], settings: StyleAttentionSettings) -> None:
    """StyleEngineError for no style, no weight at all, an empty range of layers or steps, another U-Net."""
    if not styles:
        raise StyleEngineError("No style image was given. Choose at least one.")
    if not all(0 <= style.weight <= MOST_WEIGHT for style in styles) or not any(style.weight for style in styles):
        raise StyleEngineError(
            "Style weights must be numbers from 0 up to a million, and at least one must be above 0."
        )
    if settings.first_layer > settings.last_layer:
        raise StyleEngineError(
            f"The first layer ({settings.first_layer}) comes after the last ({settings.last_layer}): swap them."
        )
    if not settings.styled_steps():
        raise StyleEngineError(
            f"None of the {settings.steps} steps lies between where the styles come in (start {settings.start:g}) "
            f"and where they leave (end {settings.end:g}): move the two apart."
        )
    if len(self_attention_layers(backbone.unet)) != LAYERS:
        raise StyleEngineError(
            f"The model “{backbone.title}” has not the {LAYERS} self-attention layers of a Stable Diffusion 1 U-Net, "
            "which Z-STAR+ works in. Choose a latent model, such as “mini” or “sd15”."
        )


def mask_notes(styles: Sequence[Style], content: Image.Image) -> list[str]:
    """What there is to say of the styles' masks, each sentence once."""
    notes = [stretch_note(style.mask, content) for style in styles if style.mask is not None]
    return list(dict.fromkeys(filter(None, notes)))


def style_records(styles: Sequence[Style]) -> list[InputRecord]:
    """What is kept of the styles, each followed by its mask if it has one."""
    records = []
    for style in styles:
        records.append(InputRecord("style", content_hash(style.image), style.name, style.weight))
        if style.mask is not None:
            records.append(mask_record(style.mask, style.mask_name, style.mask_inverted))
    return records
