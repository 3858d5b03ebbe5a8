"""Redraws the missing frames of a clip and writes the MP4."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean, pvariance

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import Cancelled, StyleEngineError, TimeUp
from styleengine.images import fit, to_images, to_tensor, working_size
from styleengine.method import Call, Kind, Method, Role, styles_and_mask
from styleengine.methods.zstar_video.frames import FrameRecord, FrameStylizer
from styleengine.methods.zstar_video.settings import ZStarVideoSettings
from styleengine.metrics import frame_differences
from styleengine.phases import Phase, inverting, stylizing
from styleengine.run import Run, Trajectory
from styleengine.style_attention import (
    check,
    invert_styles,
    queries_of_contents,
    style_phases,
)
from styleengine.styles import Style, mask_notes, style_records
from styleengine.stylization import InputRecord, OnStep, StepEvent, VideoStylization
from styleengine.video import Selection, VideoClip, write_clip
from styleengine.workfolder import WorkFolder

MOST_FRAMES_AT_ONCE = 8  # a clip's state is saved after each batch of frames
RESULT, ALONE = "frames", "alone"  # the series of frames in the work folder
CLIP_ROLE = "clip"  # the clip's role in a record
FIRST, PREVIOUS = "first", "previous"  # the frame records in the work folder


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
    seconds: float | None = None,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
) -> VideoStylization:
    """Redraws a clip in one or more styles and writes it to `output`, an MP4.

    `work` is a folder for finished frames: a run that finds its own frames there resumes, with the same
    result. The state for that is saved only if `resumable`. `batch` frames are inverted at a time.
    Cancelled in `on_step` stops the run; with `keep_partial` the finished frames, if any, are written
    and returned. After about `seconds` it stops, too, once a frame is finished and its state saved.

    Raises StyleEngineError as `zstar.stylize_all` does, and for an invalid part of the clip or work folder; TimeUp.
    """
    check(backbone, styles, settings)
    part = clip.select(settings.rate, settings.begin, settings.frames)
    sound = part.sound()  # checked before any frame is redrawn
    inputs = [InputRecord(CLIP_ROLE, clip.sha256, clip.name), *style_records(styles)]
    manifest = {
        "clip": clip.sha256,
        "styles and masks": [[entry.role, entry.sha256, entry.weight] for entry in inputs[1:]],
        "model": backbone.identity,
        **settings.model_dump(),
    }
    folder = WorkFolder(work)
    batch = folder.resume(manifest, {"batch": batch})["batch"]
    visible = [style for style in styles if style.weight > 0]
    clip_run = _ClipRun(backbone, part, visible, settings, folder, batch, resumable, seconds, on_step, cache)
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
    result, written = replace(record, seconds=clip_run.run.seconds), replace(part, count=count)
    write_clip(output, folder.frames(RESULT, count), part.rate, sound=written, record=result.as_text())
    return result


class _ClipRun:
    """The frames of one run, from the first that is missing in the work folder."""

    def __init__(
        self,
        backbone: Backbone,
        part: Selection,
        styles: Sequence[Style],
        settings: ZStarVideoSettings,
        folder: WorkFolder,
        batch: int,
        resumable: bool,
        seconds: float | None,
        on_step: OnStep | None,
        cache: ByteCache | None,
    ) -> None:
        self.part, self.styles, self.settings, self.folder = part, styles, settings, folder
        self.batch, self.resumable, self.seconds = batch, resumable, seconds

        def with_last_frame(event: StepEvent) -> None:
            if on_step:
                on_step(replace(event, preview=lambda: self.shown))

        schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
        self.run = Run(backbone, schedule, with_last_frame if on_step else None, cache)
        self.size = self.run.working_size(part.clip.poster, settings.size)
        self.shown = fit(part.clip.poster, self.size)

    def finish(self) -> None:
        """Redraws the missing frames. An interrupted batch is inverted again as a whole, for the same result."""
        first, previous, done = self._kept()
        if done == self.part.count:
            return
        batches = [numbers for numbers in self._batches() if numbers.stop > done]
        self.run.plan(self._phases(done), self.shown)
        stylizer = FrameStylizer(
            self.run, self.styles, invert_styles(self.run, self.styles, self.settings), self.settings, self.size
        )
        if first:
            self.shown = self.folder.frame(RESULT, done - 1)
        frames = islice(self.part.frames(), batches[0].start, None)
        for numbers in batches:
            given = self._inverted([next(frames) for _ in numbers], _inverting(numbers))
            for number, inverted in zip(numbers, given, strict=True):
                if number < done:
                    continue
                phase = self._painting(number)
                self.run.begin(phase)
                after = self.run.after(phase)
                if first and previous:
                    x_0, previous = stylizer.next(inverted, first, previous, after)
                else:
                    x_0, first = stylizer.first(inverted, after)
                    previous = first
                self.shown = to_images(self.run.backbone.decode(x_0))[0]
                if self.settings.compare:
                    independent = stylizer.alone(inverted, self.run.after(self._painting(number, " alone")))
                    self.folder.save_frame(ALONE, number, to_images(self.run.backbone.decode(independent))[0])
                self.folder.save_frame(RESULT, number, self.shown)
                self._keep(first, previous, number, numbers)

    def differences(self, count: int) -> dict[str, list[float]]:
        """Diff of each pair of neighbours among the first `count` frames of each series."""
        source = (fit(frame, self.size) for frame in islice(self.part.frames(), count))
        series: dict[str, Iterator[Image.Image]] = {"result": self.folder.frames(RESULT, count), "clip": source}
        if self.settings.compare:
            series["alone"] = self.folder.frames(ALONE, count)
        return {name: frame_differences(map(to_tensor, images)) for name, images in series.items()}

    def _batches(self) -> list[range]:
        """Frame 0 alone, inverted as in the image method, then equal batches."""
        batch, count = self.batch, self.part.count
        return [range(1), *(range(i, min(i + batch, count)) for i in range(1, count, batch))]

    def _phases(self, done: int) -> list[Phase]:
        """The phases of all frames, first those that earlier runs of `done` frames have ended."""
        finished: list[Phase] = []
        left: list[Phase] = []
        for numbers in self._batches():
            (finished if numbers.stop <= done else left).append(_inverting(numbers))
            for number in numbers:
                painting = [self._painting(number), *[self._painting(number, " alone")] * self.settings.compare]
                (finished if number < done else left).extend(painting)
        return [*finished, *style_phases(self.styles), *left]

    def _inverted(self, frames: Sequence[Image.Image], phase: Phase) -> list[Trajectory]:
        """Each frame's trajectory, inverted as one batch."""
        run = self.run
        run.begin(phase)
        x_0 = run.backbone.encode(torch.cat([to_tensor(fit(frame, self.size)) for frame in frames]))
        queries = queries_of_contents(self.settings)
        return run.inverted(x_0, self.settings.inversion_iterations, phase, queries).split()

    def _painting(self, number: int, how: str = "") -> Phase:
        return stylizing(f"frame {number + 1} of {self.part.count}{how}")

    def _keep(self, first: FrameRecord, previous: FrameRecord, number: int, numbers: range) -> None:
        """Saves the state at the end of a batch, and when the time is up; raises TimeUp then."""
        time_up = self.seconds is not None and self.run.seconds > self.seconds and number + 1 < self.part.count
        if self.resumable and (time_up or number == numbers[-1]):
            if number == 0:
                self.folder.save_tensors(FIRST, first.tensors(), 0)
            else:
                self.folder.save_tensors(PREVIOUS, previous.tensors(), number)
        if time_up and self.resumable:
            raise TimeUp

    def _kept(self) -> tuple[FrameRecord | None, FrameRecord | None, int]:
        """The records of the first and the last saved frame, and the number of finished frames."""
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
    if call.seconds is not None and call.work is None:
        raise StyleEngineError("A run with a time limit keeps its state in a folder: name one as `work`.")
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
            seconds=call.seconds,
            on_step=call.on_step,
            cache=call.cache,
        )


ZSTAR_VIDEO = Method(
    "zstar_video",
    "Z-STAR+",
    "Redraws a clip in the style of one or more images, without flicker.",
    ZStarVideoSettings,
    (
        Role("clip", Kind.CLIP, "The clip to redraw."),
        *styles_and_mask(most=2),
    ),
    _run,
    plain_title="Video",
    paper="https://arxiv.org/abs/2411.19231",
    inherits="zstar",
    suffix=".mp4",
    tool="stylize_video_like_images",
)
