"""InST: redraws an image with a learned token embedding, or generates one from a prompt.

The content is noised part of the way and denoised with a prompt that contains the embedding. The
noise is not random: it is the model's noise prediction for the noised content ("stochastic
inversion"), so that denoising keeps the content's shapes.
After Zhang et al., "Inversion-based Style Transfer with Diffusion Models" (CVPR 2023).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import LatentBackbone, with_text_encoder
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, fit, to_images, to_tensor
from styleengine.learned_style import LearnedStyle, mixed
from styleengine.method import LEARNED_STYLE, Call, Kind, Method, Role
from styleengine.methods.inst.settings import InSTSettings
from styleengine.phases import STYLIZING
from styleengine.run import Run
from styleengine.stylization import InputRecord, OnStep, Stylization


def stylize(
    backbone: LatentBackbone,
    content: Image.Image | None,
    styles: Sequence[LearnedStyle],
    settings: InSTSettings,
    *,
    on_step: OnStep | None = None,
    name: str = "",
) -> Stylization:
    """Redraws the content in a learned style or a mix of two; without a content, samples the prompt from pure noise.

    Without a content the result is a square of `settings.size`, and strength, AdaIN and the type of noise
    have no effect. `on_step` is called after each step and may raise `Cancelled`. `name` is
    the content's file name.

    Raises StyleEngineError for a prompt without the placeholder, no or more than two styles, or a
    style that does not fit the model.
    """
    style = _one_style(backbone, styles, settings.mix)
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps)
    run = Run(backbone, schedule.lowest(steps_of(settings)) if content else schedule, on_step)
    run.plan([STYLIZING], content or style.thumbnail)
    guided = GuidedNoise(run, style, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    if content:
        z_0 = backbone.encode(to_tensor(fit(content, run.working_size(content, settings.size))))
        z_0 = adain(z_0, style, settings) if settings.adain else z_0
        x_T = start(z_0, run.schedule, guided, settings, generator)  # noqa: N806
    else:
        side = max(1, settings.size // backbone.multiple)
        shape = (1, len(style.latent_mean), side, side)
        x_T = torch.randn(shape, generator=generator, dtype=torch.float32).to(backbone.device)  # noqa: N806
    x_0 = ddim.sample(x_T, run.schedule, guided, after_step=run.after(STYLIZING))
    inputs = [InputRecord("content", content_hash(content), name)] if content else []
    weights = (1 - settings.mix, settings.mix) if len(styles) == 2 else (1.0,)
    inputs += [
        InputRecord(LEARNED_STYLE, style.sha256, Path(style.source).name, weight)
        for style, weight in zip(styles, weights, strict=True)
    ]
    image = to_images(backbone.decode(x_0))[0]
    notes = [backbone.note_on(settings.prompt), *(style.note_for(backbone) for style in styles)]
    return run.result(image, "inst", settings, inputs, notes=notes)


class GuidedNoise:
    """Classifier-free guidance with the learned embedding in the prompt: ε(∅) + g·(ε(c) − ε(∅))."""

    def __init__(self, run: Run, style: LearnedStyle, settings: InSTSettings) -> None:
        self.run, self.guidance = run, settings.guidance
        backbone: Any = run.backbone
        with torch.no_grad():
            self.condition = backbone.condition_with_word(settings.prompt, style.word[None].to(backbone.device))
            self.both = torch.cat([run.null, self.condition])

    def conditional(self, x_t: torch.Tensor, level: int) -> torch.Tensor:
        """ε(c) without guidance, of a batch of one."""
        return self.run.backbone.predict_noise(x_t, self.run.schedule.timesteps[level], self.condition)

    def __call__(self, x_t: torch.Tensor, level: int) -> torch.Tensor:
        if self.guidance == 1:
            return self.conditional(x_t, level)
        timestep = self.run.schedule.timesteps[level]
        null, conditional = self.run.backbone.predict_noise(torch.cat([x_t, x_t]), timestep, self.both).chunk(2)
        return null + self.guidance * (conditional - null)


def steps_of(settings: InSTSettings) -> int:
    """The number of steps that are run: `strength`·`steps`, rounded up, so that only strength 0 gives 0."""
    return math.ceil(round(settings.strength * settings.steps, 6))


def start(
    z_0: torch.Tensor,
    schedule: ddim.Schedule,
    guided: GuidedNoise,
    settings: InSTSettings,
    generator: torch.Generator,
) -> torch.Tensor:
    """z_t at the top of the schedule; z_0 if the schedule has no steps.

    Stochastic inversion: z_t = √ᾱ z_0 + √(1−ᾱ) ε, ε̂ = ε_θ(z_t, t, c), then √ᾱ z_0 + √(1−ᾱ) ε̂ replaces
    z_t. ε̂ is predicted without guidance, because only the noise estimate is needed.
    """
    if not schedule.steps:
        return z_0
    noise = torch.randn(z_0.shape, generator=generator, dtype=torch.float32).to(z_0.device)
    alpha = schedule.levels[-1]
    if settings.noise == "stochastic_inversion":
        noise = guided.conditional(noised(z_0, noise, alpha), schedule.steps)
    return noised(z_0, noise, alpha)


def noised(z_0: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """√ᾱ z_0 + √(1−ᾱ) ε."""
    return alpha.sqrt() * z_0 + (1 - alpha).sqrt() * noise


def adain(z_0: torch.Tensor, style: LearnedStyle, settings: InSTSettings) -> torch.Tensor:
    """z_0 (1, channels, height, width) moved to the mean and standard deviation of the painting's latents per channel.

    The deviation is multiplied by σ_s/σ_c, but at most by `adain_gain`. The mean moves by μ_s − μ_c, but at most by
    `adain_shift` either way: the deviation of latents is about 1, so that a larger shift moves most of a channel out of
    the content's range. Both bounds are this project's. Huang and Belongie's AdaIN has none, nor have InST's authors.
    """
    mean, std = z_0.mean((2, 3), keepdim=True), z_0.std((2, 3), keepdim=True)
    wanted_mean, wanted_std = (x.to(z_0).view(1, -1, 1, 1) for x in (style.latent_mean, style.latent_std))
    gain = (wanted_std / std.clamp(min=1e-6)).clamp(max=settings.adain_gain)
    shift = (wanted_mean - mean).clamp(-settings.adain_shift, settings.adain_shift)
    return (z_0 - mean) * gain + mean + shift


def _one_style(backbone: LatentBackbone, styles: Sequence[LearnedStyle], share: float) -> LearnedStyle:
    if not 1 <= len(styles) <= 2:
        raise StyleEngineError(f"{len(styles) or 'No'} styles were given: choose one learned style, or two to mix.")
    for style in styles:
        style.check_fits(backbone)
    return styles[0] if len(styles) == 1 else mixed(styles[0], styles[1], share)


def _run(call: Call) -> Stylization:
    backbone, content, styles = with_text_encoder(call.backbone), call.inputs["content"], call.inputs["style"]
    return stylize(backbone, content, styles, call.settings, on_step=call.on_step, name=call.inputs.name("content"))


INST = Method(
    "inst",
    "InST",
    "Redraws a content image, or generates one from a prompt, in a learned style or a mix of two.",
    InSTSettings,
    (
        Role(
            "content", Kind.IMAGE, "The image to redraw. Without one, the prompt is sampled from noise.", required=False
        ),
        Role("style", Kind.LEARNED_STYLES, "A learned style from the library.", most=2),
    ),
    _run,
    plain_title="Learn a painting",
    paper="https://arxiv.org/abs/2211.13203",
    note="Style files are added to the library with `/inst_upload`, which returns the style's name.",
    endpoint="inst_apply",
    command=("inst", "apply"),
    tool="stylize_image_with_learned_style",
    requires=with_text_encoder,
)
