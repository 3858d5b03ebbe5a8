"""Z-STAR+ for clips: inter-frame attention, the energy's gradient, and interrupted runs."""

import gc
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import panned, write_raw
from conftest import counted_evaluations
from PIL import Image

from styleengine import (
    Cancelled,
    StepEvent,
    Style,
    StyleEngine,
    StyleEngineError,
    TimeUp,
    VideoStylization,
    ZStarSettings,
    ZStarVideoSettings,
    ddim,
)
from styleengine.attention import attend, self_attention_layers
from styleengine.backbones import Backbone
from styleengine.images import fit, to_tensor
from styleengine.methods.zstar_video import frames
from styleengine.methods.zstar_video.frames import (
    FrameAttention,
    FrameRecord,
    FrameStylizer,
    energy_gradient,
    step_width,
    stillness,
)
from styleengine.metrics import frame_differences
from styleengine.run import Run, Trajectory
from styleengine.style_attention import StyleInjection
from styleengine.stylization import METADATA_KEY
from styleengine.video import open_clip, read_comment
from styleengine.workfolder import WorkFolder

QUICK = ZStarVideoSettings(size=64, steps=2, rate=0, frames=5)
MASK = Image.linear_gradient("L")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, astronaut: Image.Image) -> Path:
    """Five frames of a pan, with sound."""
    frames = panned(astronaut, 5, (96, 64), 6)
    return write_raw(tmp_path_factory.mktemp("clips") / "pan.mp4", frames, sound="aac")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, astronaut: Image.Image) -> Path:
    return write_raw(tmp_path_factory.mktemp("clips") / "still.mkv", [astronaut.crop((0, 0, 96, 64))] * 3, codec="ffv1")


@pytest.fixture
def run(engine: StyleEngine, clip: Path, coffee: Image.Image, tmp_path: Path) -> Callable[..., VideoStylization]:
    def zstar_video(settings: ZStarVideoSettings = QUICK, **options: Any) -> VideoStylization:
        options = {"clip": clip, "styles": [coffee], "output": tmp_path / "out.mp4", **options}
        return engine.zstar_video(options.pop("clip"), options.pop("styles"), settings, **options)

    return zstar_video


def frames_in(work: Path, kind: str = "frames") -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((work / kind).glob("*.png"))]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


# Attention between frames


def layer_tensors(tokens: int = 12, count: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, tokens, 8, generator=generator) for _ in range(count)]


def softmax_over(q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Written out: softmax over all keys together."""
    logits = torch.cat([q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) for k in keys], -1)
    return logits.softmax(-1) @ torch.cat(values, 2)


def test_a_frame_attends_to_the_first_and_the_previous_one_in_place_of_itself() -> None:
    q, k, v, k_0, v_0, k_1, v_1 = layer_tensors()
    tap = FrameAttention([{3: (k_0, v_0)}, {3: (k_1, v_1)}], range(16), None, range(0))
    torch.testing.assert_close(tap(3, q, k, v), softmax_over(q, [k_0, k_1], [v_0, v_1]), atol=1e-5, rtol=0)
    assert torch.equal(tap.own[3][0], k)
    assert torch.equal(tap.own[3][1], v)


def test_layers_without_inter_frame_attention_use_their_own_keys_and_are_not_kept() -> None:
    q, k, v, k_0, v_0, k_1, v_1 = layer_tensors()
    tap = FrameAttention([{3: (k_0, v_0)}, {3: (k_1, v_1)}], range(4, 16), None, range(0))
    assert torch.equal(tap(3, q, k, v), attend(q, k, v))
    assert tap.own == {}


@pytest.mark.parametrize("balance", [1.0, 2.0, 3.5])
def test_style_keys_are_concatenated_with_those_of_earlier_frames(backbone: Backbone, balance: float) -> None:
    q, k, v, k_0, v_0, k_1, v_1 = layer_tensors()
    k_s, v_s = layer_tensors(9, 9)[7:]
    settings = ZStarVideoSettings(size=64, balance=balance, strength=1.5)
    path = Trajectory([], keys_values={1: dict.fromkeys(settings.styled_layers(), (k_s, v_s))})
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, 2)
    stylizer = FrameStylizer(Run(backbone, schedule), [Style(MASK)], [path], settings.replace(steps=2), (64, 64))
    record = [FrameRecord(torch.zeros(1, 4, 8, 8), {1: {12: pair}}) for pair in ((k_0, v_0), (k_1, v_1))]
    tap = stylizer._tap(1, record, Trajectory([]))
    shift = math.log(balance)
    logits = torch.cat([1.5 * q @ k_s.mT / 8**0.5 + shift, q @ k_0.mT / 8**0.5, q @ k_1.mT / 8**0.5], -1)
    expected = logits.softmax(-1) @ torch.cat([v_s, v_0, v_1], 2)
    torch.testing.assert_close(tap(12, q, k, v), expected, atol=1e-5, rtol=0)


def test_inter_frame_attention_is_in_the_layers_of_the_settings() -> None:
    assert ZStarVideoSettings().joined_layers() == range(16)
    assert ZStarVideoSettings(attention="styled", first_layer=8).joined_layers() == range(8, 16)
    assert not ZStarVideoSettings(attention="none").joined_layers()


# Energy


def test_the_closed_form_is_autograds_gradient_with_the_noise_held_fixed() -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, noise, reference = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    alpha = torch.tensor(0.3)
    x_t.requires_grad_()
    clean = ddim.predict_x0(x_t, noise, alpha)
    (expected,) = torch.autograd.grad((clean - reference).square().sum(), x_t)
    torch.testing.assert_close(energy_gradient(clean.detach(), reference, alpha), expected)


@pytest.mark.parametrize("alphas", [(0.005, 0.02), (0.5, 0.6), (0.99, 0.999)])
def test_a_step_takes_the_same_share_of_the_difference_at_every_noise_level(alphas: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, noise, reference = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    alpha, alpha_prev = map(torch.tensor, alphas)
    clean = ddim.predict_x0(x_t, noise, alpha)
    gradient = energy_gradient(clean, reference, alpha)
    moved = ddim.step(x_t, noise, alpha, alpha_prev) - step_width(0.25, alpha, alpha_prev) * gradient
    torch.testing.assert_close(
        ddim.predict_x0(moved, noise, alpha_prev), clean - 0.25 * (clean - reference), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("steps", [2, 30, 200])
def test_all_steps_together_take_the_share_that_was_asked_for(steps: int) -> None:
    pull = ZStarVideoSettings(energy=0.4, steps=steps).pull()
    assert (1 - pull) ** steps == pytest.approx(0.6)
    assert ZStarVideoSettings(energy=0).pull() == 0


def stylizer_of(
    backbone: Backbone, settings: ZStarVideoSettings
) -> tuple[FrameStylizer, list[FrameRecord], torch.Tensor]:
    """A stylizer with one random style path, the records of two frames, and some x_T."""
    generator = torch.Generator().manual_seed(1)
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
    latents = [torch.randn(1, 4, 16, 16, generator=generator) for _ in range(settings.steps + 1)]
    path = Trajectory(latents, dict(enumerate(latents)))
    stylizer = FrameStylizer(Run(backbone, schedule), [Style(MASK)], [path], settings, (64, 64))
    x_T = torch.randn(1, 4, 16, 16, generator=generator)  # noqa: N806
    noises = [torch.randn(1, 4, 16, 16, generator=generator) for _ in range(2)]
    records = [stylizer.first(frame_of(x, settings), None)[1] for x in noises]
    return stylizer, records, x_T


def frame_of(content: torch.Tensor, settings: ZStarVideoSettings, x_T: torch.Tensor | None = None) -> Trajectory:  # noqa: N803
    """A frame with the given latents and x_T."""
    return Trajectory([content] * settings.steps + [content if x_T is None else x_T])


def test_backpropagation_agrees_with_finite_differences(backbone: Backbone) -> None:
    settings = ZStarVideoSettings(size=64, steps=2, gradient="backprop")
    stylizer, records, x_t = stylizer_of(backbone, settings)
    reference = records[1].clean[2]
    noise, gradient = stylizer._backpropagated(x_t, 2, stylizer._tap(2, records, Trajectory([])), reference)
    alpha = stylizer.run.schedule.levels[2].double()

    def energy(x: torch.Tensor) -> float:
        predicted = stylizer._noise(x, 2, stylizer._tap(2, records, Trajectory([]))).double()
        return float((ddim.predict_x0(x.double(), predicted, alpha) - reference.double()).square().sum())

    assert torch.equal(noise, stylizer._noise(x_t, 2, stylizer._tap(2, records, Trajectory([]))))
    direction = gradient / gradient.norm()
    slope = (energy(x_t + 0.05 * direction) - energy(x_t - 0.05 * direction)) / 0.1
    assert slope == pytest.approx(float(gradient.norm()), rel=0.01)
    fixed = energy_gradient(
        ddim.predict_x0(x_t, noise, stylizer.run.schedule.levels[2]), reference, stylizer.run.schedule.levels[2]
    )
    assert (gradient - fixed).norm() > 0.01 * fixed.norm()  # the U-Net's part is there


@pytest.mark.parametrize("gradient", ["closed_form", "backprop"])
def test_energy_moves_a_frame_towards_the_previous_one(backbone: Backbone, gradient: str) -> None:
    def distance(energy: float) -> float:
        settings = ZStarVideoSettings(size=64, steps=3, energy=energy, gradient=gradient)
        stylizer, records, x_T = stylizer_of(backbone, settings)  # noqa: N806
        last = records[1].clean[1]
        x_0, _ = stylizer.next(frame_of(records[1].content, settings, x_T), *records, None)
        return float((x_0 - last).norm())

    distances = [distance(energy) for energy in (0.0, 0.3, 0.8)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.8 * distances[0]


@pytest.mark.parametrize("gradient", ["closed_form", "backprop"])
def test_energy_is_weaker_where_the_clip_moves(backbone: Backbone, gradient: str) -> None:
    settings = ZStarVideoSettings(size=64, steps=2, energy=0.8, attention="none", gradient=gradient)
    stylizer, records, x_T = stylizer_of(backbone, settings)  # noqa: N806
    content = records[1].content.clone()
    content[..., 8:] += 5 * content.std()  # the right half moves

    def after_one_step(**changes: Any) -> torch.Tensor:
        """x_t after the first step; in later ones the halves affect each other."""
        stylizer.settings, seen = settings.replace(**changes), list[torch.Tensor]()
        first, previous = records
        previous = FrameRecord(previous.content, dict(previous.keys_values), dict(previous.clean))  # is used up
        stylizer.next(frame_of(content, settings, x_T), first, previous, lambda step, x_t, clean: seen.append(x_t))
        return seen[0]

    without, sparing, alike = after_one_step(energy=0.0), after_one_step(), after_one_step(spare_motion=False)
    torch.testing.assert_close(sparing[..., :8], alike[..., :8])
    torch.testing.assert_close(sparing[..., 8:], without[..., 8:])
    assert (alike - without)[..., 8:].norm() > 0.1 * without[..., 8:].norm()


def test_stillness_falls_as_a_gaussian_of_the_change() -> None:
    previous = torch.randn(1, 4, 2, 3)
    content = previous + previous.std() * torch.tensor([[0.0, 0.3, 0.6], [0.0, -0.3, 30]])
    expected = torch.tensor([[1, math.exp(-1), math.exp(-4)], [1, math.exp(-1), 0]])
    torch.testing.assert_close(stillness(content, previous)[0, 0], expected)
    assert torch.equal(stillness(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)), torch.ones(1, 1, 2, 2))


def test_records_keep_nothing_of_the_gradients_graph(backbone: Backbone) -> None:
    settings = ZStarVideoSettings(size=64, steps=2, gradient="backprop")
    stylizer, records, x_T = stylizer_of(backbone, settings)  # noqa: N806
    x_0, record = stylizer.next(frame_of(x_T, settings), *records, None)
    assert not any(x.requires_grad for x in (x_0, *record.tensors().values()))


# Frames


@pytest.mark.parametrize("attention", ["all", "styled"])
def test_the_first_frame_is_the_image_methods(
    engine: StyleEngine, run: Callable[..., VideoStylization], clip: Path, coffee: Image.Image, attention: str
) -> None:
    decoded = []
    decode = engine.backbone.decode

    def keep(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(decode(latents))
        return decoded[-1]

    shared = {"size": 64, "steps": 4, "variation": 0.2, "strength": 1.4, "inversion_iterations": 2}
    style = Style(coffee, mask=MASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.backbone, "decode", keep)
        result = run(ZStarVideoSettings(**shared, rate=0, frames=2, attention=attention), styles=[style])
        engine.cache.clear()
        picture = engine.zstar(open_clip(clip).poster, [style], ZStarSettings(**shared))
    torch.testing.assert_close(decoded[0], decoded[2], atol=1e-5, rtol=0)
    assert np.array_equal(np.asarray(result.image), np.asarray(picture.image))


@pytest.mark.parametrize("gradient", ["closed_form", "backprop"])
def test_in_a_still_clip_balanced_frames_are_all_the_first(
    run: Callable[..., VideoStylization], still: Path, gradient: str
) -> None:
    result = run(QUICK.replace(gradient=gradient, balance=2.0, frames=3), clip=still)
    assert max(result.differences["result"]) < 1e-4
    unbalanced = run(QUICK.replace(gradient=gradient, frames=3), clip=still)
    assert unbalanced.differences["result"][0] > 2e-4  # two frames' keys outweigh the styles


def test_energy_makes_the_clip_steadier(run: Callable[..., VideoStylization]) -> None:
    """The effect of attention depends on the model; benchmarks/video.py measures it on the embedded one."""
    attention = run(QUICK.replace(energy=0)).details["result_diff_mean"]
    both = run(QUICK.replace(energy=0.5)).details["result_diff_mean"]
    assert both < 0.98 * attention


def test_without_attention_and_energy_each_frame_is_the_image_methods(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    result = run(QUICK.replace(attention="none", energy=0, compare=True), work=tmp_path / "work")
    assert same(frames_in(tmp_path / "work"), frames_in(tmp_path / "work", "alone"))
    assert result.differences["result"] == result.differences["alone"]


def test_differences_are_those_of_the_frames(run: Callable[..., VideoStylization], tmp_path: Path, clip: Path) -> None:
    result = run(QUICK.replace(compare=True), work=tmp_path / "work")
    for name, kind in (("result", "frames"), ("alone", "alone")):
        frames = [frame / 255 for frame in frames_in(tmp_path / "work", kind)]
        expected = [np.abs(after - before).mean() for before, after in itertools.pairwise(frames)]
        assert result.differences[name] == pytest.approx(expected, abs=1e-5)
        assert result.details[f"{name}_diff_mean"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert result.details[f"{name}_diff_variance"] == pytest.approx(np.var(expected), abs=1e-6)
    source = [to_tensor(fit(frame, result.image.size)) for frame in open_clip(clip).select(0, 0, 5).frames()]
    assert result.differences["clip"] == frame_differences(source)


def test_the_clip_and_its_record_state_what_was_done(
    run: Callable[..., VideoStylization], clip: Path, tmp_path: Path
) -> None:
    result = run(QUICK.replace(frames=4, rate=5, begin=0.1), styles=[Style(MASK.convert("RGB"), 2.0, MASK)])
    written = open_clip(result.path)
    assert (len(written.times), written.rate, written.poster.size) == (2, 5, (96, 64))
    assert json.loads(read_comment(result.path))[METADATA_KEY] == json.loads(json.dumps(result.record()))
    assert [entry.role for entry in result.inputs] == ["clip", "style", "mask"]
    assert result.inputs[0].name == clip.name
    assert "The first 0.1 s were left out." in result.notes
    copy = result.save(tmp_path / "copy.mp4")
    assert copy.read_bytes() == result.path.read_bytes()


def test_one_frame_is_a_clip_without_differences(run: Callable[..., VideoStylization]) -> None:
    result = run(QUICK.replace(frames=1))
    assert result.frames == 1
    assert result.differences["result"] == []


def test_the_recommended_values_for_pictures_apply_to_clips_too(
    engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommended = {"zstar": {"strength": 1.7, "size": 96}, "zstar_video": {"size": 80}}
    monkeypatch.setattr(engine.backbone, "recommended", recommended)
    settings = engine.settings_for(ZStarVideoSettings, "zstar_video", ZStarVideoSettings(steps=7))
    assert (settings.strength, settings.size, settings.steps) == (1.7, 80, 7)


# Streaming


def test_no_more_than_three_frames_keys_and_values_are_alive(
    run: Callable[..., VideoStylization], monkeypatch: pytest.MonkeyPatch
) -> None:
    most, phase = 0, ""

    class Counted(FrameRecord):
        pass

    def count(event: StepEvent) -> None:
        nonlocal most, phase
        if event.phase == phase:  # the first event of a phase comes before its work
            most = max(most, sum(isinstance(x, Counted) for x in gc.get_objects()))
        phase = event.phase

    monkeypatch.setattr(frames, "FrameRecord", Counted)
    run(QUICK.replace(rate=20, frames=10), on_step=count)  # each frame of the clip twice
    assert most == 3


def test_frames_are_inverted_in_batches_and_denoised_once_per_step(
    engine: StyleEngine, run: Callable[..., VideoStylization], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 3)
    with counted_evaluations(engine.backbone) as batches:
        run(QUICK.replace(start=0))
    style_and_first = [1] * 2 + [1] * 2 + [1] * 2  # inverted, inverted, sampled
    assert batches == style_and_first + [3] * 2 + [1] * 6 + [1] * 2 + [1] * 2


def test_preserved_queries_of_a_batch_cost_no_evaluation_and_are_each_frames_own(
    engine: StyleEngine, run: Callable[..., VideoStylization], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = QUICK.replace(start=0, query_preservation=0.6, content_pull=0.1)
    images: list[list[np.ndarray]] = []
    for room, inversions in ((3, 3), (1, 5)):
        monkeypatch.setattr(engine, "_batch_size", lambda pixels, room=room: room)
        work = tmp_path / str(room)
        with counted_evaluations(engine.backbone) as batches:
            run(settings, work=work)
        assert len(batches) == 2 * (1 + inversions) + 2 * 5  # the style, the frames' batches, and sampling
        images.append([np.asarray(Image.open(file), int) for file in sorted((work / "frames").iterdir())])
        engine.cache.clear()
    for one, other in zip(*images, strict=True):
        assert np.abs(one - other).max() <= 1


def test_progress_counts_up_to_its_total_and_shows_the_last_finished_frame(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    events: list[tuple[StepEvent, Image.Image]] = []
    run(QUICK.replace(compare=True), work=tmp_path / "work", on_step=lambda e: events.append((e, e.preview())))
    steps = [event.step for event, _ in events]
    assert steps == sorted(steps)
    assert steps[-1] == events[-1][0].total
    during_third = [shown for event, shown in events if event.phase == "stylizing frame 3 of 5"]
    assert np.array_equal(np.asarray(during_third[-1]), frames_in(tmp_path / "work")[1])


def test_progress_of_a_resumed_run_counts_the_finished_frames_too(
    engine: StyleEngine, run: Callable[..., VideoStylization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 2)
    whole: list[StepEvent] = []
    run(on_step=whole.append)
    with pytest.raises(Cancelled):
        run(work=tmp_path / "work", on_step=Stopper("stylizing frame 5 of 5", Cancelled))
    engine.cache.clear()
    events: list[StepEvent] = []
    run(work=tmp_path / "work", on_step=events.append)
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert {event.total for event in events} == {whole[0].total}
    before = (
        2 + 3
    )  # the inversions of the first frame and of two, and these frames; the state of the fourth is not kept
    assert steps[0] == before * QUICK.steps
    assert steps[-1] == whole[0].total


def test_no_more_than_two_frames_keys_and_values_are_alive_at_once(
    run: Callable[..., VideoStylization], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    class Counted(FrameRecord):
        pass

    def count(event: StepEvent) -> None:
        nonlocal most
        most = max(most, sum(len(x.keys_values) for x in gc.get_objects() if isinstance(x, Counted)))

    monkeypatch.setattr(frames, "FrameRecord", Counted)
    run(QUICK.replace(steps=4), on_step=count)
    assert most == 2 * 4  # noise levels: each that is made takes the place of the previous frame's


def test_without_a_work_folder_no_state_is_written(
    run: Callable[..., VideoStylization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []

    def note(self: WorkFolder, name: str, *_: object) -> None:
        saved.append(name)

    monkeypatch.setattr(WorkFolder, "save_tensors", note)
    run()
    assert saved == []
    run(work=tmp_path / "work")
    assert saved


def test_notes_on_lost_sound_are_in_the_record(run: Callable[..., VideoStylization], clip: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("styleengine.sound.COPIED", set[str]())
        patch.setattr("styleengine.sound._aac_rate", lambda rate: -1)
        result = run(QUICK.replace(frames=1))
    (note,) = [note for note in result.notes if "sound" in note]
    assert note in json.loads(read_comment(result.path))[METADATA_KEY]["notes"]


def test_a_name_that_is_not_utf8_works_to_the_end(
    run: Callable[..., VideoStylization], tmp_path: Path, clip: Path
) -> None:
    named = Path(shutil.copy(clip, tmp_path / os.fsdecode(b"na\xffme.mp4")))
    result = run(QUICK.replace(frames=1), clip=named, output=tmp_path / os.fsdecode(b"out\xff.mp4"))
    (first, *_) = json.loads(read_comment(result.path))[METADATA_KEY]["inputs"]
    assert first["name"] == "na?me.mp4"  # records are UTF-8


def test_a_clip_may_be_given_as_its_content(run: Callable[..., VideoStylization], clip: Path) -> None:
    result = run(QUICK.replace(frames=1), clip=clip.read_bytes())
    assert result.inputs[0].sha256 == open_clip(clip).sha256


# Interruptions


class Stopper:
    """Raises in the middle of a frame: as Cancelled, or as a crash."""

    def __init__(self, phase: str, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.phase, self.error = phase, error

    def __call__(self, event: StepEvent) -> None:
        if event.phase == self.phase:
            raise self.error


COMPARED, BACKPROPAGATED = QUICK.replace(compare=True), QUICK.replace(variation=0.3, gradient="backprop")


@pytest.mark.parametrize(
    ("settings", "number"), [(COMPARED, 1), (COMPARED, 4), (BACKPROPAGATED, 2), (BACKPROPAGATED, 5)]
)
def test_an_interrupted_run_is_resumed_with_the_same_frames(
    engine: StyleEngine,
    run: Callable[..., VideoStylization],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: ZStarVideoSettings,
    number: int,
) -> None:
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 2)
    whole = run(settings, work=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, work=tmp_path / "work", on_step=Stopper(f"stylizing frame {number} of 5"))
    engine.cache.clear()
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 1)  # as if there were less memory now
    events: list[StepEvent] = []
    result = run(settings, work=tmp_path / "work", on_step=events.append)
    assert same(frames_in(tmp_path / "work"), frames_in(tmp_path / "whole"))
    assert result.differences == whole.differences
    painted = {event.phase for event in events if event.phase.startswith("stylizing")}
    assert ("stylizing frame 1 of 5" in painted) == (number == 1)  # finished frames are not made again
    assert ("stylizing frame 3 of 5" in painted) == (number <= 3)


@pytest.mark.parametrize("settings", [COMPARED, BACKPROPAGATED, QUICK.replace(query_preservation=0.5)])
def test_a_run_in_slices_gives_the_result_of_one_run(
    engine: StyleEngine,
    run: Callable[..., VideoStylization],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: ZStarVideoSettings,
) -> None:
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 3)
    whole = run(settings, work=tmp_path / "whole")
    for finished in range(1, 5):  # one frame in each slice, also within a batch
        engine.cache.clear()
        with pytest.raises(TimeUp):
            run(settings, work=tmp_path / "work", seconds=0)
        assert len(frames_in(tmp_path / "work")) == finished
    result = run(settings, work=tmp_path / "work", seconds=0)
    assert result.complete
    assert same(frames_in(tmp_path / "work"), frames_in(tmp_path / "whole"))
    assert result.differences == whole.differences


def test_a_run_within_its_time_is_not_sliced(run: Callable[..., VideoStylization], tmp_path: Path) -> None:
    assert run(work=tmp_path / "work", seconds=3600).complete


def test_a_time_limit_needs_a_folder_for_the_state(run: Callable[..., VideoStylization]) -> None:
    with pytest.raises(StyleEngineError, match="name one as `work`"):
        run(seconds=10)


def test_the_layout_of_a_work_folder_stays_as_earlier_versions_wrote_it(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    run(QUICK.replace(frames=2, compare=True), work=work)
    files = {file.relative_to(work).as_posix() for file in work.rglob("*") if file.is_file()}
    frames = {f"{kind}/{number:05}.png" for kind in ("frames", "alone") for number in range(2)}
    assert files == {*frames, "run.json", "first.safetensors", "previous.safetensors"}
    manifest = json.loads((work / "run.json").read_text())
    assert set(manifest) == {"run", "fixed"}
    assert {"clip", "styles and masks", "model", "strength", "frames"} <= set(manifest["run"])
    assert set(manifest["fixed"]) == {"batch"}


def test_a_finished_run_that_is_repeated_only_writes_its_clip(
    engine: StyleEngine, run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    first = run(work=tmp_path / "work")
    with counted_evaluations(engine.backbone) as batches:
        again = run(work=tmp_path / "work", output=tmp_path / "again.mp4")
    assert batches == []
    assert again.differences == first.differences


@pytest.mark.parametrize(
    ("change", "named"),
    [({"settings": QUICK.replace(strength=2.0)}, "strength"), ({"styles": [MASK]}, "styles and masks")],
)
def test_the_work_of_another_run_is_refused(
    run: Callable[..., VideoStylization], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run(QUICK.replace(frames=1), work=tmp_path / "work")
    with pytest.raises(StyleEngineError, match=named):
        run(**{"settings": QUICK.replace(frames=1), **change}, work=tmp_path / "work")


def test_a_folder_with_other_things_or_damaged_work_is_refused(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "diary.txt").write_text("mine")
    with pytest.raises(StyleEngineError, match="holds other things"):
        run(work=work)
    shutil.rmtree(work)
    with pytest.raises(KeyboardInterrupt):
        run(work=work, on_step=Stopper("stylizing frame 2 of 5"))
    whole = (work / "first.safetensors").read_bytes()
    (work / "first.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StyleEngineError, match="is damaged"):
        run(work=work)
    (work / "run.json").write_text("{")
    with pytest.raises(StyleEngineError, match="is damaged"):
        run(work=work)


def test_resuming_loads_the_last_finished_frame_only(
    engine: StyleEngine, run: Callable[..., VideoStylization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_batch_size", lambda pixels: 1)
    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path / "work", on_step=Stopper("stylizing frame 5 of 5"))
    loaded: list[int] = []
    frame = WorkFolder.frame

    def note(self: WorkFolder, kind: str, number: int) -> Image.Image:
        loaded.append(number)
        return frame(self, kind, number)

    monkeypatch.setattr(WorkFolder, "frame", note)
    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path / "work", on_step=Stopper("stylizing frame 5 of 5"))
    assert loaded == [3]


def test_a_damaged_frame_in_the_work_folder_is_reported_without_its_path(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    run(QUICK.replace(frames=1), work=tmp_path / "work")
    frame = tmp_path / "work" / "frames" / "00000.png"
    frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(StyleEngineError, match=r"00000\.png is damaged") as caught:
        run(QUICK.replace(frames=1), work=tmp_path / "work")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_the_clip_is_never_its_own_result(
    engine: StyleEngine,
    run: Callable[..., VideoStylization],
    tmp_path: Path,
    clip: Path,
    link: Callable[..., None] | None,
) -> None:
    own = Path(shutil.copy(clip, tmp_path / "own.mp4"))
    output = own
    if link:
        output = tmp_path / "link.mp4"
        link(own, output)
    with (
        counted_evaluations(engine.backbone) as batches,
        pytest.raises(StyleEngineError, match="is the clip itself"),
    ):
        run(clip=own, output=output)
    assert batches == []
    assert own.read_bytes() == clip.read_bytes()


def test_cancel_gives_the_frames_done_where_that_is_asked_for(
    run: Callable[..., VideoStylization], tmp_path: Path
) -> None:
    stop = Stopper("stylizing frame 3 of 5", Cancelled)
    with pytest.raises(Cancelled):
        run(on_step=stop)
    assert not (tmp_path / "out.mp4").exists()
    result = run(on_step=stop, keep_partial=True)
    assert (result.complete, result.frames) == (False, 2)
    assert len(open_clip(result.path).times) == 2
    with pytest.raises(Cancelled):
        run(on_step=Stopper("frames 1", Cancelled), keep_partial=True)


@pytest.mark.parametrize("gradient", ["closed_form", "backprop"])
def test_a_run_that_fails_midway_leaves_the_network_unchanged(
    engine: StyleEngine, run: Callable[..., VideoStylization], monkeypatch: pytest.MonkeyPatch, gradient: str
) -> None:
    backbone = engine.backbone
    before = [layer.processor for layer in self_attention_layers(backbone.unet)]
    called = 0

    def fail(self: StyleInjection, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        nonlocal called
        called += 1
        if called > 40:  # in the second frame
            raise OSError("broken")
        return attend(*tensors)

    monkeypatch.setattr(StyleInjection, "__call__", fail)
    with pytest.raises(OSError, match="broken"):
        run(QUICK.replace(gradient=gradient))
    assert [layer.processor for layer in self_attention_layers(backbone.unet)] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clip": "nowhere.mp4"}, "does not exist"),
        ({"output": "out.avi"}, "saved as MP4"),
        ({"styles": []}, "No style image"),
        ({"settings": QUICK.replace(begin=60)}, "only 0.5 s long"),
        ({"settings": QUICK.replace(first_layer=15, last_layer=3)}, "swap them"),
    ],
)
def test_bad_input_gives_a_sentence(
    run: Callable[..., VideoStylization], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        run(**options)
