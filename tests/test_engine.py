"""The engine: what its caches save, what it reports, and its state after a stopped run."""

import ast
import copy
import hashlib
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from styleengine import (
    Cancelled,
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    LearnedStyle,
    QSAttnSettings,
    StepEvent,
    Style,
    StyleEngine,
    StyleEngineError,
    ZStarSettings,
    __version__,
)
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.ddim import Schedule
from styleengine.images import content_hash, open_image
from styleengine.memory import is_out_of_memory
from styleengine.run import Run
from styleengine.stylization import Stylization, read_record
from styleengine.turns import Turns
from styleengine.video import open_clip

BLACK = Image.new("L", (20, 20), 0)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def plain_prediction(backbone: Backbone) -> torch.Tensor:
    x_t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return backbone.predict_noise(x_t, 500, backbone.condition([""]))


# Caches


def test_m_contents_and_n_styles_take_m_plus_n_inversions(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    cat: Image.Image,
    rocket: Image.Image,
    quick: ZStarSettings,
) -> None:
    steps, styled = quick.steps, len(quick.styled_steps())

    def evaluations(content: Image.Image, style: Image.Image, **values: float) -> int:
        with counted_evaluations(engine.backbone) as batches:
            engine.zstar(content, [style], quick.replace(**values))
        assert set(batches) == {1}
        return len(batches)

    content_inversion = style_inversion = stylizing = steps
    assert evaluations(astronaut, coffee) == content_inversion + style_inversion + stylizing
    assert evaluations(astronaut, coffee) == stylizing
    assert evaluations(rocket, coffee) == content_inversion + stylizing
    assert evaluations(astronaut, cat) == style_inversion + stylizing
    assert evaluations(rocket, cat) == stylizing
    assert evaluations(cat, coffee, query_preservation=0.5) == styled + stylizing  # cat was inverted as a style
    assert evaluations(cat, astronaut, first_layer=9) == styled + stylizing


def test_inversion_iterations_are_forward_passes(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    with counted_evaluations(engine.backbone) as plain:
        engine.zstar(astronaut, [coffee], quick)
    with counted_evaluations(engine.backbone) as refined:
        engine.zstar(astronaut, [coffee], quick.replace(inversion_iterations=3))
    assert len(refined) - len(plain) == 2 * 2 * quick.steps


def test_a_hit_gives_the_same_pixels_as_a_miss(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    miss = engine.zstar(astronaut, [coffee], quick).image
    assert same(engine.zstar(astronaut, [coffee], quick).image, miss)
    engine.zstar(cat, [coffee], quick.replace(first_layer=13))  # the record of the style grows step by step
    engine.cache.clear()
    engine.zstar(cat, [coffee], quick.replace(first_layer=13))
    assert same(engine.zstar(astronaut, [coffee], quick).image, miss)


@pytest.mark.parametrize(
    "change", [{"steps": 5}, {"size": 80}, {"inversion_iterations": 2}, {"first_layer": 8}, {"start": 0.0}]
)
def test_settings_that_matter_are_part_of_the_key(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, change: dict
) -> None:
    engine.zstar(astronaut, [coffee], quick)
    after_another = engine.zstar(astronaut, [coffee], quick.replace(**change)).image
    engine.cache.clear()
    assert same(engine.zstar(astronaut, [coffee], quick.replace(**change)).image, after_another)


def test_the_cache_stays_within_its_bytes(
    model_folder: Path, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    unbounded = StyleEngine(str(model_folder))
    expected = [unbounded.zstar(astronaut, [style], quick).image for style in (coffee, cat)]
    assert unbounded.cache.nbytes > 0
    for capacity in (0, unbounded.cache.nbytes // 3):
        bounded = StyleEngine(str(model_folder), cache_bytes=capacity)
        for style, image in zip((coffee, cat), expected, strict=True):
            assert same(bounded.zstar(astronaut, [style], quick).image, image)
            assert bounded.cache.nbytes <= capacity


def test_a_style_record_too_large_to_cache_is_recomputed_with_the_same_pixels(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = engine.zstar(astronaut, [coffee], quick).image
    engine.cache.clear()
    monkeypatch.setattr("styleengine.run.LARGEST_RECORD", 0)
    assert same(engine.zstar(astronaut, [coffee], quick).image, kept)
    with counted_evaluations(engine.backbone) as batches:
        assert same(engine.zstar(astronaut, [coffee], quick).image, kept)
    assert len(batches) == quick.steps + len(quick.styled_steps())


# Batches


def test_a_batch_equals_single_runs(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    cat: Image.Image,
    rocket: Image.Image,
    quick: ZStarSettings,
) -> None:
    contents = [cat, astronaut, rocket.rotate(90, expand=True), astronaut.rotate(90)]  # three shapes, one of them twice
    singles = [engine.zstar(content, [coffee], quick) for content in contents]
    with counted_evaluations(engine.backbone) as batches:
        together = engine.zstar_all(contents, [coffee], quick)
    assert sorted(batches) == [1] * 2 * quick.steps + [2] * 2 * quick.steps  # two are inverted and stylized together
    for one, single, content in zip(together, singles, contents, strict=True):
        difference = np.abs(np.asarray(one.image, int) - np.asarray(single.image, int))
        assert difference.max() <= 1
        assert one.inputs == single.inputs
        assert one.inputs[0].sha256 == content_hash(content)


def test_batches_are_limited_by_the_memory(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("styleengine.memory.PIXELS_ON_CPU", 2 * 64 * 64)
    turned = [astronaut.rotate(angle) for angle in (0, 90, 180)]
    with counted_evaluations(engine.backbone) as batches:
        assert len(engine.zstar_all(turned, [coffee], quick)) == 3
    assert batches.count(2) == 2 * quick.steps


def pixels_of(results: list[Stylization]) -> list[bytes]:
    return [result.image.tobytes() for result in results]


@pytest.mark.parametrize("query_preservation", [0.0, 0.5])
def test_what_is_cached_does_not_change_the_pixels_of_a_batch(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    cat: Image.Image,
    quick: ZStarSettings,
    query_preservation: float,
) -> None:
    """The style and each content were inverted alone before, and the batch without its queries."""
    contents, settings = [astronaut, astronaut.rotate(90)], quick.replace(query_preservation=query_preservation)
    cold = pixels_of(engine.zstar_all(contents, [coffee], settings))
    assert pixels_of(engine.zstar_all(contents, [coffee], settings)) == cold
    engine.cache.clear()
    for content in (cat, *contents):
        engine.zstar(content, [coffee], settings)
    assert pixels_of(engine.zstar_all(contents, [coffee], settings)) == cold
    engine.cache.clear()
    engine.zstar_all(contents, [coffee], quick)
    assert pixels_of(engine.zstar_all(contents, [coffee], settings)) == cold


def test_what_was_cached_in_a_batch_does_not_change_the_pixels_of_one_image(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    alone = engine.zstar(astronaut, [coffee], quick).image
    engine.cache.clear()
    engine.zstar_all([astronaut, astronaut.rotate(90)], [coffee], quick)
    assert same(engine.zstar(astronaut, [coffee], quick).image, alone)


@pytest.mark.parametrize("known", [False, True])
def test_a_batch_has_as_many_rows_as_its_images_one_by_one(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    contents = [astronaut.rotate(angle) for angle in (0, 90, 180)]

    def evaluated() -> list[int]:
        engine.cache.clear()
        if known:
            engine.zstar_all(contents, [coffee], quick)
        with counted_evaluations(engine.backbone) as batches:
            engine.zstar_all(contents, [coffee], quick)
        return batches

    together = evaluated()
    monkeypatch.setattr("styleengine.run.SMALL_LATENTS", 16 * 16 - 1)
    one_by_one = evaluated()
    assert sum(together) == sum(one_by_one) == quick.steps * (3 if known else 7)
    assert len(together) == quick.steps * (1 if known else 3)
    assert len(one_by_one) == quick.steps * (1 if known else 5)


def test_a_gpu_inverts_every_size_in_batches_and_a_cpu_small_latents(backbone: Backbone) -> None:
    on_gpu, on_cpu = (Run(backbone, Schedule.spaced(backbone.alphas_cumprod, 2)) for _ in range(2))
    on_gpu.backbone = copy.copy(backbone)
    on_gpu.backbone.device = torch.device("cuda")
    side = 32 * backbone.multiple
    assert [on_gpu.batch_pays((width, side)) for width in (side, 4 * side)] == [True, True]
    assert [on_cpu.batch_pays((width, side)) for width in (side, side + 1)] == [True, False]


def test_a_cancelled_inversion_of_a_batch_leaves_nothing_in_the_cache(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    contents, seen = [astronaut, astronaut.rotate(90)], []

    def stop(event: StepEvent) -> None:
        seen.append((event.phase, event.step, event.total))
        event.preview()
        if event.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.zstar_all(contents, [coffee], quick, on_step=stop)
    assert seen == [("contents 1–2", step, 3 * quick.steps) for step in range(3)]
    assert len(engine.cache) == 0


def test_threads_share_one_engine_and_get_their_own_results(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    jobs = [(astronaut, coffee), (astronaut, cat), (cat, coffee)]
    expected = [engine.zstar(content, [style], quick).image for content, style in jobs]
    engine.cache.clear()
    results: dict[int, Image.Image] = {}

    def work(i: int) -> None:
        results[i] = engine.zstar(jobs[i][0], [jobs[i][1]], quick).image

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same(results[i], image) for i, image in enumerate(expected))


# Progress


def test_progress_counts_up_to_the_total_and_previews_are_pictures(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    settings = quick.replace(measure_reconstruction=True)
    for hits in (False, True):
        events: list[StepEvent] = []
        previews: list[Image.Image] = []

        def on_step(event: StepEvent, events: list = events, previews: list = previews) -> None:
            events.append(event)
            previews.append(event.preview())

        engine.zstar(astronaut, [coffee, cat], settings, on_step=on_step)
        counts = [event.step for event in events]
        assert counts == sorted(counts)
        assert {event.total for event in events} == {5 * settings.steps}
        assert counts[-1] == events[-1].total
        phases = list(dict.fromkeys(event.phase for event in events))
        assert phases == ["content 1", "style 1", "style 2", "stylizing", "reconstruction"]
        if not hits:
            assert set(range(5 * settings.steps + 1)) == set(counts)
        assert all(preview.mode == "RGB" and min(preview.size) >= 64 for preview in previews)
        last = [preview for event, preview in zip(events, previews, strict=True) if event.phase == "stylizing"][-1]
        assert last.size == (64, 64)


def test_the_progress_of_several_batches_is_one_count(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    events: list[StepEvent] = []
    engine.zstar_all([astronaut, cat], [coffee], quick, on_step=events.append)  # two shapes, so two batches
    shares = [event.step / event.total for event in events]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares.count(1) == 1


def test_previews_do_not_change_the_result(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    def watch(event: StepEvent) -> None:
        event.preview()

    watched = engine.zstar(astronaut, [coffee], quick, on_step=watch).image
    engine.cache.clear()
    assert same(engine.zstar(astronaut, [coffee], quick).image, watched)


# Stopped runs


def stop_in(phase: str, error: BaseException) -> Callable[[StepEvent], None]:
    """Raises at the second step of the phase."""
    seen: list[StepEvent] = []

    def on_step(event: StepEvent) -> None:
        if event.phase == phase:
            seen.append(event)
            if len(seen) == 3:
                raise error

    return on_step


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("content 1", Cancelled()),
        ("style 1", Cancelled()),
        ("stylizing", Cancelled()),
        ("stylizing", ZeroDivisionError()),
        ("stylizing", KeyboardInterrupt()),
        ("reconstruction", Cancelled()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_run_stopped_in_any_phase_leaves_network_and_cache_consistent(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    cat: Image.Image,
    quick: ZStarSettings,
    phase: str,
    error: BaseException,
    undisturbed: Image.Image,
) -> None:
    processors = {name: id(processor) for name, processor in engine.backbone.unet.attn_processors.items()}
    before = plain_prediction(engine.backbone)
    with pytest.raises(type(error)):
        engine.zstar(astronaut, [coffee], quick.replace(measure_reconstruction=True), on_step=stop_in(phase, error))
    assert {name: id(p) for name, p in engine.backbone.unet.attn_processors.items()} == processors
    assert torch.equal(plain_prediction(engine.backbone), before)
    # both inversions, and once there is a result the autoencoder's PSNR
    assert len(engine.cache) == {"content 1": 0, "style 1": 1, "reconstruction": 3}.get(phase, 2)
    assert same(engine.zstar(astronaut, [coffee], quick).image, undisturbed)


@pytest.fixture(scope="module")
def undisturbed(
    shared_engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> Image.Image:
    shared_engine.cache.clear()
    return shared_engine.zstar(astronaut, [coffee], quick).image


def test_an_error_inside_a_styled_layer_leaves_the_network_bit_for_bit(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    undisturbed: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = plain_prediction(engine.backbone)
    for target in ("styleengine.style_attention.attend_with_styles", "styleengine.attention.attend"):
        engine.cache.clear()

        def fail(*arguments: object, **options: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as context:
            context.setattr(target, fail)
            with pytest.raises(ZeroDivisionError):
                engine.zstar(astronaut, [coffee], quick)
        assert torch.equal(plain_prediction(engine.backbone), before)
        assert same(engine.zstar(astronaut, [coffee], quick).image, undisturbed)


def test_a_stopped_run_keeps_the_cache_within_its_bytes(
    model_folder: Path, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    engine = StyleEngine(str(model_folder))
    with pytest.raises(Cancelled):
        engine.zstar(astronaut, [coffee], quick, on_step=stop_in("stylizing", Cancelled()))
    grown = engine.cache.nbytes
    engine.cache.clear()
    engine.cache.capacity = grown - 1
    with pytest.raises(Cancelled):
        engine.zstar(astronaut, [coffee], quick, on_step=stop_in("stylizing", Cancelled()))
    assert engine.cache.nbytes <= engine.cache.capacity


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_too_little_memory_becomes_a_sentence(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, error: Exception
) -> None:
    with pytest.raises(StyleEngineError, match=r"not enough memory for images of size 64. Choose a smaller size"):
        engine.zstar(astronaut, [coffee], quick, on_step=stop_in("stylizing", error))


# Inputs


def test_pictures_may_be_paths_bytes_arrays_and_images(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, tmp_path: Path
) -> None:
    astronaut.save(tmp_path / "content.png")
    coffee.save(tmp_path / "style.png")
    expected = engine.zstar(astronaut, [coffee], quick).image
    bytes_ = (tmp_path / "content.png").read_bytes()
    for content, style in (
        (tmp_path / "content.png", str(tmp_path / "style.png")),
        (bytes_, np.asarray(coffee)),
        (np.asarray(astronaut), Style.open(tmp_path / "style.png")),
        (Image.open(tmp_path / "content.png"), Style(coffee)),
    ):
        assert same(engine.zstar(content, [style], quick).image, expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"content": "gone.png"}, r"The content image gone\.png does not exist"),
        ({"content": b"text"}, "The content image is not an image"),
        ({"content": None}, "No content image was given"),
        ({"styles": []}, "No style image was given"),
        ({"styles": ["gone.png"]}, r"The style image gone\.png does not exist"),
        ({"styles": [np.full((20, 20), np.nan)]}, "The style image is an array of floats"),
        ({"styles": [None]}, "No style image was given"),
        ({"mask": "gone.png"}, r"The mask gone\.png does not exist"),
        ({"mask": np.zeros((2, 2))}, "The mask has only 2×2 pixels"),
        ({"styles": [Style(BLACK.convert("RGB"), weight=-1)]}, "weights must be numbers from 0 up"),
    ],
)
def test_bad_inputs_are_refused_before_any_work(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    arguments: dict,
    sentence: str,
) -> None:
    given = {"content": astronaut, "styles": [coffee], "settings": quick, **arguments}
    with counted_evaluations(engine.backbone) as batches, pytest.raises(StyleEngineError, match=sentence):
        engine.zstar(**given)
    assert not batches
    assert len(engine.cache) == 0


def test_no_contents_are_refused(engine: StyleEngine, coffee: Image.Image) -> None:
    with pytest.raises(StyleEngineError, match="No content image was given"):
        engine.zstar_all([], [coffee])


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(StyleEngineError, match="There is no model “foo”"):
        StyleEngine("foo")


# Results


@pytest.fixture(scope="module")
def result(shared_engine: StyleEngine, coffee: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Stylization:
    file = tmp_path_factory.mktemp("inputs") / "painting ü.png"
    coffee.save(file)
    settings = ZStarSettings(size=64, steps=2, seed=5)
    return shared_engine.zstar(coffee, [Style.open(file, weight=0.5, mask=BLACK)], settings)


def test_the_record_contains_all_that_is_needed_to_repeat_the_run(
    result: Stylization, coffee: Image.Image, backbone: Backbone
) -> None:
    record = result.record()
    assert record["method"] == "zstar"
    assert (record["backbone"], record["revision"]) == (Path(backbone.name).name, backbone.revision)
    assert ZStarSettings(**record["settings"]) == ZStarSettings(size=64, steps=2, seed=5)
    assert set(record["settings"]) == set(ZStarSettings.model_fields)
    assert [entry["role"] for entry in record["inputs"]] == ["content", "style", "mask"]
    expected = hashlib.sha256(f"RGB {coffee.size} ".encode() + coffee.tobytes()).hexdigest()
    assert record["inputs"][0]["sha256"] == record["inputs"][1]["sha256"] == expected
    assert record["inputs"][1]["weight"] == 0.5
    assert record["inputs"][1]["name"] == "painting ü.png"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["versions"]["styleengine"] == __version__
    assert record["seconds"] >= 0


def test_a_saved_result_contains_its_record(result: Stylization, tmp_path: Path) -> None:
    path = result.save(tmp_path / "out.png")
    assert read_record(path) == result.record()
    assert same(open_image(path), result.image)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"method": "zstar"}'])
def test_a_picture_without_a_record_is_refused(tmp_path: Path, text: str | None) -> None:
    info = PngInfo()
    if text is not None:
        info.add_itxt("styleengine", text)
    Image.new("RGB", (20, 20)).save(tmp_path / "plain.png", pnginfo=info)
    with pytest.raises(StyleEngineError, match=r"plain\.png carries no StyleEngine record"):
        read_record(tmp_path / "plain.png")


def test_a_record_cannot_be_read_from_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match="does not exist"):
        read_record(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(StyleEngineError, match="not an image"):
        read_record(tmp_path / "text.png")


def test_a_result_that_cannot_be_saved_gives_a_sentence(result: Stylization, tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match="saved as PNG"):
        result.save(tmp_path / "out.jpg")
    with pytest.raises(StyleEngineError, match="There is no folder"):
        result.save(tmp_path / "gone" / "out.png")
    assert not list(tmp_path.iterdir())


# A single style


def test_a_single_style_or_content_need_not_be_in_a_list(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, tmp_path: Path
) -> None:
    coffee.save(tmp_path / "style.png")
    expected = engine.zstar(astronaut, [coffee], quick).image
    path = tmp_path / "style.png"
    for style in (coffee, path, str(path), path.read_bytes(), np.asarray(coffee), Style(coffee), (coffee,)):
        assert same(engine.zstar(astronaut, style, quick).image, expected)
    assert same(engine.zstar(astronaut, (image for image in [coffee]), quick).image, expected)
    assert [same(one.image, expected) for one in engine.zstar_all(astronaut, coffee, quick)] == [True]


def test_a_string_is_one_path_and_not_a_list_of_characters(
    engine: StyleEngine, astronaut: Image.Image, quick: ZStarSettings
) -> None:
    with pytest.raises(StyleEngineError, match=r"The style image gone\.png does not exist"):
        engine.zstar(astronaut, "gone.png", quick)
    with pytest.raises(StyleEngineError, match=r"The content image gone\.png does not exist"):
        engine.zstar_all("gone.png", astronaut, quick)
    with pytest.raises(StyleEngineError, match="No style image was given"):
        engine.zstar(astronaut, None, quick)  # type: ignore[arg-type]


# Queueing


@pytest.fixture(scope="module")
def learned(shared_engine: StyleEngine, cat: Image.Image) -> LearnedStyle:
    return shared_engine.inst_learn(cat, InSTLearningSettings(steps=1, size=32, batch=1, views=1))


@pytest.mark.parametrize(
    "method",
    [
        "zstar",
        "zstar_all",
        "zstar_video",
        "h_space",
        "h_space_strip",
        "qs_attn",
        "qs_attn_anchors",
        "inst_learn",
        "inst_apply",
        "with_model",
    ],
)
def test_a_run_that_waits_for_its_turn_reports_it_and_can_be_cancelled(
    engine: StyleEngine,
    pixel_model_folder: Path,
    learned: LearnedStyle,
    astronaut: Image.Image,
    coffee: Image.Image,
    method: str,
    tmp_path: Path,
) -> None:
    clip = open_clip(Path(__file__).parents[1] / "examples" / "video" / "box.mp4") if method == "zstar_video" else None
    arguments: dict[str, tuple] = {
        "zstar": (astronaut, [coffee]),
        "zstar_all": ([astronaut, coffee], [coffee]),
        "zstar_video": (clip, [coffee]),
        "h_space": (astronaut, coffee),
        "h_space_strip": (astronaut, coffee),
        "qs_attn": (astronaut, "ink"),
        "qs_attn_anchors": (astronaut,),
        "inst_learn": (astronaut,),
        "inst_apply": (None, [learned]),
        "with_model": (str(pixel_model_folder),),
    }
    events: list[StepEvent] = []

    def on_step(event: StepEvent) -> None:
        events.append(event)
        if len(events) == 2:
            raise Cancelled

    options = {"output": tmp_path / "out.mp4"} if method == "zstar_video" else {}
    fresh = copy.copy(engine)
    fresh._backbones = ByteCache(0)
    began = time.monotonic()
    with counted_evaluations(engine.backbone) as batches, engine._turns.one(), pytest.raises(Cancelled):
        getattr(fresh, method)(*arguments[method], on_step=on_step, **options)
    assert 0.1 <= time.monotonic() - began < 5
    assert [(event.phase, event.step, event.total) for event in events] == [("waiting", 0, 1)] * 2
    assert events[0].preview().mode == "RGB"
    assert not batches
    deadline = time.monotonic() + 5
    while engine._turns._queue and time.monotonic() < deadline:  # the thread that loads a model leaves soon
        time.sleep(0.02)
    assert not engine._turns._queue


def test_a_run_that_need_not_wait_reports_no_waiting(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    events: list[StepEvent] = []
    engine.zstar(astronaut, [coffee], quick, on_step=events.append)
    assert "waiting" not in {event.phase for event in events}


def test_a_run_waits_for_another_threads_and_then_runs(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def block(event: StepEvent) -> None:
        began.set()
        go_on.wait(30)

    def release(event: StepEvent) -> None:
        seen.append(event.phase)
        if seen.count("waiting") == 2:
            go_on.set()

    seen: list[str] = []
    expected = engine.zstar(astronaut, [coffee], quick).image
    first = threading.Thread(target=engine.zstar, args=(coffee, [astronaut], quick), kwargs={"on_step": block})
    first.start()
    assert began.wait(30)
    assert same(engine.zstar(astronaut, [coffee], quick, on_step=release).image, expected)
    first.join(30)
    assert seen[:2] == ["waiting"] * 2
    assert seen[-1] == "stylizing"


def test_turns_are_in_the_order_of_requests_and_a_repeated_request_queues_again() -> None:
    turns, order, asked = Turns(), list[str](), threading.Semaphore(0)

    def work(name: str, times: int) -> None:
        for _ in range(times):
            with turns.one(asked.release, pause=30):
                order.append(name)

    with turns.one():
        threads = [threading.Thread(target=work, args=(name, times)) for name, times in (("a", 2), ("b", 1), ("c", 1))]
        for thread in threads:
            thread.start()
            assert asked.acquire(timeout=10)
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c", "a"]
    assert not turns._queue


# Loading


def test_a_model_is_loaded_when_it_is_its_turn(
    engine: StyleEngine, pixel_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: list[int] = []

    def load() -> Backbone:
        loading.append(len(engine._turns._queue))
        return engine.backbone

    fresh = copy.copy(engine)
    fresh._backbones = ByteCache(1 << 30)
    monkeypatch.setattr("styleengine.engine_core.find_model", lambda *arguments: SimpleNamespace(load=load))
    fresh.with_model("a")
    fresh.with_model("a")
    with engine._turns.one():
        fresh.with_model("a")  # which is loaded, so there is nothing to wait for
    assert loading == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_another_threads_default_dtype_changes_no_pixel(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, dtype: torch.dtype
) -> None:
    """A library that loads a model sets the default for all threads."""

    def everything() -> list[bytes]:
        engine.cache.clear()
        engine._backbones.clear()  # but for the engine's own, which other tests share
        engine._backbones.get_or_make(engine.backbone.name, lambda: engine.backbone)
        gradient = Image.linear_gradient("L")
        settings = ZStarSettings(size=64, steps=2, variation=0.3)
        style = engine.inst_learn(cat, InSTLearningSettings(steps=2, size=32, batch=2, views=2))
        images = [
            engine.zstar(astronaut, [Style(coffee, 0.3, gradient), cat], settings),
            engine.zstar(astronaut, coffee, settings.replace(mode="simple_addition"), mask=gradient),
            engine.h_space(astronaut, coffee, HSpaceSettings(size=64, steps=4, t_boost=900), mask=gradient),
            engine.qs_attn(astronaut, "ink::2 | oil", QSAttnSettings(size=64, steps=3, patches=4)),
            engine.inst_apply(astronaut, style, InSTSettings(size=64, steps=2, adain=True)),
            engine.inst_apply(None, style, InSTSettings(size=64, steps=2)),
        ]
        anchors = engine.qs_attn_anchors(astronaut, QSAttnSettings(size=64, selection="local"))
        return [style.sha256.encode(), anchors.tobytes(), *(result.image.tobytes() for result in images)]

    expected = everything()
    torch.set_default_dtype(dtype)
    try:
        assert everything() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_new_tensor_in_the_package_states_its_dtype() -> None:
    makers = {"rand", "randn", "zeros", "ones", "empty", "full", "tensor", "linspace", "eye"}
    for file in (Path(__file__).parents[1] / "styleengine").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in makers}:
                named = {keyword.arg for keyword in node.keywords}
                assert "dtype" in named, f"{file.name}:{node.lineno}"


# Numbers that are not finite


def a_run_of_each_method(engine: StyleEngine, content: Image.Image, style: Image.Image, learned: LearnedStyle) -> dict:
    return {
        "zstar": lambda: engine.zstar(content, style, ZStarSettings(size=64, steps=2)),
        "h_space": lambda: engine.h_space(content, style, HSpaceSettings(size=64, steps=4)),
        "qs_attn": lambda: engine.qs_attn(content, "ink", QSAttnSettings(size=64, steps=2, patches=2)),
        "inst_apply": lambda: engine.inst_apply(content, learned, InSTSettings(size=64, steps=2)),
    }


@pytest.mark.parametrize("method", ["zstar", "h_space", "qs_attn", "inst_apply"])
@pytest.mark.parametrize("where", ["unet, first", "unet, later", "decoder", "encoder"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_become_a_sentence_and_never_a_picture(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    learned: LearnedStyle,
    method: str,
    where: str,
    value: float,
) -> None:
    backbone: Any = engine.backbone
    part = {"decoder": backbone.vae.decoder, "encoder": backbone.vae.encoder}.get(where, backbone.unet)
    calls = []

    def spoil(module: torch.nn.Module, given: object, output: Any) -> Any:
        calls.append(1)
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        if where != "unet, later" or len(calls) == 2:
            tensor = tensor.clone()
            tensor[0, 0, 0, 0] = value
        return tensor if isinstance(output, torch.Tensor) else type(output)(tensor)

    hook = part.register_forward_hook(spoil)
    try:
        with pytest.raises(StyleEngineError, match=r"not finite \(.*, in float32\).*less strength or guidance"):
            a_run_of_each_method(engine, astronaut, coffee, learned)[method]()
    finally:
        hook.remove()
    assert a_run_of_each_method(engine, astronaut, coffee, learned)[method]()  # nothing of it was cached


def test_the_sentence_suggests_a_better_dtype(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = torch.full((1, 3, 4, 4), torch.nan)
    for dtype, advice in (
        (torch.float16, "Load the model in bfloat16 or float32, or try gentler"),
        (torch.bfloat16, "Load the model in float32, or try gentler"),
        (torch.float32, "Try gentler"),
    ):
        monkeypatch.setattr(backbone, "dtype", dtype)
        with pytest.raises(StyleEngineError, match=advice):
            backbone.finite(broken, "the picture")


def test_a_preview_that_is_not_finite_does_not_stop_the_run(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    backbone: Any = engine.backbone
    expected = engine.zstar(astronaut, coffee, quick).image

    def preview_of_nan(event: StepEvent) -> None:
        hook = backbone.vae.decoder.register_forward_hook(lambda module, given, output: output * torch.nan)
        try:
            assert same(event.preview(), astronaut)
        finally:
            hook.remove()

    assert same(engine.zstar(astronaut, coffee, quick, on_step=preview_of_nan).image, expected)


# Memory


def test_what_memory_errors_look_like() -> None:
    too_much: list[Exception] = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.92 GB)"),
        OSError(12, "Cannot allocate memory"),
    ]
    assert all(is_out_of_memory(error) for error in too_much)
    others: list[BaseException] = [
        RuntimeError("shapes cannot be multiplied"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
        OSError(2, "No such file"),
        StyleEngineError("There is not enough memory for images of size 64."),
    ]
    assert not any(is_out_of_memory(error) for error in others)


def test_the_cpu_allocators_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


class Held:
    """Stands in for a large tensor."""


def test_after_running_out_of_memory_all_tensors_are_released_before_the_cuda_cache_is_emptied(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref] = []
    alive_then: list[int] = []

    def run_out(*arguments: object, **options: object) -> None:
        large = Held()
        held.append(weakref.ref(large))
        try:
            inner = Held()
            held.append(weakref.ref(inner))
            raise ValueError("before it")
        except ValueError:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB") from None

    monkeypatch.setattr("styleengine.style_attention.attend_with_styles", run_out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive_then.append(sum(ref() is not None for ref in held)))
    with pytest.raises(StyleEngineError, match="not enough memory for images of size 64") as error:
        engine.zstar(astronaut, coffee, quick)
    assert len(held) == 2
    assert alive_then == [0]
    assert all(ref() is None for ref in held)  # although the error is still referenced
    assert error.value.__notes__ == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_too_little_memory_for_a_model_becomes_a_sentence(
    engine: StyleEngine,
    model_folder: Path,
    pixel_model_folder: Path,
    astronaut: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    fresh = copy.copy(engine)
    fresh._backbones = ByteCache(0)
    sentence = "There is not enough memory to load the model “random”. Choose a smaller model"
    with monkeypatch.context() as patch:
        patch.setattr("styleengine.backbones.loading.UNet2DConditionModel.from_pretrained", fail)
        patch.setattr("styleengine.backbones.loading.UNet2DModel.from_pretrained", fail)
        for work in (lambda: StyleEngine(str(model_folder)), lambda: fresh.with_model(str(pixel_model_folder))):
            with pytest.raises(StyleEngineError, match=sentence):
                work()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", fail)
        with pytest.raises(StyleEngineError, match=sentence):
            StyleEngine(str(model_folder))
    monkeypatch.setattr("styleengine.backbones.clip.CLIPModel.from_pretrained", fail)
    with pytest.raises(StyleEngineError, match="not enough memory to load the model “CLIP of random”"):
        fresh.qs_attn(astronaut, "ink")
    assert not engine._turns._queue


@pytest.fixture
def gpu(engine: StyleEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StyleEngine]:
    """Makes an engine with a simulated GPU, of which so many GiB are free, reserved and allocated by torch."""

    def make(free: float, reserved: float = 0, allocated: float = 0, total: float = 16) -> StyleEngine:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *device: (int(free * 2**30), int(total * 2**30)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *device: int(reserved * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *device: int(allocated * 2**30))
        properties = SimpleNamespace(total_memory=int(total * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *device: properties)
        backbone = copy.copy(engine.backbone)
        backbone.device = torch.device("cuda")
        monkeypatch.setattr("styleengine.engine_core.load_backbone", lambda *arguments: backbone)
        return StyleEngine("any")

    return make


def test_memory_that_torch_caches_on_a_gpu_counts_as_free(gpu: Callable[..., StyleEngine]) -> None:
    pixels = 512 * 512
    fresh = gpu(free=6)._batch_size(pixels)
    assert gpu(free=1, reserved=8, allocated=3)._batch_size(pixels) == fresh > 2
    assert gpu(free=1, reserved=3, allocated=3)._batch_size(pixels) == 1
    assert gpu(free=0)._batch_size(pixels) == 1


def test_each_style_and_each_pixel_adds_to_the_memory_of_a_picture(gpu: Callable[..., StyleEngine]) -> None:
    engine = gpu(free=8)
    of_styles = [engine._batch_size(512 * 512, styles) for styles in (1, 2, 3, 5, 100)]
    of_sides = [engine._batch_size(side * side) for side in (512, 640, 768, 1024, 4096)]
    for sizes in (of_styles, of_sides):
        assert sizes == sorted(set(sizes), reverse=True)
        assert sizes[-1] == 1
    assert gpu(free=1000)._batch_size(64 * 64) == 32


@pytest.mark.parametrize(("total", "cached", "weights"), [(4, 2, 2), (8, 2, 4), (12, 1.5, 6), (16, 2, 6), (80, 2, 6)])
def test_on_a_small_gpu_the_caches_take_a_share_of_it_or_the_hosts_memory(
    gpu: Callable[..., StyleEngine], total: float, cached: float, weights: float
) -> None:
    engine = gpu(free=1, total=total)
    assert engine.cache.capacity == cached * 2**30
    assert engine._backbones.capacity == weights * 2**30
