"""Every method on a GPU. Skipped without CUDA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import LATENT_RUNS, PIXEL_RUNS, mean_difference, pictures
from models import write_random_clip, write_random_pixel_model, write_tiny_tokenizer
from PIL import Image

from styleengine import Cancelled, StepEvent, StyleEngine, StyleEngineError, ZStarSettings
from styleengine.memory import pixels_at_once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

RUNS = [("latent", name) for name in LATENT_RUNS] + [("pixel", name) for name in PIXEL_RUNS]
EXACT = ("zstar", "h_space")  # methods without gradients, and without x264's decisions
NEAR = 16.0  # mean difference to float32 on the CPU, of 255: gradients and learning amplify rounding
SMALL = ZStarSettings(size=128, steps=8)
LARGE = ZStarSettings(size=1024, steps=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pixel = write_random_pixel_model(tmp_path_factory.mktemp("pixel model") / "random")
    write_random_clip(pixel / "clip", write_tiny_tokenizer())
    return {"latent": "mini", "pixel": str(pixel)}


@pytest.fixture(scope="module")
def engines(models: dict[str, str]) -> dict[str, StyleEngine]:
    return {kind: StyleEngine(model, device="cuda", dtype="float16") for kind, model in models.items()}


@pytest.fixture(scope="module")
def on_cpu(models: dict[str, str]) -> dict[str, StyleEngine]:
    return {kind: StyleEngine(model, device="cpu") for kind, model in models.items()}


@pytest.fixture
def cuda(engines: dict[str, StyleEngine]) -> StyleEngine:
    engines["latent"].cache.clear()
    return engines["latent"]


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_a_run_in_float16_is_near_the_cpus_and_repeats(
    engines: dict[str, StyleEngine], on_cpu: dict[str, StyleEngine], tmp_path: Path, kind: str, name: str
) -> None:
    run = {"latent": LATENT_RUNS, "pixel": PIXEL_RUNS}[kind][name]
    results = []
    for number, engine in enumerate((on_cpu[kind], engines[kind], engines[kind])):
        engine.cache.clear()
        results.append(run(engine, pictures(tmp_path / str(number))))
    expected, first, second = results
    assert mean_difference(first, expected) < NEAR
    if name.partition(",")[0] in EXACT:
        assert [image.tobytes() for image in first] == [image.tobytes() for image in second]


def test_after_a_cancelled_run_the_next_one_is_right(cuda: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    expected = cuda.zstar(cat, coffee, SMALL).image.tobytes()
    cuda.cache.clear()

    def stop(event: StepEvent) -> None:
        if event.step > event.total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        cuda.zstar(cat, coffee, SMALL, on_step=stop)
    assert cuda.zstar(cat, coffee, SMALL).image.tobytes() == expected


def test_out_of_memory_is_a_sentence_and_leaves_nothing(
    cuda: StyleEngine, cat: Image.Image, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cuda.zstar(cat, coffee, SMALL).image.tobytes()
    cuda.cache.clear()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + (200 << 20)) / total))
    try:
        with pytest.raises(StyleEngineError, match="memory"):
            cuda.zstar(cat.resize((1500, 1500)), coffee.resize((1500, 1500)), ZStarSettings(size=1500, steps=2))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() <= before + (16 << 20)
    assert cuda.zstar(cat, coffee, SMALL).image.tobytes() == expected


def test_the_cache_stays_within_its_bound(cat: Image.Image, coffee: Image.Image) -> None:
    engine: Any = StyleEngine("mini", device="cuda", dtype="float16", cache_bytes=64 << 20)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for angle in range(0, 360, 30):
        engine.zstar(cat.rotate(angle), coffee.rotate(angle), SMALL)
    assert torch.cuda.memory_allocated() <= before + (80 << 20)


def test_a_large_run_leaves_the_batch_size_as_it_was(cuda: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    device = cuda.backbone.device
    before = pixels_at_once(device)
    cuda.zstar(cat, coffee, LARGE)
    cuda.cache.clear()
    assert pixels_at_once(device) == pytest.approx(before, rel=0.05)


def test_peak_memory_is_below_the_estimate(cuda: StyleEngine, cat: Image.Image, coffee: Image.Image) -> None:
    """A batch of the estimated size fits into the free memory."""
    free = pixels_at_once(cuda.backbone.device)
    count = max(1, min(8, free // (512 * 512)))
    torch.cuda.reset_peak_memory_stats()
    cuda.zstar_all([cat.rotate(angle) for angle in range(count)], coffee, ZStarSettings(size=512, steps=2))
    assert torch.cuda.max_memory_allocated() < torch.cuda.get_device_properties(0).total_memory
