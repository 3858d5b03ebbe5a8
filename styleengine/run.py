"""One run of a method: inversion, sampling, caching, progress, previews, timing and the record.

A method plans its phases, inverts images, predicts noise at levels of its schedule, samples, and passes
its images to `Run.result`.
"""

import math
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils._pytree import tree_map

from styleengine import ddim
from styleengine.attention import KeysValues, Queries, Recorder, tapped
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.disk_cache import storable
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, fit, to_images, to_tensor, working_size
from styleengine.memory import RECORDED_AT_MOST, as_kept
from styleengine.metrics import psnr
from styleengine.phases import WAITING, Phase, inverting
from styleengine.settings import Settings
from styleengine.stylization import InputRecord, OnStep, StepEvent, Stylization

LARGEST_RECORD = RECORDED_AT_MOST
# Positions: a CPU evaluates a batch of two 1.5 times as fast as two images of this size, of 40 × 40 no faster.
SMALL_LATENTS = 32 * 32


@storable
@dataclass
class Trajectory:
    """An image's inverted latents x_0 … x_T, by level, and what the U-Net computed on the way.

    `evaluated` are the latents of each level at which inversion evaluated ε last; `keys_values` and `queries` are
    those of the U-Net's self-attention layers there, where they were recorded.
    """

    latents: list[torch.Tensor]
    evaluated: dict[int, torch.Tensor] = field(default_factory=dict)
    keys_values: dict[int, KeysValues] = field(default_factory=dict)
    queries: dict[int, Queries] = field(default_factory=dict)

    @property
    def x_T(self) -> torch.Tensor:  # noqa: N802 - the papers' symbol
        return self.latents[-1]

    @property
    def nbytes(self) -> int:
        pairs = [pair for layers in list(self.keys_values.values()) for pair in layers.values()]
        queries = [(q,) for layers in list(self.queries.values()) for q in layers.values()]
        latents = [*self.latents, *self.evaluated.values()]
        return sum(x.nbytes for group in (latents, *pairs, *queries) for x in group)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All as named tensors, from which `of` restores the trajectory."""
        named = {f"latents.{level}": x for level, x in enumerate(self.latents)}
        named |= {f"evaluated.{level}": x for level, x in self.evaluated.items()}
        for level, layers in self.keys_values.items():
            for layer, (k, v) in layers.items():
                named |= {f"keys.{level}.{layer}": k, f"values.{level}.{layer}": v}
        for level, layers in self.queries.items():
            named |= {f"queries.{level}.{layer}": q for layer, q in layers.items()}
        return named

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor]) -> "Trajectory":
        """The trajectory of these `tensors`; KeyError or ValueError if they are something else."""
        path = cls([named[f"latents.{level}"] for level in range(sum(name.startswith("latents.") for name in named))])
        for name, x in named.items():
            kind, *numbers = name.split(".")
            level, *layer = map(int, numbers)
            if kind == "evaluated":
                path.evaluated[level] = x
            elif kind == "keys":
                values = named[f"values.{level}.{layer[0]}"]
                path.keys_values.setdefault(level, {})[layer[0]] = (as_kept(x), as_kept(values))
            elif kind == "queries":
                path.queries.setdefault(level, {})[layer[0]] = as_kept(x)
        return path

    def split(self) -> "list[Trajectory]":
        """One trajectory for each image of a batch, with its latents and queries."""

        def part(i: int) -> Trajectory:
            row = slice(i, i + 1)
            queries = {level: {layer: q[row] for layer, q in layers.items()} for level, layers in self.queries.items()}
            evaluated = {level: x[row] for level, x in self.evaluated.items()}
            return Trajectory([x[row] for x in self.latents], evaluated, queries=queries)

        return [part(i) for i in range(len(self.latents[0]))]


@dataclass(frozen=True)
class Recording:
    """What to record of an inversion: keys and values, or queries, of some self-attention layers at some levels.

    It is recorded where inversion evaluates ε last, so that it costs no further evaluation of the U-Net. Beyond
    `LARGEST_RECORD` bytes nothing is kept, and `at` evaluates the U-Net there again, with the same result. On a small
    GPU it is kept in the host's memory.
    """

    what: Literal["keys_values", "queries"]
    layers: Sequence[int]
    levels: Collection[int]

    def at(self, run: "Run", path: Trajectory, level: int) -> dict[int, Any]:
        """The recorded tensors of a level on the run's device, by layer."""
        known = getattr(path, self.what).get(level, {})
        if not all(layer in known for layer in self.layers):
            return self._evaluated(run, path, level)[1]
        wanted = {layer: known[layer] for layer in self.layers}
        return tree_map(lambda x: x.to(run.backbone.device, non_blocking=True), wanted)

    def noise(self, run: "Run", path: Trajectory, level: int) -> torch.Tensor:
        """ε_θ at the level's `evaluated` latents, recorded in the trajectory."""
        if level not in self.levels:
            return run.noise(path.evaluated[level], level)
        return self._evaluated(run, path, level)[0]

    def _evaluated(self, run: "Run", path: Trajectory, level: int) -> tuple[torch.Tensor, dict[int, Any]]:
        recorder = Recorder()
        with tapped(run.backbone.unet, recorder, self.layers):
            noise = run.noise(path.evaluated[level], level)
        found: dict[int, Any] = getattr(recorder, self.what)
        nbytes = sum(x.nbytes for x in chain.from_iterable(found.values()))  # of (k, v), or of the rows of q
        if nbytes * len(self.levels) <= LARGEST_RECORD * len(noise):
            kept = getattr(path, self.what)
            moved = tree_map(as_kept, found)
            kept[level] = kept.get(level, {}) | moved
        return noise, found


class Run:
    """A run on `backbone` along `schedule`. Levels count from 0 (clean) to `schedule.steps` (noise).

    `on_step` is called after each step and may raise `Cancelled`. `cache` keeps inversions and a method's
    other entries between runs.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: ddim.Schedule,
        on_step: OnStep | None = None,
        cache: ByteCache | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.backbone, self.schedule, self.on_step = backbone, schedule, on_step
        self.cache = cache if cache is not None else ByteCache(0)
        self.null = backbone.condition([""])
        self.phases: list[Phase] = []
        self.first_preview: Image.Image | None = None

    # Progress

    def plan(self, phases: Sequence[Phase], first_preview: Image.Image) -> None:
        """Sets the phases, each with the schedule's steps. `first_preview` is shown until something can be decoded."""
        self.phases, self.first_preview = list(phases), first_preview

    def begin(self, phase: Phase) -> None:
        """Reports that all phases before `phase` are done, including cached ones."""
        if self.on_step and phase in self.phases:
            first = self.first_preview
            self.on_step(StepEvent(phase, self._done(phase), self._total, lambda: first))  # type: ignore[arg-type,return-value]

    def after(self, phase: Phase) -> ddim.AfterStep | None:
        """The callback after each step of `phase`. It reports progress and previews the first image of a batch."""
        if self.on_step is None or phase not in self.phases:
            return None
        on_step, done = self.on_step, self._done(phase)

        def after_step(step: int, x_t: torch.Tensor, clean: torch.Tensor) -> None:
            on_step(StepEvent(phase, done + step, self._total, lambda: self._preview(clean)))

        return after_step

    def _preview(self, clean: torch.Tensor) -> Image.Image:
        try:
            return to_images(self.backbone.decode(clean[:1]))[0]
        except StyleEngineError:  # an intermediate x̂0 may not decode; x_0 must
            return self.first_preview  # type: ignore[return-value] - planned before anything is reported

    def _done(self, phase: Phase) -> int:
        return self.schedule.steps * self.phases.index(phase)

    @property
    def _total(self) -> int:
        return self.schedule.steps * len(self.phases)

    # The model

    def working_size(self, image: Image.Image, size: int) -> tuple[int, int]:
        """(width, height) in which the model works on an image whose shorter side becomes `size` pixels."""
        return working_size(image, size, self.backbone.multiple)

    def noise(self, x_t: torch.Tensor, level: int) -> torch.Tensor:
        """ε_θ(x_t, t, ∅) at a level."""
        return self.backbone.predict_noise(x_t, self.schedule.timesteps[level], self.null)

    def noise_with_gradient(self, x_t: torch.Tensor, level: int) -> torch.Tensor:
        """`noise`, differentiable with respect to x_t if gradients are enabled."""
        return self.backbone.predict_noise_with_gradient(x_t, self.schedule.timesteps[level], self.null)

    def invert(
        self,
        image: Image.Image,
        size: tuple[int, int],
        iterations: int,
        phase: Phase,
        record: "Recording | None" = None,
    ) -> Trajectory:
        """The image, resized to `size` (width, height) and inverted under the null condition, or from the cache.

        A new inversion also records what `record` asks for, without further U-Net evaluations.
        """

        def make() -> Trajectory:
            return self.inverted(self.backbone.encode(to_tensor(fit(image, size))), iterations, phase, record)

        self.begin(phase)
        return self.cache.get_or_make(self.key(image, size, iterations), make)

    def batch_pays(self, size: tuple[int, int]) -> bool:
        """Whether images of `size` (width, height) are inverted faster in a batch than one by one.

        They are on a GPU, and on a CPU if the latents are small.
        """
        return self.backbone.device.type == "cuda" or math.prod(size) <= SMALL_LATENTS * self.backbone.multiple**2

    def invert_all(
        self,
        images: Sequence[Image.Image],
        size: tuple[int, int],
        iterations: int,
        phases: Sequence[Phase],
        record: "Recording | None" = None,
    ) -> list[Trajectory]:
        """As `invert`, for several images of one working size. `phases` are those of `phases_of`.

        Kernels round by the size of the batch (about 10⁻⁶ in float32). Therefore a batch, with what was recorded, is
        one entry of the cache, and is not put together from images that were inverted alone: what is cached does not
        change the result. For the same reason styles, which are reused with other contents, are always inverted alone.
        """
        if len(phases) == len(images):
            return [
                self.invert(image, size, iterations, phase, record) for image, phase in zip(images, phases, strict=True)
            ]

        def make() -> Trajectory:
            x_0 = torch.cat([self.backbone.encode(to_tensor(fit(image, size))) for image in images])
            return self.inverted(x_0, iterations, phases[0], record)

        self.begin(phases[0])
        key = ("batch", record, *(self.key(image, size, iterations) for image in images))
        return self.cache.get_or_make(key, make).split()

    def phases_of(self, what: str, count: int, size: tuple[int, int]) -> list[Phase]:
        """The phases of `invert_all`: one for all, if they are inverted as a batch, or else one for each image."""
        if count > 1 and self.batch_pays(size):
            return [inverting(f"{what}s 1–{count}")]
        return [inverting(f"{what} {i + 1}") for i in range(count)]

    def inverted(
        self, x_0: torch.Tensor, iterations: int, phase: Phase, record: "Recording | None" = None
    ) -> Trajectory:
        """The trajectory of latents (batch, channels, height, width) under the null condition."""
        path = Trajectory([])

        def noise(x_t: torch.Tensor, level: int) -> torch.Tensor:
            path.evaluated[level] = x_t
            return record.noise(self, path, level) if record else self.noise(x_t, level)

        path.latents = ddim.invert(x_0, self.schedule, noise, iterations, self.after(phase))
        return path

    def autoencoder_psnr(self, image: Image.Image, size: tuple[int, int], x_0: torch.Tensor) -> float:
        """PSNR in dB of the image, resized to `size` (width, height), after encoding to `x_0` and decoding.

        It is kept with the inversions, because decoding takes as long as some steps.
        """

        def make() -> torch.Tensor:
            target = to_tensor(fit(image, size))
            return torch.tensor(psnr(self.backbone.decode(x_0).cpu(), target), dtype=torch.float64)

        key = "autoencoder_psnr", content_hash(image), size, self.backbone.identity
        return self.cache.get_or_make(key, make).item()

    def key(self, image: Image.Image, size: tuple[int, int], iterations: int) -> tuple[Hashable, ...]:
        """The cache key of an inversion: everything it depends on."""
        return content_hash(image), size, self.backbone.identity, self.schedule.timesteps, iterations

    def sample(
        self,
        x_T: torch.Tensor,  # noqa: N803 - the papers' symbol
        noise: ddim.NoisePredictor,
        phase: Phase,
        before_step: ddim.BeforeStep | None = None,
    ) -> torch.Tensor:
        """x_0 from x_T by DDIM steps with the noise that `noise` predicts."""
        self.begin(phase)
        return ddim.sample(x_T, self.schedule, noise, before_step=before_step, after_step=self.after(phase))

    # The record

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def result(
        self,
        image: Image.Image,
        method: str,
        settings: Settings,
        inputs: Sequence[InputRecord],
        *,
        details: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
        share: int = 1,
    ) -> Stylization:
        """The image with everything needed to reproduce it. `share` is how many images the run made together."""
        backbone = self.backbone
        return Stylization(
            image=image,
            method=method,
            settings=settings.model_dump(),
            backbone=backbone.name,
            revision=backbone.revision,
            device=backbone.device.type,
            dtype=backbone.precision,
            inputs=list(inputs),
            seconds=self.seconds / share,
            details=details or {},
            notes=list(dict.fromkeys(filter(None, notes))),
        )


def part_of(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """An `on_step` for one of several equal runs, counting steps over all of them."""
    if on_step is None or count == 1:
        return on_step

    def on_part(event: StepEvent) -> None:
        on_step(replace(event, step=number * event.total + event.step, total=count * event.total))

    return on_part


def waiting(on_step: OnStep | None, shown: Image.Image | None = None) -> Callable[[], None] | None:
    """A callback that reports to `on_step` that a run is waiting; `shown` is its preview."""
    if on_step is None:
        return None
    picture = shown or Image.new("RGB", (1, 1), "white")
    event = StepEvent(WAITING, 0, 1, lambda: picture)
    return lambda: on_step(event)
