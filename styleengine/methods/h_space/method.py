"""h-space content injection: the content of one image in the look of another, without training.

Content and style image are inverted to noise. The style's noise is denoised, while the bottleneck of
the U-Net ("h-space", the output of its mid block, which encodes the content) is rotated towards the
content's. The skip connections, which encode the appearance, remain the style's.
After Jeong, Kwon and Uh, "Training-free Style Transfer Emerges from h-space in Diffusion models".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.disk_cache import storable
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, fit, lay_over, stretch_note, to_images, to_tensor
from styleengine.method import Call, Kind, Method, Role
from styleengine.methods.h_space.bottleneck import blend, captured, injection
from styleengine.methods.h_space.settings import HSpaceSettings
from styleengine.metrics import psnr
from styleengine.phases import RECONSTRUCTION, STYLIZING, inverting
from styleengine.run import Run, Trajectory
from styleengine.stylization import InputRecord, OnStep, Stylization, mask_record

TINY = 1e-12


@storable
@dataclass
class Bottleneck:
    """The h of an image's own trajectory, by level of the schedule: (1, channels, height, width) each."""

    h: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(h.nbytes for h in list(self.h.values()))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {str(level): h for level, h in self.h.items()}

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor]) -> "Bottleneck":
        return cls({int(level): h for level, h in named.items()})


def inject(
    backbone: Backbone,
    content: Image.Image,
    style: Image.Image,
    gammas: Sequence[float],
    settings: HSpaceSettings,
    *,
    mask: Image.Image | None = None,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    names: Sequence[str] = ("", "", ""),
) -> list[Stylization]:
    """One result per γ, in one batch with shared inversions; `settings.gamma` is ignored.

    The results have the content's aspect ratio and `settings.size`. The style image gives x_T and the
    skip connections, so it is scaled and cropped to the same shape.

    `mask` is laid over the content: white where it is injected, black where the style image remains.
    `on_step` is called after each step and may raise `Cancelled`. `cache` keeps inversions and the
    content's h between runs. `names` are the file names of content, style and mask.

    Raises StyleEngineError for no γ, one outside [0, 1], or an interval that contains no step.
    """
    run = Run(backbone, ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps), on_step, cache)
    sampler = Injection(run, settings)
    _check(gammas, sampler)
    of_content, of_style = inverting("content 1"), inverting("style 1")
    run.plan([of_content, of_style, STYLIZING] + [RECONSTRUCTION] * settings.measure_reconstruction, content)
    size = run.working_size(content, settings.size)

    content_path = run.invert(content, size, settings.inversion_iterations, of_content)
    x_T = run.invert(style, size, settings.inversion_iterations, of_style).x_T  # noqa: N806
    known = run.cache.get_or_make(("h", *run.key(content, size, settings.inversion_iterations)), Bottleneck)
    region = to_tensor(lay_over(mask, size))[:, :1].add(1).div(2) if mask else None

    run.begin(STYLIZING)
    x_0 = sampler.sample(x_T, content_path, known, gammas, region, run.after(STYLIZING))
    images = to_images(backbone.decode(x_0))

    details: dict[str, float] = {}
    if settings.measure_reconstruction:
        copy = backbone.decode(run.sample(x_T, run.noise, RECONSTRUCTION))
        details["reconstruction_psnr"] = psnr(copy.cpu(), to_tensor(fit(style, size)))
    given = [("content", content), ("style", style)]
    inputs = [InputRecord(role, content_hash(image), name) for (role, image), name in zip(given, names, strict=False)]
    inputs += [mask_record(mask, names[2])] if mask else []
    notes = [stretch_note(mask, content)] if mask else []
    return [
        run.result(
            image,
            "h_space",
            settings.replace(gamma=gamma),
            inputs,
            details=details,
            notes=notes,
            share=len(gammas),
        )
        for image, gamma in zip(images, gammas, strict=True)
    ]


class Injection:
    """Sampling from the style's noise, with the content's h injected."""

    def __init__(self, run: Run, settings: HSpaceSettings) -> None:
        self.run, self.schedule, self.settings = run, run.schedule, settings
        alphas = self.schedule.levels.tolist()
        levels = range(1, self.schedule.steps + 1)
        self.injected_levels = {level for level in levels if settings.injects(level, alphas[level])}
        self.boosted_levels = {level for level in levels if settings.boosts(alphas[level])}

    @torch.no_grad()
    def sample(
        self,
        x_T: torch.Tensor,  # noqa: N803 - the paper's symbol
        content: Trajectory,
        known: Bottleneck,
        gammas: Sequence[float],
        region: torch.Tensor | None = None,
        after_step: ddim.AfterStep | None = None,
    ) -> torch.Tensor:
        """x_0, one row for each γ. `region` is a mask (1, 1, height, width) in [0, 1]; None = everywhere.

        Rows without injection (γ = 0 or a black mask) are sampled as usual.
        `after_step` gets the last row.
        """
        x_t = x_T.expand(len(gammas), -1, -1, -1)
        shares = torch.tensor(gammas, dtype=x_T.dtype, device=x_T.device).view(-1, 1, 1, 1)
        touched = shares.flatten() > 0
        if region is not None and not region.any():
            touched = torch.zeros_like(touched)
        generators = [torch.Generator().manual_seed(self.settings.seed) for _ in gammas]
        for level in range(self.schedule.steps, 0, -1):
            alpha = self.schedule.levels[level]
            x_t, noise, direction = x_t.clone(), torch.empty_like(x_t), torch.empty_like(x_t)
            rows = touched if level in self.injected_levels else torch.zeros_like(touched)
            if not rows.all():
                noise[~rows] = direction[~rows] = self.run.noise(x_t[~rows], level)
            if rows.any():
                h_content = self.content_h(content, known, level)
                x_t[rows], noise[rows], direction[rows] = self.injected(
                    x_t[rows], level, h_content, shares[rows], region
                )
            clean = ddim.predict_x0(x_t, noise, alpha)
            x_t = self.step(x_t, noise, direction, level, generators)
            if after_step:
                after_step(self.schedule.steps - level + 1, x_t[-1:], clean[-1:])
        return x_t

    def injected(
        self,
        x_t: torch.Tensor,
        level: int,
        h_content: torch.Tensor,
        gamma: torch.Tensor,
        region: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x_t, ε for x̂0, ε for the direction) of the step at one level.

        Without calibration: the asymmetric pair ε̃, ε. With it: the calibrated x_t, and ε predicted there.
        """
        alpha = self.schedule.levels[level]
        with injection(self.run.backbone.unet, lambda h: blend(h, h_content, gamma, region)):
            noise, injected = self.run.noise(x_t, level).chunk(2)
        if not self.settings.calibration:
            return x_t, injected, noise
        moved = calibrate(x_t, noise, injected, alpha, self.settings.omega)
        noise = self.run.noise(moved, level)
        return moved, noise, noise

    def step(
        self,
        x_t: torch.Tensor,
        noise: torch.Tensor,
        direction: torch.Tensor,
        level: int,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """One step to the next lower level. Each row has its own generator, so rows are independent."""
        alpha, alpha_prev = self.schedule.levels[level], self.schedule.levels[level - 1]
        if level not in self.boosted_levels:
            return ddim.step(x_t, noise, alpha, alpha_prev, direction=direction)
        rows = zip(x_t.split(1), noise.split(1), direction.split(1), generators, strict=True)
        return torch.cat([ddim.step(x, e, alpha, alpha_prev, 1.0, generator, d) for x, e, d, generator in rows])

    def content_h(self, content: Trajectory, known: Bottleneck, level: int) -> torch.Tensor:
        """The content's h at a level, from its own trajectory, so without drift."""
        if level not in known.h:
            with captured(self.run.backbone.unet) as outputs:
                self.run.noise(content.latents[level], level)
            known.h[level] = outputs[0]
        return known.h[level]


def calibrate(
    x_t: torch.Tensor, noise: torch.Tensor, injected: torch.Tensor, alpha_t: torch.Tensor, omega: float
) -> torch.Tensor:
    """x_t + dx, so that the skip connections fit the injected h: dx = √ᾱ_t·(x̂0' − x̂0) + ω·√(1−ᾱ_t)·(ε̃ − ε).

    x̂0' is x̂0(ε̃), rescaled about its mean to the standard deviation of x̂0 = x̂0(ε), row by row.
    """
    clean, changed = ddim.predict_x0(x_t, noise, alpha_t), ddim.predict_x0(x_t, injected, alpha_t)
    mean = changed.mean((1, 2, 3), keepdim=True)
    spread = clean.std((1, 2, 3), keepdim=True) / changed.std((1, 2, 3), keepdim=True).clamp(min=TINY)
    renormed = mean + (changed - mean) * spread
    return x_t + alpha_t.sqrt() * (renormed - clean) + omega * (1 - alpha_t).sqrt() * (injected - noise)


def _check(gammas: Sequence[float], sampler: Injection) -> None:
    if not gammas:
        raise StyleEngineError("No γ was given. Name at least one number from 0 to 1.")
    if not all(0 <= gamma <= 1 for gamma in gammas):
        raise StyleEngineError(f"γ must be a number from 0 to 1, not {', '.join(f'{gamma:g}' for gamma in gammas)}.")
    settings = sampler.settings
    if not sampler.injected_levels:
        raise StyleEngineError(
            f"None of the {settings.steps} steps lies between the timesteps {settings.t_start} and {settings.t_edit}, "
            "where the content is injected: move the two apart, or use more steps."
        )


def _run(call: Call) -> Stylization:
    content, style, mask = (call.inputs[role] for role in ("content", "style", "mask"))
    names = [call.inputs.name(role) for role in ("content", "style", "mask")]
    gammas, more = [call.settings.gamma], {"on_step": call.on_step, "cache": call.cache}
    return inject(call.backbone, content, style, gammas, call.settings, mask=mask, names=names, **more)[0]


H_SPACE = Method(
    "h_space",
    "h-space injection",
    "Draws the content of one image in the look of another, by injection into the U-Net's bottleneck.",
    HSpaceSettings,
    (
        Role("content", Kind.IMAGE, "The image whose content is injected."),
        Role("style", Kind.IMAGE, "The image whose look is kept. It is cut to the content's shape."),
        Role(
            "mask", Kind.MASK, "White where the content is injected; elsewhere the style image stays.", required=False
        ),
    ),
    _run,
    plain_title="Blend content",
    paper="https://arxiv.org/abs/2303.15403",
    models=True,
    tool="draw_content_like_style_image",
)
