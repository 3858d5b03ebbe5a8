"""Z-STAR+ for clips: the image method frame by frame, held together in two ways.

Inter-frame attention: a frame's self-attention sees the keys and values of the first and the
previous frame in place of its own (Eq. 18), beside the styles'. Energy: at each step the frame is
drawn towards the previous one in the noise-free domain (Eq. 19), but, beyond the paper, not where the
clip itself moves. Frame i needs only frames 0 and i − 1 at each step and layer, so a clip of any length
is worked on in the same memory.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any, Literal

import torch
from PIL import Image

from styleengine import ddim
from styleengine.attention import KeysValues, attend, tapped
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import Cancelled
from styleengine.images import fit, to_images, to_tensor, working_size
from styleengine.method import Call, Kind, Method, Role
from styleengine.metrics import frame_differences
from styleengine.phases import Phase, inverting, stylizing
from styleengine.run import Run, Trajectory
from styleengine.settings import knob
from styleengine.style_attention import (
    StyleAttention,
    StyleAttentionSettings,
    StyleInjection,
    check,
    invert_styles,
    style_phases,
)
from styleengine.styles import Style, mask_notes, style_records
from styleengine.stylization import InputRecord, OnStep, StepEvent, VideoStylization
from styleengine.video import Selection, VideoClip, write_clip
from styleengine.workfolder import WorkFolder

MOST_FRAMES = 3000
MOST_FRAMES_AT_ONCE = 8  # a clip's state is kept after each batch of frames
TINY = 1e-12
MOTION = 0.3  # a change of a frame's latents, in units of their spread, at which it moves rather than rests
RESULT, ALONE = "frames", "alone"  # the series of frames in the work folder
CLIP_ROLE = "clip"  # of the input that is no picture
FIRST, PREVIOUS = "first", "previous"  # the records of frames there


class ZStarVideoSettings(StyleAttentionSettings):
    """Settings of Z-STAR+ for clips: those for pictures, which part of the clip, and what steadies it."""

    frames: int = knob(48, "Most frames to redraw; the rest of the clip is left out.", ge=1, le=MOST_FRAMES)
    rate: float = knob(
        12.0, "Frames per second of the result; 0 keeps the clip's own.", title="Frame rate", ge=0, le=60
    )
    begin: float = knob(0.0, "Second of the clip at which to begin.", title="Begin at second", ge=0, le=3600)
    energy: float = knob(
        0.3,
        "Share of the difference to the previous frame that is taken away over the run; much of it costs style.",
        title="Steadiness",
        ge=0,
        le=0.95,
    )
    attention: Literal["all", "styled", "none"] = knob(
        "all",
        "In which layers frames see the first and the previous frame: all, those that see the styles, or none.",
        title="Inter-frame attention",
        rare=True,
    )
    spare_motion: bool = knob(
        True,
        "Steadiness gives way where the clip itself moves; without this, what moves is steadier and blurs.",
        rare=True,
    )
    balance: float = knob(
        1.0,
        "How many times the styles count beside the keys of two frames; at 2 as much as beside one frame's own.",
        rare=True,
        ge=1,
        le=8,
    )
    gradient: Literal["closed_form", "backprop"] = knob(
        "closed_form", "The energy's gradient: with the noise held fixed, or through the U-Net (slower).", rare=True
    )
    compare: bool = knob(
        False, "Also redraw each frame on its own and report how much more that flickers (takes longer).", rare=True
    )

    def joined_layers(self) -> range:
        """The self-attention layers with inter-frame attention."""
        return {"all": range(16), "styled": self.styled_layers(), "none": range(0)}[self.attention]

    def pull(self) -> float:
        """w: the share of x̂0's difference taken away per step, `energy` being that of all steps together."""
        return 1 - (1 - self.energy) ** (1 / self.steps)


@dataclass
class FrameRecord:
    """What later frames need of a frame: its content's latents; by noise level each layer's keys and values, and x̂0."""

    content: torch.Tensor
    keys_values: dict[int, KeysValues] = field(default_factory=dict)
    clean: dict[int, torch.Tensor] = field(default_factory=dict)

    def forget(self, level: int) -> None:
        """Lets go of what belongs to a noise level."""
        self.keys_values.pop(level, None)
        self.clean.pop(level, None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as named tensors."""
        named = {"content": self.content} | {f"clean.{level}": x for level, x in self.clean.items()}
        for level, layers in self.keys_values.items():
            for layer, (k, v) in layers.items():
                named |= {f"keys.{level}.{layer}": k, f"values.{level}.{layer}": v}
        return named

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor], device: torch.device) -> "FrameRecord":
        """The record whose `tensors` these are."""
        record = cls(named["content"].to(device))
        for name, x in named.items():
            if name == "content":
                continue
            kind, *numbers = name.split(".")
            level = int(numbers[0])
            if kind == "clean":
                record.clean[level] = x.to(device)
            elif kind == "keys":
                v = named[f"values.{level}.{numbers[1]}"]
                record.keys_values.setdefault(level, {})[int(numbers[1])] = (x.to(device), v.to(device))
        return record


class FrameAttention:
    """The tap of a frame: keeps its keys and values, and lets it see those of earlier frames and the styles.

    `references` are the keys and values of the first and the previous frame (none for the first),
    `injection` the styles', or None where they have no part.
    """

    def __init__(
        self,
        references: Sequence[KeysValues],
        joined_layers: range,
        injection: StyleInjection | None,
        styled_layers: range,
    ) -> None:
        self.references, self.joined_layers = references, joined_layers
        self.injection, self.styled_layers = injection, styled_layers
        self.own: KeysValues = {}

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer in self.joined_layers:
            self.own[layer] = (k.detach(), v.detach())
            if self.references:  # Eq. 18
                k = torch.cat([reference[layer][0] for reference in self.references], 2)
                v = torch.cat([reference[layer][1] for reference in self.references], 2)
        if self.injection and layer in self.styled_layers:
            return self.injection(layer, q, k, v)
        return attend(q, k, v)


def energy_gradient(clean: torch.Tensor, reference: torch.Tensor, alpha_t: torch.Tensor) -> torch.Tensor:
    """∇E for E = ‖x̂0_i − x̂0_{i−1}‖² by x_t with ε held fixed, where ∂x̂0/∂x_t = 1/√ᾱ_t."""
    return 2 * (clean - reference) / alpha_t.sqrt()


def stillness(content: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """How still the clip is at each place, from nearly 0 to 1: exp(−d²/τ²) (1, 1, height, width).

    d is the root mean square difference of two neighbouring frames' latents (1, channels, height, width)
    in units of their spread, τ is MOTION. Eq. 19 draws everything alike towards the previous frame;
    where something moves that was another thing's place.
    """
    change = (content - previous).square().mean(1, keepdim=True) / previous.var().clamp(min=TINY)
    return torch.exp(-change / MOTION**2)


def step_width(pull: float | torch.Tensor, alpha_t: torch.Tensor, alpha_prev: torch.Tensor) -> torch.Tensor:
    """w of Eq. 19, such that at every noise level x̂0 loses the share `pull` of its difference.

    ∇E grows as 1/√ᾱ_t and x_{t−1} carries x̂0 by √ᾱ_{t−1}; with w = pull·√(ᾱ_t·ᾱ_{t−1})/2 and ε held
    fixed, f ← f − w·∇E is x̂0 ← x̂0 − pull·(x̂0 − x̂0_{i−1}).
    """
    return pull * (alpha_t * alpha_prev).sqrt() / 2


class FramePainter:
    """Redraws frames one by one, each from its inverted noise, with one set of styles and settings."""

    def __init__(
        self,
        run: Run,
        styles: Sequence[Style],
        paths: Sequence[Trajectory],
        settings: ZStarVideoSettings,
        size: tuple[int, int],
    ) -> None:
        self.run, self.settings = run, settings
        heavier = [replace(style, weight=settings.balance * style.weight) for style in styles]
        self.attention = StyleAttention(run, settings, styles, paths, size)
        self.joined_attention = StyleAttention(run, settings, heavier, paths, size)

    def alone(self, x_T: torch.Tensor, after_step: ddim.AfterStep | None) -> torch.Tensor:  # noqa: N803
        """x_0 of a frame by the image method."""
        return self._denoised(x_T, [], None, after_step)

    def first(
        self,
        x_T: torch.Tensor,  # noqa: N803
        content: torch.Tensor,
        after_step: ddim.AfterStep | None,
    ) -> tuple[torch.Tensor, FrameRecord]:
        """x_0 of the first frame, which is the image method's, and its record; `content` are its own latents."""
        record = FrameRecord(content)
        return self._denoised(x_T, [], record, after_step), record

    def next(
        self,
        x_T: torch.Tensor,  # noqa: N803
        content: torch.Tensor,
        first: FrameRecord,
        previous: FrameRecord,
        after_step: ddim.AfterStep | None,
    ) -> tuple[torch.Tensor, FrameRecord]:
        """x_0 of a later frame, and its record. `previous` is used up, level by level, unless it is the first."""
        record = FrameRecord(content)
        return self._denoised(x_T, [first, previous], record, after_step), record

    @torch.no_grad()
    def _denoised(
        self,
        x_T: torch.Tensor,  # noqa: N803
        references: Sequence[FrameRecord],
        record: FrameRecord | None,
        after_step: ddim.AfterStep | None,
    ) -> torch.Tensor:
        x_t, pull = self.attention.start(x_T), self.settings.pull()
        drawn: float | torch.Tensor = pull
        if self.settings.spare_motion and references and record is not None:
            drawn = pull * stillness(record.content, references[-1].content)
        schedule = self.run.schedule
        for level in range(schedule.steps, 0, -1):
            alpha, alpha_prev = schedule.levels[level], schedule.levels[level - 1]
            tap = self._tap(level, references)
            reference = references[-1].clean[level] if references and pull > 0 else None
            if reference is None:
                noise, gradient = self._noise(x_t, level, tap), None
            elif self.settings.gradient == "closed_form":
                noise = self._noise(x_t, level, tap)
                gradient = energy_gradient(ddim.predict_x0(x_t, noise, alpha), reference, alpha)
            else:
                noise, gradient = self._backpropagated(x_t, level, tap, reference)
            clean = ddim.predict_x0(x_t, noise, alpha)
            x_t = ddim.step(x_t, noise, alpha, alpha_prev)
            if gradient is not None:  # Eq. 19
                x_t = x_t - step_width(drawn, alpha, alpha_prev) * gradient
            if record is not None:
                record.keys_values[level], record.clean[level] = tap.own, clean
                if references and references[-1] is not references[0]:
                    references[-1].forget(level)
            if after_step:
                after_step(schedule.steps - level + 1, x_t, clean)
        return x_t

    def _tap(self, level: int, references: Sequence[FrameRecord]) -> FrameAttention:
        joined = self.settings.joined_layers()
        joined_with = [record.keys_values[level] for record in references] if joined else []
        attention = self.joined_attention if joined_with else self.attention
        return FrameAttention(joined_with, joined, attention.at(level), self.settings.styled_layers())

    def _noise(self, x_t: torch.Tensor, level: int, tap: FrameAttention) -> torch.Tensor:
        with self._tapped(tap):
            return self.run.noise(x_t, level)

    def _backpropagated(
        self, x_t: torch.Tensor, level: int, tap: FrameAttention, reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ε and ∇E by x_t, the latter through the U-Net."""
        with torch.enable_grad(), self._tapped(tap):
            x_t = x_t.detach().requires_grad_()
            noise = self.run.noise_with_gradient(x_t, level)
            clean = ddim.predict_x0(x_t, noise, self.run.schedule.levels[level])
            (gradient,) = torch.autograd.grad((clean - reference).square().sum(), x_t)
        return noise.detach(), gradient

    def _tapped(self, tap: FrameAttention) -> Any:
        layers = {*tap.joined_layers, *(tap.styled_layers if tap.injection else ())}
        return tapped(self.run.backbone.unet, tap, sorted(layers))


def stylize_clip(
    backbone: Backbone,
    clip: VideoClip,
    styles: Sequence[Style],
    settings: ZStarVideoSettings,
    *,
    output: Path,
    work: Path,
    resumable: bool = True,
    batch: int = 4,
    keep_partial: bool = False,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
) -> VideoStylization:
    """Redraws a clip in one or more styles and writes it to `output`, an MP4.

    `work` is a folder for what is finished; a run that finds one of its own kind there goes on from
    it and gives the same frames. What that needs is kept only where the run is `resumable`. `batch`
    frames are inverted at a time. Cancelled in `on_step` stops the run; with `keep_partial` the frames
    finished by then, if any, are written and returned.

    Raises StyleEngineError as `zstar.stylize_all` does, and for a part of the clip or a work folder
    that will not do.
    """
    check(backbone, styles, settings)
    part = clip.select(settings.rate, settings.begin, settings.frames)
    sound = part.sound()  # looked into before there is anything to lose
    inputs = [InputRecord(CLIP_ROLE, clip.sha256, clip.name), *style_records(styles)]
    manifest = {
        "clip": clip.sha256,
        "styles and masks": [[entry.role, entry.sha256, entry.weight] for entry in inputs[1:]],
        "model": backbone.identity,
        **settings.model_dump(),
    }
    folder = WorkFolder(work, manifest, {"batch": batch})
    visible = [style for style in styles if style.weight > 0]
    clip_run = _ClipRun(backbone, part, visible, settings, folder, resumable, on_step, cache)
    try:
        clip_run.finish()
    except Cancelled:
        if not keep_partial or not folder.finished(RESULT):
            raise
    count = min(folder.finished(RESULT), part.count)
    notes = [*part.notes(), sound.note or "", *mask_notes(styles, clip.poster)]
    differences = clip_run.differences(count)
    details = _details(differences)
    still = clip_run.run.result(folder.frame(RESULT, 0), "zstar_video", settings, inputs, details=details, notes=notes)
    record = VideoStylization(
        **vars(still),
        path=output,
        frames=count,
        rate=part.rate,
        complete=count == part.count,
        differences=differences,
    )
    result = replace(record, seconds=clip_run.run.seconds)
    heard = replace(part, count=count)
    write_clip(output, folder.frames(RESULT, count), part.rate, sound=heard, record=result.as_text())
    return result


class _ClipRun:
    """The frames of one run, from the first that is missing in the work folder to the last."""

    def __init__(
        self,
        backbone: Backbone,
        part: Selection,
        styles: Sequence[Style],
        settings: ZStarVideoSettings,
        folder: WorkFolder,
        resumable: bool,
        on_step: OnStep | None,
        cache: ByteCache | None,
    ) -> None:
        self.resumable, self.part, self.styles, self.settings, self.folder = resumable, part, styles, settings, folder

        def with_last_frame(event: StepEvent) -> None:
            if on_step:
                on_step(replace(event, preview=lambda: self.shown))

        schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
        self.run = Run(backbone, schedule, with_last_frame if on_step else None, cache)
        self.size = self.run.working_size(part.clip.poster, settings.size)
        self.shown = fit(part.clip.poster, self.size)

    def finish(self) -> None:
        """Makes the frames that are missing."""
        first, previous, done = self._kept()
        if done == self.part.count:
            return
        batches = [numbers for numbers in self._batches() if numbers.stop > done]
        self.run.plan([phase for part in self._phases(batches) for phase in part], self.shown)
        painter = FramePainter(
            self.run, self.styles, invert_styles(self.run, self.styles, self.settings), self.settings, self.size
        )
        if first:
            self.shown = self.folder.frame(RESULT, done - 1)
        frames = islice(self.part.frames(), done, None)
        for numbers in batches:
            given = self._inverted([next(frames) for _ in numbers], _inverting(numbers))
            for number, (content, x_T) in zip(numbers, given, strict=True):  # noqa: N806 - the paper's symbol
                phase = self._painting(number)
                self.run.begin(phase)
                after = self.run.after(phase)
                if first and previous:
                    x_0, previous = painter.next(x_T, content, first, previous, after)
                else:
                    x_0, first = painter.first(x_T, content, after)
                    previous = first
                self.shown = to_images(self.run.backbone.decode(x_0))[0]
                if self.settings.compare:
                    lonely = painter.alone(x_T, self.run.after(self._painting(number, " alone")))
                    self.folder.save_frame(ALONE, number, to_images(self.run.backbone.decode(lonely))[0])
                self.folder.save_frame(RESULT, number, self.shown)
            if self.resumable:
                self._keep(first, previous, numbers)

    def differences(self, count: int) -> dict[str, list[float]]:
        """Diff of each pair of neighbours among the first `count` frames: of the result and what it compares to."""
        source = (fit(frame, self.size) for frame in islice(self.part.frames(), count))
        series: dict[str, Iterator[Image.Image]] = {"result": self.folder.frames(RESULT, count), "clip": source}
        if self.settings.compare:
            series["alone"] = self.folder.frames(ALONE, count)
        return {name: frame_differences(map(to_tensor, images)) for name, images in series.items()}

    def _batches(self) -> list[range]:
        """Frame 0 by itself, as the image method would invert it, then equal batches."""
        batch, count = self.folder.fixed["batch"], self.part.count
        return [range(1), *(range(i, min(i + batch, count)) for i in range(1, count, batch))]

    def _phases(self, batches: Sequence[range]) -> Iterator[list[Phase]]:
        yield style_phases(self.styles)
        for numbers in batches:
            yield [_inverting(numbers)]
            for number in numbers:
                yield [self._painting(number)]
                yield [self._painting(number, " alone")] * self.settings.compare

    def _inverted(self, frames: Sequence[Image.Image], phase: Phase) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The latents and x_T of each frame, (1, channels, height, width) each."""
        run = self.run
        run.begin(phase)
        x_0 = run.backbone.encode(torch.cat([to_tensor(fit(frame, self.size)) for frame in frames]))
        iterations = self.settings.inversion_iterations
        x_T = ddim.invert(x_0, run.schedule, run.noise, iterations, run.after(phase))[-1]  # noqa: N806
        return list(zip(x_0.split(1), x_T.split(1), strict=True))

    def _painting(self, number: int, how: str = "") -> Phase:
        return stylizing(f"frame {number + 1} of {self.part.count}{how}")

    def _keep(self, first: FrameRecord | None, previous: FrameRecord | None, numbers: range) -> None:
        if first and numbers.start == 0:
            self.folder.save_tensors(FIRST, first.tensors(), 0)
        elif previous:
            self.folder.save_tensors(PREVIOUS, previous.tensors(), numbers[-1])

    def _kept(self) -> tuple[FrameRecord | None, FrameRecord | None, int]:
        """The records of the first and the last kept frame, and how many frames are done with."""
        first = self.folder.load_tensors(FIRST)
        if first is None:
            return None, None, 0
        last, number = self.folder.load_tensors(PREVIOUS) or first
        records = [FrameRecord.of(tensors, self.run.backbone.device) for tensors in (first[0], last)]
        return records[0], records[1], number + 1


def _inverting(numbers: range) -> Phase:
    shown = f"{numbers[0] + 1}–{numbers[-1] + 1}" if len(numbers) > 1 else f"{numbers[0] + 1}"
    return inverting(f"frames {shown}")


def _details(differences: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean and variance of each series of differences (the paper's Table III)."""
    details = {}
    for name, values in differences.items():
        if values:
            details |= {f"{name}_diff_mean": fmean(values), f"{name}_diff_variance": pvariance(values)}
    return details


def _run(call: Call) -> VideoStylization:
    clip, settings = call.inputs["clip"], call.settings
    width, height = working_size(clip.poster, settings.size, call.backbone.multiple)
    with tempfile.TemporaryDirectory(prefix="styleengine-frames-") as passing:
        return stylize_clip(
            call.backbone,
            clip,
            call.inputs["style"],
            settings,
            output=call.output or Path(passing, "result.mp4"),
            work=call.work or Path(passing),
            resumable=call.work is not None,
            batch=min(MOST_FRAMES_AT_ONCE, call.batch(width * height)),
            keep_partial=call.keep_partial,
            on_step=call.on_step,
            cache=call.cache,
        )


ZSTAR_VIDEO = Method(
    "zstar_video",
    "Z-STAR+ for video",
    "Redraws a clip in the style of one or more images, without flicker.",
    ZStarVideoSettings,
    (
        Role("clip", Kind.CLIP, "The clip to redraw."),
        Role("style", Kind.STYLES, "The image whose style is taken.", most=2),
        Role(
            "mask",
            Kind.STYLE_MASK,
            "With one style: white where it applies. With two: white for the second, black for the first.",
            required=False,
        ),
    ),
    _run,
    inherits="zstar",
    suffix=".mp4",
    tool="stylize_video_like_images",
)
