"""InST, learning: a token embedding of one or several paintings, by attention over CLIP's embeddings of them.

A few cross-attention layers map CLIP's embeddings of a painting to a token embedding for “*”. They
are trained to minimise the denoising loss on the painting with the prompt “*”. U-Net, text encoder
and CLIP are frozen. After Zhang et al., "Inversion-based Style Transfer with Diffusion Models"
(CVPR 2023); a plain embedding in place of the attention is textual inversion (Gal et al., 2022).
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from styleengine.backbones import PLACEHOLDER, LatentBackbone
from styleengine.cache import ByteCache
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.learned_style import LearnedStyle, StyleRecord, fitting_name, thumbnail_of
from styleengine.memory import learning_bytes, saving
from styleengine.method import several
from styleengine.methods.inst.draws import STEP_DRAW, VALIDATION_DRAW, generator_of
from styleengine.methods.inst.inversion import AttentionInversion, PlainWord
from styleengine.methods.inst.paintings import Paintings, hash_of
from styleengine.methods.inst.settings import InSTLearningSettings
from styleengine.methods.inst.views import TrainingViews, prepare
from styleengine.perceptual import Clip
from styleengine.version import __version__
from styleengine.workfolder import check_same_run

BEST_WORD = "best_word"  # in a style's state: the embedding with the lowest regular validation loss
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
VALIDATED = 8  # (t, ε) pairs in the fixed validation set, at least
KEEP_PAUSE = 10.0  # seconds between two saves of unfinished learning
CHANGEABLE = {"steps", "patience", "save_memory"}  # settings of a resumed run that may differ
LEAST_FALL = 1e-3  # relative decrease of the validation loss that counts as an improvement


@dataclass(frozen=True)
class LearningState:
    """Progress of learning. `style()` returns the current style; call it before the next state.

    `loss` is that of the step, None before the first; `validations` are the (step, validation loss) pairs so
    far. Time between two states does not count in `steps_per_second`. `style` has two options, both off
    by default: `with_state` adds what `learn` needs to resume, and `look` also validates the embedding
    of the current step.
    """

    step: int
    total: int
    loss: float | None
    validations: tuple[tuple[int, float], ...]
    steps_per_second: float
    finished: bool
    style: Callable[..., LearnedStyle]


def learn(
    backbone: LatentBackbone,
    paintings: Paintings,
    clip: Callable[[], Clip],
    settings: InSTLearningSettings,
    *,
    name: str = "",
    known: LearnedStyle | None = None,
    cache: ByteCache | None = None,
) -> Iterator[LearningState]:
    """Learns the style of one painting, or of several by one artist.

    Yields the initial state, then one after each step; the last one is `finished`.

    `known` is a style with its state to resume from: the result is that of an uninterrupted run. On CUDA
    runs are not bit-identical, because attention's backward kernels sum in no fixed order. `clip` is called
    only if `cache` does not have the paintings' embeddings.

    Raises StyleEngineError if `known` is of other paintings, another model or settings.
    """
    views = prepare(backbone, paintings, clip, settings, cache)
    needed = learning_bytes(settings.size**2, settings.batch, backbone.dtype.itemsize)
    settings = settings.replace(save_memory=saving(settings.save_memory, needed, backbone.device))
    learner = Learner(backbone, views, settings)
    sha256, shown = hash_of(paintings), several(paintings)[0]
    name = fitting_name(name or (known.record.name if known else ""))
    if known:
        check_same_run(
            f"The saved progress of the style “{known.record.name}”",
            _manifest(known.record.painting, known.record.revision, known.record.settings),
            _manifest(sha256, backbone.revision, settings.model_dump()),
        )
        learner.restore(known)
    elif not learner.validations:
        learner.validate()
    first, seconds = learner.step, 0.0

    def state(loss: float | None) -> LearningState:
        return LearningState(
            step=learner.step,
            total=settings.steps,
            loss=loss,
            validations=tuple(learner.validations),
            steps_per_second=(learner.step - first) / seconds if learner.step > first else 0.0,
            finished=learner.finished,
            style=functools.partial(learner.style, shown, sha256, name),
        )

    yield state(None)
    while not learner.finished:
        began = time.perf_counter()
        loss = learner.advance()
        seconds += time.perf_counter() - began
        yield state(loss)


def learned(
    states: Iterator[LearningState],
    partial: Path | None,
    seconds: float | None,
    report: Callable[[LearningState], None] | None,
) -> LearnedStyle:
    """The style at the last state, or at the first one after `seconds`, without the state for resuming.

    `partial` is the file for resuming. It is written periodically, and when `report` raises. `report` is called
    with each state.
    """
    began = kept = time.monotonic()
    first_step: int | None = None
    for state in states:
        first_step = state.step if first_step is None else first_step
        try:
            if report:
                report(state)
        except BaseException as error:
            if partial:
                state.style(True, look=isinstance(error, Cancelled)).save(partial)
            raise
        now = time.monotonic()
        over = seconds is not None and now - began > seconds and state.step > first_step  # at least one step
        if state.finished or over:
            style = state.style(True, look=True)
            if partial:
                style.save(partial)
            return style.without_state()
        if partial and now - kept > KEEP_PAUSE:
            state.style(True).save(partial)
            kept = now
    raise AssertionError("the last state is a finished one")


class Learner:
    """The module, its optimizer, and the loss. All random numbers depend only on the seed and the step number."""

    def __init__(self, backbone: LatentBackbone, views: TrainingViews, settings: InSTLearningSettings) -> None:
        self.backbone, self.views, self.settings = backbone, views, settings
        self.module = self._fresh_module().to(backbone.device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=self.rate(1))
        self.step = 0
        self.validations: list[tuple[int, float]] = []
        self.best_word = torch.zeros(1, backbone.word_width, dtype=torch.float32, device=backbone.device)

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps or self._stuck

    @property
    def _stuck(self) -> bool:
        """Whether the last `patience` validations brought no improvement."""
        patience, losses = self.settings.patience, [loss for _, loss in self.validations]
        if not patience or len(losses) <= patience:
            return False
        return min(losses[-patience:]) > min(losses[:-patience]) * (1 - LEAST_FALL)

    def rate(self, step: int) -> float:
        """The learning rate of a step: `learning_rate`·`batch` as in the authors' code, later falling as 1/step.

        Two runs that differ by rounding then end at nearer embeddings. It depends on the step alone and not on the
        number of steps, so that a longer run begins as a shorter one.
        """
        settings, whole = self.settings, self.settings.full_rate_steps or step
        return settings.learning_rate * settings.batch * min(1, whole / step)

    def _validates_at(self, step: int) -> bool:
        return step % self.settings.check_every == 0 or step >= self.settings.steps

    def advance(self) -> float:
        """One training step; returns its loss. Validates every `check_every` steps and at the last step.

        A step that fails has no effect.
        """
        step, count, views = self.step + 1, self.settings.batch, self.views
        generator = generator_of(self.settings.seed, STEP_DRAW + step)
        rows = torch.randint(len(views.latents), (count,), generator=generator)
        # Stratified over the timesteps: still uniform, with less variance.
        places = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float32)) / count
        noise = torch.randn((count, *views.latents.shape[1:]), generator=generator, dtype=torch.float32)
        with torch.enable_grad():
            words = self.module(views.pooled[rows], views.tokens[rows], generator)
            condition = self.backbone.condition_with_word(PLACEHOLDER, words)
            loss = self.loss(condition, views.latents[rows], places, noise)
            self.optimizer.zero_grad()
            self._backward(loss, noise[0].numel())
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.step = step
        if self._validates_at(step):
            self.validate()
        return float(loss.detach())

    def loss(
        self, condition: torch.Tensor, x_0: torch.Tensor, places: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """E‖ε − ε_θ(z_t, t, c)‖², the mean over all elements; `places` (batch,) in [0, 1) give the timesteps.

        For v-prediction the loss is E‖v − v_θ‖² = E‖ε − ε_θ‖²/ᾱ_t, which the model was trained with. At high t
        its ε is nearly z_t, so E‖ε − ε_θ‖² would hardly depend on the prompt.
        """
        backbone = self.backbone
        timesteps = (places * len(backbone.alphas_cumprod)).long().to(x_0.device)
        alpha, noise = backbone.alphas_cumprod[timesteps].view(-1, 1, 1, 1), noise.to(x_0)
        z_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        with checkpointing(backbone.unet, self.settings.save_memory == "on"):
            errors = (backbone.predict_noise_with_gradient(z_t, timesteps, condition) - noise).square()
        return (errors / alpha if backbone.prediction_type == "v_prediction" else errors).mean()

    @torch.no_grad()
    def validation_loss(self, condition: torch.Tensor) -> float:
        """The validation loss, on the fixed (t, ε) set, under a condition (1, tokens, width).

        The set depends only on the seed: evenly spaced timesteps, one noise for each, the crops in turn, and
        no fewer than there are paintings.
        """
        generator, latents = generator_of(self.settings.seed, VALIDATION_DRAW), self.views.latents
        count = max(VALIDATED, self.views.paintings)
        x_0 = latents[torch.arange(count) % len(latents)]
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float32)
        places = (torch.arange(count, dtype=torch.float32) + 0.5) / count
        room = min(VALIDATED, self.settings.batch)
        batches = zip(x_0.split(room), places.split(room), noise.split(room), strict=True)
        return sum(float(self.loss(condition, *batch)) * len(batch[0]) for batch in batches) / count

    def validate(self) -> float:
        """Validates the current embedding, records the loss, and keeps the best embedding."""
        word, loss = self._validated()
        if not self.validations or loss < min(entry[1] for entry in self.validations):
            self.best_word = word
        self.validations.append((self.step, loss))
        return loss

    @torch.no_grad()
    def _validated(self) -> tuple[torch.Tensor, float]:
        """The current embedding and its validation loss; StyleEngineError if that is not finite."""
        word = self.word()
        loss = self.validation_loss(self.backbone.condition_with_word(PLACEHOLDER, word))
        if not math.isfinite(loss):
            raise StyleEngineError(
                f"The loss is not finite after {self.step} steps (in {self.backbone.precision}). Load the model in "
                "bfloat16 or float32, or choose a smaller learning rate."
            )
        return word, loss

    @torch.no_grad()
    def word(self) -> torch.Tensor:
        """The current embedding (1, width), without dropout: the mean over the paintings' central crops."""
        count = self.views.paintings
        return self.module(self.views.pooled[:count], self.views.tokens[:count]).mean(0, keepdim=True)

    def style(
        self, shown: Image.Image, sha256: str, name: str, with_state: bool = False, look: bool = False
    ) -> LearnedStyle:
        """The style with the best embedding so far. With `look` the current embedding is validated too.

        `shown` is the painting of the thumbnail, `sha256` the hash over all paintings.
        This extra validation does not affect runs resumed from the style's state.
        """
        backbone, latents = self.backbone, self.views.latents[: self.views.paintings].flatten(2)
        validations, best_word = list(self.validations), self.best_word
        if look and validations[-1][0] < self.step:
            word, loss = self._validated()
            if loss < min(entry[1] for entry in validations):
                best_word = word
            validations.append((self.step, loss))
        return LearnedStyle(
            record=StyleRecord(
                name=name,
                painting=sha256,
                paintings=self.views.paintings,
                backbone=backbone.name,
                revision=backbone.revision,
                words=backbone.words,
                settings=self.settings.model_dump(),
                step=self.step,
                best_step=min(validations, key=lambda entry: entry[1])[0],
                complete=self.finished,
                history=validations,
                version=__version__,
            ),
            word=best_word[0].cpu(),
            latent_mean=latents.mean(2).mean(0).cpu(),
            latent_std=latents.std(2).mean(0).cpu(),
            thumbnail=thumbnail_of(shown),
            state=self._state() if with_state else {},
        )

    def restore(self, known: LearnedStyle) -> None:
        """Restores the state saved by `style`; StyleEngineError if it does not fit this module."""
        fresh = {name: x.shape for name, x in self._state(zeros=True).items()}
        if {name: x.shape for name, x in known.state.items()} != fresh:
            raise StyleEngineError(
                f"The style “{known.record.name}” has no valid state to resume learning from: start again."
            )
        with torch.no_grad():
            for name, weight in self.module.named_parameters():
                weight.copy_(known.state[f"module.{name}"])
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(known.record.step), dtype=torch.float32),
                    **{key: known.state[f"{key}.{name}"].to(weight, copy=True) for key in MOMENTS},
                }
        self.step = known.record.step
        self.validations = [entry for entry in known.record.history if self._validates_at(entry[0])]
        self.best_word = known.state[BEST_WORD].to(self.backbone.device)

    def _state(self, zeros: bool = False) -> dict[str, torch.Tensor]:
        state = {BEST_WORD: torch.zeros_like(self.best_word, device="cpu") if zeros else self.best_word.cpu().clone()}
        for name, weight in self.module.named_parameters():
            state[f"module.{name}"] = weight.detach().cpu().clone()
            moments: Mapping[str, Any] = self.optimizer.state.get(weight, {})
            for key in MOMENTS:
                state[f"{key}.{name}"] = (
                    moments[key].cpu().clone() if moments else torch.zeros_like(weight, device="cpu")
                )
        return state

    def _backward(self, loss: torch.Tensor, numbers: int) -> None:
        """Computes the gradient. In half precision it is that of the sum: that of the mean would underflow.

        A gradient that overflows is replaced by zero.
        """
        scale = numbers if self.backbone.dtype == torch.float16 else 1
        (loss * scale).backward()
        weights = [weight for weight in self.module.parameters() if weight.grad is not None]
        sound = all(bool(weight.grad.isfinite().all()) for weight in weights if weight.grad is not None)
        for weight in weights:
            weight.grad = weight.grad / scale if sound and weight.grad is not None else torch.zeros_like(weight)

    def _fresh_module(self) -> nn.Module:
        backbone, views = self.backbone, self.views
        widths = views.pooled.shape[-1], views.tokens.shape[-1], backbone.word_width
        module = AttentionInversion(*widths, backbone.word_size, self.settings).to(views.pooled.device)
        if self.settings.mode == "attention":
            return module
        with torch.no_grad():
            words = module(views.pooled[: views.paintings], views.tokens[: views.paintings])
            return PlainWord(words.mean(0, keepdim=True))


@contextmanager
def checkpointing(unet: Any, wanted: bool) -> Iterator[None]:
    """Within the context, the U-Net uses gradient checkpointing, if `wanted`."""
    before = unet.is_gradient_checkpointing
    if not wanted or before:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def _manifest(painting: str, revision: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a run: hash of the paintings, the model's revision, and settings. The others may change."""
    fields = {name: field for name, field in InSTLearningSettings.model_fields.items() if name not in CHANGEABLE}
    known = {name: settings.get(name, field.default) for name, field in fields.items()}  # of any earlier version
    return {"painting": painting, "model": revision, **known}
