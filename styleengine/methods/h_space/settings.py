"""The settings of h-space injection."""

import math

from styleengine import ddim
from styleengine.ddim import TRAINED_STEPS
from styleengine.settings import Settings, inversion_iterations_knob, knob, size_knob


class HSpaceSettings(Settings):
    """Settings of h-space injection.

    γ, `t_edit` and `t_boost` are the paper's; `injections`, no calibration and ω are those of the authors' scripts; 50
    steps instead of their 1000 are ours. Timesteps are those of DDPM's linear schedule. Models with another schedule
    change at the same noise levels.
    """

    gamma: float = knob(
        0.3,
        "Strength of the content injection (γ): 0 reproduces the style image, 0.4–0.6 is strong.",
        title="Content γ",
        ge=0,
        le=1,
    )
    size: int = size_knob(512, most=1536)
    steps: int = knob(50, "Denoising steps; more is slower and finer.", ge=2, le=TRAINED_STEPS - 1)
    injections: int = knob(
        50,
        "Injections over the whole schedule, evenly spread; those between “From t” and “To t” take place. More is "
        "more content.",
        ge=1,
        le=TRAINED_STEPS,
    )
    seed: int = knob(0, "Random seed of the quality boost; without it the seed has no effect.", ge=0, le=2**32 - 1)
    t_start: int = knob(
        1000, "Timestep at which the injection starts; 1000 is pure noise.", title="From t", ge=0, le=TRAINED_STEPS
    )
    t_edit: int = knob(
        400, "Timestep at which the injection ends; lower adds finer detail.", title="To t", ge=0, le=TRAINED_STEPS
    )
    calibration: bool = knob(
        False,
        "Move x_t towards the injected prediction and sample from there. The skip connections then fit the content.",
    )
    omega: float = knob(
        0.0,
        "With calibration: share of the change of the predicted noise that is kept (ω). Higher is more style; 1 "
        "cancels the injection except for its contrast.",
        title="ω",
        ge=0,
        le=1,
    )
    t_boost: int = knob(
        200,
        "Stochastic sampling from this timestep on, for finer texture. Use 0 for out-of-domain styles.",
        title="Quality boost below t",
        ge=0,
        le=TRAINED_STEPS,
    )
    inversion_iterations: int = inversion_iterations_knob()
    measure_reconstruction: bool = knob(
        False, "Also reconstruct the style image and report its PSNR (samples once more).", rare=True
    )

    def injects(self, level: int, alpha: float) -> bool:
        """Whether the content is injected at a level with this ᾱ."""
        number, before = (math.floor(at * self.injections / self.steps) for at in (level, level - 1))
        return number > before and ddim.reached(alpha, self.t_edit) and not ddim.passed(alpha, self.t_start)

    def boosts(self, alpha: float) -> bool:
        """Whether the step from a level with this ᾱ is the stochastic one (η = 1)."""
        return not ddim.passed(alpha, self.t_boost)
