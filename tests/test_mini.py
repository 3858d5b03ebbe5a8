"""The embedded model: it is complete, and Z-STAR+ works on it, by metrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from styleengine import StyleEngine, ZStarSettings
from styleengine.attention import attend, self_attention_layers
from styleengine.backbones import BACKBONES
from styleengine.images import fit, open_image, to_tensor
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.metrics import color_distance, content_loss, encoder_features, ssim, style_loss
from styleengine.style_attention import StyleInjection
from styleengine.style_library import SHIPPED

FOLDER = Path(BACKBONES["mini"].location)
EXAMPLES = Path(__file__).parent.parent / "examples"
SIZE = 128
STEPS = 15


@pytest.fixture(scope="module")
def mini() -> StyleEngine:
    return StyleEngine("mini", device="cpu")


@pytest.fixture(scope="module")
def content() -> Image.Image:
    return open_image(EXAMPLES / "content" / "temple.jpg")


@pytest.fixture(scope="module")
def style() -> Image.Image:
    return open_image(EXAMPLES / "style" / "auvers.jpg")


def test_the_folder_is_small_enough_for_a_space_repository() -> None:
    sizes = [file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) < 80_000_000


def test_diffusers_own_pipeline_loads_the_folder_and_samples() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("", num_inference_steps=2, guidance_scale=1.0, height=64, width=64).images[0]
    assert image.size == (64, 64)
    assert pipeline.tokenizer.model_max_length <= 77


def test_the_bundled_styles_were_learned_on_these_weights(mini: StyleEngine) -> None:
    files = sorted(SHIPPED.glob(f"*{SUFFIX}"))
    assert len(files) == 3
    for file in files:
        style = LearnedStyle.open(file)
        assert style.record.name == file.stem
        assert style.record.complete
        style.check_fits(mini.backbone)
        assert style.note_for(mini.backbone) == ""


def test_its_bottleneck_has_an_effect_on_the_prediction(mini: StyleEngine) -> None:
    unet = mini.backbone.unet
    x = torch.randn(2, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    null = mini.backbone.condition([""]).expand(2, -1, -1)
    whole = unet(x, 700, null).sample
    zeroed = unet.mid_block.register_forward_hook(lambda block, given, h: torch.zeros_like(h))
    without = unet(x, 700, null).sample
    zeroed.remove()
    assert (whole - without).norm() > 1e-3 * whole.norm()


def test_it_has_stable_diffusions_sixteen_self_attention_layers(mini: StyleEngine) -> None:
    assert len(self_attention_layers(mini.backbone.unet)) == 16


def test_its_latents_have_about_unit_variance(mini: StyleEngine) -> None:
    pictures = [open_image(path) for path in sorted((EXAMPLES / "content").glob("*.jpg"))]
    latents = torch.cat([mini.backbone.encode(to_tensor(fit(picture, (256, 256)))) for picture in pictures])
    assert latents.mean().abs() < 0.25
    assert 0.7 < latents.std() < 1.3


def test_inversion_and_sampling_reconstruct_within_one_decibel(
    mini: StyleEngine, content: Image.Image, style: Image.Image
) -> None:
    settings = ZStarSettings(size=SIZE, steps=STEPS, measure_reconstruction=True, inversion_iterations=2)
    details = mini.zstar(content, [style], settings).details
    assert details["autoencoder_psnr"] > 24
    assert details["reconstruction_psnr"] > details["autoencoder_psnr"] - 1


def test_the_result_is_nearer_to_the_style_and_still_the_content(
    mini: StyleEngine, content: Image.Image, style: Image.Image
) -> None:
    result = mini.zstar(content, [style], ZStarSettings(size=SIZE, steps=STEPS)).image
    x, c, s = (to_tensor(fit(picture, result.size)) for picture in (result, content, style))
    of_x, of_c, of_s = (encoder_features(mini.backbone.vae, picture) for picture in (x, c, s))
    assert style_loss(of_x, of_s) < 0.85 * style_loss(of_c, of_s)
    assert color_distance(x, s) < color_distance(c, s)
    assert content_loss(of_x, of_c) < 0.8 * content_loss(of_s, of_c)
    assert ssim(x, c) > 2 * abs(ssim(s, c))


def test_more_strength_moves_further_from_the_content(
    mini: StyleEngine, content: Image.Image, style: Image.Image
) -> None:
    losses = []
    for strength in (0.8, 1.4, 2.0):
        result = mini.zstar(content, [style], ZStarSettings(size=SIZE, steps=STEPS, strength=strength)).image
        x, c = (encoder_features(mini.backbone.vae, to_tensor(fit(p, result.size))) for p in (result, content))
        losses.append(content_loss(x, c))
    assert losses[0] < losses[1] < losses[2]


def test_pull_and_query_preservation_keep_more_of_the_content(
    mini: StyleEngine, content: Image.Image, style: Image.Image
) -> None:
    settings = ZStarSettings(size=SIZE, steps=STEPS, strength=1.5, content_pull=0, query_preservation=0)
    losses = []
    for values in ({}, {"content_pull": 0.05}, {"query_preservation": 0.75}):
        result = mini.zstar(content, [style], settings.replace(**values)).image
        x, c = (encoder_features(mini.backbone.vae, to_tensor(fit(p, result.size))) for p in (result, content))
        losses.append(content_loss(x, c))
    assert losses[1] < 0.95 * losses[0]
    assert losses[2] < 0.95 * losses[0]


@pytest.mark.parametrize("mode", ["reweight", "simple_addition"])
@pytest.mark.parametrize("strength", [1.3, 4.0])
def test_where_a_mask_is_black_no_layer_attends_to_the_style(
    mini: StyleEngine, monkeypatch: pytest.MonkeyPatch, mode: str, strength: float
) -> None:
    """Its logits reach a hundred, and four times that at the largest λ."""
    shown, hidden, gaps = [], [], []
    original = StyleInjection.__call__

    def measured(tap: StyleInjection, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, kept = original(tap, layer, q, k, v), tap.keys_values
        keys, values = kept[0][layer]
        tap.keys_values = [{layer: (keys, torch.ones_like(values))}]
        share = original(tap, layer, q, k, torch.zeros_like(v))
        tap.keys_values = kept
        black = tap.mask_at(0, q.shape[2]) == 0
        hidden.append(float(share[:, :, black].max()))
        shown.append(float(share[:, :, ~black].max()))
        gaps.append(float((out - attend(q, k, v))[:, :, black].abs().max()))
        return out

    monkeypatch.setattr(StyleInjection, "__call__", measured)
    content = open_image(EXAMPLES / "content" / "cat.jpg")
    style = open_image(EXAMPLES / "style" / "great-wave.jpg")
    mask = Image.new("L", content.size, 0)
    mask.paste(255, (0, 0, content.width // 2, content.height))
    settings = ZStarSettings(size=SIZE, steps=2, strength=strength, mode=mode, feather=0.0)
    mini.zstar(content, style, settings, mask=mask)
    assert len(hidden) == 2 * 16
    assert max(hidden) == 0
    assert min(shown) > 0.4
    assert max(gaps) < 1e-4


def test_a_batch_of_very_different_pictures_equals_single_runs(mini: StyleEngine, style: Image.Image) -> None:
    cat = fit(open_image(EXAMPLES / "content" / "cat.jpg"), (SIZE, SIZE))
    noise = np.random.default_rng(0).choice([0, 255], (SIZE, SIZE, 3)).astype(np.uint8)
    dark, flat = cat.point(lambda value: value // 9), Image.new("RGB", cat.size, (9, 9, 9))
    contents = [cat, flat, Image.fromarray(noise), dark]
    settings = ZStarSettings(size=64, steps=4, content_pull=0.05, query_preservation=0.5)
    for one, content in zip(mini.zstar_all(contents, style, settings), contents, strict=True):
        alone = mini.zstar(content, style, settings).image
        assert np.abs(np.asarray(one.image, int) - np.asarray(alone, int)).max() <= 1
