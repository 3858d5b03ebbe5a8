"""Every method on a GPU in float16, and its memory. Skipped without CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from method_runs import LATENT_RUNS, LEARNING, PIXEL_RUNS, mean_difference, pictures
from models import write_random_clip, write_random_pixel_model, write_tiny_tokenizer
from PIL import Image

from benchmarks.sd15_shape import write_model
from styleengine import Cancelled, InSTSettings, StepEvent, StyleEngine, StyleEngineError, ZStarSettings
from styleengine.attention import StyleTokens, attend, attend_with_styles
from styleengine.memory import batch_bytes, free_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

DEVICE = "cuda"
MIB = 1 << 20
RUNS = [
    *((kind, name) for kind in ("mini", "shape") for name in LATENT_RUNS),
    *(("pixel", name) for name in PIXEL_RUNS),
]
EXACT = ("zstar", "h_space")  # methods that repeat pixel by pixel: no gradients, no video encoder
# The largest mean difference to float32 on the CPU, of 255: over twice that of float16 on the CPU, since a GPU's
# kernels sum in another order.
NEAR = {"zstar": 2.0, "h_space": 2.0, "qs_attn": 25.0, "inst": 4.0, "zstar_video": 8.0}
HEAD_DIMS = (40, 80, 160)  # of Stable Diffusion 1.5
SMALL = ZStarSettings(size=128, steps=8)
LARGE = ZStarSettings(size=1024, steps=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """mini, a small random model with Stable Diffusion's classes and topology, and a random pixel-space model."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "shape", small=True, clip=True)
    pixel = write_random_pixel_model(folder / "pixel")
    write_random_clip(pixel / "clip", write_tiny_tokenizer())
    return {"mini": "mini", "shape": str(folder / "shape"), "pixel": str(pixel)}


@pytest.fixture(scope="module")
def engines(models: dict[str, str]) -> dict[str, StyleEngine]:
    return {kind: StyleEngine(model, device=DEVICE, dtype="float16") for kind, model in models.items()}


@pytest.fixture(scope="module")
def on_cpu(models: dict[str, str]) -> dict[str, StyleEngine]:
    return {kind: StyleEngine(model, device="cpu", dtype="float32") for kind, model in models.items()}


@pytest.fixture
def engine(engines: dict[str, StyleEngine]) -> StyleEngine:
    """On mini, with an empty cache."""
    engines["mini"].cache.clear()
    torch.cuda.empty_cache()
    return engines["mini"]


@contextmanager
def at_most_more(bytes_: int) -> Iterator[None]:
    """Within the context, torch can allocate so many bytes beyond what it holds now."""
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + bytes_) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# Results


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_a_run_in_float16_is_near_the_cpus_and_repeats(
    engines: dict[str, StyleEngine], on_cpu: dict[str, StyleEngine], tmp_path: Path, kind: str, name: str
) -> None:
    run = {"mini": LATENT_RUNS, "shape": LATENT_RUNS, "pixel": PIXEL_RUNS}[kind][name]
    method, results = name.partition(",")[0], []
    for number, engine in enumerate((on_cpu[kind], engines[kind], engines[kind])):
        engine.cache.clear()
        results.append(run(engine, pictures(tmp_path / str(number))))
    expected, first, second = results
    assert mean_difference(first, expected) < NEAR[method]
    if method in EXACT:
        assert [image.tobytes() for image in first] == [image.tobytes() for image in second]
    else:
        assert mean_difference(first, second) < NEAR[method]


def test_applying_a_learned_style_repeats_pixel_by_pixel(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    style = engine.inst_learn(coffee, LEARNING)
    settings = InSTSettings(size=128, steps=10)
    first, second = (engine.inst_apply(cat, style, settings).image.tobytes() for _ in range(2))
    assert first == second


def test_a_cached_run_gives_the_same_pixels(engine: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    first, second = (engine.zstar(cat, coffee, SMALL).image.tobytes() for _ in range(2))
    assert first == second


def test_what_is_cached_does_not_change_the_pixels_of_a_batch(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    contents = [cat.rotate(angle) for angle in (0, 90, 180)]
    cold = [result.image.tobytes() for result in engine.zstar_all([contents[0], contents[2]], coffee, SMALL)]
    engine.cache.clear()
    for content in contents:
        engine.zstar(content, coffee, SMALL)
    assert [result.image.tobytes() for result in engine.zstar_all([contents[0], contents[2]], coffee, SMALL)] == cold


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_at_stable_diffusions_head_sizes_is_near_the_cpus(dtype: torch.dtype, head_dim: int) -> None:
    """With whichever kernel is used, also with biases per query (two additional columns)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, ks, vs = (torch.randn(2, 8, 256, head_dim, generator=generator).to(dtype) for _ in range(5))
    bias = torch.linspace(0.01, 1, 256).log()
    near = {torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]

    def both(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        tensors = [x.to(device, dtype) for x in (q, k, v)]
        style = StyleTokens(ks.to(device, dtype), vs.to(device, dtype), bias.to(device))
        outputs = attend(*tensors), attend_with_styles(*tensors, [style], 1.2)
        return [out.float().cpu() for out in outputs]

    for found, expected in zip(both(DEVICE, dtype), both("cpu", torch.float32), strict=True):
        assert (found - expected).abs().max() < near


def test_after_a_cancelled_run_the_next_one_is_right(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    expected = engine.zstar(cat, coffee, SMALL).image.tobytes()
    engine.cache.clear()

    def stop(event: StepEvent) -> None:
        if event.step > event.total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.zstar(cat, coffee, SMALL, on_step=stop)
    assert engine.zstar(cat, coffee, SMALL).image.tobytes() == expected


# Memory


def test_out_of_memory_is_a_sentence_and_leaves_nothing(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    large = ZStarSettings(size=1536, steps=2)
    expected = engine.zstar(cat, coffee, SMALL).image.tobytes()
    engine.cache.clear()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    with at_most_more(200 * MIB), pytest.raises(StyleEngineError, match="not enough memory for images of size 1536"):
        engine.zstar(cat.resize((1600, 1600)), coffee.resize((1600, 1600)), large)
    assert torch.cuda.memory_allocated() <= allocated + 16 * MIB
    assert torch.cuda.memory_reserved() <= reserved + 64 * MIB
    assert engine.zstar(cat, coffee, SMALL).image.tobytes() == expected


def test_too_little_memory_for_a_model_is_a_sentence_and_leaves_nothing() -> None:
    torch.cuda.empty_cache()
    allocated = torch.cuda.memory_allocated()
    with at_most_more(4 * MIB), pytest.raises(StyleEngineError, match="not enough memory to load the model"):
        StyleEngine("mini", device=DEVICE, dtype="float32")
    assert torch.cuda.memory_allocated() <= allocated + 4 * MIB
    assert StyleEngine("mini", device=DEVICE).backbone.device.type == DEVICE


def test_the_cache_stays_within_its_bound(engine: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    engine.zstar(cat, coffee, SMALL)
    bound = 2 * engine.cache.nbytes  # of two runs
    small = StyleEngine("mini", device=DEVICE, dtype="float16", cache_bytes=bound)
    engine.cache.clear()
    before = torch.cuda.memory_allocated()
    for angle in range(0, 180, 30):
        small.zstar(cat.rotate(angle), coffee.rotate(angle), SMALL)
        assert small.cache.nbytes <= bound
    assert bound / 4 < small.cache.nbytes
    assert torch.cuda.memory_allocated() <= before + bound + 16 * MIB


def test_memory_that_torch_holds_counts_as_free(engine: StyleEngine) -> None:
    device = engine.backbone.device
    before, taken = free_memory(device), 256 * MIB
    held = torch.empty(taken, dtype=torch.uint8, device=device)
    assert before - free_memory(device) == pytest.approx(taken, rel=0.1)
    del held
    assert torch.cuda.memory_reserved() - torch.cuda.memory_allocated() >= taken
    assert before - free_memory(device) == pytest.approx(0, abs=taken / 10)


def test_a_large_run_leaves_the_batch_size_as_it_was(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    engine.zstar(cat, coffee, SMALL)  # CUDA's libraries take their own memory
    engine.cache.clear()
    before = free_memory(engine.backbone.device)
    engine.zstar(cat, coffee, LARGE)
    engine.cache.clear()
    assert torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > 64 * MIB
    assert free_memory(engine.backbone.device) == pytest.approx(before, rel=0.05)


@pytest.fixture(scope="module")
def true_shape(tmp_path_factory: pytest.TempPathFactory) -> StyleEngine:
    """Stable Diffusion 1.5's networks with random weights, which the estimate of memory is made for."""
    folder = tmp_path_factory.mktemp("true shape") / "model"
    write_model(folder, dtype=torch.float16)
    return StyleEngine(str(folder), device=DEVICE, dtype="float16")


@pytest.mark.parametrize("count", [2, 6])
def test_the_peak_of_a_batch_is_within_the_estimate(
    true_shape: StyleEngine, cat: Image.Image, coffee: Image.Image, count: int
) -> None:
    """The estimate says how much free memory a batch of that many needs."""
    styles, pixels = 1, 512 * 512
    estimate = batch_bytes(pixels, count, styles)
    true_shape.cache.clear()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 2 * estimate:
        pytest.skip(f"{free / 2**30:.1f} GiB are free, of {2 * estimate / 2**30:.1f} that are needed to tell")
    assert true_shape._batch_size(pixels, styles) >= count
    contents = [cat.resize((512, 512)).rotate(angle) for angle in range(count)]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    true_shape.zstar_all(contents, coffee.resize((512, 512)), ZStarSettings(size=512))
    assert torch.cuda.max_memory_allocated() - before <= estimate


def test_recorded_tensors_in_pinned_memory_give_the_same_pixels(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a small GPU."""
    settings = SMALL.replace(query_preservation=0.5)
    expected = engine.zstar(cat, coffee, settings).image.tobytes()
    engine.cache.clear()
    monkeypatch.setattr("styleengine.memory.kept_on_host", lambda device: True)
    assert [engine.zstar(cat, coffee, settings).image.tobytes() for _ in range(2)] == [expected] * 2
    recorded = [path.keys_values for path in engine.cache._entries.values() if getattr(path, "keys_values", None)]
    tensors = [x for levels in recorded for layers in levels.values() for pair in layers.values() for x in pair]
    assert tensors
    assert all(x.is_pinned() for x in tensors)
