"""h-space: blending, calibration, masks and whole runs, on a latent and on a pixel-space model."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from diffusers import DDPMScheduler
from models import write_random_model
from PIL import Image

from styleengine import Cancelled, HSpaceSettings, StepEvent, StyleEngine, StyleEngineError, ddim
from styleengine.backbones import Backbone
from styleengine.images import content_hash, fit, to_images, to_tensor, working_size
from styleengine.methods.h_space.bottleneck import blend, captured, injection, match_norm, slerp
from styleengine.methods.h_space.method import calibrate

BLACK, WHITE = Image.new("L", (40, 40), 0), Image.new("L", (40, 40), 255)
LEFT_HALF = Image.fromarray(np.repeat([[255] * 16 + [0] * 16], 32, 0).astype(np.uint8))
GAMMAS = (0.0, 0.25, 0.5, 0.8, 1.0)


@pytest.fixture(params=["latent", "pixel"])
def either(request: pytest.FixtureRequest) -> StyleEngine:
    """An engine on each kind of backbone in turn, its cache empty."""
    return request.getfixturevalue("engine" if request.param == "latent" else "pixel_engine")


@pytest.fixture(scope="module")
def velocity_engine(tmp_path_factory: pytest.TempPathFactory) -> StyleEngine:
    folder = write_random_model(tmp_path_factory.mktemp("velocity") / "model", prediction_type="v_prediction")
    return StyleEngine(str(folder), device="cpu")


@pytest.fixture(params=["engine", "pixel_engine", "velocity_engine"])
def any_kind(request: pytest.FixtureRequest) -> StyleEngine:
    """As `either`, and on one that predicts the velocity."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def fast() -> HSpaceSettings:
    return HSpaceSettings(size=64, steps=4, t_boost=0, t_edit=300)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def random_h(rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, 4, 4, generator=torch.Generator().manual_seed(seed))


def as_shares(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def norms(h: torch.Tensor) -> torch.Tensor:
    return h.flatten(1).norm(dim=1)


def noise_at(backbone: Backbone, rows: int = 2) -> torch.Tensor:
    shape = backbone.encode(torch.zeros(1, 3, 64, 48)).shape[1:]
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(3))


def plain_noise(backbone: Backbone, x_t: torch.Tensor, timestep: int = 500) -> torch.Tensor:
    return backbone.predict_noise(x_t, timestep, backbone.condition([""]))


# Blending


@pytest.mark.parametrize("share", GAMMAS)
def test_slerp_is_its_closed_form(share: float) -> None:
    a, b = random_h(), random_h(seed=1) * 3
    got = slerp(a, b, as_shares(share)).double().numpy()
    for row in range(2):
        v, w = a[row].double().numpy().ravel(), b[row].double().numpy().ravel()
        theta = math.acos(v @ w / np.linalg.norm(v) / np.linalg.norm(w))
        expected = (math.sin((1 - share) * theta) * v + math.sin(share * theta) * w) / math.sin(theta)
        np.testing.assert_allclose(got[row].ravel(), expected, atol=1e-5)


def test_slerp_moves_along_the_arc_at_constant_speed() -> None:
    a, b = random_h(1), match_norm(random_h(1, seed=1), random_h(1))

    def angle(one: torch.Tensor, other: torch.Tensor) -> float:
        cosine = (one * other).sum() / one.norm() / other.norm()
        return math.acos(float(cosine.clamp(-1, 1)))

    whole = angle(a, b)
    for share in GAMMAS[1:]:
        assert angle(a, slerp(a, b, as_shares(share))) == pytest.approx(share * whole, abs=1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.5, -1.0])
def test_slerp_of_parallel_and_opposite_vectors_is_their_chord(scale: float) -> None:
    a = random_h()
    for share in GAMMAS:
        got = slerp(a, scale * a, as_shares(share))
        torch.testing.assert_close(got, (1 - share + share * scale) * a, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", GAMMAS)
def test_slerp_of_a_vanishing_vector_is_finite(share: float) -> None:
    a, zero = random_h(), torch.zeros(2, 6, 4, 4)
    for one, other in ((a, zero), (zero, a), (zero, zero)):
        assert slerp(one, match_norm(other, one), as_shares(share)).isfinite().all()


def test_slerp_goes_smoothly_into_its_parallel_limit() -> None:
    a, aside = random_h(1), random_h(1, seed=1)
    for size in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        b = a + size * aside
        torch.testing.assert_close(slerp(a, b, as_shares(0.3)), 0.7 * a + 0.3 * b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_the_blended_norm_is_the_styles(gamma: float, size: float) -> None:
    style, content = random_h(), size * random_h(1, seed=1)
    blended = blend(style, content, as_shares(gamma, gamma))
    torch.testing.assert_close(norms(blended) / norms(style), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("angle", [0.3, 0.03, 0.003])
def test_the_norm_is_kept_at_small_angles_too(angle: float) -> None:
    style = random_h(1)
    blended = blend(style, style + angle * random_h(1, seed=1), as_shares(0.5))
    assert float(norms(blended) / norms(style)) == pytest.approx(1, abs=1e-6)


def test_gamma_1_gives_the_contents_direction_with_the_styles_norm_and_0_the_style() -> None:
    style, content = random_h(), 5 * random_h(1, seed=1)
    blended = blend(style, content, as_shares(0.0, 1.0))
    torch.testing.assert_close(blended[0], style[0], atol=1e-6, rtol=0)
    direction = content[0] / content[0].norm()
    torch.testing.assert_close(blended[1] / style[1].norm(), direction, atol=1e-6, rtol=0)


def test_a_blend_keeps_the_dtype_and_computes_in_float32() -> None:
    style, content = random_h().bfloat16(), (200 * random_h(1, seed=1)).bfloat16()
    blended = blend(style, content, as_shares(0.5, 0.5))
    assert blended.dtype == torch.bfloat16
    expected = blend(style.float(), content.float(), as_shares(0.5, 0.5))
    assert torch.equal(blended, expected.bfloat16())


# Masks


def region_of(mask: Image.Image) -> torch.Tensor:
    return to_tensor(mask)[:, :1].add(1).div(2)


def test_outside_the_mask_h_is_the_styles_bit_for_bit_and_inside_a_slerp() -> None:
    style, content = random_h(), random_h(1, seed=1)
    blended = blend(style, content, as_shares(0.6, 0.6), region_of(LEFT_HALF))
    assert torch.equal(blended[..., 2:], style[..., 2:])
    expected = blend(style[..., :2], content[..., :2], as_shares(0.6, 0.6))
    torch.testing.assert_close(blended[..., :2], expected, atol=1e-6, rtol=0)
    half = blend(style.bfloat16(), content.bfloat16(), as_shares(0.6, 0.6), region_of(LEFT_HALF))
    assert torch.equal(half[..., 2:], style.bfloat16()[..., 2:])


def test_a_white_mask_is_no_mask_and_a_black_one_no_injection() -> None:
    style, content = random_h(), random_h(1, seed=1)
    gamma = as_shares(0.3, 0.9)
    assert torch.equal(blend(style, content, gamma, region_of(WHITE)), blend(style, content, gamma))
    assert torch.equal(blend(style, content, gamma, region_of(BLACK)), style)


def test_a_position_that_the_mask_covers_in_part_is_injected_in_part() -> None:
    style, content = random_h(1), random_h(1, seed=1)
    quarter = torch.zeros(1, 1, 16, 16)
    quarter[..., :2, :2] = 1  # a quarter of the first of 4×4 positions
    blended = blend(style, content, as_shares(0.8), quarter)
    assert torch.equal(blended.flatten(2)[..., 1:], style.flatten(2)[..., 1:])
    corner = blended[..., :1, :1]
    torch.testing.assert_close(corner, blend(style[..., :1, :1], content[..., :1, :1], as_shares(0.2)))


# Calibration


def test_calibration_gives_the_latents_whose_x0_is_the_injected_one_with_the_styles_deviation() -> None:
    x_t, noise, injected = random_h(seed=1), random_h(seed=2), 3 * random_h(seed=3)
    alpha = torch.tensor(0.3)
    clean, changed = ddim.predict_x0(x_t, noise, alpha), ddim.predict_x0(x_t, injected, alpha)
    # The moved latents contain ε for ω = 0, ε̃ for ω = 1.
    for omega, expected_noise in ((0.0, noise), (1.0, injected), (0.4, 0.6 * noise + 0.4 * injected)):
        found = ddim.predict_x0(calibrate(x_t, noise, injected, alpha, omega), expected_noise, alpha)
        torch.testing.assert_close(found.std((1, 2, 3)), clean.std((1, 2, 3)), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.mean((1, 2, 3)), changed.mean((1, 2, 3)), atol=1e-4, rtol=0)
        shape = (changed - changed.mean((1, 2, 3), keepdim=True)) / changed.std((1, 2, 3), keepdim=True)
        got = (found - found.mean((1, 2, 3), keepdim=True)) / found.std((1, 2, 3), keepdim=True)
        torch.testing.assert_close(got, shape, atol=1e-4, rtol=0)


def test_calibration_changes_nothing_without_injection() -> None:
    x_t, noise = random_h(seed=1), random_h(seed=2)
    torch.testing.assert_close(calibrate(x_t, noise, noise, torch.tensor(0.3), 0.5), x_t, atol=1e-5, rtol=0)


# The hooks


def test_what_is_captured_is_the_mid_blocks_output(either: StyleEngine) -> None:
    backbone = either.backbone
    x_t = noise_at(backbone)
    noted: list[torch.Tensor] = []
    handle = backbone.unet.mid_block.register_forward_hook(lambda block, given, h: noted.append(h))
    plain_noise(backbone, x_t)
    handle.remove()
    with captured(backbone.unet) as seen:
        plain_noise(backbone, x_t)
    assert len(seen) == 1
    assert torch.equal(seen[0], noted[0])


def test_injection_returns_the_noise_with_the_plain_and_with_the_changed_h(any_kind: StyleEngine) -> None:
    backbone = any_kind.backbone
    x_t = noise_at(backbone, rows=3)
    handle = backbone.unet.mid_block.register_forward_hook(lambda block, given, h: h.flip(1))
    flipped = plain_noise(backbone, x_t)
    handle.remove()
    plain = plain_noise(backbone, x_t)
    with injection(backbone.unet, lambda h: h.flip(1)):
        both = plain_noise(backbone, x_t)
    torch.testing.assert_close(both, torch.cat([plain, flipped]), atol=1e-5, rtol=0)
    assert not torch.allclose(plain, flipped, atol=1e-3)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_half_way_leaves_the_network_as_it_was(either: StyleEngine, error: type[BaseException]) -> None:
    backbone = either.backbone
    x_t = noise_at(backbone)
    before = plain_noise(backbone, x_t)

    def fail(h: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(error), injection(backbone.unet, fail):
        plain_noise(backbone, x_t)
    with pytest.raises(error), captured(backbone.unet):
        raise error
    assert torch.equal(plain_noise(backbone, x_t), before)
    for block in (backbone.unet.mid_block, *backbone.unet.up_blocks):
        assert not block._forward_hooks
        assert not block._forward_pre_hooks


# The whole run


def written_out(engine: StyleEngine, content: Image.Image, style: Image.Image, settings: HSpaceSettings) -> Image.Image:
    """A direct implementation, row by row: one plain and one injected forward pass, nothing shared."""
    backbone = engine.backbone
    size = working_size(content, settings.size, backbone.multiple)
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)

    def predict(x: torch.Tensor, level: int) -> torch.Tensor:
        return plain_noise(backbone, x, schedule.timesteps[level])

    paths = [ddim.invert(backbone.encode(to_tensor(fit(i, size))), schedule, predict) for i in (content, style)]
    generator = torch.Generator().manual_seed(settings.seed)
    x = paths[1][-1]
    for level in range(settings.steps, 0, -1):
        t, alpha, alpha_prev = schedule.timesteps[level], schedule.levels[level], schedule.levels[level - 1]
        noise = direction = plain_noise(backbone, x, t)
        if noise_level(settings.t_edit) >= alpha >= noise_level(settings.t_start):
            h_content = mid_block_output(backbone, paths[0][level], t)
            changed = noise_with_h(backbone, x, t, lambda h, c=h_content: arc(h, c, settings.gamma))
            clean, other = ((x - (1 - alpha).sqrt() * e) / alpha.sqrt() for e in (noise, changed))
            if settings.calibration:
                renormed = (other - other.mean()) / other.std() * clean.std() + other.mean()
                x = x + alpha.sqrt() * (renormed - clean) + settings.omega * (1 - alpha).sqrt() * (changed - noise)
                noise = direction = plain_noise(backbone, x, t)
            else:
                noise = changed
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        boosted = alpha >= noise_level(settings.t_boost)
        sigma = (((1 - alpha_prev) / (1 - alpha)).sqrt() * (1 - alpha / alpha_prev).sqrt()) if boosted else 0.0
        x = alpha_prev.sqrt() * clean + (1 - alpha_prev - sigma**2) ** 0.5 * direction
        if boosted:
            x = x + sigma * torch.randn(x.shape, generator=generator)
    return to_images(backbone.decode(x))[0]


def noise_level(t: int) -> float:
    """ᾱ at a timestep of DDPM's linear schedule."""
    return float(DDPMScheduler(beta_schedule="linear").alphas_cumprod[t]) if t < 1000 else 0.0


def arc(h: torch.Tensor, content: torch.Tensor, gamma: float) -> torch.Tensor:
    target = content / content.norm() * h.norm()
    theta = torch.acos((h * target).sum() / h.norm() ** 2)
    return (torch.sin((1 - gamma) * theta) * h + torch.sin(gamma * theta) * target) / torch.sin(theta)


def mid_block_output(backbone: Backbone, x: torch.Tensor, t: int) -> torch.Tensor:
    noted: list[torch.Tensor] = []
    handle = backbone.unet.mid_block.register_forward_hook(lambda block, given, h: noted.append(h))
    plain_noise(backbone, x, t)
    handle.remove()
    return noted[0]


def noise_with_h(backbone: Backbone, x: torch.Tensor, t: int, change: Callable) -> torch.Tensor:
    handle = backbone.unet.mid_block.register_forward_hook(lambda block, given, h: change(h))
    noise = plain_noise(backbone, x, t)
    handle.remove()
    return noise


@pytest.mark.parametrize(
    "changed",
    [
        {"calibration": False},
        {"calibration": True},
        {"calibration": True, "omega": 0.5, "gamma": 0.6},
        {"calibration": False, "t_boost": 600, "seed": 3},
        {"calibration": True, "t_start": 600, "t_edit": 0, "t_boost": 300},
    ],
    ids=str,
)
def test_a_run_equals_the_direct_implementation(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings, changed: dict[str, Any]
) -> None:
    settings = fast.replace(**changed)
    result = either.h_space(astronaut, coffee, settings).image
    assert largest_difference(result, written_out(either, astronaut, coffee, settings)) <= 1


def reconstruction(engine: StyleEngine, style: Image.Image, size: tuple[int, int], steps: int) -> Image.Image:
    backbone = engine.backbone
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, steps)

    def predict(x: torch.Tensor, level: int) -> torch.Tensor:
        return plain_noise(backbone, x, schedule.timesteps[level])

    x_T = ddim.invert(backbone.encode(to_tensor(fit(style, size))), schedule, predict)[-1]  # noqa: N806
    return to_images(backbone.decode(ddim.sample(x_T, schedule, predict)))[0]


@pytest.mark.parametrize("calibration", [True, False])
def test_gamma_0_and_a_black_mask_return_the_styles_reconstruction_bit_for_bit(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings, calibration: bool
) -> None:
    settings = fast.replace(calibration=calibration)
    expected = reconstruction(either, coffee, (64, 64), fast.steps)
    assert same(either.h_space(astronaut, coffee, settings.replace(gamma=0.0)).image, expected)
    assert same(either.h_space(astronaut, coffee, settings.replace(gamma=1.0), mask=BLACK).image, expected)
    assert not same(either.h_space(astronaut, coffee, settings.replace(gamma=1.0)).image, expected)


def test_gamma_1_at_all_t_gives_h_the_contents_direction_and_the_styles_norm(
    either: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    fast: HSpaceSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[torch.Tensor, ...]] = []

    def noted(h_style: torch.Tensor, h_content: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append((h_style, h_content, blend(h_style, h_content, *rest)))
        return calls[-1][-1]

    monkeypatch.setattr("styleengine.methods.h_space.method.blend", noted)
    either.h_space(astronaut, coffee, fast.replace(gamma=1.0, t_edit=0))
    assert len(calls) == fast.steps
    schedule = ddim.Schedule.spaced(either.backbone.alphas_cumprod, fast.steps)
    null = either.backbone.condition([""])

    def predict(x: torch.Tensor, level: int) -> torch.Tensor:
        return either.backbone.predict_noise(x, schedule.timesteps[level], null)

    path = ddim.invert(either.backbone.encode(to_tensor(fit(astronaut, (64, 64)))), schedule, predict)
    for level, (h_style, h_content, blended) in zip(range(fast.steps, 0, -1), calls, strict=True):
        own = mid_block_output(either.backbone, path[level], schedule.timesteps[level])
        torch.testing.assert_close(h_content, own, atol=1e-5, rtol=0)
        torch.testing.assert_close(blended / h_style.norm(), own / own.norm(), atol=1e-5, rtol=0)


def test_identical_content_and_style_change_nothing_at_the_first_injected_step(
    either: StyleEngine, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    """At x_T both h are equal, so for every γ the first step is the plain one."""
    only_first = fast.replace(gamma=0.7, t_edit=timestep_of(either, 751))
    expected = reconstruction(either, coffee, working_size(coffee, 64, either.backbone.multiple), fast.steps)
    assert largest_difference(either.h_space(coffee, coffee, only_first).image, expected) <= 1


@pytest.mark.parametrize(
    ("interval", "injected"), [((1000, 400), 2), ((1000, 0), 4), ((600, 0), 3), ((600, 400), 1), ((501, 501), 1)]
)
def test_the_content_is_injected_within_the_interval_only(
    either: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    fast: HSpaceSettings,
    interval: tuple[int, int],
    injected: int,
) -> None:
    """Timesteps of four steps: 751, 501, 251, 1."""
    t_start, t_edit = (timestep_of(either, t) for t in interval)
    settings = fast.replace(t_start=min(t_start + 1, 1000), t_edit=t_edit)
    inverting, sampling = 2 * fast.steps, fast.steps
    for calibration in (False, True):
        either.cache.clear()
        with counted_evaluations(either.backbone) as batches:
            either.h_space(astronaut, coffee, settings.replace(calibration=calibration))
        assert len(batches) == inverting + sampling + injected * (1 + calibration)


def timestep_of(engine: StyleEngine, t: int) -> int:
    """The last timestep of the linear schedule that is not noisier than the model is at t; 0 and 1000 are the ends."""
    if t in (0, 1000):
        return t
    linear = DDPMScheduler(beta_schedule="linear").alphas_cumprod
    return int((linear >= engine.backbone.alphas_cumprod[t]).sum()) - 1


@pytest.mark.parametrize("trained", [1000, 500])
def test_timesteps_in_the_settings_are_noise_levels_of_the_linear_schedule(trained: int) -> None:
    """On Stable Diffusion's schedule the noise levels of 200, 400 and 500 are at 261, 569 and 708."""
    steps = 50
    alphas = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").alphas_cumprod[:: 1000 // trained]
    levels = ddim.Schedule.spaced(alphas, steps)
    settings = HSpaceSettings(t_start=500, t_edit=400, t_boost=200)
    timesteps = [t * 1000 / trained for t in levels.timesteps]
    injected = [timesteps[n] for n in range(1, steps + 1) if settings.injects(n, float(levels.levels[n]))]
    boosted = [timesteps[n] for n in range(1, steps + 1) if settings.boosts(float(levels.levels[n]))]
    assert 569 <= min(injected) <= 569 + 20
    assert 708 - 20 <= max(injected) <= 708
    assert 261 - 20 <= max(boosted) <= 261


@pytest.mark.parametrize(
    ("steps", "injections", "count"), [(50, 50, 30), (100, 50, 30), (500, 50, 30), (50, 10, 6), (20, 50, 12)]
)
def test_the_number_of_injections_does_not_depend_on_the_number_of_steps(
    steps: int, injections: int, count: int
) -> None:
    """As in the authors' scripts: 1000 steps, 50 injections, of which 30 are above t = 400."""
    schedule = ddim.Schedule.spaced(DDPMScheduler(beta_schedule="linear").alphas_cumprod, steps)
    settings = HSpaceSettings(steps=steps, injections=injections)
    levels = [n for n in range(1, schedule.steps + 1) if settings.injects(n, float(schedule.levels[n]))]
    assert len(levels) == count
    gaps = [b - a for a, b in pairwise(levels)]
    assert max(gaps) - min(gaps) <= 1


def test_each_setting_has_an_effect(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    plain = either.h_space(astronaut, coffee, fast).image
    for changed in (
        {"gamma": 0.9},
        {"t_edit": 0},
        {"t_start": 520},
        {"calibration": True},
        {"injections": 2},
        {"t_boost": 600},
        {"inversion_iterations": 2},
    ):
        assert not same(either.h_space(astronaut, coffee, fast.replace(**changed)).image, plain), changed
    calibrated = fast.replace(calibration=True)
    images = [either.h_space(astronaut, coffee, calibrated.replace(omega=omega)).image for omega in (0.0, 0.8)]
    assert not same(*images)


def test_same_inputs_and_seed_give_identical_pixels_and_the_seed_matters_with_the_boost_only(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    def run(**changed: Any) -> Image.Image:
        either.cache.clear()
        return either.h_space(astronaut, coffee, fast.replace(**changed)).image

    torch.manual_seed(1)
    boosted = run(t_boost=600, seed=7)
    torch.manual_seed(2)
    assert same(run(t_boost=600, seed=7), boosted)
    assert not same(run(t_boost=600, seed=8), boosted)
    assert same(run(seed=7), run(seed=8))


def test_a_mask_injects_where_it_is_white(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    settings = fast.replace(gamma=1.0)
    everywhere = either.h_space(astronaut, coffee, settings).image
    half = either.h_space(astronaut, coffee, settings, mask=LEFT_HALF)
    assert same(either.h_space(astronaut, coffee, settings, mask=WHITE).image, everywhere)
    style = reconstruction(either, coffee, (64, 64), fast.steps)
    assert not same(half.image, everywhere)
    change = np.abs(np.asarray(half.image, np.int16) - np.asarray(style, np.int16)).mean((0, 2))
    assert change[:32].mean() > change[32:].mean()


def test_the_result_has_the_contents_shape_and_the_style_is_cropped_to_it(
    either: StyleEngine, cat: Image.Image, astronaut: Image.Image, fast: HSpaceSettings
) -> None:
    result = either.h_space(cat, astronaut, fast).image
    assert result.size == working_size(cat, 64, either.backbone.multiple)
    assert result.width > result.height
    cut = fit(astronaut, result.size)
    assert same(either.h_space(cat, cut, fast).image, result)


# Strips and caches


def test_a_strip_gives_what_single_runs_give(
    any_kind: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    settings = fast.replace(t_boost=300, seed=5)
    strip = any_kind.h_space_strip(astronaut, coffee, [0.0, 0.4, 1.0], settings)
    for one in strip:
        single = any_kind.h_space(astronaut, coffee, settings.replace(gamma=one.settings["gamma"]))
        assert largest_difference(one.image, single.image) <= 1
        assert one.settings == single.settings
        assert one.inputs == single.inputs
    assert [one.settings["gamma"] for one in strip] == [0.0, 0.4, 1.0]
    assert not same(strip[1].image, strip[2].image)


def test_a_strip_inverts_once_and_denoises_in_one_batch(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    fast: HSpaceSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, injected, fast = fast.steps, 2, fast.replace(calibration=True)
    with counted_evaluations(engine.backbone) as batches:
        engine.h_space_strip(astronaut, coffee, [0.0, 0.5, 1.0], fast)
    inverting, of_content, of_gamma_0 = 2 * steps, injected, injected
    assert batches.count(1) == inverting + of_content + of_gamma_0
    assert batches.count(2) == 2 * injected  # the injected forward pass, and the plain one after it
    assert batches.count(3) == steps - injected
    monkeypatch.setattr("styleengine.memory.PIXELS_ON_CPU", 2 * 64 * 64)
    engine.cache.clear()
    with counted_evaluations(engine.backbone) as batches:
        assert len(engine.h_space_strip(astronaut, coffee, [0.2, 0.5, 1.0], fast)) == 3
    assert set(batches) == {1, 2}
    assert len(batches) == inverting + of_content + 2 * (steps + injected)


def test_cached_inversions_are_reused_and_give_the_same_pixels(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image, fast: HSpaceSettings
) -> None:
    steps, injected = fast.steps, 2

    def evaluations(content: Image.Image, style: Image.Image) -> int:
        with counted_evaluations(either.backbone) as batches:
            either.h_space(content, style, fast)
        return len(batches)

    walking = steps
    first = either.h_space(astronaut, coffee, fast).image
    assert evaluations(astronaut, coffee) == walking
    assert same(either.h_space(astronaut, coffee, fast).image, first)
    other = cat.resize(coffee.size)
    assert evaluations(astronaut, other) == steps + walking
    assert (
        evaluations(coffee, astronaut) == 2 * steps + injected + walking
    )  # cropped to another shape: nothing is reused


def test_the_cache_stays_within_its_bytes(
    model_folder: Path, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    engine = StyleEngine(str(model_folder), device="cpu")
    expected = engine.h_space(astronaut, coffee, fast).image
    engine.cache.capacity = engine.cache.nbytes // 2
    for _ in range(2):
        assert same(engine.h_space(astronaut, coffee, fast).image, expected)
        assert engine.cache.nbytes <= engine.cache.capacity


# Progress, stopping, records


def test_progress_counts_up_to_the_total_and_previews_are_pictures(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    events: list[StepEvent] = []
    previews: list[Image.Image] = []

    def on_step(event: StepEvent) -> None:
        events.append(event)
        previews.append(event.preview())

    either.h_space(astronaut, coffee, fast.replace(measure_reconstruction=True), on_step=on_step)
    counts = [event.step for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == events[-1].total == 4 * fast.steps
    assert list(dict.fromkeys(event.phase for event in events)) == [
        "content 1",
        "style 1",
        "stylizing",
        "reconstruction",
    ]
    decoded = [preview.size for event, preview in zip(events, previews, strict=True) if event.phase == "reconstruction"]
    assert decoded[1:] == [(64, 64)] * fast.steps  # before its first step there is nothing to decode


@pytest.mark.parametrize("phase", ["content 1", "style 1", "stylizing"])
def test_a_run_stopped_half_way_leaves_the_network_bit_for_bit(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings, phase: str
) -> None:
    expected = either.h_space(astronaut, coffee, fast).image
    either.cache.clear()
    x_t = noise_at(either.backbone)
    before = plain_noise(either.backbone, x_t)
    seen: list[StepEvent] = []

    def on_step(event: StepEvent) -> None:
        seen.append(event)
        if [event.phase for event in seen].count(phase) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        either.h_space(astronaut, coffee, fast, on_step=on_step)
    assert torch.equal(plain_noise(either.backbone, x_t), before)
    assert same(either.h_space(astronaut, coffee, fast).image, expected)


def test_the_record_contains_all_that_is_needed_to_repeat_the_run(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings, tmp_path: Path
) -> None:
    LEFT_HALF.save(tmp_path / "mask.png")
    result = either.h_space(astronaut, coffee, fast.replace(gamma=0.45), mask=tmp_path / "mask.png")
    record = result.record()
    assert record["method"] == "h_space"
    assert (record["backbone"], record["revision"]) == (Path(either.backbone.name).name, either.backbone.revision)
    assert HSpaceSettings(**record["settings"]) == fast.replace(gamma=0.45)
    hashes = {entry["role"]: entry["sha256"] for entry in record["inputs"]}
    assert hashes == {
        "content": content_hash(astronaut),
        "style": content_hash(coffee),
        "mask": content_hash(LEFT_HALF),
    }
    assert record["inputs"][2]["name"] == "mask.png"


def test_reconstruction_is_measured_when_asked(
    either: StyleEngine, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    asked = either.h_space(astronaut, coffee, fast.replace(measure_reconstruction=True))
    assert same(asked.image, either.h_space(astronaut, coffee, fast).image)
    copy = reconstruction(either, coffee, (64, 64), fast.steps)
    error = (np.asarray(copy, float) - np.asarray(fit(coffee, (64, 64)), float)) / 255
    assert asked.details["reconstruction_psnr"] == pytest.approx(-10 * math.log10((error**2).mean()), abs=0.1)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"content": "gone.png"}, r"The content image gone\.png does not exist"),
        ({"style": b"text"}, "The style image is not an image"),
        ({"mask": np.zeros((2, 2))}, "The mask has only 2×2 pixels"),
        ({"t_start": 300, "t_edit": 400}, "None of the 4 steps lies between the timesteps 300 and 400"),
        ({"t_start": 530, "t_edit": 360}, "move the two apart, or use more steps"),
        ({"gammas": []}, "No γ was given"),
        ({"gammas": [0.5, 1.5]}, r"from 0 to 1, not 0\.5, 1\.5"),
        ({"gammas": [math.nan]}, "from 0 to 1, not nan"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_invalid_calls_are_refused_before_any_work(
    engine: StyleEngine,
    astronaut: Image.Image,
    coffee: Image.Image,
    fast: HSpaceSettings,
    arguments: dict[str, Any],
    sentence: str,
) -> None:
    given: dict[str, Any] = {"content": astronaut, "style": coffee, "gammas": [0.3], "mask": None, **arguments}
    changed = {name: given.pop(name) for name in list(given) if name in HSpaceSettings.model_fields}
    with counted_evaluations(engine.backbone) as batches, pytest.raises(StyleEngineError, match=sentence):
        engine.h_space_strip(settings=fast.replace(**changed), **given)
    assert not batches
    assert len(engine.cache) == 0


def test_the_defaults_are_the_papers_and_those_of_the_authors_scripts() -> None:
    settings = HSpaceSettings()
    assert (settings.gamma, settings.t_edit, settings.t_boost) == (0.3, 400, 200)
    assert (settings.injections, settings.calibration) == (50, False)
    linear = DDPMScheduler(beta_schedule="linear").alphas_cumprod.tolist()
    for t in range(1000):
        assert settings.replace(steps=50).injects(50, linear[t]) == (t >= 400)
        assert settings.boosts(linear[t]) == (t <= 200)


# Several models on one engine


def test_an_engine_on_another_model_shares_queue_and_cache(
    engine: StyleEngine, pixel_model_folder: Path, astronaut: Image.Image, coffee: Image.Image, fast: HSpaceSettings
) -> None:
    other = engine.with_model(str(pixel_model_folder))
    assert other.backbone.name == str(pixel_model_folder)
    assert engine.backbone.name != other.backbone.name
    assert other.cache is engine.cache
    assert other._turns is engine._turns
    assert engine.with_model(None) is engine
    assert engine.with_model(engine.backbone.name) is engine
    assert engine.with_model(str(pixel_model_folder)).backbone is other.backbone
    assert other.with_model(engine.backbone.name).backbone is engine.backbone
    alone = StyleEngine(str(pixel_model_folder), device="cpu").h_space(astronaut, coffee, fast)
    engine.h_space(astronaut, coffee, fast)
    assert same(other.h_space(astronaut, coffee, fast).image, alone.image)
    with pytest.raises(StyleEngineError, match="There is no model “foo”"):
        engine.with_model("foo")


def test_models_beyond_the_memory_limit_are_unloaded(model_folder: Path, pixel_model_folder: Path) -> None:
    engine = StyleEngine(str(model_folder), device="cpu")
    engine._backbones.capacity = engine.backbone.nbytes
    first = engine.with_model(str(pixel_model_folder)).backbone
    assert first.nbytes == sum(weight.nbytes for weight in first.unet.parameters())
    assert engine._backbones.nbytes <= engine._backbones.capacity


def test_settings_start_from_the_recommended_values_of_the_chosen_model(
    engine: StyleEngine, pixel_model_folder: Path, astronaut: Image.Image, coffee: Image.Image
) -> None:
    other = engine.with_model(str(pixel_model_folder))
    assert other.h_space(astronaut, coffee, HSpaceSettings(steps=2)).image.size == (64, 64)  # trained at 64
    assert other.h_space(astronaut, coffee, HSpaceSettings(steps=2, size=72)).image.size == (72, 72)


def test_z_star_refuses_a_pixel_model_and_suggests_others(
    pixel_engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    with pytest.raises(StyleEngineError, match=r"which Z-STAR\+ needs\. Choose a latent model, such as “mini”"):
        pixel_engine.zstar(astronaut, [coffee])
