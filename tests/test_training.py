"""What teaches the models that come along: procedural styles, captions, and what the U-Nets are trained for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from captions import caption_of, group_of
from crops import subject_of
from styles import STYLES, apply
from unet_common import dropped_skips, start_lively, stratified_timesteps, velocity_loss


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    waves = np.stack([np.sin(x / 7), np.cos(y / 9), np.sin((x + y) / 11)], 2)
    return ((waves + 1) * 127).astype(np.uint8)


def test_there_are_at_least_thirty_styles_with_words_of_their_own() -> None:
    words = {style.words("a boat") for style in STYLES.values()}
    assert len(words) == len(STYLES) >= 30
    assert all(phrase.count("boat") == 1 and "a a " not in phrase for phrase in words)


@pytest.mark.parametrize("name", STYLES)
def test_each_style_redraws_the_picture_and_does_it_again_from_the_same_seed(name: str, picture: np.ndarray) -> None:
    first, again = (apply(name, picture, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - picture).mean() > 5


def test_a_style_can_be_named_without_a_subject() -> None:
    assert STYLES["mosaic"].words() == "a mosaic"
    assert STYLES["night"].words() == "a picture at night"
    assert STYLES["golden"].words() == "a golden picture"
    assert STYLES["golden"].words("a frog") == "a golden frog"
    assert STYLES["chalk"].words("a frog") == "a chalk drawing of a frog on a blackboard"


def test_captions_come_from_descriptions_names_and_hand(tmp_path: Path) -> None:
    stamp = tmp_path / "frog-1.png"
    stamp.with_suffix(".txt").write_text("A frog.\nfr.utf8=Une grenouille.\n")
    assert caption_of(stamp, "tuxpaint-stamps-default") == "photo of a frog"
    assert subject_of("photo of a frog") == "a frog"
    clip_art = Path("openclipart/png/transportation/boating/SailBoat_02.png")
    assert caption_of(clip_art, "openclipart-png") == "clip art of sail boat transportation boating"
    wallpaper = Path("wallpapers/Autumn/contents/images/2560x1600.jpg")
    assert caption_of(wallpaper, "plasma-workspace-wallpapers") == "painting of an autumn tree and a fox"


def test_views_of_one_picture_are_one_group() -> None:
    def wallpaper(file: str) -> str:
        return group_of(Path("usr/share/wallpapers/Flow/contents") / file)

    assert wallpaper("images/5120x2880.jpg") == wallpaper("images_dark/720x1440.jpg")
    pieces = [Path(f"activities/paintings/resource/image/{name}.webp") for name in ("GreatWave_a1", "GreatWave_d3")]
    assert group_of(pieces[0]) == group_of(pieces[1])
    assert group_of(Path("stamps/frog.png")) != group_of(Path("stamps/toad.png"))


def small_unet(kind: str) -> tuple[UNet2DModel | UNet2DConditionModel, tuple[torch.Tensor, ...]]:
    """A U-Net of three levels, and what it is told beside the timestep."""
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    if kind == "pixels":
        down, up = ("DownBlock2D",) * 3, ("UpBlock2D",) * 3
        return UNet2DModel(**sizes, down_block_types=down, up_block_types=up, attention_head_dim=8), ()
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        **sizes, in_channels=3, out_channels=3, down_block_types=down, up_block_types=up, cross_attention_dim=8,
        attention_head_dim=2,
    )  # fmt: skip
    return unet, (torch.randn(4, 5, 8),)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_at_the_lively_start_each_block_passes_on_what_comes_from_below(kind: str) -> None:
    unet, told = small_unet(kind)
    start_lively(unet)
    h, timesteps = [], torch.full((4,), 500)
    for block in (unet.mid_block, *unet.up_blocks):
        block.register_forward_hook(lambda block, args, output: h.append(output.detach()))
    with dropped_skips(unet, 1.0, 1):
        unet(torch.randn(4, 3, 16, 16), timesteps, *told)
    lowest = unet.up_blocks[0]
    assert all((resnet.conv2.weight == 0).all() for resnet in (*lowest.resnets, *unet.mid_block.resnets))
    upsampled = lowest.upsamplers[0](0.8 ** len(lowest.resnets) * h[0])
    assert (h[1].norm() / upsampled.norm()).item() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_dropped_skips_silence_the_deepest_levels_of_their_share_of_rows(kind: str) -> None:
    unet, told = small_unet(kind)
    x, timesteps = torch.randn(4, 3, 16, 16), torch.full((4,), 500)
    seen: list[list[torch.Tensor]] = []

    def look(block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        skips = kwargs["res_hidden_states_tuple"] if "res_hidden_states_tuple" in kwargs else args[1]
        seen.append([skip.detach().abs().amax((1, 2, 3)) > 0 for skip in skips])

    whole = unet(x, timesteps, *told).sample
    for share, levels, heard in ((0.0, 2, [True] * 3), (1.0, 1, [False, True, True])):
        seen.clear()
        with dropped_skips(unet, share, levels):
            hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in unet.up_blocks]
            given = unet(x, timesteps, *told).sample
            for hook in hooks:
                hook.remove()
        assert torch.equal(given, whole) == all(heard)
        assert [all(bool(skip.all()) for skip in level) for level in seen] == heard
        assert [any(bool(skip.any()) for skip in level) for level in seen] == heard
    assert torch.equal(unet(x, timesteps, *told).sample, whole)


def test_the_loss_counts_the_velocity_and_less_where_there_is_little_noise() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    x_0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    timesteps = torch.tensor([10, 900])
    alpha = scheduler.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0
    assert velocity_loss(velocity, x_0, noise, timesteps, scheduler)[0] < 1e-10
    late, early = (velocity + torch.eye(2)[row].view(2, 1, 1, 1) for row in (0, 1))
    losses = [velocity_loss(given, x_0, noise, timesteps, scheduler) for given in (late, early)]
    assert losses[0][0] < losses[1][0] / 5
    assert [error for _, error in losses] == pytest.approx([0.5, 0.5], rel=1e-4)


def test_timesteps_are_spread_over_the_whole_range() -> None:
    timesteps = stratified_timesteps(8)
    assert ((timesteps // 125) == torch.arange(8)).all()
