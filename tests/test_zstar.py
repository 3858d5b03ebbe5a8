"""Z-STAR+: masks, colours, modes, ranges and several styles, on a small random network."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from PIL import Image, ImageOps

from styleengine import StepEvent, Style, StyleEngine, StyleEngineError, ZStarSettings, ddim, style_attention
from styleengine.attention import StyleTokens, attend, attend_with_styles, log_mask
from styleengine.backbones import Backbone
from styleengine.images import fit, open_mask, to_images, to_tensor, working_size
from styleengine.methods.zstar import PRESETS
from styleengine.phases import inverting
from styleengine.run import Recording, Run, Trajectory
from styleengine.sain import align_colors, sain_weight
from styleengine.style_attention import StyleAttention, StyleInjection, region, vary
from styleengine.styles import with_shared_mask

BLACK, WHITE = Image.new("L", (40, 40), 0), Image.new("L", (40, 40), 255)
LEFT_HALF = Image.fromarray(np.repeat([[255] * 16 + [0] * 16], 32, 0).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def reconstruction(backbone: Backbone, content: Image.Image, settings: ZStarSettings) -> Image.Image:
    """Content → noise → content without a style, implemented directly."""
    size = working_size(content, settings.size, backbone.multiple)
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
    null = backbone.condition([""])

    def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
        return backbone.predict_noise(x_t, schedule.timesteps[level], null)

    x_T = ddim.invert(backbone.encode(to_tensor(fit(content, size))), schedule, predict)[-1]  # noqa: N806
    return to_images(backbone.decode(ddim.sample(x_T, schedule, predict)))[0]


# Region masks


@pytest.mark.parametrize(
    "values",
    [
        {"color": "none"},
        {"color": "sain"},
        {"color": "mean", "mode": "simple_addition"},
        {"color": "none", "mode": "style_only"},
        {"content_pull": 0.1, "query_preservation": 0.5, "temperature": 2.0},
        {**PRESETS["StyleID"], "content_pull": 0.1},
    ],
)
def test_black_mask_leaves_the_contents_reconstruction_bit_for_bit(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, values: dict[str, Any]
) -> None:
    expected = reconstruction(engine.backbone, astronaut, quick)
    masked = engine.zstar(astronaut, [coffee], quick.replace(**values), mask=BLACK).image
    assert same(masked, expected)
    assert not same(engine.zstar(astronaut, [coffee], quick.replace(color="none")).image, expected)


@pytest.mark.parametrize("mode", ["reweight", "simple_addition", "style_only"])
def test_white_mask_equals_no_mask(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, mode: str
) -> None:
    settings = quick.replace(mode=mode)
    masked = engine.zstar(astronaut, [coffee], settings, mask=WHITE).image
    assert same(masked, engine.zstar(astronaut, [coffee], settings).image)


def test_at_one_layer_a_mask_leaves_the_tokens_outside_unchanged() -> None:
    settings = ZStarSettings(size=64, feather=0)
    q, k, v, tokens = random_layer(8, 8)
    half = region(LEFT_HALF, (32, 32), 0)
    tap = injection(settings, [Style(BLACK, mask=LEFT_HALF)], [half], tokens)
    out = tap(12, q, k, v).unflatten(2, (8, 8))
    plain = attend(q, k, v).unflatten(2, (8, 8))
    full = attend_with_styles(q, k, v, [StyleTokens(*tokens[0])], settings.strength).unflatten(2, (8, 8))
    torch.testing.assert_close(out[..., 4:, :], plain[..., 4:, :], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[..., :4, :], full[..., :4, :], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (19, 16), (16, 27), (25, 33)])
def test_masks_have_one_value_for_each_token_of_every_layer(width: int, height: int) -> None:
    gradient = Image.linear_gradient("L").resize((width * 4, height * 4))  # black above, white below
    tap = injection(ZStarSettings(), [Style(BLACK, mask=gradient)], [gradient], size=(width * 4, height * 4))
    for _ in range(4):
        values = tap.mask_at(0, width * height).view(height, width)
        assert values.min() >= 0
        assert values.max() <= 1
        assert (values.diff(dim=0) > 0).all()
        torch.testing.assert_close(values, values[:, :1].expand(-1, width), atol=1e-6, rtol=0)
        width, height = math.ceil(width / 2), math.ceil(height / 2)


def test_feather_softens_the_border_and_nothing_else() -> None:
    hard, soft = region(LEFT_HALF, (64, 64), 0), region(LEFT_HALF, (64, 64), 0.05)
    assert hard is not None
    assert soft is not None
    assert np.asarray(hard)[:, :28].min() >= 250
    assert len(np.unique(np.asarray(soft))) > 8
    assert (np.diff(pixels(soft)[32]) <= 0).all()
    assert np.asarray(soft)[32, 0] == 255
    assert np.asarray(soft)[32, -1] == 0
    assert region(None, (64, 64), 0.05) is None
    assert region(WHITE, (64, 64), 0.05) is None


@pytest.mark.parametrize(
    "mask",
    [
        LEFT_HALF,
        LEFT_HALF.resize((512, 512), Image.Resampling.NEAREST),
        LEFT_HALF.resize((20, 20), Image.Resampling.NEAREST),
        LEFT_HALF.convert("RGB"),
        LEFT_HALF.convert("1"),
        np.asarray(LEFT_HALF),
        np.asarray(LEFT_HALF) > 0,
        np.asarray(LEFT_HALF, np.float32) / 255,
    ],
    ids=["same", "larger", "smaller", "colour", "bilevel", "uint8", "bool", "float"],
)
def test_masks_of_any_size_and_mode_are_equivalent(mask: Image.Image | np.ndarray) -> None:
    expected, got = region(LEFT_HALF, (64, 48), 0.05), region(open_mask(mask), (64, 48), 0.05)
    assert expected is not None
    assert got is not None
    assert got.size == (64, 48)
    assert np.abs(pixels(got) - pixels(expected)).max() <= 12


# Several styles


def test_with_two_styles_and_one_mask_white_is_the_second_and_black_the_first(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    def run(styles: list[Image.Image], mask: Image.Image | None) -> Image.Image:
        return engine.zstar(astronaut, styles, quick, mask=mask).image

    first, second = run([coffee], None), run([cat], None)
    assert same(run([coffee, cat], WHITE), second)
    assert same(run([coffee, cat], BLACK), first)
    assert not same(first, second)
    one, other = with_shared_mask([Style(coffee), Style(cat)], LEFT_HALF)
    assert one.mask is not None
    assert other.mask is not None
    assert same(one.mask, ImageOps.invert(LEFT_HALF))
    assert same(other.mask, LEFT_HALF)


def test_swapping_two_styles_with_their_masks_and_weights_changes_nothing(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    one, other = Style(coffee, 0.7, LEFT_HALF), Style(cat, 1.5, ImageOps.invert(LEFT_HALF))
    for settings in (quick, quick.replace(mode="simple_addition")):
        forth = engine.zstar(astronaut, [one, other], settings).image
        back = engine.zstar(astronaut, [other, one], settings).image
        assert largest_difference(forth, back) <= 1


def test_a_style_given_twice_is_that_style_with_weight_two(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    twice = engine.zstar(astronaut, [coffee, coffee], quick).image
    assert largest_difference(twice, engine.zstar(astronaut, [Style(coffee, weight=2)], quick).image) <= 1
    assert largest_difference(twice, engine.zstar(astronaut, [coffee], quick).image) > 1


def test_a_style_of_weight_zero_takes_no_part(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, quick: ZStarSettings
) -> None:
    with counted_evaluations(engine.backbone) as with_zero:
        both = engine.zstar(astronaut, [Style(coffee), Style(cat, weight=0)], quick).image
    engine.cache.clear()
    with counted_evaluations(engine.backbone) as alone:
        assert same(both, engine.zstar(astronaut, [coffee], quick).image)
    assert with_zero == alone


def test_one_mask_cannot_serve_three_styles(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    with pytest.raises(StyleEngineError, match="one or two styles, not 3"):
        engine.zstar(astronaut, [coffee] * 3, quick, mask=WHITE)


# SAIN


def noises(seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(batch, 4, 16, 16, generator=generator)
    offsets = torch.tensor([0.0, 0.3, -0.8, 2.0]).view(1, 4, 1, 1)
    return content, torch.randn(1, 4, 16, 16, generator=generator) * 0.9 + offsets


def means(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def test_mean_mode_gives_exactly_the_styles_channel_means() -> None:
    content, style = noises()
    aligned = align_colors(content, [style], [1.0], "mean")
    torch.testing.assert_close(means(aligned), means(style).expand(2, -1), atol=1e-6, rtol=0)


def test_mode_none_leaves_the_noise_unchanged() -> None:
    content, style = noises()
    assert torch.equal(align_colors(content, [style], [1.0], "none"), content)


def test_sain_moves_the_means_towards_the_style_and_not_beyond() -> None:
    content, style = noises()
    aligned = align_colors(content, [style], [1.0], "sain")
    gap_before = (means(style) - means(content)).abs()
    gap_after = (means(style) - means(aligned)).abs()
    assert (gap_after < gap_before).all()
    assert ((means(aligned) - means(content)) * (means(style) - means(content)) > 0).all()
    centred = aligned - aligned.mean((2, 3), keepdim=True)
    torch.testing.assert_close(centred, content - content.mean((2, 3), keepdim=True), atol=1e-5, rtol=0)


def test_several_styles_shift_the_means_by_their_share_of_the_weights() -> None:
    content, style = noises()
    other = style.flip(1)
    aligned = align_colors(content, [style, other], [0.75, 0.25], "mean")
    expected = (0.75 * means(style) + 0.25 * means(other)).expand(2, -1)
    torch.testing.assert_close(means(aligned), expected, atol=1e-5, rtol=0)


def test_sain_weight_is_exp_of_minus_kl_between_normal_distributions() -> None:
    content, style = noises()
    weights = sain_weight(content, style)
    assert weights.shape == (2, 4, 1, 1)
    for row in range(2):
        for channel in range(4):
            p, q = (
                torch.distributions.Normal(x.mean(), x.std(unbiased=False))
                for x in (style[0, channel], content[row, channel])
            )
            expected = math.exp(-float(torch.distributions.kl_divergence(p, q)))
            assert float(weights[row, channel]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_sain_weight_does_not_depend_on_the_size_of_the_image(shift: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for side in (16, 32, 64):  # 128 to 512 pixels
        content, style = (torch.randn(1, 64, side, side, generator=generator) for _ in range(2))
        weight = float(sain_weight(content, style + shift).mean())
        assert weight == pytest.approx(math.exp(-(shift**2) / 2), abs=0.01)


@pytest.mark.parametrize("mode", ["sain", "mean", "adain"])
def test_the_colour_factor_leads_from_none_to_the_whole_alignment(mode: str) -> None:
    content, style = noises()
    whole = align_colors(content, [style], [1.0], mode)
    assert torch.equal(align_colors(content, [style], [1.0], mode, 0.0), content)
    half = align_colors(content, [style], [1.0], mode, 0.5)
    torch.testing.assert_close(half, (content + whole) / 2)


def test_adain_gives_the_styles_means_and_deviations() -> None:
    content, style = noises()
    aligned = align_colors(content, [style], [1.0], "adain")
    for measured in (torch.mean, torch.std):
        got, wanted = (measured(x, dim=(2, 3)) for x in (aligned, style))
        torch.testing.assert_close(got, wanted.expand(2, -1), atol=1e-4, rtol=1e-4)


def test_sain_weight_lies_in_0_1_falls_with_the_difference_and_is_one_for_equals() -> None:
    content, _ = noises(batch=1)
    assert torch.equal(sain_weight(content, content), torch.ones(1, 4, 1, 1))
    for seed in range(20):
        weights = sain_weight(*noises(seed))
        assert (weights > 0).all()
        assert (weights <= 1).all()
    shifted = [float(sain_weight(content, content + shift).mean()) for shift in (0.0, 0.5, 1.0, 2.0, 50.0)]
    assert shifted == sorted(shifted, reverse=True)
    assert len(set(shifted)) == 5


def test_a_rows_sain_weight_does_not_depend_on_the_batch() -> None:
    content, style = noises(batch=3)
    content[1] *= 3
    content[2] = 0.01 * content[2] + 5
    together = sain_weight(content, style)
    assert torch.equal(together, torch.cat([sain_weight(row[None], style) for row in content]))
    aligned = align_colors(content, [style], [1.0], "sain")
    assert torch.equal(aligned[:1], align_colors(content[:1], [style], [1.0], "sain"))


# Content: pull and queries


def path_of(steps: int, seed: int) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    return Trajectory([torch.randn(1, 4, 8, 8, generator=generator) + seed for _ in range(steps + 1)])


@pytest.mark.parametrize("color", ["sain", "mean", "none"])
def test_pull_blends_in_the_contents_latents_with_the_styles_means(backbone: Backbone, color: str) -> None:
    settings = ZStarSettings(size=64, steps=4, color=color, content_pull=0.2, color_factor=0.5)
    run = Run(backbone, ddim.Schedule.spaced(backbone.alphas_cumprod, 4))
    content, style = path_of(4, 1), path_of(4, 2)
    attention = StyleAttention(run, settings, [Style(WHITE)], [style], (32, 32))
    x_t, level = torch.randn(1, 4, 8, 8), 2
    weight = {"sain": sain_weight(content.x_T, style.x_T), "mean": 1.0, "none": 0.0}[color]
    difference = style.latents[level].mean((2, 3), keepdim=True) - content.latents[level].mean((2, 3), keepdim=True)
    expected = 0.8 * x_t + 0.2 * (content.latents[level] + 0.5 * weight * difference)
    torch.testing.assert_close(attention.pulled(x_t, level, [content]), expected)


def test_queries_and_keys_of_the_inversion_are_those_of_its_last_evaluation(
    engine: StyleEngine, astronaut: Image.Image
) -> None:
    run = Run(engine.backbone, ddim.Schedule.spaced(engine.backbone.alphas_cumprod, 3))
    phase = inverting("content")
    whole = Recording("keys_values", range(16), range(1, 4))
    path = run.invert(astronaut, (64, 64), 2, phase, whole)
    again = run.invert(astronaut, (64, 64), 2, phase)
    queries = Recording("queries", [0, 12], [2])
    for level in (1, 2, 3):
        assert torch.equal(path.latents[level], again.latents[level])
        for layer, pair in whole.at(run, again, level).items():
            assert all(torch.equal(x, y) for x, y in zip(pair, path.keys_values[level][layer], strict=True))
    assert set(queries.at(run, again, 2)) == set(again.queries[2]) == {0, 12}


def test_beyond_the_limit_nothing_is_kept_and_the_result_is_the_same(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = quick.replace(query_preservation=0.5)
    kept = engine.zstar(astronaut, [coffee], settings).image
    engine.cache.clear()
    monkeypatch.setattr("styleengine.run.LARGEST_RECORD", 0)
    assert same(engine.zstar(astronaut, [coffee], settings).image, kept)


def test_styleid_is_a_corner_of_the_settings() -> None:
    """Chung et al., CVPR 2024: softmax(τ·Q̃·K_sᵀ/√d)·V_s with Q̃ = γ·Q_c + (1 − γ)·Q_cs, and AdaIN of x_T."""
    settings = ZStarSettings(**PRESETS["StyleID"])
    assert (settings.mode, settings.query_preservation, settings.temperature) == ("style_only", 0.75, 1.5)
    assert (list(settings.styled_layers()), settings.styled_steps()) == ([11, 12, 13, 14, 15], range(30))
    q, k, v, tokens = random_layer(8, 8)
    tap = injection(settings, [Style(BLACK)], [None], tokens)
    tap.queries = {12: torch.randn(q.shape, generator=torch.Generator().manual_seed(5))}
    mixed = 0.75 * tap.queries[12] + 0.25 * q
    (keys, values) = tokens[0]
    expected = (1.5 * mixed @ keys.mT / 16**0.5).softmax(-1) @ values
    torch.testing.assert_close(tap(12, q, k, v), expected, atol=1e-5, rtol=1e-5)
    content, style = noises(batch=1)
    deviation = (style.std((2, 3), keepdim=True), content.std((2, 3), keepdim=True))
    adain = (content - content.mean((2, 3), keepdim=True)) / deviation[1] * deviation[0]
    adain += style.mean((2, 3), keepdim=True)
    torch.testing.assert_close(align_colors(content, [style], [1.0], settings.color), adain, atol=1e-4, rtol=1e-4)


def test_queries_and_temperature_change_only_where_a_style_applies() -> None:
    settings = ZStarSettings(query_preservation=0.5, temperature=2.0)
    q, k, v, tokens = random_layer(8, 8)
    tap = injection(settings, [Style(BLACK, mask=LEFT_HALF)], [LEFT_HALF], tokens)
    tap.queries = {12: torch.randn(q.shape)}
    out, plain = (x.unflatten(2, (8, 8)) for x in (tap(12, q, k, v), attend(q, k, v)))
    torch.testing.assert_close(out[..., 4:, :], plain[..., 4:, :], atol=1e-5, rtol=0)
    assert (out - plain)[..., :4, :].abs().max() > 0.1


# Modes, layers, steps


def random_layer(height: int, width: int, styles: int = 1) -> tuple:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 2, height * width, 16, generator=generator) for _ in range(3))
    tokens = [tuple(torch.randn(1, 2, 20 + i, 16, generator=generator) for _ in range(2)) for i in range(styles)]
    return q, k, v, tokens


def injection(
    settings: ZStarSettings,
    styles: list[Style],
    masks: Sequence[Image.Image | None],
    tokens: Sequence[Any] = (),
    size: tuple[int, int] = (32, 32),
) -> StyleInjection:
    tap = StyleInjection(settings, styles, masks, size, multiple=4)
    for pair in tokens:
        everywhere: dict[int, Any] = dict.fromkeys(range(16), pair)
        tap.keys_values.append(everywhere)
    return tap


def test_style_only_is_attention_over_the_styles_keys_and_values() -> None:
    q, k, v, tokens = random_layer(8, 8)
    out = injection(ZStarSettings(mode="style_only"), [Style(BLACK)], [None], tokens)(12, q, k, v)
    keys, values = (x.expand(2, -1, -1, -1) for x in tokens[0])
    torch.testing.assert_close(out, attend(q, keys, values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_simple_addition_blends_style_and_content_attention(share: float) -> None:
    q, k, v, tokens = random_layer(8, 8)
    settings = ZStarSettings(mode="simple_addition", addition_weight=share)
    out = injection(settings, [Style(BLACK)], [None], tokens)(12, q, k, v)
    keys, values = (x.expand(2, -1, -1, -1) for x in tokens[0])
    expected = share * attend(q, keys, values) + (1 - share) * attend(q, k, v)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_reweight_is_one_softmax_over_styles_and_content() -> None:
    q, k, v, tokens = random_layer(8, 8, styles=2)
    styles = [Style(BLACK), Style(BLACK, weight=0.5)]
    out = injection(ZStarSettings(strength=1.3), styles, [None, None], tokens)(12, q, k, v)
    logits = [1.3 * q @ keys.transpose(-1, -2) / 4 for keys, _ in tokens]
    logits = [logits[0], logits[1] + math.log(0.5), q @ k.transpose(-1, -2) / 4]
    values = torch.cat([*(x.expand(2, -1, -1, -1) for _, x in tokens), v], 2)
    torch.testing.assert_close(out, torch.cat(logits, -1).softmax(-1) @ values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["simple_addition", "style_only"])
def test_modes_without_content_keys_keep_the_content_outside_the_mask(mode: Any) -> None:
    q, k, v, tokens = random_layer(8, 8)
    half = region(LEFT_HALF, (32, 32), 0)
    out = injection(ZStarSettings(mode=mode), [Style(BLACK, mask=LEFT_HALF)], [half], tokens)(12, q, k, v)
    outside = out.unflatten(2, (8, 8))[..., 4:, :]
    torch.testing.assert_close(outside, attend(q, k, v).unflatten(2, (8, 8))[..., 4:, :], atol=1e-5, rtol=0)


def test_the_bias_of_a_style_is_the_log_of_weight_times_mask() -> None:
    q, *_ = random_layer(8, 8)
    gradient = Image.linear_gradient("L").resize((32, 32))
    tap = injection(ZStarSettings(), [Style(BLACK, 2.0), Style(BLACK, 3.0), Style(BLACK)], [gradient, None, None])
    torch.testing.assert_close(tap.bias(0, q), math.log(2) + log_mask(tap.mask_at(0, 64)))
    assert tap.bias(1, q) == pytest.approx(math.log(3))
    assert tap.bias(2, q) is None


def test_the_papers_ranges_are_the_defaults() -> None:
    settings = ZStarSettings()
    assert (settings.steps, settings.strength, settings.size) == (30, 1.2, 512)
    assert settings.styled_steps() == range(5, 30)
    assert settings.styled_layers() == range(10, 16)
    assert ZStarSettings(steps=60).styled_steps() == range(10, 60)
    assert ZStarSettings(start=1 / 3, end=2 / 3).styled_steps() == range(10, 20)
    assert ZStarSettings(first_layer=5, last_layer=10).styled_layers() == range(5, 11)


def test_styles_are_attended_to_in_the_chosen_layers_and_steps_only(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, seen = [0], []
    original = StyleInjection.__call__

    def note(self: StyleInjection, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((done[-1], layer))
        return original(self, layer, q, k, v)

    def on_step(event: StepEvent) -> None:
        if event.phase == "stylizing":
            done.append(event.step % settings.steps)

    monkeypatch.setattr(StyleInjection, "__call__", note)
    settings = quick.replace(steps=6, first_layer=4, last_layer=7, start=0.5, end=5 / 6)
    engine.zstar(astronaut, [coffee], settings, on_step=on_step)
    assert seen == [(step, layer) for step in (3, 4) for layer in (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"first_layer": 12, "last_layer": 11}, "swap them"),
        ({"start": 0.8, "end": 0.2}, "move the two apart"),
        ({"start": 0.5, "end": 0.5}, "move the two apart"),
    ],
)
def test_empty_ranges_are_refused(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, values: dict, sentence: str
) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        engine.zstar(astronaut, [coffee], ZStarSettings(size=64, **values))


@pytest.mark.parametrize("weight", [-1.0, 0.0, math.nan, math.inf, 1e300])
def test_invalid_weights_are_refused(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings, weight: float
) -> None:
    with pytest.raises(StyleEngineError, match="at least one must be above 0"):
        engine.zstar(astronaut, [Style(coffee, weight=weight)], quick)


# Whole runs


def test_strength_has_an_effect(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    results = [
        engine.zstar(astronaut, [coffee], quick.replace(strength=strength)).image for strength in (1.0, 1.2, 2.0)
    ]
    assert not same(results[0], results[1])
    assert not same(results[1], results[2])


def test_same_inputs_and_seed_give_identical_pixels(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    for settings in (quick, quick.replace(variation=0.3, seed=7)):
        engine.cache.clear()
        torch.manual_seed(1)
        first = engine.zstar(astronaut, [coffee], settings).image
        engine.cache.clear()
        torch.manual_seed(2)
        assert same(engine.zstar(astronaut, [coffee], settings).image, first)


def test_the_seed_has_an_effect_with_variation_only(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    def run(seed: int, variation: float) -> Image.Image:
        return engine.zstar(astronaut, [coffee], quick.replace(seed=seed, variation=variation)).image

    assert same(run(0, 0.0), run(1, 0.0))
    assert not same(run(0, 0.2), run(1, 0.2))
    assert not same(run(0, 0.2), run(0, 0.0))


def test_variation_keeps_the_variance() -> None:
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    assert torch.equal(vary(x, 0.0, 3), x)
    for share in (0.1, 0.5, 1.0):
        varied = vary(x, share, 3)
        assert float(varied.std()) == pytest.approx(1, abs=0.03)
        correlation = float((varied * x).mean() / (varied.std() * x.std()))
        assert correlation == pytest.approx(math.sqrt(1 - share), abs=0.03)


@pytest.mark.parametrize("shape", [(300, 211), (211, 300), (64, 64), (500, 70), (65, 127)])
def test_the_aspect_ratio_is_kept_at_odd_sizes(
    engine: StyleEngine, astronaut: Image.Image, cat: Image.Image, shape: tuple[int, int]
) -> None:
    result = engine.zstar(astronaut.resize(shape), [cat], ZStarSettings(size=64, steps=2)).image
    multiple = engine.backbone.multiple
    assert all(side % multiple == 0 for side in result.size)
    assert min(result.size) == 64
    exact = 64 / min(shape) * max(shape)
    assert abs(max(result.size) - exact) <= multiple / 2


def test_reconstruction_is_measured_when_asked(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, quick: ZStarSettings
) -> None:
    asked = engine.zstar(astronaut, [coffee], quick.replace(measure_reconstruction=True))
    unasked = engine.zstar(astronaut, [coffee], quick)
    assert same(asked.image, unasked.image)
    assert set(unasked.details) == {"autoencoder_psnr"}
    copy = reconstruction(engine.backbone, astronaut, quick)
    error = (pixels(copy) - pixels(fit(astronaut, copy.size))) / 255
    assert asked.details["reconstruction_psnr"] == pytest.approx(-10 * math.log10((error**2).mean()), abs=0.05)
    assert asked.details["autoencoder_psnr"] == unasked.details["autoencoder_psnr"]


def test_a_known_content_is_decoded_no_second_time_for_its_psnr(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    cat: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode, decoded = engine.backbone.vae.decode, list[int]()

    def counted(*given: Any, **more: Any) -> Any:
        decoded.append(1)
        return decode(*given, **more)

    monkeypatch.setattr(engine.backbone.vae, "decode", counted)
    first, second = (engine.zstar(astronaut, [style], quick) for style in (coffee, cat))
    assert len(decoded) == 3  # of two results and one PSNR
    assert first.details == second.details
    assert first.image.tobytes() != second.image.tobytes()


def test_a_network_with_other_layers_is_refused(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    quick: ZStarSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(style_attention, "self_attention_layers", lambda unet: [None] * 8)
    with pytest.raises(StyleEngineError, match="16 self-attention layers"):
        engine.zstar(astronaut, [coffee], quick)


@pytest.mark.parametrize("weight", [1e-12, 1e6])
def test_the_weight_of_a_single_style_does_not_matter_for_its_colours(weight: float) -> None:
    content, _ = noises(batch=1)
    (share,) = injection(ZStarSettings(), [Style(BLACK, weight)], [None], size=(64, 64)).shares(content)
    assert torch.equal(share, torch.ones_like(share))


def test_colours_are_aligned_only_where_a_style_applies() -> None:
    content, style = noises(batch=1)
    height, width = content.shape[2:]
    mask = Image.new("L", (width * 4, height * 4), 0)
    mask.paste(255, (0, 0, width * 2, height * 4))
    tap = injection(ZStarSettings(), [Style(BLACK, mask=mask)], [mask], size=mask.size)
    aligned = align_colors(content, [style], tap.shares(content), "mean")
    assert torch.equal(aligned[..., width // 2 :], content[..., width // 2 :])
    assert not torch.equal(aligned[..., : width // 2], content[..., : width // 2])


def test_shares_of_two_styles_with_complementary_masks_sum_to_one_everywhere() -> None:
    content, _ = noises(batch=1)
    height, width = content.shape[2:]
    gradient = Image.linear_gradient("L").resize((width * 4, height * 4))
    masks = [ImageOps.invert(gradient), gradient]
    styles = [Style(BLACK, 2.0, mask=masks[0]), Style(BLACK, mask=masks[1])]
    first, second = injection(ZStarSettings(), styles, masks, size=gradient.size).shares(content)
    torch.testing.assert_close(first + second, torch.ones(height, width), atol=1e-3, rtol=0)
    assert first[0].mean() > 0.9
    assert second[-1].mean() > 0.9
