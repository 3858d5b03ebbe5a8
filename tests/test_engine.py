"""The engine: what it spares by its caches, what it reports, and what it leaves behind when stopped."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from styleengine import Cancelled, StepEvent, Style, StyleEngine, StyleEngineError, ZStarSettings, __version__
from styleengine.backbone import Backbone
from styleengine.images import content_hash, open_image
from styleengine.stylization import Stylization, read_record

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

    def evaluations(content: Image.Image, style: Image.Image) -> int:
        with counted_evaluations(engine.backbone) as batches:
            engine.zstar(content, [style], quick)
        assert set(batches) == {1}
        return len(batches)

    content_inversion = style_inversion = stylizing = steps
    assert evaluations(astronaut, coffee) == content_inversion + style_inversion + styled + stylizing
    assert evaluations(astronaut, coffee) == stylizing
    assert evaluations(rocket, coffee) == content_inversion + stylizing
    assert evaluations(astronaut, cat) == style_inversion + styled + stylizing
    assert evaluations(rocket, cat) == stylizing


def test_inversion_iterations_are_asked_of_the_network(
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
    engine.zstar(cat, [coffee], quick.replace(first_layer=13))  # the record of the style grows by pieces
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


def test_a_style_record_too_large_to_keep_is_made_anew_with_the_same_pixels(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = engine.zstar(astronaut, [coffee], quick).image
    engine.cache.clear()
    monkeypatch.setattr("styleengine.methods.zstar.LARGEST_STYLE_RECORD", 0)
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
    assert sorted(batches) == [1] * 2 * quick.steps + [2] * quick.steps
    for one, single, content in zip(together, singles, contents, strict=True):
        difference = np.abs(np.asarray(one.image, int) - np.asarray(single.image, int))
        assert difference.max() <= 1
        assert one.inputs == single.inputs
        assert one.inputs[0].sha256 == content_hash(content)


def test_batches_are_cut_to_what_the_machine_holds(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("styleengine.engine.BATCH_PIXELS_ON_CPU", 2 * 64 * 64)
    turned = [astronaut.rotate(angle) for angle in (0, 90, 180)]
    with counted_evaluations(engine.backbone) as batches:
        assert len(engine.zstar_all(turned, [coffee], quick)) == 3
    assert batches.count(2) == quick.steps


def test_threads_share_one_engine_and_get_what_they_asked_for(
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


def test_watching_changes_nothing(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    def watch(event: StepEvent) -> None:
        event.preview()

    watched = engine.zstar(astronaut, [coffee], quick, on_step=watch).image
    engine.cache.clear()
    assert same(engine.zstar(astronaut, [coffee], quick).image, watched)


# Stopped half-way


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
def test_a_run_stopped_in_any_phase_leaves_network_and_cache_as_they_should_be(
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
    assert len(engine.cache) == {"content 1": 0, "style 1": 1}.get(phase, 2)
    assert same(engine.zstar(astronaut, [coffee], quick).image, undisturbed)


@pytest.fixture(scope="module")
def undisturbed(
    shared_engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> Image.Image:
    shared_engine.cache.clear()
    return shared_engine.zstar(astronaut, [coffee], quick).image


def test_a_failure_inside_a_styled_layer_leaves_the_network_bit_for_bit(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    undisturbed: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = plain_prediction(engine.backbone)
    for target in ("styleengine.methods.zstar.attend_with_styles", "styleengine.attention.attend"):
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
    with pytest.raises(StyleEngineError, match=r"not enough memory for pictures of size 64. Choose a smaller size"):
        engine.zstar(astronaut, [coffee], quick, on_step=stop_in("stylizing", error))


# What comes in


def test_pictures_come_in_as_paths_bytes_arrays_and_images(
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
        ({"content": b"text"}, "The content image is not a picture"),
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


# What comes out


@pytest.fixture(scope="module")
def result(shared_engine: StyleEngine, coffee: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Stylization:
    file = tmp_path_factory.mktemp("inputs") / "painting ü.png"
    coffee.save(file)
    settings = ZStarSettings(size=64, steps=2, seed=5)
    return shared_engine.zstar(coffee, [Style.open(file, weight=0.5, mask=BLACK)], settings)


def test_the_record_says_all_that_is_needed_to_make_it_again(
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
    assert Path(record["inputs"][1]["source"]).name == "painting ü.png"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["versions"]["styleengine"] == __version__
    assert record["seconds"] >= 0


def test_a_saved_result_carries_its_record(result: Stylization, tmp_path: Path) -> None:
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
    with pytest.raises(StyleEngineError, match="not a picture"):
        read_record(tmp_path / "text.png")


def test_a_result_that_cannot_be_saved_says_so(result: Stylization, tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match="saved as PNG"):
        result.save(tmp_path / "out.jpg")
    with pytest.raises(StyleEngineError, match="There is no folder"):
        result.save(tmp_path / "gone" / "out.png")
    assert not list(tmp_path.iterdir())
