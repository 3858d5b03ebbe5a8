"""The shared parts of Z-STAR+ for images and clips: attention over styles and content, masks, and SAIN.

Equation numbers are those of the paper, "Z-STAR+: A Zero-shot Style Transfer Method via Adjusting
Style Distribution".
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from styleengine.attention import (
    KeysValues,
    Recorder,
    StyleTokens,
    attend,
    attend_with_styles,
    log_mask,
    self_attention_layers,
    tapped,
)
from styleengine.backbones import Backbone
from styleengine.errors import StyleEngineError
from styleengine.images import lay_over, to_tensor
from styleengine.phases import Phase, inverting
from styleengine.run import Run, Trajectory
from styleengine.settings import Settings, inversion_iterations_knob, knob, size_knob, steps_knob
from styleengine.styles import Style

LAYERS = 16
HISTOGRAM_BINS = 64
MOST_WEIGHT = 1e6  # of a style
TINY = 1e-30
LARGEST_STYLE_RECORD = 1 << 30  # bytes; above it a style's keys and values are recomputed each run


class StyleAttentionSettings(Settings):
    """Settings shared by images and clips; the defaults are the paper's for Stable Diffusion 1.5."""

    strength: float = knob(
        1.2,
        "Scale of the style attention logits (λ): higher is more style, less content detail.",
        title="Strength λ",
        ge=0,
        le=4,
    )
    size: int = size_knob(512, most=1536)
    steps: int = steps_knob(30)
    seed: int = knob(0, "Random seed; only used when Variation is above 0.", ge=0, le=2**32 - 1)
    variation: float = knob(
        0.0,
        "Share of random noise mixed into the inverted content; 0 keeps its structure exactly.",
        rare=True,
        ge=0,
        le=1,
    )
    color: Literal["sain", "mean", "none"] = knob(
        "sain", "Colour alignment before the first step: weighted (SAIN, as in the paper), full, or none.", rare=True
    )
    mode: Literal["reweight", "simple_addition", "style_only"] = knob(
        "reweight", "How style and content attention are combined; the other two are the paper's ablations.", rare=True
    )
    addition_weight: float = knob(
        0.5, "Share of the style's attention in mode “simple_addition”.", rare=True, ge=0, le=1
    )
    first_layer: int = knob(10, "First self-attention layer with style attention.", rare=True, ge=0, le=15)
    last_layer: int = knob(15, "Last self-attention layer with style attention.", rare=True, ge=0, le=15)
    start: float = knob(
        1 / 6, "Fraction of the run after which style attention starts (step 5 of 30).", rare=True, ge=0, le=1
    )
    end: float = knob(1.0, "Fraction of the run after which style attention ends.", rare=True, ge=0, le=1)
    feather: float = knob(
        0.03, "Width of the soft border of masks, as a share of the shorter side.", rare=True, ge=0, le=0.25
    )
    inversion_iterations: int = inversion_iterations_knob()

    def styled_steps(self) -> range:
        """The steps, counted from 0, with style attention."""
        return range(round(self.start * self.steps), round(self.end * self.steps))

    def styled_layers(self) -> range:
        """The self-attention layers, in the order of execution, with style attention."""
        return range(self.first_layer, self.last_layer + 1)


class StyleAttention:
    """Inverted styles for a content of `size` (width, height); provides the tap for each level."""

    def __init__(
        self,
        run: Run,
        settings: StyleAttentionSettings,
        styles: Sequence[Style],
        paths: Sequence[Trajectory],
        size: tuple[int, int],
    ) -> None:
        self.run, self.settings, self.paths = run, settings, paths
        masks = [region(style.mask, size, settings.feather) for style in styles]
        self.injection = StyleInjection(settings, styles, masks, size, run.backbone.multiple)

    def start(self, x_T: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the paper's symbol
        """The content's inverted noise with its colours aligned to the styles', and with variation if set."""
        style_noises = [path.x_T for path in self.paths]
        start = align_colors(x_T, style_noises, self.injection.shares(x_T), self.settings.color)
        return vary(start, self.settings.variation, self.settings.seed) if self.settings.variation else start

    def at(self, level: int) -> "StyleInjection | None":
        """The tap for a level, with the styles' keys and values; None if no style applies."""
        if self.settings.steps - level not in self.settings.styled_steps() or not self.injection.visible:
            return None
        self.injection.keys_values = [
            keys_values_at(self.run, path, level, self.settings) if visible else {}
            for path, visible in zip(self.paths, self.injection.visible_styles, strict=True)
        ]
        return self.injection

    def noise(self, x_t: torch.Tensor, level: int) -> torch.Tensor:
        """ε_θ of the content path with style attention."""
        injection = self.at(level)
        if injection is None:
            return self.run.noise(x_t, level)
        with tapped(self.run.backbone.unet, injection, self.settings.styled_layers()):
            return self.run.noise(x_t, level)


def invert_styles(run: Run, styles: Sequence[Style], settings: StyleAttentionSettings) -> list[Trajectory]:
    """Each style inverted at its own aspect ratio."""
    return [
        run.invert(style.image, run.working_size(style.image, settings.size), settings.inversion_iterations, phase)
        for style, phase in zip(styles, style_phases(styles), strict=True)
    ]


def style_phases(styles: Sequence[Style]) -> list[Phase]:
    return [inverting(f"style {i + 1}") for i in range(len(styles))]


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
        self.keys_values: list[KeysValues] = []
        # A style whose mask is black everywhere is skipped: the result equals that without it, bit for bit.
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
        """Each style's share at each latent position (height, width): weight × mask, normalised.

        Where the masks sum to less than 1, so do the shares.
        """
        height, width = latents.shape[2:]
        masks = torch.stack([self.mask_at(i, height * width) for i in range(len(self.styles))])
        weighted = masks * torch.tensor([style.weight for style in self.styles], dtype=torch.float32)[:, None]
        parts = weighted / weighted.sum(0).clamp(min=TINY) * masks.sum(0).clamp(max=1)
        return list(parts.view(-1, height, width).to(latents))

    def coverage(self, q: torch.Tensor) -> torch.Tensor | None:
        """The sum of the masks at each query, at most 1, as (tokens, 1), for modes without content keys."""
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
    """SAIN (Eq. 15–17): the content's noise with its channel means shifted towards the styles'.

    x̂ = x_c − w·μ_c + w·μ_s. The paper prints w = exp(KL), but states that the weight decreases
    with the difference. Only w = exp(−KL) ∈ (0, 1] does, so it is used here, with KL(style‖content) between
    the value histograms of each channel. Mode "mean" uses w = 1, "none" returns x_T. `shares` are the
    styles' shares: a number, or with masks one number per position, so that colours change only where the
    style applies.
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

    Each row of `content` is compared separately: the histogram range is that of the row and the style.
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
    """The mask at working size with its border blurred; None if it is white everywhere."""
    if mask is None:
        return None
    grey = lay_over(mask.convert("L"), size)
    if grey.getextrema() == (255, 255):
        return None
    radius = feather * min(size)
    return grey.filter(ImageFilter.GaussianBlur(radius)) if radius > 0 else grey


def keys_values_at(run: Run, path: Trajectory, level: int, settings: StyleAttentionSettings) -> KeysValues:
    """The style path's keys and values at one level, from its own trajectory, so without drift."""
    known = path.keys_values.get(level, {})
    layers = settings.styled_layers()
    if all(layer in known for layer in layers):
        return known
    recorder = Recorder()
    with tapped(run.backbone.unet, recorder, layers):
        run.noise(path.latents[level], level)
    recorded = recorder.keys_values
    nbytes = sum(x.nbytes for pair in recorded.values() for x in pair)
    if nbytes * len(settings.styled_steps()) <= LARGEST_STYLE_RECORD:
        path.keys_values[level] = known | recorded
    return recorded


def check(backbone: Backbone, styles: Sequence[Style], settings: StyleAttentionSettings) -> None:
    """StyleEngineError for no style, no positive weight, an empty range of layers or steps, or an unsuitable U-Net."""
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
            f"None of the {settings.steps} steps lies between start ({settings.start:g}) "
            f"and end ({settings.end:g}) of style attention: move the two apart."
        )
    if len(self_attention_layers(backbone.unet)) != LAYERS:
        raise StyleEngineError(
            f"The model “{backbone.title}” does not have the {LAYERS} self-attention layers of a Stable Diffusion 1 "
            "U-Net, which Z-STAR+ needs. Choose a latent model, such as “mini” or “sd15”."
        )
