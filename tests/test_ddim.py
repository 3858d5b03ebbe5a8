"""DDIM against diffusers' own schedulers, and the reconstruction of what was inverted."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from PIL import Image

from styleengine import Cancelled, ddim
from styleengine.backbones import Backbone
from styleengine.images import fit, to_tensor

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
SHAPE = (2, 4, 8, 8)


def theirs(steps: int) -> Any:
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    return scheduler


def ours(steps: int) -> ddim.Schedule:
    return ddim.Schedule.spaced(theirs(steps).alphas_cumprod, steps)


def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 999])
def test_timesteps_equal_those_of_diffusers(steps: int) -> None:
    assert list(reversed(ours(steps).timesteps[1:])) == theirs(steps).timesteps.tolist()
    assert ours(steps).steps == steps


@pytest.mark.parametrize(("steps", "top"), [(30, 967), (60, 984), (150, 994), (167, 995), (334, 998), (400, 998)])
def test_the_top_of_the_schedule_is_reached_by_step_counts_that_do_not_divide_it(steps: int, top: int) -> None:
    """Diffusers, which rounds the distance down, stops at 958, 945, 895, 831, 667 and 799."""
    assert ours(steps).timesteps[-1] == top


def test_for_any_number_of_steps_timesteps_rise_evenly_to_one_distance_below_the_end() -> None:
    alphas_cumprod = theirs(10).alphas_cumprod
    for steps in range(2, 1000):
        timesteps = ddim.Schedule.spaced(alphas_cumprod, steps).timesteps[1:]
        distances = {after - before for before, after in pairwise(timesteps)}
        assert timesteps[0] == 1
        assert 999 - 1000 / steps < timesteps[-1] <= 1001 - 1000 / steps
        assert distances <= {1000 // steps, -(-1000 // steps)}
        assert len(timesteps) == steps


@pytest.mark.parametrize("share", [0.2, 0.29, 0.5, 0.57, 0.7, 1.0])
def test_a_share_of_the_schedule_ends_at_the_same_noise_whatever_the_number_of_steps(share: float) -> None:
    alphas_cumprod = theirs(10).alphas_cumprod
    for steps in range(2, 101):
        schedule = ddim.Schedule.spaced(alphas_cumprod, steps, share)
        assert schedule.steps == steps
        assert share * 1000 * (1 - 1 / steps) <= schedule.timesteps[-1] <= share * 1000 * (1 - 1 / steps) + 1 + 1e-6
        assert torch.equal(schedule.levels[1:], alphas_cumprod[list(schedule.timesteps[1:])])


@pytest.mark.parametrize("steps", [-1, 0, 1000])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 999"):
        ddim.Schedule.spaced(theirs(10).alphas_cumprod, steps)


@pytest.mark.parametrize("steps", [10, 40, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_step_down_agrees_with_diffusers(steps: int, eta: float) -> None:
    scheduler, schedule = theirs(steps), ours(steps)
    x_t, noise = latents_and_noise()
    for level in range(steps, 0, -1):
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(level))
        expected = scheduler.step(noise, schedule.timesteps[level], x_t, eta=eta, variance_noise=z if eta else None)
        generator = torch.Generator().manual_seed(level)
        got = ddim.step(x_t, noise, schedule.levels[level], schedule.levels[level - 1], eta, generator)
        torch.testing.assert_close(got, expected.prev_sample, atol=1e-5, rtol=1e-5)
        clean = ddim.predict_x0(x_t, noise, schedule.levels[level])
        torch.testing.assert_close(clean, expected.pred_original_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 25, 40, 50])
def test_every_step_up_agrees_with_diffusers(steps: int) -> None:
    inverse: Any = DDIMInverseScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False)
    inverse.set_timesteps(steps)
    schedule = ours(steps)
    x_t, noise = latents_and_noise()
    assert inverse.timesteps.tolist() == list(schedule.timesteps[1:])
    for level in range(1, steps + 1):
        expected = inverse.step(noise, schedule.timesteps[level], x_t).prev_sample
        got = ddim.move(x_t, noise, schedule.levels[level - 1], schedule.levels[level])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_asymmetric_step_takes_x0_from_one_noise_and_the_direction_from_the_other(eta: float) -> None:
    x_t, noise = latents_and_noise()
    other, (alpha, alpha_prev) = noise.flip(0, 3), torch.tensor([0.4, 0.6])

    def step(for_x0: torch.Tensor, for_direction: torch.Tensor | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return ddim.step(x_t, for_x0, alpha, alpha_prev, eta, generator, for_direction)

    assert torch.equal(step(noise, noise), step(noise, None))
    sigma = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).sqrt()
    of_direction = (1 - alpha_prev - sigma**2).sqrt() * (other - noise)
    torch.testing.assert_close(step(noise, other) - step(noise, noise), of_direction, atol=1e-5, rtol=0)


def test_ddpm_is_the_step_with_eta_one() -> None:
    steps = 50
    ancestral: Any = DDPMScheduler(**STABLE_DIFFUSION, variance_type="fixed_small")
    ancestral.set_timesteps(steps)
    schedule = ours(steps)
    x_t, noise = latents_and_noise()
    for level in range(steps, 1, -1):  # on the last step diffusers' DDPM goes to ᾱ = 1 instead
        timestep = schedule.timesteps[level]
        expected = ancestral.step(noise, timestep, x_t, generator=torch.Generator().manual_seed(5)).prev_sample
        generator = torch.Generator().manual_seed(5)
        got = ddim.step(x_t, noise, schedule.levels[level], schedule.levels[level - 1], 1.0, generator)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_whole_trajectories_agree_with_diffusers() -> None:
    steps = 25
    x_0, _ = latents_and_noise()
    inverse: Any = DDIMInverseScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False)
    inverse.set_timesteps(steps)
    x_t = x_0
    for timestep in inverse.timesteps:
        x_t = inverse.step(smooth_noise(x_t, int(timestep)), int(timestep), x_t).prev_sample
    trajectory = ddim.invert(x_0, ours(steps), smooth_along(ours(steps)))
    assert len(trajectory) == steps + 1
    assert trajectory[0] is x_0
    torch.testing.assert_close(trajectory[-1], x_t, atol=1e-5, rtol=1e-5)

    scheduler = theirs(steps)
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(smooth_noise(x_t, int(timestep)), int(timestep), x_t).prev_sample
    sampled = ddim.sample(trajectory[-1], ours(steps), smooth_along(ours(steps)))
    torch.testing.assert_close(sampled, x_t, atol=1e-5, rtol=1e-5)


def smooth_noise(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
    return torch.tanh(x_t) * (0.3 + timestep / 2000)


def smooth_along(schedule: ddim.Schedule) -> ddim.NoisePredictor:
    return lambda x_t, level: smooth_noise(x_t, schedule.timesteps[level])


def gaussian_predictor(x_0: torch.Tensor, schedule: ddim.Schedule) -> ddim.NoisePredictor:
    """The best ε for latents that are normal with x_0's channel means and deviations: ε = E[noise | x_t]."""
    mean, variance = x_0.mean((2, 3), keepdim=True), x_0.var((2, 3), keepdim=True)

    def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
        alpha = schedule.levels[level]
        return (1 - alpha).sqrt() * (x_t - alpha.sqrt() * mean) / (alpha * variance + 1 - alpha)

    return predict


def round_trip_error(
    x_0: torch.Tensor, schedule: ddim.Schedule, predict: ddim.NoisePredictor, iterations: int
) -> float:
    """Root mean square error of invert → sample, in units of the latents' deviation."""
    x_T = ddim.invert(x_0, schedule, predict, iterations)[-1]  # noqa: N806
    return float((ddim.sample(x_T, schedule, predict) - x_0).square().mean().sqrt() / x_0.std())


def test_inversion_reconstructs_a_real_picture_and_with_three_iterations_nearly_exactly(
    backbone: Backbone, astronaut: Image.Image
) -> None:
    encoded = backbone.encode(to_tensor(fit(astronaut, (64, 64))))
    x_0 = encoded / encoded.std()  # as with a trained autoencoder's scaling factor
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, 30)
    predict = gaussian_predictor(x_0, schedule)
    plain, refined = (round_trip_error(x_0, schedule, predict, iterations) for iterations in (1, 3))
    assert plain < 0.05
    assert refined < 1e-3
    assert refined < plain / 20


def test_inversion_iterations_help_the_random_network_too(backbone: Backbone, astronaut: Image.Image) -> None:
    """A random network's ε changes abruptly with its input: only iterations reconstruct the picture."""
    x_0 = backbone.encode(to_tensor(fit(astronaut, (32, 32))))
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, 12)
    null = backbone.condition([""])

    def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
        return backbone.predict_noise(x_t, schedule.timesteps[level], null)

    plain, refined = (round_trip_error(x_0, schedule, predict, iterations) for iterations in (1, 4))
    assert refined < plain / 2


def test_iterations_start_from_the_step_with_the_previous_levels_noise() -> None:
    """Started at the lower level instead, two iterations reconstruct less well; one is plain inversion either way."""
    x_0, _ = latents_and_noise()
    schedule, asked = ours(20), []

    def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
        asked.append(x_t)
        return smooth_noise(x_t, schedule.timesteps[level])

    x_t = x_0
    for level in range(1, 21):
        below = x_t
        for _ in range(2):
            noise = smooth_noise(x_t, schedule.timesteps[level])
            x_t = ddim.move(below, noise, schedule.levels[level - 1], schedule.levels[level])
    from_below = (ddim.sample(x_t, schedule, smooth_along(schedule)) - x_0).norm().item()
    assert round_trip_error(x_0, schedule, smooth_along(schedule), 2) * x_0.norm().item() < from_below / 2
    trajectory = ddim.invert(x_0, schedule, predict, iterations=1)
    assert all(torch.equal(one, other) for one, other in zip(asked, trajectory[:-1], strict=True))


def test_an_inversion_step_with_many_iterations_is_undone_by_the_step_down() -> None:
    x_0, _ = latents_and_noise()
    schedule = ours(20)
    trajectory = ddim.invert(x_0, schedule, smooth_along(schedule), iterations=12)
    for level in range(20, 0, -1):
        noise = smooth_noise(trajectory[level], schedule.timesteps[level])
        below = ddim.step(trajectory[level], noise, schedule.levels[level], schedule.levels[level - 1])
        torch.testing.assert_close(below, trajectory[level - 1], atol=1e-5, rtol=1e-5)


def test_noise_comes_only_from_the_generator() -> None:
    x_t, _ = latents_and_noise()

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed * 7)
        generator = torch.Generator().manual_seed(seed)
        return ddim.sample(x_t, ours(10), smooth_along(ours(10)), eta=1.0, generator=generator)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_callbacks_count_from_one_and_their_exceptions_pass() -> None:
    x_t, _ = latents_and_noise()
    seen: list[int] = []
    ddim.invert(x_t, ours(7), smooth_along(ours(7)), after_step=lambda step, x, clean: seen.append(step))
    ddim.sample(x_t, ours(7), smooth_along(ours(7)), after_step=lambda step, x, clean: seen.append(step))
    assert seen == [*range(1, 8), *range(1, 8)]

    def cancel(step: int, x: torch.Tensor, clean: torch.Tensor) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        ddim.sample(x_t, ours(7), smooth_along(ours(7)), after_step=cancel)
