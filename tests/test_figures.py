"""The embedded pixel-space DDPM: it is complete, and h-space injection works on it as published."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from styleengine import HSpaceSettings, StyleEngine
from styleengine.backbones import BACKBONES
from styleengine.images import open_image, to_tensor
from styleengine.methods.h_space.bottleneck import injection
from styleengine.metrics import color_distance, ssim

FOLDER = Path(BACKBONES["figures"].location)
EXAMPLES = Path(__file__).parent.parent / "examples" / "figures"
PAIRS = (("dwarf", "mermaid"), ("boar", "orc"), ("mermaid", "dwarf"))
GAMMAS = (0.0, 0.3, 0.6, 1.0)


@pytest.fixture(scope="module")
def figures() -> StyleEngine:
    return StyleEngine("figures", device="cpu")


@pytest.fixture(scope="module")
def strips(figures: StyleEngine) -> list[tuple[Image.Image, Image.Image, list[Image.Image]]]:
    """(content, style, a result for each γ) of three pairs, none of them trained on."""
    found = []
    for names in PAIRS:
        content, style = (open_image(EXAMPLES / f"{name}.png") for name in names)
        results = figures.h_space_strip(content, style, GAMMAS, HSpaceSettings(steps=15))
        found.append((content, style, [result.image for result in results]))
    return found


def test_the_folder_is_small() -> None:
    sizes = [file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) < 20_000_000


def test_diffusers_own_pipeline_loads_the_folder_and_samples() -> None:
    pipeline = DDPMPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2).images[0].size == (64, 64)


def test_the_bottleneck_has_a_large_effect_on_the_prediction(figures: StyleEngine) -> None:
    backbone = figures.backbone
    x = backbone.encode(to_tensor(open_image(EXAMPLES / "boar.png").resize((64, 64))))
    alpha = backbone.alphas_cumprod[700]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with injection(backbone.unet, torch.zeros_like):
        velocity = backbone.unet(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, 700).sample
    whole, without = velocity.chunk(2)
    assert (whole - without).norm() > 0.1 * whole.norm()


def test_gamma_moves_away_from_the_style_image_and_towards_the_content(strips: list) -> None:
    nearness = [[ssim(to_tensor(image), to_tensor(images[0])) for image in images] for _, _, images in strips]
    means = torch.tensor(nearness).mean(0).tolist()
    assert all(a > b for a, b in pairwise(means))

    def coarse(image: Image.Image) -> torch.Tensor:
        return to_tensor(image.resize((8, 8), Image.Resampling.BOX))

    gaps = [[float((coarse(image) - coarse(content)).norm()) for image in images] for content, _, images in strips]
    assert all(of_pair[-1] < of_pair[0] for of_pair in gaps)


def test_without_injection_the_style_image_is_reconstructed(strips: list) -> None:
    for _, style, images in strips:
        assert ssim(to_tensor(images[0]), to_tensor(style.resize(images[0].size))) > 0.9
        assert color_distance(to_tensor(images[0]), to_tensor(style.resize(images[0].size))) < 0.2
