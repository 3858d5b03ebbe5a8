"""Every method, mode and mask in float16 and bfloat16: no value that is not finite, and near float32's result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import LATENT_RUNS, PIXEL_RUNS, mean_difference, pictures
from models import write_random_clip, write_random_pixel_model, write_tiny_tokenizer
from PIL import Image

from styleengine import QSAttnSettings, StyleEngine
from styleengine.images import to_tensor
from styleengine.methods.qs_attn.guide import Guide

RUNS = [("latent", name) for name in LATENT_RUNS] + [("pixel", name) for name in PIXEL_RUNS]
HALF = ("float16", "bfloat16")
# The largest mean difference to float32, of 255. Gradient methods and learning amplify rounding, and x264 decides anew
# where a pixel differs. StyTr² computes in float32 with any model.
NEAR = {"zstar": (0.2, 1.5), "h_space": (0.2, 1.5), "qs_attn": (7, 7), "inst": (1, 6), "zstar_video": (4, 5)}
IN_FLOAT32 = ("stytr2",)
NEAR_ON_PIXELS = {"h_space": (1, 6), "qs_attn": (0.5, 2)}  # random weights


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], StyleEngine]:
    """Engines on mini and on a random pixel-space model, in each dtype."""
    pixel = write_random_pixel_model(tmp_path_factory.mktemp("pixel model") / "random")
    write_random_clip(pixel / "clip", write_tiny_tokenizer())
    models = {"latent": "mini", "pixel": str(pixel)}
    return {
        (kind, dtype): StyleEngine(model, device="cpu", dtype=dtype)
        for kind, model in models.items()
        for dtype in ("float32", *HALF)
    }


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_half_precision_is_near_float32(
    engines: dict[tuple[str, str], StyleEngine], tmp_path: Path, kind: str, name: str
) -> None:
    run = {"latent": LATENT_RUNS, "pixel": PIXEL_RUNS}[kind][name]
    results = {}
    for dtype in ("float32", *HALF):
        engine = engines[kind, dtype]
        engine.cache.clear()
        results[dtype] = run(engine, pictures(tmp_path / dtype))
    if name in IN_FLOAT32:
        assert all(mean_difference(results[dtype], results["float32"]) == 0 for dtype in HALF)
        return
    near = {"latent": NEAR, "pixel": NEAR_ON_PIXELS}[kind][name.partition(",")[0]]
    for dtype, limit in zip(HALF, near, strict=True):
        assert 0 < mean_difference(results[dtype], results["float32"]) < limit


def test_the_guidance_gradient_of_qs_attn_in_float16_is_that_in_float32(
    engines: dict[tuple[str, str], StyleEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ZeCon's weights it overflows in float16, unless the loss is scaled."""
    gradients: list[torch.Tensor] = []

    def note(self: Guide, gradient: torch.Tensor | None) -> torch.Tensor | None:
        assert gradient is not None
        gradients.append(gradient)
        return sound(self, gradient)

    sound = Guide._sound
    monkeypatch.setattr(Guide, "_sound", note)
    settings = QSAttnSettings(size=64, steps=2, patches=3, anchors=16)
    for dtype in ("float32", "float16"):
        engine = engines["latent", dtype]
        engine.cache.clear()
        assert not engine.qs_attn(pictures(tmp_path / dtype).content, "ink", settings).notes
    first, first_in_half = gradients[0], gradients[len(gradients) // 2]
    assert first.abs().max() > 1000
    assert (first_in_half - first).norm() < 0.05 * first.norm()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_that_overflows_in_float16_computes_in_float32(
    engines: dict[tuple[str, str], StyleEngine], part: str, astronaut: Image.Image
) -> None:
    half: Any = engines["latent", "float16"].backbone
    weights = {name: weight.clone() for name, weight in half.vae.state_dict().items()}
    layer = getattr(half.vae, part).layers[0 if part == "encoder" else -1]

    def overflow(module: torch.nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        return output * 1e5 / 1e5  # beyond float16's range on the way

    pixels = to_tensor(astronaut)
    latents = half.encode(pixels)
    plain = latents if part == "encoder" else half.decode(latents)
    hook = layer.register_forward_hook(overflow)
    try:
        result = half.encode(pixels) if part == "encoder" else half.decode(latents)
    finally:
        hook.remove()
    assert half.vae.dtype == torch.float16
    assert all(torch.equal(weight, weights[name]) for name, weight in half.vae.state_dict().items())
    assert (result - plain).abs().mean() < 0.01
