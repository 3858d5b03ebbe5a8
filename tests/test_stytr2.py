"""StyTr²: its network, the method, and its training on a few crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks.judge_vgg import Vgg16, content_loss, style_loss
from styleengine import Cancelled, StepEvent, Style, StyleEngine, StyleEngineError, StyTr2Settings
from styleengine.images import fit
from styleengine.measures import measures
from styleengine.methods.stytr2.network import (
    MOST_KEYS,
    ContentAwarePositions,
    MultiHeadAttention,
    StyTr2,
    half_adain,
    pooled,
)
from training.stytr2 import Losses, Pool, Trainer, fresh_model, step_losses, validated


@pytest.fixture(scope="module")
def network() -> StyTr2:
    torch.manual_seed(0)
    small = StyTr2(width=24, heads=3, layers=2, grid=6).eval()
    torch.nn.init.normal_(small.to_latents.weight, std=0.1)
    return small.requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_softmax_of_scaled_products_over_all_places() -> None:
    attention = MultiHeadAttention(12, 3)
    x, context = random(2, 3, 4, 12), random(2, 5, 2, 12, seed=1)
    heads = []
    q, k, v = (
        attention.to_q(x).flatten(1, 2),
        attention.to_k(context).flatten(1, 2),
        attention.to_v(context).flatten(1, 2),
    )
    for start in (0, 4, 8):
        one = slice(start, start + 4)
        weights = (q[..., one] @ k[..., one].transpose(1, 2) / 2).softmax(2)
        heads.append(weights @ v[..., one])
    torch.testing.assert_close(attention(x, context), attention.to_out(torch.cat(heads, 2)).view(2, 3, 4, 12))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (33, 32), (64, 64), (64, 96), (192, 192)])
def test_keys_are_pooled_only_where_there_are_too_many(height: int, width: int) -> None:
    x = random(1, height, width, 4)
    found = pooled(x)
    if height * width <= MOST_KEYS:
        assert found is x
    else:
        assert found.shape[1] * found.shape[2] <= 1.3 * MOST_KEYS
        torch.testing.assert_close(pooled(torch.ones_like(x)), torch.ones_like(found))


def test_positions_depend_on_the_content_and_not_on_its_size_in_pixels() -> None:
    cape, x = ContentAwarePositions(8, 6), random(1, 12, 18, 8)
    positions = cape(x)
    assert positions.shape == x.shape
    assert not torch.allclose(positions, cape(x.flip(1)))
    larger = cape(x.repeat_interleave(3, 1).repeat_interleave(3, 2))
    coarse = torch.nn.functional.adaptive_avg_pool2d(larger.permute(0, 3, 1, 2), (12, 18))
    torch.testing.assert_close(coarse.permute(0, 2, 3, 1), positions, atol=0.1, rtol=0)
    torch.testing.assert_close(cape(torch.ones(1, 9, 9, 8)), cape(torch.ones(1, 30, 9, 8))[:, :9])


def test_half_adain_is_halfway_to_the_styles_mean_and_deviation() -> None:
    content, style = random(1, 4, 8, 8), 3 * random(1, 4, 5, 9, seed=1) + 2
    moved = half_adain(content, style) * 2 - content
    torch.testing.assert_close(moved.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(moved.std((2, 3)), style.std((2, 3)))
    assert half_adain(torch.zeros(1, 4, 2, 2), style).isfinite().all()


def test_the_style_acts_by_its_tokens_and_not_by_their_places(network: StyTr2) -> None:
    content, style = random(1, 16, 6, 7), random(1, 16, 5, 9, seed=1)
    shuffled = style.flatten(2)[..., torch.randperm(45, generator=torch.Generator().manual_seed(2))].view_as(style)
    torch.testing.assert_close(network(content, style), network(content, shuffled), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(network(content, style), network(content, 2 * style))


def test_without_cape_each_token_of_the_content_is_treated_alike() -> None:
    torch.manual_seed(0)
    plain = StyTr2(width=24, heads=3, layers=1, cape=False).eval()
    torch.nn.init.normal_(plain.to_latents.weight)
    content, style = random(1, 16, 6, 7), random(1, 16, 5, 9, seed=1)
    with torch.no_grad():
        order = torch.randperm(42, generator=torch.Generator().manual_seed(2))

        def shuffled(x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2)[..., order].view_as(x)

        torch.testing.assert_close(
            plain(shuffled(content), style), shuffled(plain(content, style)), atol=1e-4, rtol=1e-4
        )
        plain.positions = ContentAwarePositions(24, 6)
        assert not torch.allclose(plain(shuffled(content), style), shuffled(plain(content, style)), atol=1e-2)


def test_rows_of_a_batch_do_not_affect_each_other(network: StyTr2) -> None:
    content, style = random(3, 16, 6, 7), random(3, 16, 5, 9, seed=1)
    whole = network(content, style)
    torch.testing.assert_close(whole[1:2], network(content[1:2], style[1:2]), atol=1e-5, rtol=1e-5)


def test_weights_survive_saving(network: StyTr2, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    again = StyTr2.from_pretrained(tmp_path)
    content, style = random(1, 16, 6, 7), random(1, 16, 5, 9, seed=1)
    torch.testing.assert_close(again(content, style), network(content, style))  # type: ignore[operator]


# The method

SMALL = StyTr2Settings(size=64)
LEFT_HALF = Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, 0).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


@pytest.mark.parametrize(("size", "shape"), [(64, (96, 64)), (128, (192, 128)), (200, (304, 200))])
def test_a_result_has_the_contents_shape_at_any_size(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, size: int, shape: tuple[int, int]
) -> None:
    result = engine.stytr2(cat, coffee, StyTr2Settings(size=size))
    assert result.image.size == shape
    assert np.ptp(pixels(result.image)) > 100
    assert np.abs(pixels(result.image) - pixels(fit(cat, shape))).mean() > 5


@pytest.mark.parametrize("shape", [(320, 40), (40, 320), (16, 16)])
def test_extreme_shapes_of_a_style_are_taken(engine: StyleEngine, cat: Image.Image, shape: tuple[int, int]) -> None:
    assert engine.stytr2(cat, Image.new("RGB", shape, "teal"), SMALL).image.size == (96, 64)


def test_strength_blends_the_content_and_the_stylized_image(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    plain, half, whole = (
        engine.stytr2(astronaut, coffee, StyTr2Settings(strength=s, size=128)).image for s in (0, 0.5, 1)
    )
    assert plain.tobytes() == astronaut.tobytes()
    assert np.abs(pixels(half) * 2 - pixels(astronaut) - pixels(whole)).max() <= 2


def test_outside_the_mask_the_pixels_are_the_contents(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    shown, size = fit(astronaut, (64, 64)), StyTr2Settings(size=64, feather=0)
    masked = engine.stytr2(shown, coffee, size, mask=LEFT_HALF).image
    everywhere = engine.stytr2(shown, coffee, size).image
    assert (pixels(masked)[:, 33:] == pixels(shown)[:, 33:]).all()
    assert np.abs(pixels(masked)[:, :16] - pixels(everywhere)[:, :16]).mean() < 25
    assert np.abs(pixels(masked)[:, :16] - pixels(shown)[:, :16]).mean() > 5
    black = engine.stytr2(shown, coffee, size, mask=Image.new("L", (16, 16), 0)).image
    assert (pixels(black) == pixels(shown)).all()


def test_several_styles_are_mixed_by_their_weights(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, rocket: Image.Image
) -> None:
    alone, other = (engine.stytr2(cat, style, SMALL).image for style in (coffee, rocket))
    twice = engine.stytr2(cat, [Style(coffee, 0.3), Style(coffee, 1.2)], SMALL).image
    assert np.abs(pixels(twice) - pixels(alone)).max() <= 1
    assert engine.stytr2(cat, [Style(coffee), Style(rocket, 0)], SMALL).image.tobytes() == alone.tobytes()
    mostly, evenly = (engine.stytr2(cat, [Style(coffee, w), Style(rocket)], SMALL).image for w in (9, 1))
    to_first, to_second = ([np.abs(pixels(x) - pixels(y)).mean() for y in (alone, other)] for x in (mostly, evenly))
    assert to_first[0] < to_second[0] < to_second[0] + to_second[1]
    assert to_first[0] < to_first[1]
    with pytest.raises(StyleEngineError, match="weight"):
        engine.stytr2(cat, [Style(coffee, 0)], SMALL)


def test_the_networks_are_its_own_whatever_the_engines_model_is(
    engine: StyleEngine, pixel_engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    one, other = (known.stytr2(cat, coffee, SMALL) for known in (engine, pixel_engine))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.backbone == other.backbone == "stytr2"
    assert one.revision == other.revision


def test_a_run_can_be_cancelled_and_reports_its_pass(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image
) -> None:
    events: list[StepEvent] = []
    result = engine.stytr2(cat, coffee, SMALL, on_step=events.append)
    assert [(event.step, event.total) for event in events] == [(0, 1), (1, 1)]
    assert events[1].preview().tobytes() == result.image.tobytes()

    def stop(event: StepEvent) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        engine.stytr2(cat, coffee, SMALL, on_step=stop)


def test_the_embedded_model_takes_the_style_and_keeps_the_content(engine: StyleEngine) -> None:
    """By the measures of the comparison, on pictures that are in no training data."""
    pairs = [(data.chelsea(), data.immunohistochemistry()), (data.coffee(), data.chelsea())]
    for content, style in [[Image.fromarray(array) for array in pair] for pair in pairs]:
        result = engine.stytr2(content, style, StyTr2Settings(size=256)).image
        untouched, found = measures(content, content, style), measures(result, content, style)
        assert found.style_loss < 0.75 * untouched.style_loss
        assert found.ssim > 0.35


# Training


@pytest.fixture(scope="module")
def losses() -> Losses:
    """Losses on a network with random weights, since the real ones are in no package of the tests."""
    torch.manual_seed(0)
    return Losses(Vgg16().requires_grad_(False).eval())


@pytest.fixture(scope="module")
def pool() -> Pool:
    noise = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    return Pool.of(noise, np.random.default_rng(0), 0.5)


def test_the_losses_on_kept_features_are_those_of_the_judge(losses: Losses, pool: Pool) -> None:
    images = pool.pixels(np.array([0, 1]))
    of_images, of_one = losses.features(images), losses.features(images[:1])
    styles, contents = Pool(pool.views), Pool(pool.views)
    for _ in range(2):  # computed, then known
        wanted = losses.of_styles(styles, np.array([2, 0]))
        other = losses.features(pool.pixels(np.array([2, 0])))
        torch.testing.assert_close(losses.style(of_images, wanted), style_loss(of_images, other), atol=1e-3, rtol=0.02)
    assert len(styles.known) == 2
    assert float(losses.content(of_one, losses.of_contents(contents, np.array([0])))) < 1e-3
    assert float(losses.content(of_one, losses.of_contents(contents, np.array([2])))) > 0.1
    assert float(content_loss(of_one, of_one)) == 0


def test_a_fresh_model_starts_from_the_autoencoder_and_half_adain(losses: Losses, pool: Pool, tmp_path: Path) -> None:
    model = fresh_model(cape=True)
    content, style = random(1, 16, 6, 7), random(1, 16, 5, 9, seed=1)
    with torch.no_grad():
        assert torch.equal(model(content, style), half_adain(content, style))
    found = validated(model, losses, (pool, pool), tmp_path / "grid.png")
    assert found["held_out_content"] < 1 > found["held_out_style"] > 0
    assert (tmp_path / "grid.png").exists()


def place(trainer: Trainer) -> int:
    """The index of the last layer's weights among the parameters."""
    return [name for name, _ in trainer.model.named_parameters()].index("to_latents.weight")


def test_a_resumed_training_continues_exactly(losses: Losses, pool: Pool, tmp_path: Path) -> None:
    def trained(trainer: Trainer, steps: int) -> Trainer:
        for _ in range(steps):
            generator = np.random.default_rng(trainer.step)
            parts = step_losses(trainer.model, losses, pool, Pool(pool.views), 1, generator, trainer.step)
            trainer.advance(torch.stack(list(parts.values())).sum(), 1.0)
        return trainer

    whole = trained(Trainer(tmp_path, True, 1e-3), 3)
    begun = trained(Trainer(tmp_path, True, 1e-3), 2)
    begun.save()
    resumed = Trainer(tmp_path, True, 1e-3)
    resumed.resume()
    assert resumed.step == 2
    trained(resumed, 1)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole.model.to_latents.weight, begun.model.to_latents.weight)
    other = Trainer(tmp_path, True, 1e-3)
    other.start_from(tmp_path / "model")
    torch.testing.assert_close(
        other.model.to_latents.weight, begun.ema.shadow_params[place(begun)], atol=1e-4, rtol=1e-3
    )
    assert torch.equal(other.ema.shadow_params[place(other)], other.model.to_latents.weight)
    sizes = [file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors")]
    assert max(sizes) < 10e6
    assert sum(sizes) < 12e6
