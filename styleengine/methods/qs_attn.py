"""QS-Attn text-guided style transfer: the style said in words, the content held by attention-selected contrast.

The picture is noised half way by DDIM inversion and denoised again. On the way back each step is
pushed down the gradient of a loss: CLIP says how far the picture still is from the words, and a
contrast of the U-Net's own features says how far it has left the content. The contrast looks at
the places that the source's self-attention is surest about ("query-selected"). Nothing is trained.
After Hwang and Lee, "Query-Selected Global Attention for Text guided Image Style Transfer using
Diffusion Model"; the losses around it are those of its base, ZeCon (Yang, Hwang and Ye, 2023).
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.checkpoint import checkpoint

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, fit, to_images, to_tensor, working_size
from styleengine.inversion import Inverter
from styleengine.perceptual import Clip
from styleengine.progress import Progress, part_of
from styleengine.settings import Settings, knob
from styleengine.stylization import InputRecord, OnStep, Stylization

TRAINED_STEPS = 1000  # the limits below count timesteps from 0 to here, however long a model was trained for
MSE_BELOW, PERCEPTUAL_BELOW = 700, 800  # timesteps above which these losses rest
TEMPERATURE = 0.07
PATCH_SETS = 4  # of patches, which take turns: the source's patches are embedded once for the whole run
PATCH_AREA = (0.01, 0.3)  # of the picture, from a draw that is even in the area
SKEW = 0.25  # how far a patch's corners move inwards at most, as a share of its sides
RESOLUTIONS = 4  # of the U-Net's encoder that the contrast looks at
FEATURE_SIDE = 64  # larger feature maps are averaged down: every place is compared with every other
ROWS_AT_ONCE = 512  # of the attention matrix

SUGGESTIONS = ("a sketch with crayon", "golden", "a watercolor painting", "wooden", "red bricks")

Selection = Literal["global", "local", "local_global", "random"]


class QSAttnSettings(Settings):
    """Settings of QS-Attn style transfer; the defaults are the paper's and its base's."""

    prompt: str = knob(
        "",
        "The style in words. Several at a time with a bar between: “golden | wooden”; “golden::2” counts twice.",
        title="Style",
        suggestions=SUGGESTIONS,
    )
    source_text: str = knob("Photo", "What the content image is now, in words.", title="Content is a")
    balance: float = knob(
        0.5,
        "0 keeps the content, 1 asks for nothing but the style; in the middle all weights are as they stand.",
        title="Content or style",
        ge=0,
        le=1,
    )
    size: int = knob(256, "Length of the result's shorter side in pixels.", ge=64, le=1024)
    steps: int = knob(25, "Denoising steps; each needs gradients through all networks.", ge=2, le=100)
    depth: float = knob(0.5, "How far the picture is noised before it is drawn again: more changes more.", ge=0.2, le=1)
    order: Literal["at_once", "in_sequence"] = knob(
        "at_once", "Several styles mixed in one picture, or each drawn over the result of the one before.", rare=True
    )
    seed: int = knob(0, "Picks the noise, the patches and the random anchors.", ge=0, le=2**32 - 1)
    selection: Selection = knob(
        "global",
        "How anchors are found: by attention to all places, to a window, both, or at random (ZeCon).",
        title="Anchors",
        rare=True,
    )
    anchors: int = knob(256, "Anchors in each layer; small layers have fewer places.", rare=True, ge=1, le=1024)
    window: int = knob(7, "Side of the window of local attention, in places; odd.", rare=True, ge=3, le=15)
    eta: float = knob(
        1.0,
        "Fresh noise on the way back (η): 1 is DDPM, 0 none, which keeps more of the content.",
        rare=True,
        ge=0,
        le=1,
    )
    step_limit: float = knob(
        1.0, "The farthest that the losses may push in one step, in units of its noise σ.", rare=True, ge=0, le=10
    )
    patches: int = knob(32, "Patches that CLIP looks at in each step.", rare=True, ge=1, le=256)
    global_whole: float = knob(0.0, "Weight: the whole picture resembles the words.", rare=True, ge=0, le=100_000)
    direction_whole: float = knob(
        0.0, "Weight: the whole picture changed as the words did.", rare=True, ge=0, le=100_000
    )
    global_patches: float = knob(10_000.0, "Weight: its patches resemble the words.", rare=True, ge=0, le=100_000)
    direction_patches: float = knob(
        20_000.0, "Weight: its patches changed as the words did.", rare=True, ge=0, le=100_000
    )
    contrast: float = knob(500.0, "Weight of the query-selected contrast.", rare=True, ge=0, le=100_000)
    mse: float = knob(5000.0, "Weight of the pixels' squared difference.", title="MSE", rare=True, ge=0, le=100_000)
    perceptual: float = knob(
        100.0, "Weight of the difference that CLIP's patch tokens see.", rare=True, ge=0, le=100_000
    )
    range_loss: float = knob(50.0, "Weight against colours that cannot be shown.", rare=True, ge=0, le=100_000)
    save_memory: bool = knob(
        False, "Compute what gradients need a second time instead of keeping it: slower, less memory.", rare=True
    )

    @property
    def style_share(self) -> float:
        """What the balance makes of all style weights: 0 … 2, and 1 in the middle."""
        return 2 * self.balance

    @property
    def content_share(self) -> float:
        """The same for the content weights. The range loss is on neither side."""
        return 2 * (1 - self.balance)


@dataclass(frozen=True)
class Prompt:
    """One style in words, and how much it counts among several."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Anchors:
    """Where the contrast looks in one layer of the U-Net's encoder: of the source alone.

    `entropy` is H(i) as (height, width); `indices` (N,) are the chosen places; `routing`
    (N, places) is A_QS; `positives` (N, channels) are the source's routed features, of unit length.
    """

    entropy: torch.Tensor
    indices: torch.Tensor
    routing: torch.Tensor
    positives: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.entropy, self.indices, self.routing, self.positives))


@dataclass(frozen=True)
class Layers:
    """The anchors of all layers, as the cache keeps them."""

    anchors: tuple[Anchors, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.anchors)


@dataclass(frozen=True)
class Sight:
    """The source as CLIP sees it: whole (1, width), its patch tokens, and each set of patches (P, width)."""

    whole: torch.Tensor
    tokens: torch.Tensor
    patches: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.whole, self.tokens, *self.patches))


def stylize(
    backbone: Backbone,
    content: Image.Image,
    clip: Clip,
    settings: QSAttnSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    name: str = "",
) -> Stylization:
    """The content in the style that `settings.prompt` says.

    Several styles go into one picture with weights, or in sequence, each over the result of the
    one before. `on_step` is called after each step and may raise `Cancelled`. `cache` keeps the
    inversion, the anchors and what CLIP saw of the source between runs. `name` is the
    content's file name. `details` has CLIP's similarity to the words before and after.

    Raises StyleEngineError for a prompt that is empty, unreadable or the same as the source text.
    """
    began = time.perf_counter()
    prompts = parse_prompts(settings.prompt)
    texts = [settings.source_text, *(prompt.text for prompt in prompts)]
    size = working_size(content, settings.size, backbone.multiple)
    _check(prompts, settings, clip)
    cache = cache if cache is not None else ByteCache(0)
    rounds = [prompts] if settings.order == "at_once" else [[prompt] for prompt in prompts]
    picture, notes = content, [clip.note_on(text) for text in texts]
    for number, asked in enumerate(rounds):
        on_part = part_of(on_step, number, len(rounds))
        picture, note = _drawn(backbone, fit(picture, size), asked, clip, settings, on_part, cache)
        notes.append(note)
    return Stylization(
        image=picture,
        method="qs_attn",
        settings=settings.model_dump(),
        backbone=backbone.name,
        revision=backbone.revision,
        device=backbone.device.type,
        dtype=backbone.precision,
        inputs=[InputRecord("content", content_hash(content), name)],
        seconds=time.perf_counter() - began,
        details={
            "similarity_before": similarity(clip, fit(content, size), prompts),
            "similarity_after": similarity(clip, picture, prompts),
        },
        notes=list(dict.fromkeys(filter(None, notes))),
    )


def _drawn(
    backbone: Backbone,
    content: Image.Image,
    prompts: Sequence[Prompt],
    clip: Clip,
    settings: QSAttnSettings,
    on_step: OnStep | None,
    cache: ByteCache,
) -> tuple[Image.Image, str]:
    """One way up and down again, all `prompts` at once, and a note; the content has its working size."""
    schedule = way(backbone, settings)
    progress = Progress(backbone, ["content 1", "stylizing"], settings.steps, on_step, content)
    trajectory = Inverter(backbone, schedule, 1, cache, progress)(content, content.size, "content 1")
    x_0, x_T = trajectory.latents[0], trajectory.latents[-1]  # noqa: N806
    guide = Guide(backbone, clip, content, x_0, prompts, settings, cache)
    progress.skip_to("stylizing")
    x_0 = descend(x_T, schedule, guide, settings, progress.after("stylizing"))
    return to_images(backbone.decode(x_0))[0], guide.note()


def way(backbone: Backbone, settings: QSAttnSettings) -> ddim.Schedule:
    """The lower part of an even schedule: 25 of 50 steps with the defaults, from t = 481 down.

    `depth` is the part of the trained timesteps that is covered, whatever the number of steps.
    """
    return ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps, settings.depth)


def descend(
    x_T: torch.Tensor,  # noqa: N803 - the paper's symbol
    schedule: ddim.Schedule,
    guide: "Guide",
    settings: QSAttnSettings,
    after_step: ddim.AfterStep | None = None,
) -> torch.Tensor:
    """x_0 from x_T by DDPM steps whose mean is shifted by −σ²·∇L, as in classifier guidance.

    The shift's root mean square is held below `step_limit`·σ. The last step adds no noise and is
    not shifted. `after_step` is called as in `ddim.sample`.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x_t = x_T
    for level in range(schedule.steps, 0, -1):
        alpha, alpha_prev = schedule.levels[level], schedule.levels[level - 1]
        timestep, last = schedule.timesteps[level], level == 1
        noise, gradient = guide.steer(x_t, timestep, alpha, schedule.steps - level, last)
        clean = ddim.predict_x0(x_t, noise, alpha)
        x_t = ddim.step(x_t, noise, alpha, alpha_prev, 0.0 if last else settings.eta, generator)
        if gradient is not None:
            x_t = x_t - shift(gradient, ddim.step_noise(alpha, alpha_prev), settings.step_limit)
        if after_step:
            after_step(schedule.steps - level + 1, x_t, clean)
    return x_t


def shift(gradient: torch.Tensor, sigma: torch.Tensor, limit: float) -> torch.Tensor:
    """σ²·∇L, scaled down to a root mean square of limit·σ where it is larger."""
    push = sigma**2 * gradient
    size = push.square().mean().sqrt()
    return push * (limit * sigma / size.clamp(min=1e-12)).clamp(max=1)


class Guide:
    """The losses of a run, and their gradient with respect to x_t.

    What depends on the source or the words alone is made once: anchors, CLIP's view of the source
    and its patches, the words' embeddings. A gradient with numbers that are not finite counts as none;
    `steered` of `asked` gradients were sound.

    On CUDA the gradient differs from run to run: the backward kernels of `grid_sample` and of the antialiased
    resize add up in no fixed order, and have no deterministic form.
    """

    def __init__(
        self,
        backbone: Backbone,
        clip: Clip,
        content: Image.Image,
        x_0: torch.Tensor,
        prompts: Sequence[Prompt],
        settings: QSAttnSettings,
        cache: ByteCache,
    ) -> None:
        self.backbone, self.clip, self.settings = backbone, clip, settings
        self.asked = self.steered = 0
        self.null = backbone.condition([""])
        texts = clip.text_embeddings([settings.source_text, *(prompt.text for prompt in prompts)])
        self.targets = texts[1:]
        self.changes = texts[1:] - texts[:1]
        total = sum(prompt.weight for prompt in prompts)
        shares = [prompt.weight / total for prompt in prompts]
        self.shares = torch.tensor(shares, dtype=torch.float32, device=texts.device)
        self.source = backbone.decode(x_0)
        self.boxes = patch_sets(settings, content.size)
        hashed = (content_hash(content), backbone.identity)
        self.sight = cache.get_or_make(("sight", *hashed, settings.seed, settings.patches), self._look_at_source)
        self.layers = find_anchors(backbone, x_0, settings, cache, hashed).anchors if self._contrasts else ()

    @property
    def _contrasts(self) -> bool:
        return self.settings.contrast * self.settings.content_share > 0

    @torch.no_grad()
    def _look_at_source(self) -> Sight:
        whole, tokens = self.clip.look(self.source)
        patches = tuple(self.clip.image_embeddings(cut(self.source, boxes, self.clip.side)) for boxes in self.boxes)
        return Sight(whole, tokens, patches)

    def steer(
        self,
        x_t: torch.Tensor,
        timestep: int,
        alpha: torch.Tensor,
        step: int,
        last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """ε at x_t, and ∇L with respect to x_t; no gradient in the `last` step or where nothing is asked for.

        Nor is there one where it is not finite. StyleEngineError where ε is not.
        """
        if last:
            return self.backbone.predict_noise(x_t, timestep, self.null), None
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            noise = self._through(lambda x: self.backbone.predict_noise_with_gradient(x, timestep, self.null), x_t)
            loss = sum(self.losses(x_t, noise, timestep, alpha, step).values())
            gradient = torch.autograd.grad(loss, x_t)[0] if isinstance(loss, torch.Tensor) else None
        return self.backbone.finite(noise.detach(), f"the noise at timestep {timestep}"), self._sound(gradient)

    def _sound(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """The gradient, if all of it is finite."""
        if gradient is None:
            return None
        self.asked += 1
        if not bool(gradient.isfinite().all()):
            return None
        self.steered += 1
        return gradient

    def note(self) -> str:
        """A sentence where most gradients were not finite, else nothing."""
        lost = self.asked - self.steered
        if 2 * lost <= self.asked:
            return ""
        return (
            f"In {lost} of {self.asked} steps the gradient was not finite (in {self.backbone.precision}), so that the "
            "losses had no effect. Load the model in bfloat16 or float32, or choose smaller weights."
        )

    def losses(
        self, x_t: torch.Tensor, noise: torch.Tensor, timestep: int, alpha: torch.Tensor, step: int
    ) -> dict[str, torch.Tensor]:
        """The weighted losses by the name of their setting; those of weight 0 are not computed.

        They judge x_in = x̂0·√(1−ᾱ_t) + x_t·(1−√(1−ᾱ_t)): the pixel losses on its picture, the
        contrast on what the U-Net's encoder makes of it at t = 0.
        """
        share = (1 - alpha).sqrt()
        x_in = ddim.predict_x0(x_t, noise, alpha) * share + x_t * (1 - share)
        weights = self.weights(timestep)
        terms: dict[str, Callable[[], torch.Tensor]] = {}
        if weights.keys() - {"contrast"}:
            picture = self._through(self.backbone.decode_with_gradient, x_in)
            terms["mse"] = lambda: F.mse_loss(picture, self.source)
            terms["range_loss"] = lambda: (picture - picture.clamp(-1, 1)).square().mean()
            terms |= self._clip_terms(picture, weights, step % PATCH_SETS)
        terms["contrast"] = lambda: self._contrast(x_in)
        return {name: weight * terms[name]() for name, weight in weights.items()}

    def weights(self, timestep: int) -> dict[str, float]:
        """What each loss counts at a timestep, without those that count nothing."""
        settings, t = self.settings, timestep * TRAINED_STEPS / len(self.backbone.alphas_cumprod)
        style, content = settings.style_share, settings.content_share
        weights = {
            "global_whole": style * settings.global_whole,
            "direction_whole": style * settings.direction_whole,
            "global_patches": style * settings.global_patches,
            "direction_patches": style * settings.direction_patches,
            "contrast": content * settings.contrast,
            "mse": content * settings.mse * (t < MSE_BELOW),
            "perceptual": content * settings.perceptual * (t < PERCEPTUAL_BELOW),
            "range_loss": settings.range_loss,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def _clip_terms(
        self, picture: torch.Tensor, weights: dict[str, float], turn: int
    ) -> dict[str, Callable[[], torch.Tensor]]:
        """CLIP's losses; whole picture and patches go through it in one batch, and only those asked for."""
        side = self.clip.side
        wanted = []
        if whole := weights.keys() & {"global_whole", "direction_whole", "perceptual"}:
            wanted.append(self.clip.framed(picture))
        if patches := weights.keys() & {"global_patches", "direction_patches"}:
            wanted.append(cut(picture, self.boxes[turn], side))
        if not wanted:
            return {}
        embeddings, tokens = self._through(self.clip.look, torch.cat(wanted))
        terms: dict[str, Callable[[], torch.Tensor]] = {}
        if whole:
            terms["global_whole"] = lambda: self._global(embeddings[:1])
            terms["direction_whole"] = lambda: self._direction(embeddings[:1] - self.sight.whole)
            terms["perceptual"] = lambda: (1 - F.cosine_similarity(tokens[:1], self.sight.tokens, dim=-1)).mean()
        if patches:
            seen = embeddings[-self.settings.patches :]
            terms["global_patches"] = lambda: self._global(seen)
            terms["direction_patches"] = lambda: self._direction(seen - self.sight.patches[turn])
        return terms

    def _global(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The mean spherical distance of pictures to the words, the words weighted."""
        return (spherical_distance(embeddings[:, None], self.targets[None]).mean(0) * self.shares).sum()

    def _direction(self, changes: torch.Tensor) -> torch.Tensor:
        """The mean of 1 − cos(ΔI, ΔT), the words weighted."""
        return (direction_distance(changes[:, None], self.changes[None]).mean(0) * self.shares).sum()

    def _contrast(self, x_in: torch.Tensor) -> torch.Tensor:
        def features(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(encoder_features(self.backbone, x, self.null))

        return contrastive_loss(self._through(features, x_in), self.layers)

    def _through(self, function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
        """function(x), its insides kept for the gradient or, to save memory, made again when that comes."""
        return checkpoint(function, x, use_reentrant=False) if self.settings.save_memory else function(x)


# CLIP's losses


def spherical_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2·arcsin(|a − b|/2)² of unit vectors along the last axis: half the squared angle between them."""
    return (a - b).norm(dim=-1).div(2).clamp(max=1 - 1e-6).arcsin().square().mul(2)


def direction_distance(change: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 − cos along the last axis."""
    return 1 - F.cosine_similarity(change, wanted, dim=-1)


def patch_sets(settings: QSAttnSettings, size: tuple[int, int]) -> list[torch.Tensor]:
    """The corners of the patches of each set: (P, 4, 2) in [−1, 1], (x, y), clockwise from top left.

    `size` is the picture's (width, height). A patch covers 1 to 30 % of its largest square, each
    corner moved inwards by chance, and half of them are mirrored: the augmentation without which
    CLIP is fooled rather than convinced.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    draw = partial(torch.rand, generator=generator, dtype=torch.float32)
    square = min(size) / torch.tensor(size, dtype=torch.float32)  # of the width and of the height
    sets = []
    for _ in range(PATCH_SETS):
        area = torch.empty(settings.patches, 1, 1, dtype=torch.float32).uniform_(*PATCH_AREA, generator=generator)
        half = area.sqrt() * square
        middle = (2 * draw(settings.patches, 1, 2) - 1) * (1 - half)
        skew = 1 - 2 * SKEW * draw(settings.patches, 4, 2)
        corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float32) * skew
        mirrored = draw(settings.patches, 1, 1) < 0.5
        corners = torch.where(mirrored, corners[:, [1, 0, 3, 2]], corners)
        sets.append(middle + half * corners)
    return sets


def cut(picture: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """The patches (P, 3, side, side) of a picture (1, 3, height, width); `corners` as in `patch_sets`."""
    corners = corners.to(picture)
    across = (torch.arange(side, dtype=picture.dtype, device=picture.device) + 0.5) / side
    v, u = across.view(-1, 1, 1), across.view(1, -1, 1)
    top_left, top_right, bottom_right, bottom_left = corners[:, :, None, None].unbind(1)
    top, bottom = top_left + u * (top_right - top_left), bottom_left + u * (bottom_right - bottom_left)
    grid = top + v * (bottom - top)
    expanded = picture.expand(len(corners), -1, -1, -1)
    return F.grid_sample(expanded, grid, mode="bilinear", padding_mode="border", align_corners=False)


def similarity(clip: Clip, picture: Image.Image, prompts: Sequence[Prompt]) -> float:
    """The cosine between the picture's and the words' embeddings, the words weighted."""
    with torch.no_grad():
        of_picture = clip.image_embeddings(to_tensor(picture))
    cosines = (clip.text_embeddings([prompt.text for prompt in prompts]) @ of_picture.T)[:, 0].tolist()
    total = sum(prompt.weight for prompt in prompts)
    return sum(prompt.weight * cosine for prompt, cosine in zip(prompts, cosines, strict=True)) / total


# Query-selected contrast


class _EncoderDone(Exception):  # noqa: N818 - nothing went wrong
    """Ends an evaluation of the U-Net before its mid block."""


def encoder_features(backbone: Backbone, x_0: torch.Tensor, null: torch.Tensor) -> list[torch.Tensor]:
    """What the U-Net's encoder makes of x_0 at t = 0, at its entry and at the end of its first four resolutions.

    With two blocks a resolution these are the base method's input blocks 0, 2, 5, 8 and 11. Maps of
    more than 64×64 places are averaged down to that. Nothing behind the encoder is computed.
    """
    unet = backbone.unet
    layers: list[nn.Module] = [unet.conv_in, *(_last_layer(block) for block in unet.down_blocks[:RESOLUTIONS])]
    seen: list[torch.Tensor] = []

    def note(layer: nn.Module, given: Any, output: Any) -> None:
        features = output[0] if isinstance(output, tuple) else output
        seen.append(_averaged_down(features.float()))

    def stop(block: nn.Module, given: Any) -> None:
        raise _EncoderDone

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(note).remove)
        hooks.callback(unet.mid_block.register_forward_pre_hook(stop).remove)
        with suppress(_EncoderDone):
            backbone.predict_noise_with_gradient(x_0, 0, null)
    return seen


def _last_layer(block: Any) -> nn.Module:
    """What a block of the encoder does last at its resolution: an attention, where it has any, or a ResNet block."""
    attentions = getattr(block, "attentions", None)
    return attentions[-1] if attentions else block.resnets[-1]


def _averaged_down(features: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    factor = math.ceil(max(height, width) / FEATURE_SIDE)
    return F.avg_pool2d(features, factor, ceil_mode=True) if factor > 1 else features


def find_anchors(
    backbone: Backbone,
    x_0: torch.Tensor,
    settings: QSAttnSettings,
    cache: ByteCache,
    hashed: tuple[str, str],
) -> Layers:
    """The anchors of each layer for the source's latents, made once; `hashed` names source and backbone."""

    @torch.no_grad()
    def make() -> Layers:
        features = encoder_features(backbone, x_0, backbone.condition([""]))
        generator = torch.Generator().manual_seed(settings.seed)
        return Layers(tuple(select(layer, settings, generator) for layer in features))

    chance = settings.seed if settings.selection == "random" else None
    key = ("anchors", *hashed, settings.selection, settings.anchors, settings.window, chance)
    return cache.get_or_make(key, make)


def select(features: torch.Tensor, settings: QSAttnSettings, generator: torch.Generator) -> Anchors:
    """The anchors of one layer's source features (1, channels, height, width).

    `global`: the N rows of softmax(F·Fᵀ) with the smallest entropy. `local`: the same of the
    attention to a window around each place. `local_global`: chosen by the local entropy, routed by
    global attention. `random`: N places by chance, each feature as it is. N is at most the number of
    places.
    """
    _, _, height, width = features.shape
    flat = features[0].flatten(1).T.double()  # (places, channels); dot products of hundreds need the digits
    count = min(settings.anchors, len(flat))
    local = settings.selection in ("local", "local_global")
    h = entropy(local_attention(features, settings.window)[0]) if local else global_entropy(flat)
    if settings.selection == "random":
        indices = torch.randperm(len(flat), generator=generator)[:count].to(flat.device)
        routing = F.one_hot(indices, len(flat)).to(features)
    else:
        indices = h.sort(stable=True).indices[:count]
        if settings.selection == "local":
            routing = _spread(local_attention(features, settings.window), indices, len(flat)).to(features)
        else:
            routing = global_attention(flat, indices).to(features)
    return Anchors(h.view(height, width).float(), indices, routing, _routed(routing, features))


def global_attention(flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of A_g = softmax(F·Fᵀ), F being (places, channels): (rows, places)."""
    return (flat[rows] @ flat.T).softmax(-1)


def global_entropy(flat: torch.Tensor) -> torch.Tensor:
    """H_g(i) of all places (Eq. 6); the matrix is never whole."""
    every = torch.arange(len(flat), device=flat.device)
    return torch.cat([entropy(global_attention(flat, rows)) for rows in every.split(ROWS_AT_ONCE)])


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """H(i) = −Σ_j A(i, j)·log A(i, j), where 0·log 0 is 0."""
    return torch.special.entr(attention).sum(-1)


def local_attention(features: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each place to the window around it, and which places these are: (places, window²) both.

    Beyond the border there is nothing: attention 0, to place 0.
    """
    _, _, height, width = features.shape
    here = features[0].double()
    reach = window // 2
    padded = F.pad(here, (reach,) * 4)
    places = torch.arange(height * width, device=features.device).view(1, height, width)
    numbered = F.pad(places, (reach,) * 4, value=-1)[0]
    logits, indices = [], []
    for top in range(window):
        for left in range(window):
            there = padded[:, top : top + height, left : left + width]
            logits.append((here * there).sum(0).flatten())
            indices.append(numbered[top : top + height, left : left + width].flatten())
    index = torch.stack(indices, 1)
    attention = torch.stack(logits, 1).masked_fill(index < 0, -torch.inf).softmax(-1)
    return attention, index.clamp(min=0)


def _spread(local: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, places: int) -> torch.Tensor:
    """Rows of a local attention as rows over all places: (rows, places)."""
    attention, index = (part[rows] for part in local)
    return attention.new_zeros(len(rows), places).scatter_add_(1, index, attention)


def _routed(routing: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """A_QS·F, each row of unit length: (N, channels)."""
    return F.normalize(routing @ features[0].flatten(1).T, dim=-1)


def contrastive_loss(features: Sequence[torch.Tensor], layers: Sequence[Anchors]) -> torch.Tensor:
    """InfoNCE of the current picture's routed features against the source's, the mean over anchors and layers.

    The positive of an anchor is the source's feature of the same row of A_QS; those of the other rows
    are its negatives.
    """
    losses = []
    for current, source in zip(features, layers, strict=True):
        logits = _routed(source.routing, current) @ source.positives.T / TEMPERATURE
        losses.append(F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)))
    return torch.stack(losses).mean()


# Words


def parse_prompts(text: str) -> list[Prompt]:
    """“golden | wooden::2” → the styles between the bars, each with what stands behind its “::” as weight."""
    prompts = []
    for piece in text.split("|"):
        words, mark, number = piece.partition("::")
        try:
            weight = float(number) if mark else 1.0
        except ValueError as error:
            raise StyleEngineError(f"“{number.strip()}” is no weight: write a number behind “::”.") from error
        if not (0 < weight < math.inf):
            raise StyleEngineError(f"The weight of “{words.strip()}” is {weight:g}: it must be above 0.")
        if words.strip():
            prompts.append(Prompt(words.strip(), weight))
    if not prompts:
        raise StyleEngineError("No style was given. Say one in words, such as “a watercolor painting”.")
    return prompts


def _check(prompts: Sequence[Prompt], settings: QSAttnSettings, clip: Clip) -> None:
    if settings.window % 2 == 0:
        raise StyleEngineError(f"The window of local attention is {settings.window}: it must be odd.")
    source = clip.text_embeddings([settings.source_text])
    for prompt in prompts:
        if not clip.reads(prompt.text):
            raise StyleEngineError(f"This model's CLIP knows nothing of what “{prompt.text}” says: use other words.")
        if torch.equal(clip.text_embeddings([prompt.text]), source):
            raise StyleEngineError(
                f"“{prompt.text}” says the same as the text for the content, so there is no direction to go: "
                "change one of the two."
            )
    if settings.order == "in_sequence" and len({prompt.weight for prompt in prompts}) > 1:
        raise StyleEngineError("In sequence each style has a picture of its own: leave the weights away.")


# The overlay


def anchors_picture(
    backbone: Backbone, content: Image.Image, settings: QSAttnSettings, cache: ByteCache | None = None
) -> Image.Image:
    """The source under its entropy map, a frame around each anchor: a picture for each layer, finest first.

    Blue places are sure of what they resemble (low entropy), red ones are not.
    """
    content = fit(content, working_size(content, settings.size, backbone.multiple))
    cache = cache if cache is not None else ByteCache(0)
    x_0 = backbone.encode(to_tensor(content))
    layers = find_anchors(backbone, x_0, settings, cache, (content_hash(content), backbone.identity)).anchors
    width, height = content.size
    row = Image.new("RGB", (width * len(layers), height))
    for number, layer in enumerate(layers):
        row.paste(_overlay(content, layer), (width * number, 0))
    return row


def _overlay(content: Image.Image, layer: Anchors) -> Image.Image:
    low, high = layer.entropy.min(), layer.entropy.max()
    heat = ((layer.entropy - low) / (high - low).clamp(min=1e-12)).cpu().numpy()
    colors = np.stack([heat, np.zeros_like(heat), 1 - heat], -1)
    shown = Image.fromarray((colors * 255).astype(np.uint8)).resize(content.size, Image.Resampling.NEAREST)
    picture = Image.blend(content.convert("L").convert("RGB"), shown, 0.4)
    draw = ImageDraw.Draw(picture)
    rows, columns = layer.entropy.shape
    step_x, step_y = picture.width / columns, picture.height / rows
    for index in layer.indices.tolist():
        left, top = index % columns * step_x, index // columns * step_y
        draw.rectangle((left, top, left + step_x - 1, top + step_y - 1), outline="white")
    return picture
