"""QS-Attn: selection and contrast against numpy, gradients against finite differences, and whole runs."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from models import write_random_model
from PIL import Image

from styleengine import Cancelled, QSAttnSettings, StepEvent, StyleEngine, StyleEngineError, ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import fit, to_tensor
from styleengine.methods.qs_attn import contrast, method
from styleengine.methods.qs_attn.clip_losses import cut, direction_distance, patch_sets, spherical_distance
from styleengine.methods.qs_attn.contrast import contrastive_loss, encoder_features, select
from styleengine.methods.qs_attn.guide import Guide
from styleengine.methods.qs_attn.method import descend, shift, way
from styleengine.methods.qs_attn.prompts import Prompt, parse_prompts
from styleengine.metrics import psnr
from styleengine.perceptual import Clip
from styleengine.run import Run

CLIP_LOSSES = ("global_whole", "direction_whole", "global_patches", "direction_patches", "perceptual")
LOSSES = (*CLIP_LOSSES, "contrast", "mse", "range_loss")
NONE = dict.fromkeys(LOSSES, 0.0)


@pytest.fixture(scope="module")
def latent_engine(shared_engine: StyleEngine) -> StyleEngine:
    return shared_engine


@pytest.fixture(scope="module")
def pixels_with_clip(tmp_path_factory: pytest.TempPathFactory, pixel_model_folder: Path) -> StyleEngine:
    """A pixel model whose folder also holds a CLIP."""
    folder = Path(shutil.copytree(pixel_model_folder, tmp_path_factory.mktemp("pixels") / "model"))
    other = write_random_model(tmp_path_factory.mktemp("clip") / "model")
    shutil.copytree(other / "clip", folder / "clip")
    return StyleEngine(str(folder), device="cpu")


@pytest.fixture(params=["latent_engine", "pixels_with_clip"])
def either(request: pytest.FixtureRequest) -> StyleEngine:
    engine: StyleEngine = request.getfixturevalue(request.param)
    engine.cache.clear()
    return engine


@pytest.fixture(scope="module")
def clip(backbone: Backbone) -> Clip:
    return Clip(backbone)


@pytest.fixture(scope="module")
def fast() -> QSAttnSettings:
    return QSAttnSettings(prompt="ink", size=64, steps=3, patches=4)


def features_of(side: tuple[int, int] = (5, 6), channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, channels, *side, generator=torch.Generator().manual_seed(seed))


def rows_of(features: torch.Tensor) -> np.ndarray:
    """(positions, channels), in double precision."""
    return features[0].flatten(1).T.double().numpy()


def numpy_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def numpy_attention(features: torch.Tensor, window: int | None = None) -> np.ndarray:
    """softmax(F·Fᵀ) over all positions, or over those of the window around each."""
    width = features.shape[3]
    rows = rows_of(features)
    logits = rows @ rows.T
    if window:
        for i in range(len(rows)):
            for j in range(len(rows)):
                down, across = abs(i // width - j // width), abs(i % width - j % width)
                if max(down, across) > window // 2:
                    logits[i, j] = -np.inf
    return numpy_softmax(logits)


def numpy_entropy(attention: np.ndarray) -> np.ndarray:
    return np.array([-sum(a * math.log(a) for a in row if a > 0) for row in attention])


def chosen(features: torch.Tensor, **settings: object) -> contrast.Anchors:
    return select(features, QSAttnSettings(**settings), torch.Generator().manual_seed(0))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def guide_for(engine: StyleEngine, clip: Clip, picture: Image.Image, settings: QSAttnSettings) -> Guide:
    content = fit(picture, (64, 64))
    x_0 = engine.backbone.encode(to_tensor(content))
    run = Run(engine.backbone, way(engine.backbone, settings))
    return Guide(run, clip, content, x_0, parse_prompts(settings.prompt), settings)


# Selection


@pytest.mark.parametrize("window", [3, 5])
def test_entropies_are_those_of_a_direct_computation(window: int) -> None:
    features = features_of()
    whole = chosen(features, selection="global").entropy
    np.testing.assert_allclose(whole.flatten(), numpy_entropy(numpy_attention(features)), atol=1e-6)
    local = chosen(features, selection="local", window=window).entropy
    np.testing.assert_allclose(local.flatten(), numpy_entropy(numpy_attention(features, window)), atol=1e-6)
    assert whole.shape == local.shape == (5, 6)


@pytest.mark.parametrize(
    ("selection", "chosen_by", "routed_by"), [("global", None, None), ("local", 3, 3), ("local_global", 3, None)]
)
def test_the_anchors_are_exactly_the_n_smallest_entropies_and_routed_by_their_rows(
    selection: str, chosen_by: int | None, routed_by: int | None
) -> None:
    features = features_of()
    anchors = chosen(features, selection=selection, anchors=7, window=3)
    h = numpy_entropy(numpy_attention(features, chosen_by))
    assert anchors.indices.tolist() == np.argsort(h)[:7].tolist()
    rows = numpy_attention(features, routed_by)[anchors.indices]
    np.testing.assert_allclose(anchors.routing, rows, atol=1e-6)
    routed = rows @ rows_of(features)
    np.testing.assert_allclose(anchors.positives, routed / np.linalg.norm(routed, axis=1, keepdims=True), atol=1e-5)


def test_large_features_still_have_an_order() -> None:
    features = 6 * features_of(channels=16)  # dot products of hundreds: nearly all attention is on one position
    h = numpy_entropy(numpy_attention(features))
    assert np.median(h) < 1e-20
    assert set(chosen(features, anchors=20).indices.tolist()) == {*np.argsort(h)[:20].tolist()}


def test_random_anchors_differ_and_attend_to_single_positions() -> None:
    features = features_of()
    random, by_entropy = (chosen(features, selection=selection, anchors=7) for selection in ("random", "global"))
    assert set(random.indices.tolist()) != set(by_entropy.indices.tolist())
    assert len(set(random.indices.tolist())) == 7
    assert torch.equal(random.routing.argmax(1), random.indices)
    assert torch.equal(random.routing.sum(1), torch.ones(7))
    assert random.routing.max() == 1


def test_there_are_no_more_anchors_than_positions() -> None:
    for selection in ("global", "local", "local_global", "random"):
        assert sorted(chosen(features_of(), selection=selection).indices.tolist()) == list(range(30))


def test_entropy_in_chunks_equals_entropy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = features_of()[0].flatten(1).T.double()
    at_once = contrast.global_entropy(flat)
    monkeypatch.setattr(contrast, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(contrast.global_entropy(flat), at_once)


# The losses


def numpy_contrast(current: torch.Tensor, source: torch.Tensor, rows: np.ndarray) -> float:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    anchors, positives = unit(rows @ rows_of(current)), unit(rows @ rows_of(source))
    losses = []
    for i, anchor in enumerate(anchors):
        similarities = np.array([anchor @ other for other in positives]) / 0.07
        losses.append(-math.log(math.exp(similarities[i]) / np.exp(similarities).sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize("selection", ["global", "local", "local_global", "random"])
def test_the_contrast_is_that_of_a_direct_computation(selection: str) -> None:
    sources = [features_of(), features_of((3, 4), 5, seed=1)]
    currents = [source + 0.7 * features_of(source.shape[2:], source.shape[1], 2) for source in sources]
    anchors = [chosen(source, selection=selection, anchors=6) for source in sources]
    expected = [
        numpy_contrast(current, source, layer.routing.double().numpy())
        for current, source, layer in zip(currents, sources, anchors, strict=True)
    ]
    assert float(contrastive_loss(currents, anchors)) == pytest.approx(np.sum(expected), rel=1e-5)


def test_normalised_features_have_mean_0_and_deviation_1_and_logits_over_the_root_of_the_channels(
    backbone: Backbone,
) -> None:
    x_0 = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    raw, normal = (encoder_features(backbone, x_0, backbone.condition([""]), kind) for kind in ("raw", "instance_norm"))
    for one, other in zip(raw, normal, strict=True):
        torch.testing.assert_close(other, torch.nn.functional.instance_norm(one), atol=1e-4, rtol=1e-4)
    features = normal[0]
    settings = QSAttnSettings(features="instance_norm", anchors=9)
    anchors = select(features, settings, torch.Generator())
    flat = rows_of(features)
    logits = flat @ flat.T / math.sqrt(flat.shape[1])
    attention = np.exp(logits - logits.max(1, keepdims=True))
    attention /= attention.sum(1, keepdims=True)
    entropies = -(attention * np.log(attention + 1e-300)).sum(1)
    np.testing.assert_allclose(anchors.entropy.flatten().numpy(), entropies, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(anchors.routing.numpy(), attention[anchors.indices.numpy()], atol=1e-5)


def test_the_contrast_is_smallest_for_the_source_and_its_gradient_equals_finite_differences() -> None:
    source = features_of().double()
    anchors = [chosen(source, anchors=6)]
    other = (source + 0.5 * features_of(seed=3)).requires_grad_()
    assert contrastive_loss([source], anchors) < contrastive_loss([other], anchors)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss([x], anchors), other)


def test_clips_losses_are_angles_and_their_gradients_equal_finite_differences() -> None:
    angle = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    turned = torch.stack([angle.cos(), angle.sin()], -1)
    ahead = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(spherical_distance(turned, ahead), angle.square() / 2)
    torch.testing.assert_close(direction_distance(5 * turned, 3 * ahead), 1 - angle.cos())
    for distance in (spherical_distance, direction_distance):
        assert torch.autograd.gradcheck(distance, (turned.clone().requires_grad_(), ahead))


def test_the_shares_of_the_balance() -> None:
    half = QSAttnSettings()
    assert (half.style_share, half.content_share) == (1, 1)
    full = QSAttnSettings(balance=1.0)
    assert (full.style_share, full.content_share) == (2, 0)


def test_the_balance_scales_both_groups(latent_engine: StyleEngine, clip: Clip, cat: Image.Image) -> None:
    settings = QSAttnSettings(prompt="ink", patches=2, balance=0.25, global_whole=7, direction_whole=8)
    weights = guide_for(latent_engine, clip, cat, settings).weights()
    assert weights == {
        "global_whole": 3.5,
        "direction_whole": 4.0,
        "global_patches": 5_000.0,
        "direction_patches": 10_000.0,
        "contrast": 750.0,
        "mse": 7_500.0,
        "perceptual": 150.0,
        "range_loss": 50.0,
    }
    content_only = guide_for(latent_engine, clip, cat, settings.replace(balance=0.0)).weights()
    assert content_only.keys() == {"contrast", "mse", "perceptual", "range_loss"}
    style_only = guide_for(latent_engine, clip, cat, settings.replace(balance=1.0)).weights()
    assert style_only.keys() == {*CLIP_LOSSES, "range_loss"} - {"perceptual"}


def state_of(guide: Guide, step: int = 0) -> tuple[torch.Tensor, int, torch.Tensor]:
    """(x_t, level, ᾱ) before a step, counted from 0."""
    x_0, schedule = guide.backbone.encode(guide.source), guide.run.schedule
    level = schedule.steps - step
    alpha = schedule.levels[level]
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(5))
    return alpha.sqrt() * x_0 + (1 - alpha).sqrt() * z, level, alpha


def test_each_loss_is_computed_on_the_blend_of_x0_and_x_t(either: StyleEngine, clip: Clip, cat: Image.Image) -> None:
    settings = QSAttnSettings(prompt="ink", size=64, patches=3, **dict.fromkeys(LOSSES, 2.0))
    guide = guide_for(either, clip, cat, settings)
    x_t, level, alpha = state_of(guide, step=5)
    backbone = either.backbone
    noise = guide.run.noise(x_t, level)
    losses = guide.losses(x_t, noise, level)
    x_in = (x_t - (1 - alpha).sqrt() * noise) / alpha.sqrt() * (1 - alpha).sqrt() + x_t * (1 - (1 - alpha).sqrt())
    picture = backbone.decode(x_in)
    source, target = clip.text_embeddings(["Photo"]), clip.text_embeddings(["ink"])
    patches, before = (cut(p, guide.boxes[1], clip.side) for p in (picture, guide.source))  # step 5: the second set
    expected = {
        "mse": (picture - guide.source).square().mean(),
        "range_loss": ((picture.abs() - 1).clamp(min=0) ** 2).mean(),
        "contrast": contrastive_loss(encoder_features(backbone, x_in, guide.null), guide.layers),
    }
    for name, now, then in (("whole", picture, guide.source), ("patches", patches, before)):
        seen, seen_before = clip.image_embeddings(now), clip.image_embeddings(then)
        expected[f"global_{name}"] = (2 * ((seen - target).norm(dim=1) / 2).arcsin() ** 2).mean()
        change, wanted = seen - seen_before, target - source
        cosines = (change * wanted).sum(1) / change.norm(dim=1) / wanted.norm(dim=1)
        expected[f"direction_{name}"] = (1 - cosines).mean()
    tokens, tokens_before = clip.patch_tokens(picture)[0], clip.patch_tokens(guide.source)[0]
    cosines = (tokens * tokens_before).sum(1) / tokens.norm(dim=1) / tokens_before.norm(dim=1)
    expected["perceptual"] = (1 - cosines).mean()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(2 * float(value), rel=2e-3, abs=1e-6), name


def test_without_noise_the_losses_are_computed_on_the_source_itself(
    latent_engine: StyleEngine, clip: Clip, cat: Image.Image, fast: QSAttnSettings
) -> None:
    guide = guide_for(latent_engine, clip, cat, fast.replace(**NONE | {"mse": 1.0}))
    x_0 = guide.backbone.encode(to_tensor(fit(cat, (64, 64))))
    schedule = guide.run.schedule
    guide.run.schedule = replace(schedule, levels=torch.ones_like(schedule.levels))
    losses = guide.losses(x_0, torch.zeros_like(x_0), 1)
    assert float(losses["mse"]) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("save_memory", [False, True])
def test_the_gradient_equals_finite_differences(
    either: StyleEngine, clip: Clip, cat: Image.Image, fast: QSAttnSettings, name: str, save_memory: bool
) -> None:
    settings = fast.replace(**NONE | {name: 100.0, "save_memory": save_memory})
    guide = guide_for(either, clip, cat, settings)
    x_t, level, _ = state_of(guide)
    x_t = 1.5 * x_t  # some of the picture is out of range
    _, gradient = guide.steer(x_t, level)
    assert gradient is not None

    def loss(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float(guide.losses(x, guide.run.noise(x, level), level)[name])

    along = gradient / gradient.norm()
    size = 0.03
    difference = (loss(x_t + size * along) - loss(x_t - size * along)) / (2 * size)
    assert difference == pytest.approx(float((gradient * along).sum()), rel=0.05)


def test_two_styles_are_weighted_and_a_style_twice_is_that_style(
    latent_engine: StyleEngine, clip: Clip, cat: Image.Image, fast: QSAttnSettings
) -> None:
    def losses(prompt: str) -> dict[str, float]:
        guide = guide_for(latent_engine, clip, cat, fast.replace(prompt=prompt))
        x_t, level, _ = state_of(guide)
        noise = guide.run.noise(x_t, level)
        return {name: float(loss) for name, loss in guide.losses(x_t, noise, level).items()}

    ink, oil, both, twice = (losses(p) for p in ("ink", "oil", "ink::3 | oil", "ink | ink"))
    for name in ("global_patches", "direction_patches"):
        assert both[name] == pytest.approx(0.75 * ink[name] + 0.25 * oil[name], rel=1e-4)
        assert ink[name] != pytest.approx(oil[name], rel=1e-3)
    assert twice == pytest.approx(ink, rel=1e-5)


# Patches


def test_a_patch_without_skew_is_a_piece_of_the_picture_and_may_be_mirrored() -> None:
    picture = torch.rand(1, 3, 16, 24) * 2 - 1
    x0, x1, y0, y1 = -1 + 2 * 4 / 24, -1 + 2 * 12 / 24, -1 + 2 * 8 / 16, 1.0  # columns 4 … 11, rows 8 … 15
    corners = torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    pieces = cut(picture, torch.stack([corners, corners[[1, 0, 3, 2]]]), 8)
    torch.testing.assert_close(pieces[0], picture[0, :, 8:, 4:12], atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces[1], picture[0, :, 8:, 4:12].flip(-1), atol=1e-5, rtol=0)


def test_patches_lie_inside_are_as_large_as_they_should_be_and_come_from_the_seed() -> None:
    settings = QSAttnSettings(patches=64)
    width, height = 96, 64
    sets = patch_sets(settings, (width, height))
    corners = torch.cat(sets)
    assert corners.abs().max() <= 1
    spans = (corners.amax(1) - corners.amin(1)) / 2 * torch.tensor([width, height]) / 64  # of the shorter side
    assert spans.max() <= 0.3**0.5
    assert spans.min() >= 0.5 * 0.01**0.5
    assert spans.max() > 0.4
    mirrored = corners[:, 0, 0] > corners[:, 1, 0]
    assert 0.3 < mirrored.float().mean() < 0.7
    assert not torch.equal(sets[0], sets[1])
    assert torch.equal(corners, torch.cat(patch_sets(settings, (width, height))))
    assert not torch.equal(corners, torch.cat(patch_sets(settings.replace(seed=1), (width, height))))


# The U-Net's encoder


def test_features_are_those_of_the_whole_network_at_t_0(either: StyleEngine) -> None:
    backbone = either.backbone
    x_0, null = backbone.encode(torch.rand(1, 3, 64, 64) * 2 - 1), backbone.condition([""])
    features = encoder_features(backbone, x_0, null)
    unet = backbone.unet
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in (unet.conv_in, *(list(getattr(b, "attentions", [])) or list(b.resnets) for b in unet.down_blocks))
        for layer in ([layer[-1]] if isinstance(layer, list) else [layer])
    ]
    backbone.predict_noise(x_0, 0, null)
    for hook in hooks:
        hook.remove()
    assert len(features) == len(seen) == 1 + len(unet.down_blocks)
    assert all(torch.equal(one, other) for one, other in zip(features, seen, strict=True))


def test_the_decoder_is_not_computed_for_features(backbone: Backbone) -> None:
    calls: list[int] = []
    hook = backbone.unet.up_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    encoder_features(backbone, backbone.encode(torch.zeros(1, 3, 64, 64)), backbone.condition([""]))
    hook.remove()
    assert not calls


def test_large_maps_are_averaged_down(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    x_0, null = backbone.encode(torch.zeros(1, 3, 64, 96)), backbone.condition([""])
    before = encoder_features(backbone, x_0, null)
    monkeypatch.setattr(contrast, "FEATURE_SIDE", 12)
    after = encoder_features(backbone, x_0, null)
    assert before[0].shape[2:] == (16, 24)
    assert after[0].shape[2:] == (8, 12)
    torch.testing.assert_close(after[0][0, :, 0, 0], before[0][0, :, :2, :2].mean((1, 2)))


def hooks_of(unet: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def test_a_run_that_fails_half_way_leaves_the_unet_as_it_was(
    either: StyleEngine, cat: Image.Image, fast: QSAttnSettings
) -> None:
    backbone = either.backbone
    x_0, null = backbone.encode(torch.zeros(1, 3, 64, 64)), backbone.condition([""])
    before, hooks = backbone.predict_noise(x_0, 300, null), hooks_of(backbone.unet)

    def fail(event: StepEvent) -> None:
        if event.phase == "stylizing" and event.step == event.total - 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        either.qs_attn(cat, settings=fast, on_step=fail)
    assert hooks_of(backbone.unet) == hooks
    assert torch.equal(backbone.predict_noise(x_0, 300, null), before)
    broken = torch.zeros(1, 7, 8, 8)
    with pytest.raises(RuntimeError):
        encoder_features(backbone, broken, null)
    assert hooks_of(backbone.unet) == hooks


# The sampling loop


def test_by_default_the_lower_25_of_50_steps_are_run(backbone: Backbone) -> None:
    schedule = way(backbone, QSAttnSettings())
    whole = ddim.Schedule.spaced(backbone.alphas_cumprod, 50)
    assert schedule.steps == 25
    assert schedule.timesteps == whole.timesteps[:26]
    assert torch.equal(schedule.levels, whole.levels[:26])
    assert schedule.timesteps[-1] == 481


@pytest.mark.parametrize("steps", [2, 7, 25, 60, 100])
@pytest.mark.parametrize("depth", [0.2, 0.33, 0.5, 0.8, 1.0])
def test_the_depth_is_the_same_noise_at_any_number_of_steps(backbone: Backbone, steps: int, depth: float) -> None:
    schedule = way(backbone, QSAttnSettings(steps=steps, depth=depth))
    assert schedule.steps == steps
    assert schedule.timesteps[-1] == pytest.approx(1000 * depth * (1 - 1 / steps), abs=1.5)


def test_the_shift_is_sigma_squared_times_the_gradient_up_to_its_limit() -> None:
    gradient, sigma = features_of(), torch.tensor(0.5)
    torch.testing.assert_close(shift(gradient, sigma, 10), 0.25 * gradient)
    limited = shift(1000 * gradient, sigma, 0.3)
    assert float(limited.square().mean().sqrt()) == pytest.approx(0.15, rel=1e-5)
    torch.testing.assert_close(limited / limited.norm(), gradient / gradient.norm())
    assert torch.equal(shift(gradient, sigma, 0), torch.zeros_like(gradient))


class ConstantGuide:
    """Stands in for `Guide`: ε is a share of x_t, the gradient constant in the guided steps."""

    def __init__(self, gradient: torch.Tensor, unguided: int) -> None:
        self.gradient, self.unguided = gradient, unguided

    def steer(self, x_t: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return 0.3 * x_t, self.gradient if level > self.unguided else None


@pytest.mark.parametrize("unguided", [0, 1, 2])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_guided_step_goes_against_the_gradient(backbone: Backbone, eta: float, unguided: int) -> None:
    settings = QSAttnSettings(steps=3, eta=eta, step_limit=10, seed=4)
    schedule = way(backbone, settings)
    x_T, gradient = features_of(), features_of(seed=1)  # noqa: N806
    guide = ConstantGuide(gradient, unguided)
    got = descend(x_T, schedule, guide, settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    x_t = x_T
    for level in (3, 2, 1):
        alpha, below = schedule.levels[level], schedule.levels[level - 1]
        variance = (1 - below) / (1 - alpha) * (1 - alpha / below)
        spread = eta * variance.sqrt() if level > 1 else torch.tensor(0.0)
        clean = (x_t - (1 - alpha).sqrt() * 0.3 * x_t) / alpha.sqrt()
        mean = below.sqrt() * clean + (1 - below - spread**2).sqrt() * 0.3 * x_t
        z = torch.randn(x_t.shape, generator=generator) if spread > 0 else 0
        x_t = mean + spread * z - (variance * gradient if level > unguided else 0)
    torch.testing.assert_close(got, x_t, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("share", "unguided"), [(0.0, 1), (0.2, 1), (0.5, 3)])
def test_the_last_steps_are_not_guided(
    engine: StyleEngine,
    cat: Image.Image,
    fast: QSAttnSettings,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    unguided: int,
) -> None:
    shifted: list[torch.Tensor] = []
    monkeypatch.setattr(method, "shift", lambda gradient, *given: shifted.append(gradient) or shift(gradient, *given))
    engine.qs_attn(cat, settings=fast.replace(steps=6, unguided=share))
    assert len(shifted) == 6 - unguided


def test_without_any_loss_sampling_is_ddim(
    either: StyleEngine, clip: Clip, cat: Image.Image, fast: QSAttnSettings
) -> None:
    settings = fast.replace(eta=0.0, **NONE)
    guide = guide_for(either, clip, cat, settings)
    x_t, _, _ = state_of(guide)
    schedule = way(either.backbone, settings)
    assert torch.equal(descend(x_t, schedule, guide, settings), ddim.sample(x_t, schedule, guide.run.noise))


class BrokenGuide(Guide):
    """Its gradients contain a NaN in the steps of `broken`."""

    broken = (0,)

    def losses(self, x_t: torch.Tensor, *given: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        losses = super().losses(x_t, *given)  # type: ignore[arg-type]
        if self.asked in self.broken:
            losses["broken"] = (x_t.flatten()[0] * 0).sqrt()
        return losses


@pytest.mark.parametrize(("broken", "lost"), [((), 0), ((1,), 1), ((0, 2, 3), 3), ((0, 1, 2, 3, 4), 5)])
def test_a_gradient_that_is_not_finite_is_skipped_and_many_of_them_are_noted(
    engine: StyleEngine,
    cat: Image.Image,
    fast: QSAttnSettings,
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[int, ...],
    lost: int,
) -> None:
    monkeypatch.setattr(BrokenGuide, "broken", broken)
    monkeypatch.setattr(method, "Guide", BrokenGuide)
    shifted: list[torch.Tensor] = []
    monkeypatch.setattr(method, "shift", lambda gradient, *given: shifted.append(gradient) or shift(gradient, *given))
    result = engine.qs_attn(cat, settings=fast.replace(steps=6))
    assert len(shifted) == 5 - lost  # the last step is not guided
    assert all(gradient.isfinite().all() for gradient in shifted)
    if lost > 2:
        assert f"In {lost} of 5 steps the gradient was not finite (in float32)" in result.notes[0]
    else:
        assert not result.notes


# Whole runs


def test_variations_are_the_runs_of_their_seeds_with_one_inversion(
    latent_engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings
) -> None:
    settings, events = fast.replace(seed=2**32 - 1, steps=3), []
    with counted_evaluations(latent_engine.backbone) as together:
        results = latent_engine.qs_attn_variations(cat, settings=settings, count=2, on_step=events.append)
    assert [one.settings["seed"] for one in results] == [2**32 - 1, 0]
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert events[-1].step == events[-1].total
    for one in results:
        alone = latent_engine.qs_attn(cat, settings=settings.replace(seed=one.settings["seed"]))
        assert alone.image.tobytes() == one.image.tobytes()
    assert results[0].image.tobytes() != results[1].image.tobytes()
    latent_engine.cache.clear()
    with counted_evaluations(latent_engine.backbone) as first:
        latent_engine.qs_attn(cat, settings=settings)
    assert len(together) < 2 * len(first)


def test_less_than_one_variation_is_refused(latent_engine: StyleEngine, cat: Image.Image) -> None:
    with pytest.raises(StyleEngineError, match="0 variations were asked for"):
        latent_engine.qs_attn_variations(cat, "ink", count=0)


def test_the_result_approaches_the_prompt_and_with_content_losses_alone_stays_near_the_source(
    either: StyleEngine, astronaut: Image.Image, fast: QSAttnSettings
) -> None:
    settings = fast.replace(steps=8, eta=0.0, patches=8, global_whole=10_000.0, contrast=100.0)
    styled = either.qs_attn(astronaut, settings=settings)
    assert styled.details["similarity_after"] > styled.details["similarity_before"] + 0.02
    source = either.backbone.decode(either.backbone.encode(to_tensor(fit(astronaut, (64, 64)))))
    kept = either.qs_attn(astronaut, settings=settings.replace(balance=0.0))
    assert psnr(to_tensor(kept.image), source) > psnr(to_tensor(styled.image), source) + 2


def test_equal_runs_give_equal_pixels_from_the_cache_or_not_and_seeds_differ(
    either: StyleEngine, cat: Image.Image, fast: QSAttnSettings
) -> None:
    first = either.qs_attn(cat, settings=fast).image
    assert same(either.qs_attn(cat, settings=fast).image, first)  # from the cache
    assert same(either.qs_attn(cat, settings=fast.replace(save_memory=True)).image, first)
    either.cache.clear()
    assert same(either.qs_attn(cat, settings=fast).image, first)
    assert not same(either.qs_attn(cat, settings=fast.replace(seed=1)).image, first)


def test_the_source_is_encoded_once(either: StyleEngine, cat: Image.Image, fast: QSAttnSettings) -> None:
    with counted_evaluations(either.backbone) as whole:
        either.qs_attn(cat, settings=fast)
    assert (
        len(whole) == 2 * fast.steps
    )  # inversion and sampling; the encoder alone is not a forward pass of the whole U-Net
    with counted_evaluations(either.backbone) as whole:
        either.qs_attn(cat, "oil", fast)
    assert len(whole) == fast.steps


def test_the_cache_distinguishes_what_matters(engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings) -> None:
    changes = [
        {"selection": "random"},
        {"selection": "random", "seed": 3},
        {"selection": "local"},
        {"selection": "local", "window": 3},
        {"anchors": 5},
        {"patches": 5},
        {"depth": 0.8},
    ]
    for change in changes:
        other = fast.replace(**change)
        warm = engine.qs_attn(cat, settings=other).image
        alone = _without_cache(engine).qs_attn(cat, settings=other).image
        assert same(warm, alone), change


def _without_cache(engine: StyleEngine) -> StyleEngine:
    other = copy.copy(engine)
    other.cache = ByteCache(0)
    return other


def test_in_sequence_each_style_is_applied_to_the_previous_result(
    engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings
) -> None:
    events: list[StepEvent] = []
    both = engine.qs_attn(cat, "ink | oil", fast.replace(order="in_sequence"), on_step=events.append)
    first = engine.qs_attn(cat, "ink", fast).image
    assert same(both.image, engine.qs_attn(first, "oil", fast).image)
    assert not same(both.image, engine.qs_attn(cat, "ink | oil", fast).image)
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert {event.total for event in events} == {4 * fast.steps}
    assert steps[-1] == 4 * fast.steps


def test_selections_give_different_pictures(engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings) -> None:
    pictures = [
        engine.qs_attn(cat, settings=fast.replace(selection=selection, anchors=8)).image.tobytes()
        for selection in ("global", "local", "local_global", "random")
    ]
    assert len(set(pictures)) == 4


def test_the_result_has_the_contents_shape_and_records_how_it_was_made(
    engine: StyleEngine, coffee: Image.Image, fast: QSAttnSettings
) -> None:
    previews: list[Image.Image] = []
    result = engine.qs_attn(coffee, "oil", fast, on_step=lambda event: previews.append(event.preview()))
    assert result.image.size == previews[-1].size == (96, 64)
    assert result.record()["settings"] == {**fast.model_dump(), "prompt": "oil", "save_memory": "off"}
    assert [entry.role for entry in result.inputs] == ["content"]
    assert result.method == "qs_attn"


# Prompts


def test_prompts_are_separated_by_bars_and_weighted() -> None:
    assert parse_prompts("golden") == [Prompt("golden", 1.0)]
    assert parse_prompts(" golden ::2| wooden |") == [Prompt("golden", 2.0), Prompt("wooden", 1.0)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompt": ""}, "No style was given"),
        ({"prompt": " | "}, "No style was given"),
        ({"prompt": "ink::much"}, "“much” is not a weight"),
        ({"prompt": "ink::-1"}, "must be above 0"),
        ({"prompt": "ink::nan"}, "must be above 0"),
        ({"prompt": "photo"}, "has the same embedding as the text for the content"),
        ({"prompt": "🎨"}, "does not know any word of “🎨”"),
        ({"prompt": "水彩"}, "does not know any word of"),
        ({"prompt": "ink::2 | oil", "order": "in_sequence"}, "Weights have no effect"),
        ({"prompt": "ink", "window": 4}, "must be odd"),
    ],
)
def test_unusable_prompts_are_refused(
    engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        engine.qs_attn(cat, settings=fast.replace(**settings))


@pytest.mark.parametrize("prompt", ["ink " * 1000, "une aquarelle très légère 🎨"])
def test_long_foreign_and_decorated_prompts_give_a_picture(
    engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings, prompt: str
) -> None:
    assert engine.qs_attn(cat, prompt, fast.replace(steps=2)).image.size == (96, 64)


@pytest.mark.parametrize("order", ["at_once", "in_sequence"])
def test_a_truncated_prompt_is_noted(engine: StyleEngine, cat: Image.Image, fast: QSAttnSettings, order: str) -> None:
    """CLIP's 16 tokens are a start, 14 letters and an end here."""
    prompt = "Ink and wash, with a soft brush | oil | " + "b " * 20
    source = "A photo of a cat in the sun"
    settings = fast.replace(steps=2, prompt=prompt, source_text=source, order=order)
    photo, ink, letters = engine.qs_attn(cat, settings=settings).notes
    assert "Of the words “A photo of a cat in the sun…” only those up to “…A photo of a cat in” were read" in photo
    assert "up to “…Ink and wash, wit” were read" in ink
    assert "up to “…" + "b " * 13 + "b” were read" in letters
    assert all("takes 16 tokens" in note for note in (photo, ink, letters))
    assert not engine.qs_attn(cat, settings=fast.replace(steps=2, prompt="ink | a b c d e f g h i j k l m n")).notes


@pytest.fixture
def without_clip(pixel_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StyleEngine:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return StyleEngine(str(pixel_model_folder), device="cpu")


def test_a_model_without_clip_gives_a_sentence_and_still_shows_its_anchors(
    without_clip: StyleEngine, cat: Image.Image, fast: QSAttnSettings
) -> None:
    with pytest.raises(StyleEngineError, match=r"has no CLIP .* choose a model with a CLIP"):
        without_clip.qs_attn(cat, settings=fast)
    assert without_clip.qs_attn_anchors(cat, fast).height == 64


# The overlay


def test_the_overlay_shows_every_layer_with_its_anchors_framed(
    engine: StyleEngine, coffee: Image.Image, fast: QSAttnSettings
) -> None:
    settings = fast.replace(anchors=4)
    picture = engine.qs_attn_anchors(coffee, settings)
    assert picture.size == (5 * 96, 64)
    backbone = engine.backbone
    x_0 = backbone.encode(to_tensor(fit(coffee, (96, 64))))
    finest = select(encoder_features(backbone, x_0, backbone.condition([""]))[0], settings, torch.Generator())
    pixels = np.asarray(picture)[:, :96]
    framed = {
        row * 24 + column
        for row in range(16)
        for column in range(24)
        if (pixels[4 * row, 4 * column : 4 * column + 4] == 255).all()
    }
    assert framed == set(finest.indices.tolist())
    red_minus_blue = pixels[1::4, 1::4].astype(int)[..., 0] - pixels[1::4, 1::4].astype(int)[..., 2]
    assert np.corrcoef(red_minus_blue.ravel(), finest.entropy.flatten().numpy())[0, 1] > 0.99
