"""The losses of a run, and their gradient with respect to x_t."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.checkpoint import checkpoint

from styleengine import ddim
from styleengine.images import content_hash
from styleengine.methods.qs_attn.clip_losses import PATCH_SETS, cut, direction_distance, patch_sets, spherical_distance
from styleengine.methods.qs_attn.contrast import contrastive_loss, encoder_features, find_anchors
from styleengine.methods.qs_attn.prompts import Prompt
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip
from styleengine.run import Run

LEAST_SCALE, SCALE_STEP = 2.0**-24, 16  # of the loss in float16


@dataclass(frozen=True)
class SourceEmbeddings:
    """CLIP's embeddings of the source: the whole (1, width), its patch tokens, each set of patches (P, width)."""

    whole: torch.Tensor
    tokens: torch.Tensor
    patches: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.whole, self.tokens, *self.patches))


class Guide:
    """The losses of a run, and their gradient with respect to x_t.

    Anchors, CLIP's embeddings of the source and its patches, and the text embeddings are computed once.
    A gradient that is not finite is skipped; `steered` of `asked` gradients were finite.

    On CUDA the gradient differs from run to run: the backward kernels of `grid_sample` and of the antialiased
    resize sum in no fixed order, and have no deterministic version.
    """

    def __init__(
        self,
        run: Run,
        clip: Clip,
        content: Image.Image,
        x_0: torch.Tensor,
        prompts: Sequence[Prompt],
        settings: QSAttnSettings,
    ) -> None:
        backbone, cache = run.backbone, run.cache
        self.run, self.backbone, self.null, self.clip, self.settings = run, backbone, run.null, clip, settings
        self.asked = self.steered = 0
        self.scale = 1.0  # of the loss, in float16
        texts = clip.text_embeddings([settings.source_text, *(prompt.text for prompt in prompts)])
        self.targets = texts[1:]
        self.changes = texts[1:] - texts[:1]
        total = sum(prompt.weight for prompt in prompts)
        shares = [prompt.weight / total for prompt in prompts]
        self.shares = torch.tensor(shares, dtype=torch.float32, device=texts.device)
        self.source = backbone.decode(x_0)
        self.boxes = patch_sets(settings, content.size)
        hashed = (content_hash(content), backbone.identity)
        self.source_embeddings = cache.get_or_make(
            ("source embeddings", *hashed, settings.seed, settings.patches), self._embed_source
        )
        self.layers = find_anchors(backbone, x_0, settings, cache, hashed).anchors if self._contrasts else ()

    @property
    def _contrasts(self) -> bool:
        return self.settings.contrast * self.settings.content_share > 0

    @torch.no_grad()
    def _embed_source(self) -> SourceEmbeddings:
        whole, tokens = self.clip.embed(self.source)
        patches = tuple(self.clip.image_embeddings(cut(self.source, boxes, self.clip.side)) for boxes in self.boxes)
        return SourceEmbeddings(whole, tokens, patches)

    def steer(self, x_t: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """ε at x_t, and ∇L with respect to x_t. StyleEngineError if ε is not finite.

        There is no gradient in the last `unguided_steps`, if all weights are 0, or if it is not finite.
        """
        if level <= self.settings.unguided_steps:
            return self.run.noise(x_t, level), None
        timestep = self.run.schedule.timesteps[level]
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            noise = self._through(lambda x: self.run.noise_with_gradient(x, level), x_t)
            loss = sum(self.losses(x_t, noise, level).values())
            gradient = self._gradient(loss, x_t) if isinstance(loss, torch.Tensor) else None
        return self.backbone.finite(noise.detach(), f"the noise at timestep {timestep}"), self._sound(gradient)

    def _gradient(self, loss: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """∇L. In float16 it is that of the scaled loss, divided by the scale.

        With ZeCon's weights the gradient overflows in float16. The scale is lowered until it is finite, and kept for
        the next steps.
        """
        half = self.backbone.dtype == torch.float16
        while True:
            gradient = torch.autograd.grad(loss * self.scale, x_t, retain_graph=half)[0] / self.scale
            if not half or self.scale <= LEAST_SCALE or bool(gradient.isfinite().all()):
                return gradient
            self.scale /= SCALE_STEP

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
        """A sentence if most gradients were not finite, else an empty string."""
        lost = self.asked - self.steered
        if 2 * lost <= self.asked:
            return ""
        return (
            f"In {lost} of {self.asked} steps the gradient was not finite (in {self.backbone.precision}), so that the "
            "losses had no effect. Load the model in bfloat16 or float32, or choose smaller weights."
        )

    def losses(self, x_t: torch.Tensor, noise: torch.Tensor, level: int) -> dict[str, torch.Tensor]:
        """The weighted losses by the name of their setting; those of weight 0 are not computed.

        They are computed on x_in = x̂0·√(1−ᾱ_t) + x_t·(1−√(1−ᾱ_t)): the pixel losses on its decoded image, the
        contrast on its features in the U-Net's encoder at t = 0.
        """
        schedule = self.run.schedule
        alpha, step = schedule.levels[level], schedule.steps - level
        share = (1 - alpha).sqrt()
        x_in = ddim.predict_x0(x_t, noise, alpha) * share + x_t * (1 - share)
        weights = self.weights()
        terms: dict[str, Callable[[], torch.Tensor]] = {}
        if weights.keys() - {"contrast"}:
            picture = self._through(self.backbone.decode_with_gradient, x_in)
            terms["mse"] = lambda: F.mse_loss(picture, self.source)
            terms["range_loss"] = lambda: (picture - picture.clamp(-1, 1)).square().mean()
            terms |= self._clip_terms(picture, weights, step % PATCH_SETS)
        terms["contrast"] = lambda: self._contrast(x_in)
        return {name: weight * terms[name]() for name, weight in weights.items()}

    def weights(self) -> dict[str, float]:
        """The weight of each loss, without zero weights.

        ZeCon's code switches two losses off above t = 700 and 800, but compares with an index of at most 49.
        """
        settings = self.settings
        style, content = settings.style_share, settings.content_share
        weights = {
            "global_whole": style * settings.global_whole,
            "direction_whole": style * settings.direction_whole,
            "global_patches": style * settings.global_patches,
            "direction_patches": style * settings.direction_patches,
            "contrast": content * settings.contrast,
            "mse": content * settings.mse,
            "perceptual": content * settings.perceptual,
            "range_loss": settings.range_loss,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def _clip_terms(
        self, picture: torch.Tensor, weights: dict[str, float], turn: int
    ) -> dict[str, Callable[[], torch.Tensor]]:
        """CLIP's losses. The whole image and the patches are embedded in one batch, each only if needed."""
        side = self.clip.side
        wanted = []
        if whole := weights.keys() & {"global_whole", "direction_whole", "perceptual"}:
            wanted.append(self.clip.framed(picture))
        if patches := weights.keys() & {"global_patches", "direction_patches"}:
            wanted.append(cut(picture, self.boxes[turn], side))
        if not wanted:
            return {}
        with self.clip.checkpointing(self._saves):
            embeddings, tokens = self.clip.embed(torch.cat(wanted))
        terms: dict[str, Callable[[], torch.Tensor]] = {}
        if whole:
            terms["global_whole"] = lambda: self._global(embeddings[:1])
            terms["direction_whole"] = lambda: self._direction(embeddings[:1] - self.source_embeddings.whole)
            terms["perceptual"] = lambda: (
                1 - F.cosine_similarity(tokens[:1], self.source_embeddings.tokens, dim=-1)
            ).mean()
        if patches:
            of_patches = embeddings[-self.settings.patches :]
            terms["global_patches"] = lambda: self._global(of_patches)
            terms["direction_patches"] = lambda: self._direction(of_patches - self.source_embeddings.patches[turn])
        return terms

    def _global(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The mean spherical distance of images to the prompts, weighted by prompt."""
        return (spherical_distance(embeddings[:, None], self.targets[None]).mean(0) * self.shares).sum()

    def _direction(self, changes: torch.Tensor) -> torch.Tensor:
        """The mean of 1 − cos(ΔI, ΔT), weighted by prompt."""
        return (direction_distance(changes[:, None], self.changes[None]).mean(0) * self.shares).sum()

    def _contrast(self, x_in: torch.Tensor) -> torch.Tensor:
        def features(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(encoder_features(self.backbone, x, self.null, self.settings.features))

        return contrastive_loss(self._through(features, x_in), self.layers)

    def _through(self, function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
        """function(x), with gradient checkpointing if `save_memory` is “on”."""
        return checkpoint(function, x, use_reentrant=False) if self._saves else function(x)

    @property
    def _saves(self) -> bool:
        return self.settings.save_memory == "on"
