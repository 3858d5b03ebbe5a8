"""Metrics against scikit-image's and against known values."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from styleengine.images import to_tensor
from styleengine.metrics import blockiness, color_distance, content_loss, encoder_features, psnr, ssim, style_loss

LUMA = np.array([0.299, 0.587, 0.114])


def unit(picture: torch.Tensor) -> np.ndarray:
    """(1, 3, height, width) in [−1, 1] → (height, width, 3) in [0, 1]."""
    return picture[0].permute(1, 2, 0).numpy() / 2 + 0.5


def disturbed(picture: torch.Tensor, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return {
        "noisy": (picture + 0.2 * torch.randn(picture.shape, generator=generator)).clamp(-1, 1),
        "darker": (picture * 0.6 - 0.2).clamp(-1, 1),
        "blurred": torch.nn.functional.avg_pool2d(picture, 5, 1, 2),
        "inverted": -picture,
    }[kind]


KINDS = ["noisy", "darker", "blurred", "inverted"]


@pytest.mark.parametrize("kind", KINDS)
def test_ssim_equals_scikit_images(astronaut: Image.Image, kind: str) -> None:
    picture = to_tensor(astronaut)
    other = disturbed(picture, kind)
    compared: Any = structural_similarity(
        unit(picture) @ LUMA,
        unit(other) @ LUMA,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    scores = compared[1]
    assert ssim(picture, other) == pytest.approx(float(scores[5:-5, 5:-5].mean()), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_psnr_equals_scikit_images(astronaut: Image.Image, kind: str) -> None:
    picture = to_tensor(astronaut)
    other = disturbed(picture, kind)
    expected = peak_signal_noise_ratio(unit(picture), unit(other), data_range=1)
    assert psnr(picture, other) == pytest.approx(expected, abs=1e-3)


def test_psnr_clips_to_the_displayable_range_and_stays_finite(astronaut: Image.Image) -> None:
    white = torch.ones(1, 3, 20, 20)
    assert psnr(3 * white, white) == pytest.approx(100)
    assert psnr(-white, white) == pytest.approx(0)


def test_ssim_is_one_for_equals_and_symmetric(astronaut: Image.Image, coffee: Image.Image) -> None:
    one, other = to_tensor(astronaut), to_tensor(coffee.resize(astronaut.size))
    assert ssim(one, one) == pytest.approx(1, abs=1e-5)
    assert ssim(one, other) == pytest.approx(ssim(other, one), abs=1e-5)
    assert ssim(one, other) < 0.5


def test_color_distance_is_zero_for_the_same_colours_and_one_for_none_shared(astronaut: Image.Image) -> None:
    picture = to_tensor(astronaut)
    assert color_distance(picture, picture) == 0
    shuffled = picture.flatten(2)[..., torch.randperm(128 * 128)].view_as(picture)
    assert color_distance(picture, shuffled) == pytest.approx(0, abs=1e-6)
    assert color_distance(torch.ones(1, 3, 9, 9), -torch.ones(1, 3, 20, 20)) == pytest.approx(1)
    half = torch.cat([torch.ones(1, 3, 5, 5), -torch.ones(1, 3, 5, 5)], 3)
    assert color_distance(half, torch.ones(1, 3, 9, 9)) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


def test_encoder_features_go_from_fine_to_coarse(tiny: AutoencoderTiny, astronaut: Image.Image) -> None:
    features = encoder_features(tiny, to_tensor(astronaut))
    assert [feature.shape[-1] for feature in features] == [128, 64, 32, 16]
    assert not features[-1].requires_grad
    encoded: Any = tiny.encode(to_tensor(astronaut))
    torch.testing.assert_close(features[-1], encoded.latents.detach())


def test_losses_are_zero_for_equals_and_not_for_others(
    tiny: AutoencoderTiny, astronaut: Image.Image, coffee: Image.Image
) -> None:
    one = encoder_features(tiny, to_tensor(astronaut))
    other = encoder_features(tiny, to_tensor(coffee))
    assert content_loss(one, one) == 0
    assert style_loss(one, one) == 0
    assert style_loss(one, other) > 0.01
    with pytest.raises(ValueError, match="zip"):
        style_loss(one, other[:-1])


def test_style_loss_is_independent_of_positions_and_content_loss_is_not() -> None:
    features = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))]
    moved = [features[0].flip(3)]
    assert style_loss(moved, features) == pytest.approx(0, abs=1e-6)
    assert content_loss(moved, features) > 0.5


def test_losses_equal_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(1, 4, 6, 6, generator=generator) * 2] for _ in range(2))
    a, b = one[0].numpy(), other[0].numpy()
    assert content_loss(one, other) == pytest.approx(float(np.sqrt(((a - b) ** 2).mean())), rel=1e-5)
    spread = b.std(ddof=1)
    means = (a.mean((2, 3)) - b.mean((2, 3))) / spread
    deviations = (a.std((2, 3), ddof=1) - b.std((2, 3), ddof=1)) / spread
    expected = np.sqrt((means**2).mean()) + np.sqrt((deviations**2).mean())
    assert style_loss(one, other) == pytest.approx(float(expected), rel=1e-5)


def test_blockiness_is_one_for_noise_and_grows_with_steps_at_the_borders_of_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, 3, 64, 64, generator=generator)
    assert blockiness(noise) == pytest.approx(1, abs=0.1)
    blocks = torch.randn(1, 3, 8, 8, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    one, more = (blockiness(noise + share * blocks) for share in (0.05, 0.2))
    assert 1.1 < one < more
    shifted = torch.roll(noise + 0.2 * blocks, (3, 3), (2, 3))
    assert blockiness(shifted[..., 8:, 8:]) < 1
    wave = torch.sin(torch.arange(64) / 5).expand(1, 3, 64, 64)
    expected = np.square(np.diff(np.sin(np.arange(64) / 5)))
    border = np.arange(63) % 8 == 7
    assert blockiness(wave) == pytest.approx(expected[border].sum() / 7 / (expected[~border].sum() / 56), rel=1e-3)
