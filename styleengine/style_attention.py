"""The shared parts of Z-STAR+ for images and clips: attention over styles and content, masks, and the start.

Equation numbers are those of the paper, "Z-STAR+: A Zero-shot Style Transfer Method via Adjusting
Style Distribution".
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image

from styleengine.attention import (
    KeysValues,
    Queries,
    StyleTokens,
    attend,
    attend_with_styles,
    log_mask,
    self_attention_layers,
    tapped,
)
from styleengine.backbones import Backbone
from styleengine.errors import StyleEngineError
from styleengine.phases import Phase, inverting
from styleengine.run import Recording, Run, Trajectory
from styleengine.sain import align_colors, sain_weight
from styleengine.settings import Settings, inversion_iterations_knob, knob, size_knob, steps_knob
from styleengine.styles import Style, check_weights, reduced, region, shares_of

LAYERS = 16


class StyleAttentionSettings(Settings):
    """Settings shared by images and clips.

    The defaults of λ, steps, layers, start, end, mode and colour alignment are the paper's for Stable Diffusion 1.5, of
    which `size` is the training size. The others are ours; those that the paper does not have are off by default.
    """

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
    color: Literal["sain", "mean", "adain", "none"] = knob(
        "sain",
        "Colour alignment of the content's noise: weighted means (SAIN, as in the paper), means, means and deviations "
        "(AdaIN), or none.",
        title="Colour alignment",
        rare=True,
    )
    color_factor: float = knob(
        1.0,
        "Factor on the colour alignment; 0 keeps the content's colours.",
        title="Colour factor",
        rare=True,
        ge=0,
        le=1,
    )
    content_pull: float = knob(
        0.0,
        "Share of the content's inverted latents, colour-aligned, blended in before each step; 0.01 in the "
        "authors' code. Higher keeps more content.",
        rare=True,
        ge=0,
        le=0.5,
    )
    query_preservation: float = knob(
        0.0,
        "Share of the content's own attention queries (γ of StyleID) where a style applies; higher keeps more content.",
        title="Query preservation γ",
        ge=0,
        le=1,
    )
    temperature: float = knob(
        1.0,
        "Factor on all attention logits where a style applies (τ of StyleID); above 1 gives sharper attention.",
        title="Attention temperature τ",
        rare=True,
        ge=0.1,
        le=4,
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
        1 / 6, "Share of the steps after which style attention starts; 1/6 is step 5 of 30.", rare=True, ge=0, le=1
    )
    end: float = knob(1.0, "Share of the steps after which style attention ends.", rare=True, ge=0, le=1)
    feather: float = knob(
        0.03, "Width of the soft border of masks, as a share of the shorter side.", rare=True, ge=0, le=0.25
    )
    inversion_iterations: int = inversion_iterations_knob()

    def styled_steps(self) -> range:
        """The steps, counted from 0, with style attention."""
        return range(round(self.start * self.steps), round(self.end * self.steps))

    def styled_levels(self) -> range:
        """The noise levels of the styled steps."""
        steps = self.styled_steps()
        return range(self.steps - steps.start, self.steps - steps.stop, -1)

    def styled_layers(self) -> range:
        """The self-attention layers, in the order of execution, with style attention."""
        return range(self.first_layer, self.last_layer + 1)


class StyleAttention:
    """Inverted styles for contents of `size` (width, height); provides the start and each step of their sampling."""

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

    def sample(self, contents: Sequence[Trajectory], phase: Phase) -> torch.Tensor:
        """x_0 of the contents in the styles, in one batch."""
        return self.run.sample(
            self.start(contents),
            lambda x_t, level: self.noise(x_t, level, contents),
            phase,
            before_step=lambda x_t, level: self.pulled(x_t, level, contents),
        )

    def start(self, contents: Sequence[Trajectory]) -> torch.Tensor:
        """x_T of the contents with their colours aligned to the styles', and with variation if set."""
        start = self._aligned(contents, self.run.schedule.steps)
        return vary(start, self.settings.variation, self.settings.seed) if self.settings.variation else start

    def pulled(self, x_t: torch.Tensor, level: int, contents: Sequence[Trajectory]) -> torch.Tensor:
        """x_t ← (1 − p)·x_t + p·(the contents' latents of that level, colour-aligned), p being `content_pull`."""
        pull = self.settings.content_pull
        return torch.lerp(x_t, self._aligned(contents, level), pull) if pull and self.injection.visible else x_t

    def at(self, level: int, contents: Sequence[Trajectory]) -> "StyleInjection | None":
        """The tap for a level, with the styles' keys and values; None if no style applies."""
        if level not in self.settings.styled_levels() or not self.injection.visible:
            return None
        keys_values = keys_values_of_styles(self.settings)
        self.injection.keys_values = [
            keys_values.at(self.run, path, level) if visible else {}
            for path, visible in zip(self.paths, self.injection.visible_styles, strict=True)
        ]
        if queries := queries_of_contents(self.settings):
            known = [queries.at(self.run, path, level) for path in contents]
            self.injection.queries = {layer: torch.cat([q[layer] for q in known]) for layer in queries.layers}
        return self.injection

    def noise(self, x_t: torch.Tensor, level: int, contents: Sequence[Trajectory]) -> torch.Tensor:
        """ε_θ of the content path with style attention."""
        injection = self.at(level, contents)
        if injection is None:
            return self.run.noise(x_t, level)
        with tapped(self.run.backbone.unet, injection, self.settings.styled_layers()):
            return self.run.noise(x_t, level)

    def _aligned(self, contents: Sequence[Trajectory], level: int) -> torch.Tensor:
        """The contents' latents of a level, colour-aligned to the styles' of that level. w of SAIN is that of x_T."""
        x_t, styles = (
            torch.cat([path.latents[level] for path in contents]),
            [path.latents[level] for path in self.paths],
        )
        settings, weights = self.settings, None
        if settings.color == "sain":
            x_T = torch.cat([path.x_T for path in contents])  # noqa: N806 - the paper's symbol
            weights = [sain_weight(x_T, path.x_T) for path in self.paths]
        shares = self.injection.shares(x_t)
        return align_colors(x_t, styles, shares, settings.color, settings.color_factor, weights)


def keys_values_of_styles(settings: StyleAttentionSettings) -> Recording:
    """What to record of the styles' inversions."""
    return Recording("keys_values", settings.styled_layers(), settings.styled_levels())


def queries_of_contents(settings: StyleAttentionSettings) -> Recording | None:
    """What to record of the contents' inversions, if anything."""
    if not settings.query_preservation:
        return None
    return Recording("queries", settings.styled_layers(), settings.styled_levels())


def invert_styles(run: Run, styles: Sequence[Style], settings: StyleAttentionSettings) -> list[Trajectory]:
    """Each style inverted at its own aspect ratio."""
    return [
        run.invert(
            style.image,
            run.working_size(style.image, settings.size),
            settings.inversion_iterations,
            phase,
            keys_values_of_styles(settings),
        )
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
        self.queries: Queries = {}  # the content path's own
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
        q, mode = self.adjusted(layer, q), self.settings.mode
        if mode == "reweight":
            return attend_with_styles(q, k, v, tokens, self.settings.strength)
        covered = self.coverage(q)
        style = attend_with_styles(q, k, v, tokens, 1.0, content=False)
        share = self.settings.addition_weight if mode == "simple_addition" else 1.0
        if share == 1 and covered is None:
            return style  # Eq. 7
        weight = share if covered is None else share * covered
        return weight * style + (1 - weight) * attend(q, k, v)  # Eq. 8

    def adjusted(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q̃ = τ·(γ·q_c + (1 − γ)·q), where q_c are the content path's own queries, in the styles' regions (StyleID)."""
        preserved, temperature = self.settings.query_preservation, self.settings.temperature
        if not preserved and temperature == 1:
            return q
        covered = self.coverage(q)
        region = 1.0 if covered is None else covered
        if preserved:
            q = q + region * preserved * (self.queries[layer].to(q.dtype) - q)
        return q * (1 + region * (temperature - 1))

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
        return reduced(mask, height, width).flatten()

    def shares(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Each style's share at each latent position (height, width): weight × mask, normalised.

        Where the masks sum to less than 1, so do the shares.
        """
        return list(shares_of(self.styles, self.masks, *latents.shape[2:]).to(latents))

    def coverage(self, q: torch.Tensor) -> torch.Tensor | None:
        """The sum of the masks at each query, at most 1, as (tokens, 1), for modes without content keys."""
        shown = [i for i, visible in enumerate(self.visible_styles) if visible]
        if any(self.masks[i] is None for i in shown):
            return None
        together = torch.stack([self.mask_at(i, q.shape[2]) for i in shown]).sum(0).clamp(max=1)
        return together[:, None].to(q.device, q.dtype)


def vary(x_T: torch.Tensor, share: float, seed: int) -> torch.Tensor:  # noqa: N803
    """x_T mixed with fresh noise at constant variance: √(1−s)·x_T + √s·z."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(x_T.shape[1:], generator=generator, dtype=torch.float32).to(x_T)
    return math.sqrt(1 - share) * x_T + math.sqrt(share) * z


def check(backbone: Backbone, styles: Sequence[Style], settings: StyleAttentionSettings) -> None:
    """StyleEngineError for no style, no positive weight, an empty range of layers or steps, or an unsuitable U-Net."""
    check_weights(styles)
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
