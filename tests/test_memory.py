"""The estimates of memory, and what follows from them: save_memory, the batch, and where recorded tensors are kept."""

from pathlib import Path

import pytest
import torch
from method_runs import LEARNING
from PIL import Image

from benchmarks.memory import Shape, counted
from styleengine import (
    InSTLearningSettings,
    LearnedStyle,
    QSAttnSettings,
    StyleEngine,
    StyleEngineError,
    ZStarSettings,
    memory,
)
from styleengine.backbones import Backbone
from styleengine.memory import GIB, batch_bytes, batch_size, guidance_bytes, learning_bytes, saving
from styleengine.perceptual import Clip

SIDE = 256
PIXELS = SIDE * SIDE
CUDA = torch.device("cuda")
WEIGHTS, CLIP_WEIGHTS, CONTEXT = 2.0 * GIB, 1.6 * GIB, 0.5 * GIB  # of Stable Diffusion 1.5; CUDA's own


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape()


def test_the_counter_counts_living_tensors_only() -> None:
    def function() -> None:
        a = torch.empty(1000, dtype=torch.float32)
        b = a.view(10, 100) + 1
        del a
        (b.t() * 2).sum()

    assert counted(function) == 8004  # two of them, and the sum
    weight = torch.ones(50, dtype=torch.float32)
    assert counted(lambda: weight.view(5, 10).t()) == 0


def test_the_estimates_are_the_bytes_counted_at_stable_diffusions_shapes(shape: Shape) -> None:
    found = {
        "EVALUATION": shape.evaluation(SIDE, 2) / 2 / PIXELS,
        "ENCODING": shape.encoding(SIDE) / PIXELS,
        "DECODING": shape.decoding(SIDE) / PIXELS,
        "LEARNING": shape.learning(SIDE, 2, checkpointed=False) / 2 / PIXELS,
        "CLIP_IMAGE": shape.embedding(2, checkpointed=False) / 2,
    }
    for name, bytes_ in found.items():
        assert bytes_ == pytest.approx(getattr(memory, name), rel=0.03), name


def test_the_estimate_of_qs_attn_covers_the_count_and_is_near_it(shape: Shape) -> None:
    count, estimate = shape.guidance(SIDE, False, images=3), guidance_bytes(PIXELS, 3) - memory.WORKSPACE
    assert count < estimate < 1.5 * count


def test_checkpointing_saves_most_of_a_gradients_memory(shape: Shape) -> None:
    assert 3 * shape.learning(SIDE, 1, checkpointed=True) < shape.learning(SIDE, 1, checkpointed=False)
    assert 5 * shape.embedding(2, checkpointed=True) < shape.embedding(2, checkpointed=False)


def test_recorded_tensors_are_as_large_as_stated() -> None:
    assert memory.RECORDED_QUERIES / 25 == 2 * (3 * 1024 * 640 + 3 * 4096 * 320) / 512**2
    assert memory.RECORDED_STYLE == 2 * memory.RECORDED_QUERIES


def test_what_the_methods_need_fits_the_cards_that_the_pages_name() -> None:
    """Z-STAR+ at 512 px into 6 GB, InST's learning into 8 GB and QS-Attn into 12 GB, checkpointed."""
    pixels = 512 * 512
    on_device = batch_bytes(pixels, 1, 1) - 25 * 90 * pixels - 25 * 45 * pixels  # the recorded tensors are on the host
    assert WEIGHTS + CONTEXT + on_device < 6e9
    learning = 4 * 0.3 * memory.MARGIN * memory.LEARNING * pixels + memory.WORKSPACE
    assert WEIGHTS + CLIP_WEIGHTS + CONTEXT + learning < 8e9
    clip = 33 * memory.CLIP_IMAGE / 5
    guidance = memory.MARGIN * (pixels * memory.DECODING_WITH_GRADIENT + clip) + memory.WORKSPACE
    assert WEIGHTS + CLIP_WEIGHTS + CONTEXT + guidance < 12e9


def free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: gib * GIB)


def test_a_batch_is_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for gib in (2, 3, 6, 10):
        free(monkeypatch, gib)
        count = batch_size(PIXELS * 4, 1, CUDA)
        assert count == 1 or batch_bytes(PIXELS * 4, count, 1) <= gib * GIB
        assert count == memory.MOST_AT_ONCE or batch_bytes(PIXELS * 4, count + 1, 1) > gib * GIB
    assert batch_size(PIXELS, 1, torch.device("cpu")) == 4


# save_memory


def test_auto_saves_memory_if_too_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = learning_bytes(512 * 512, 4)
    assert 3 * GIB < needed < 5 * GIB
    for gib, expected in ((needed / GIB - 0.1, "on"), (needed / GIB + 0.1, "off")):
        free(monkeypatch, gib)
        assert saving("auto", needed, CUDA) == expected
        assert [saving(choice, needed, CUDA) for choice in ("on", "off")] == ["on", "off"]


@pytest.mark.parametrize("settings", [InSTLearningSettings, QSAttnSettings])
def test_save_memory_takes_the_values_of_earlier_records(settings: type[QSAttnSettings]) -> None:
    assert [settings(save_memory=value).save_memory for value in (True, False, "auto")] == ["on", "off", "auto"]  # type: ignore[arg-type]
    assert settings().save_memory == "auto"
    with pytest.raises(StyleEngineError, match="save_memory = 'perhaps' must be one of these"):
        settings(save_memory="perhaps")  # type: ignore[arg-type]


@pytest.mark.parametrize(("gib", "used"), [(0.1, "on"), (1000, "off")])
def test_records_state_what_was_used(
    engine: StyleEngine, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, used: str
) -> None:
    settings = QSAttnSettings(size=64, steps=3, patches=3, anchors=16, prompt="ink")
    expected = {save: engine.qs_attn(cat, settings=settings.replace(save_memory=save)) for save in ("on", "off")}
    free(monkeypatch, gib)
    result = engine.qs_attn(cat, settings=settings)
    assert result.settings["save_memory"] == used
    assert {one.image.tobytes() for one in expected.values()} == {result.image.tobytes()}
    style = engine.inst_learn(cat, LEARNING)
    assert style.record.settings["save_memory"] == used
    style.save(tmp_path / "style.safetensors")
    assert LearnedStyle.open(tmp_path / "style.safetensors").record.settings["save_memory"] == used


def test_on_a_cpu_auto_does_not_save_memory(engine: StyleEngine, cat: Image.Image) -> None:
    settings = QSAttnSettings(size=64, steps=2, patches=3, anchors=16, prompt="ink")
    assert engine.qs_attn(cat, settings=settings).settings["save_memory"] == "off"


def test_clip_is_checkpointed_layer_by_layer_with_the_same_gradient(backbone: Backbone) -> None:
    clip, pictures = Clip(backbone), torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    runs: list[int] = []
    layer = clip.model.vision_model.encoder.layers[0]
    hook = layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))

    def gradient(wanted: bool) -> torch.Tensor:
        x = pictures.clone().requires_grad_()
        with clip.checkpointing(wanted):
            embeddings, tokens = clip.embed(x)
        (gradient,) = torch.autograd.grad(embeddings[:, 0].sum() + tokens.square().sum(), x)
        return gradient

    plain = gradient(False)
    assert runs == [1]
    assert torch.equal(gradient(True), plain)
    assert len(runs) == 3
    hook.remove()
    assert not any(module.training for module in clip.model.modules())
    with pytest.raises(KeyError), clip.checkpointing(True):
        raise KeyError
    assert not any(module.training for module in clip.model.modules())
    assert torch.equal(gradient(False), plain)


# Recorded tensors


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """As on a small GPU; gives the tensors that were moved to the host's memory."""
    moved, copied = list[torch.Tensor](), memory.to_host

    def to_host(x: torch.Tensor) -> torch.Tensor:
        moved.append(copied(x))
        return moved[-1]

    monkeypatch.setattr("styleengine.memory.kept_on_host", lambda device: True)
    monkeypatch.setattr("styleengine.memory.to_host", to_host)
    return moved


def test_recorded_tensors_on_the_host_give_the_same_pixels(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, small_card: list[torch.Tensor]
) -> None:
    settings = ZStarSettings(size=64, steps=4, query_preservation=0.5)
    first = engine.zstar(astronaut, coffee, settings).image.tobytes()
    assert len(small_card) == 4 * 6 * 3 - 6 * 3  # levels, layers, q, k and v; one level is not styled
    assert engine.zstar(astronaut, coffee, settings).image.tobytes() == first
    engine.cache.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("styleengine.memory.kept_on_host", lambda device: False)
        assert engine.zstar(astronaut, coffee, settings).image.tobytes() == first


def test_a_copy_on_the_host_has_the_same_strides() -> None:
    x = torch.rand(1, 6, 2, 5, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    copied = memory.to_host(x)
    assert copied.stride() == x.stride()
    assert torch.equal(copied, x)
    assert copied.data_ptr() != x.data_ptr()


def test_only_a_small_gpu_keeps_recorded_tensors_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not memory.kept_on_host(torch.device("cpu"))
    for gib, expected in ((6, True), (8, True), (12, False), (80, False)):
        monkeypatch.setattr(memory, "gpu_memory", lambda device, gib=gib: gib * GIB)
        assert memory.kept_on_host(CUDA) is expected
