"""Training of the embedded models: procedural styles, captions, and the losses of the U-Nets."""

import os
import random
import re
import socket
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from training.captions import caption_of, group_of, kind_of
from training.clip import (
    REDRAWN_ANEW,
    Redrawings,
    patch_dropout,
    redrawn,
    start_with_textures,
    style_classification_loss,
)
from training.crops import SIDE, crops_of, in_general, laid_out, opened, subject_of
from training.styles import STYLES, apply
from training.subjects import REDRAWN, Subject, cut, views
from training.subjects import SUBJECTS as CHOSEN
from training.unet import PLAIN_SHARE, SUBJECTS, SubjectLatents, make_unet
from training.unet_common import (
    dropped_skips,
    pixel_metric,
    rate_at,
    remaining,
    start_lively,
    stratified_timesteps,
    velocity_loss,
    with_upper_levels_of,
    without_traces,
)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    waves = np.stack([np.sin(x / 7), np.cos(y / 9), np.sin((x + y) / 11)], 2)
    return ((waves + 1) * 127).astype(np.uint8)


def test_there_are_at_least_thirty_styles_with_captions_of_their_own() -> None:
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


def test_a_kind_comes_from_folders_and_captions_but_not_for_pieces_of_games() -> None:
    assert kind_of(Path("stamps/animals/birds/owl.png"), "photo of an owl") == "an animal"
    assert kind_of(Path("png/rose_01.png"), "clip art of rose") == "a plant"
    assert kind_of(Path("textures/skybox/island.jpg"), "photo of the sky, island") == "the sky"
    assert kind_of(Path("textures/tree_bark.jpg"), "game texture of tree bark") == ""
    assert kind_of(Path("png/office/stapler.png"), "clip art of stapler") == ""
    assert kind_of(Path("a/b/mate/Aqua.jpg"), "photo of mountains behind a flower") == "a landscape"  # the first word
    assert kind_of(Path("png/animals/snail.png"), "clip art of a snail on a leaf") == "an animal"
    assert kind_of(Path("png/plants/snail.png"), "clip art of a snail on a leaf") == "a plant"  # the folder, before it
    assert kind_of(Path("png/people/hats/cap.png"), "clip art of cap people hats") == ""  # the nearest folder


def test_a_caption_in_general_names_the_kind_in_the_same_medium() -> None:
    words = {"caption": "photo of a green frog", "kind": "an animal", "style": ""}
    assert in_general(words) == "photo of an animal"
    assert in_general(words | {"kind": ""}) == "photo of a green frog"
    assert in_general({"caption": "a golden frog", "kind": "an animal", "style": "golden"}) == "a golden animal"


def test_a_cut_out_is_placed_whole_at_varying_positions_and_sizes(tmp_path: Path) -> None:
    drawn = Image.new("RGBA", (200, 120), (0, 0, 0, 0))
    drawn.paste((255, 0, 0, 255), (30, 10, 70, 100))
    drawn.save(tmp_path / "cut-out.png")
    cut_out = opened(tmp_path / "cut-out.png")
    assert cut_out.size == (40, 90)  # the visible part
    boxes = []
    for seed in range(4):
        ((crop, whole),) = laid_out(cut_out, 1, [], random.Random(seed))
        red = np.abs(np.asarray(crop).astype(int) - (255, 0, 0)).max(2) < 40
        rows, columns = np.nonzero(red.mean(1) > 0.05)[0], np.nonzero(red.mean(0) > 0.05)[0]
        boxes.append((rows[0], columns[0], len(rows), len(columns)))
        assert whole
        assert crop.size == (SIDE, SIDE)
        assert len(rows) / len(columns) == pytest.approx(90 / 40, rel=0.08)
        assert 0.68 * SIDE < len(rows) <= SIDE
    assert len({box[:2] for box in boxes}) == len({box[2:] for box in boxes}) == 4


def test_a_picture_is_whole_where_little_of_it_is_cut_off() -> None:
    grain = np.kron(np.random.default_rng(0).integers(0, 255, (6, 14, 3)), np.ones((100, 100, 1))).astype(np.uint8)
    wide, nearly = Image.fromarray(grain), Image.fromarray(grain[:, :800])
    assert [whole for _, whole in crops_of(wide, 3, random.Random(0))] == [False] * 3
    assert [whole for _, whole in crops_of(nearly, 3, random.Random(0))] == [True, False, False]


def small_clip(units: int = 16) -> CLIPModel:
    text = {
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 19, "pad_token_id": 19,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": units, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def test_with_patch_dropout_the_image_encoder_gets_a_part_of_the_patches_and_all_again_afterwards() -> None:
    torch.manual_seed(0)
    model, pictures, lengths = small_clip(), torch.randn(2, 3, 64, 64), []
    model.vision_model.pre_layrnorm.register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
    whole = model.get_image_features(pictures).pooler_output
    with patch_dropout(model, 0.5):
        seen = [model.get_image_features(pictures).pooler_output for _ in range(2)]
    again = model.get_image_features(pictures).pooler_output
    assert lengths == [17, 9, 9, 17]
    assert not torch.allclose(seen[0], seen[1])  # another half in each forward pass
    assert torch.equal(again, whole)


def test_an_image_encoder_that_starts_with_textures_measures_detail_whatever_its_sign() -> None:
    torch.manual_seed(0)
    model, outputs = small_clip(units=64), []
    norm = model.vision_model.encoder.layers[0].layer_norm2
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    model.vision_model.encoder.layers[0].mlp.register_forward_hook(
        lambda m, args, out: outputs.append(out[:, 1:].mean(1))
    )
    rng = np.random.default_rng(0)
    waves = torch.sin(torch.arange(64) * 1.5).expand(1, 3, 64, 64) * 0.4
    strengths = rng.normal(0, 25, (40, 1, 64, 1))  # each row of each crop has some of the waves
    crops = rng.integers(60, 196, (40, 1, 1, 3)) + rng.normal(0, 3, (40, 64, 64, 3))
    crops = (
        (crops + strengths.swapaxes(1, 2) * waves[0].permute(1, 2, 0).numpy()[None] * 2.5).clip(0, 255).astype(np.uint8)
    )
    flat, detail, inverse = torch.zeros_like(waves), waves, -waves

    def shares() -> tuple[float, float]:
        """The change of the MLP's output by the waves, against grey; and the share of it that depends on their sign."""
        outputs.clear()
        with torch.no_grad():
            for pictures in (flat, detail, inverse):
                model.get_image_features(pictures)
        change = (outputs[1] - outputs[0]).norm()
        return change.item(), ((outputs[1] - outputs[2]).norm() / change).item()

    before, odd_before = shares()
    start_with_textures(model, crops)
    after, odd = shares()
    assert after > 3 * before
    assert odd < 0.5 < odd_before


def test_the_style_classification_loss_is_low_for_pictures_like_their_own_style_and_ignores_plain_ones() -> None:
    names, scale = list(STYLES), torch.tensor(50.0)
    texts = torch.nn.functional.normalize(
        torch.randn(len(names), 16, generator=torch.Generator().manual_seed(0)), dim=1
    )
    words = [{"style": names[3]}, {"style": ""}, {"style": names[7]}]

    def loss(*rows: int) -> float:
        return style_classification_loss(texts[list(rows)], texts, scale, words).item()

    assert loss(3, 0, 7) < 0.1 < 10 < loss(7, 0, 3)
    assert loss(3, 0, 7) == loss(3, 5, 7)
    assert style_classification_loss(texts[:1], texts, scale, [{"style": ""}]) == 0


def test_redrawings_are_new_at_each_step_and_earlier_ones_are_reused(picture: np.ndarray) -> None:
    class AtOnce:
        def submit(self, paint, task) -> Future:
            future: Future = Future()
            future.set_result(paint(task))
            return future

    crops = np.stack([np.tile(picture, (4, 4, 1))] * 8)
    frogs = [{"caption": f"photo of frog {i}", "kind": "an animal", "style": ""} for i in range(8)]
    redrawings, (count, styles) = Redrawings(crops, frogs, AtOnce()), REDRAWN_ANEW
    anew = count * styles
    for step, expected in enumerate((anew, anew + 2, anew + 2)):
        redrawings.begin(np.random.default_rng(step))
        pictures, about = redrawings.some(anew + 2, np.random.default_rng(0))
        assert len(pictures) == len(about) == expected
        assert all(pixels.shape == (128, 128, 3) for pixels in pictures)
        assert len({id(entry) for entry in about}) == expected
        for start in range(0, anew, styles):  # one subject in several styles
            several = about[start : start + styles]
            (subject,) = {match[0] for entry in several if (match := re.search(r"frog \d", entry["caption"]))}
            assert len({entry["style"] for entry in several}) == styles
            assert all(entry["caption"] == STYLES[entry["style"]].words(subject) for entry in several)
    assert len(redrawings.pixels) == 3 * anew
    task = crops[0], "mosaic", 5
    assert np.array_equal(redrawn(task), redrawn(task))


def test_subjects_are_as_frequent_as_said_and_mostly_as_they_were() -> None:
    latents = SubjectLatents.__new__(SubjectLatents)
    latents.views = {subject: [2 * i] for i, subject in enumerate(SUBJECTS)}
    latents.whole = np.zeros((2 * len(SUBJECTS), 1, 1, 1), np.float16)
    drawn = latents.small(8000, np.random.default_rng(0))[1]
    for i, weight in enumerate(SUBJECTS.values()):
        assert (drawn // 2 == i).mean() == pytest.approx(weight / sum(SUBJECTS.values()), abs=0.02)
    assert (drawn % 2).mean() == pytest.approx(1 - PLAIN_SHARE, abs=0.02)


def test_the_subjects_that_are_cut_are_those_that_are_trained_on() -> None:
    assert {subject.caption for subject in CHOSEN} == set(SUBJECTS)


def test_a_subject_is_found_by_its_patterns_but_for_those_left_out() -> None:
    animals = next(subject for subject in CHOSEN if subject.caption == "photo of an animal")
    assert animals.shows("tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals/birds/owl.png")
    assert not animals.shows("tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals/birds/cartoon/tux.png")
    assert not animals.shows("tuxpaint-stamps-default/usr/share/tuxpaint/stamps/plants/cep.png")
    assert animals.kind == "an animal"


def test_a_subject_that_is_a_cut_out_is_shown_whole_on_its_background_and_mirrored_every_second_time() -> None:
    cut_out = Image.new("RGBA", (40, 80), (200, 0, 0, 255))
    cut_out.paste((0, 0, 200, 255), (0, 0, 20, 80))  # its left half is blue
    shown = views(cut_out, Subject("photo of a plant", ("*",)), random.Random(0))
    assert {view.size for view in shown} == {(SIDE, SIDE)}
    for number, view in enumerate(shown):
        pixels = np.asarray(view).astype(int)
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        blue, red = ((pixels[..., channel] > 150) & (pixels[..., 2 - channel] < 60) for channel in (2, 0))
        assert blue.sum() == pytest.approx(red.sum(), rel=0.1)
        assert red.any(1).sum() > 0.8 * SIDE
        assert (np.nonzero(blue)[1].mean() > np.nonzero(red)[1].mean()) == bool(number % 2)


def test_a_portrait_is_as_wide_as_its_view_and_cut_off_below() -> None:
    cut_out = Image.new("RGBA", (40, 120), (200, 0, 0, 255))
    cut_out.paste((0, 0, 200, 255), (0, 60, 40, 120))  # its lower half is blue
    portrait = Subject("painting of a person", ("*",), cut_out="down from the top")
    for view in views(cut_out, portrait, random.Random(0)):
        pixels = np.asarray(view).astype(int)
        red, blue = ((pixels[..., channel] > 150) & (pixels[..., 1] < 60) for channel in (0, 2))
        assert red.any(0).sum() > 0.8 * SIDE
        assert not (blue & ~red).any()


def test_what_was_cut_off_of_a_landscape_is_laid_under_it() -> None:
    cut_out = Image.new("RGBA", (100, 100), (0, 80, 0, 255))
    cut_out.paste((0, 0, 0, 0), (0, 0, 100, 40))  # no sky
    landscape = Subject("photo of a landscape", ("*",), ground=("blue", "blue"), cut_out="part")
    for view in views(cut_out, landscape, random.Random(0)):
        pixels = np.asarray(view).reshape(-1, 3).astype(int)
        assert (abs(pixels - (0, 80, 0)).max(1) < 30).mean() > 0.4
        assert (pixels[:, 0] < 30).all()  # filled: nothing white


def test_each_view_is_followed_by_itself_in_the_next_style(tmp_path: Path) -> None:
    cut_out = Image.new("RGBA", (60, 60), (200, 0, 0, 255))
    cut_out.save(tmp_path / "rose.png")
    samples = cut(("rose.png", "photo of a rose", Subject("photo of a flower", ("*",)), tmp_path))
    assert [about["style"] for _, about in samples[::2]] == [""] * len(REDRAWN)
    assert [about["style"] for _, about in samples[1::2]] == list(REDRAWN)
    assert samples[3][1]["caption"] == "an ink drawing of a rose"
    assert {about["kind"] for _, about in samples} == {"a flower"}


def test_of_a_subject_that_is_no_cut_out_the_upper_part_is_shown() -> None:
    photograph = Image.new("RGB", (100, 100), (90, 140, 250))
    photograph.paste((0, 80, 0), (0, 62, 100, 100))  # the ground
    for view in views(photograph, Subject("photo of the sky", ("*",), part=0.6), random.Random(0)):
        assert np.asarray(view)[..., 2].min() > 200


def test_views_of_one_picture_are_one_group() -> None:
    def wallpaper(file: str) -> str:
        return group_of(Path("usr/share/wallpapers/Flow/contents") / file)

    assert wallpaper("images/5120x2880.jpg") == wallpaper("images_dark/720x1440.jpg")
    pieces = [Path(f"activities/paintings/resource/image/{name}.webp") for name in ("GreatWave_a1", "GreatWave_d3")]
    assert group_of(pieces[0]) == group_of(pieces[1])
    assert group_of(Path("stamps/frog.png")) != group_of(Path("stamps/toad.png"))


def small_unet(kind: str) -> tuple[UNet2DModel | UNet2DConditionModel, tuple[torch.Tensor, ...]]:
    """A U-Net of three levels, and its conditioning beside the timestep."""
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
def test_with_the_initial_gains_each_block_passes_on_its_input_from_below(kind: str) -> None:
    unet, conditioning = small_unet(kind)
    start_lively(unet)
    h, timesteps = [], torch.full((4,), 500)
    for block in (unet.mid_block, *unet.up_blocks):
        block.register_forward_hook(lambda block, args, output: h.append(output.detach()))
    with dropped_skips(unet, 1.0, 1):
        unet(torch.randn(4, 3, 16, 16), timesteps, *conditioning)
    lowest = unet.up_blocks[0]
    assert all((resnet.conv2.weight == 0).all() for resnet in (*lowest.resnets, *unet.mid_block.resnets))
    upsampled = lowest.upsamplers[0](0.8 ** len(lowest.resnets) * h[0])
    assert (h[1].norm() / upsampled.norm()).item() == pytest.approx(1, abs=0.35)


def test_reinitialised_deeper_levels_have_an_effect_and_the_upper_ones_are_unchanged() -> None:
    torch.manual_seed(0)
    trained, lively = make_unet(16), make_unet(16)
    before = {name: weight.clone() for name, weight in trained.state_dict().items()}
    revived = with_upper_levels_of(trained, lively)
    for name, weight in revived.state_dict().items():
        anew = name.startswith(("down_blocks.2", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1"))
        if name == "up_blocks.2.resnets.0.conv_shortcut.weight":
            below, beside = weight[:, :192], weight[:, 192:]
            assert torch.equal(beside, before[name][:, 192:])
            assert below[:, :, 0, 0].pow(2).sum(1).mean().sqrt().item() == pytest.approx(0.5, rel=1e-3)
        else:
            assert torch.equal(weight, lively.state_dict()[name] if anew else before[name])


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_dropped_skips_are_zero_at_the_deepest_levels_of_their_share_of_rows(kind: str) -> None:
    unet, conditioning = small_unet(kind)
    x, timesteps = torch.randn(4, 3, 16, 16), torch.full((4,), 500)
    seen: list[list[torch.Tensor]] = []

    def record_skips(block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        skips = kwargs["res_hidden_states_tuple"] if "res_hidden_states_tuple" in kwargs else args[1]
        seen.append([skip.detach().abs().amax((1, 2, 3)) > 0 for skip in skips])

    whole = unet(x, timesteps, *conditioning).sample
    for share, levels, kept in ((0.0, 2, [True] * 3), (1.0, 1, [False, True, True])):
        seen.clear()
        with dropped_skips(unet, share, levels):
            hooks = [block.register_forward_pre_hook(record_skips, with_kwargs=True) for block in unet.up_blocks]
            given = unet(x, timesteps, *conditioning).sample
            for hook in hooks:
                hook.remove()
        assert torch.equal(given, whole) == all(kept)
        assert [all(bool(skip.all()) for skip in level) for level in seen] == kept
        assert [any(bool(skip.any()) for skip in level) for level in seen] == kept
    assert torch.equal(unet(x, timesteps, *conditioning).sample, whole)


def test_the_loss_is_that_of_the_velocity_with_less_weight_at_low_noise() -> None:
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


def test_the_rate_rises_then_holds_then_falls_with_what_remains() -> None:
    at = [(0, 0.0), (99, 0.1), (300, 0.5), (300, 0.85), (300, 1.0)]
    assert [rate_at(step, spent, 2.0, 0.3) for step, spent in at] == pytest.approx([0.01, 1.0, 2.0, 1.0, 0.04])
    assert [remaining(spent, 0.3) for spent in (0.5, 0.7, 0.85, 1.0)] == pytest.approx([1, 1, 0.5, 0])


def test_at_high_noise_the_loss_is_weighted_by_visibility() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    x_0, noise, metric = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), torch.diag(torch.tensor([1.8, 0.2]))

    def loss(timestep: int, channel: int) -> float:
        timesteps = torch.tensor([timestep])
        error = torch.nn.functional.one_hot(torch.tensor(channel), 2).view(1, 2, 1, 1)
        predicted = scheduler.get_velocity(x_0, noise, timesteps) + error
        weighted, plain = velocity_loss(predicted, x_0, noise, timesteps, scheduler, metric)
        assert plain == pytest.approx(0.5, rel=1e-5)
        return weighted.item()

    assert loss(2, 0) == pytest.approx(loss(2, 1), rel=0.02)
    assert 5 < loss(999, 0) / loss(999, 1) < 9


def test_at_the_last_timesteps_half_of_the_pictures_are_pure_noise() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    x_0, noise = torch.full((400, 1, 2, 2), 3.0), torch.randn(400, 1, 2, 2)
    timesteps = torch.tensor([919, 920, 999, 999]).repeat(100)
    torch.manual_seed(0)
    changed = without_traces(x_0, noise, timesteps, scheduler)
    alone = (changed != noise).flatten(1).all(1)
    assert not alone[0::4].any()
    assert 0.4 < alone[timesteps >= 920].float().mean() < 0.6
    noised, velocity = (of(x_0, changed, timesteps) for of in (scheduler.add_noise, scheduler.get_velocity))
    assert (noised - noise)[alone].abs().max() < 1e-5
    alphas = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    assert (alphas.sqrt() * noised - (1 - alphas).sqrt() * velocity - x_0).abs().max() < 1e-4


def test_the_visibility_of_latent_channels_is_measured_on_decoded_pictures() -> None:
    shown = torch.tensor([[0.9, 0.9, 0.9], [0.0, 0.1, 0.0]])  # two channels in red, green, blue; a third shows nothing

    def decode(latents: torch.Tensor) -> SimpleNamespace:
        colours = torch.einsum("bchw,cr->brhw", latents[:, :2], shown)
        return SimpleNamespace(sample=colours.repeat_interleave(8, 2).repeat_interleave(8, 3))

    vae = SimpleNamespace(decode=decode, config=SimpleNamespace(scaling_factor=2.0))
    metric = pixel_metric(vae, torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0)))  # pyright: ignore
    assert metric.trace().item() == pytest.approx(3, rel=1e-4)
    assert (metric[0, 0] / metric[1, 1]).item() == pytest.approx(3 * 0.9**2 / 0.1**2, rel=1e-2)
    assert metric[2].abs().max() < 1e-4


def test_timesteps_are_spread_over_the_whole_range() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([stratified_timesteps(8) for _ in range(200)])
    assert ((drawn.sort(1).values // 125) == torch.arange(8)).all()
    assert drawn.float().mean(0).sub(500).abs().max() < 80  # whatever the row
    late = torch.stack([stratified_timesteps(8, 0.7) for _ in range(200)])
    assert late.max() < 1000
    assert 0.37 < (late >= 700).float().mean() < 0.43


def test_processes_on_a_cpu_train_together() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as torchrun sets it
    code = (
        "from accelerate import Accelerator; from training.crop_store import precision;"
        "print(Accelerator(mixed_precision=precision()).distributed_type)"
    )
    folder = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "DistributedType.MULTI_CPU", done.stderr
