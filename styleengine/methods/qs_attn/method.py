"""QS-Attn text-guided style transfer: a text prompt gives the style, a contrastive loss preserves the content.

The image is inverted halfway by DDIM and denoised again. Each denoising step is guided by the
gradient of a loss: CLIP measures the distance to the prompt, and a contrastive loss on the U-Net's
features measures the distance to the content. The contrastive loss uses the positions with the
lowest attention entropy in the source ("query-selected"). Nothing is trained.
After Hwang and Lee, "Query-Selected Global Attention for Text guided Image Style Transfer using
Diffusion Model"; the losses around it are those of its base, ZeCon (Yang, Hwang and Ye, 2023).
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_images
from styleengine.memory import guidance_bytes, saving
from styleengine.method import Call, Kind, Method, Role
from styleengine.methods.qs_attn.clip_losses import similarity
from styleengine.methods.qs_attn.guide import Guide
from styleengine.methods.qs_attn.prompts import Prompt, check, parse_prompts
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip
from styleengine.phases import STYLIZING, inverting
from styleengine.run import Run, part_of
from styleengine.stylization import InputRecord, OnStep, Stylization


def stylize(
    backbone: Backbone,
    content: Image.Image,
    clip: Clip,
    settings: QSAttnSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    name: str = "",
) -> Stylization:
    """The content in the style of `settings.prompt`.

    Several styles are combined in one image with weights, or applied in sequence. `on_step` is called
    after each step and may raise `Cancelled`. `cache` keeps the inversion, the anchors and CLIP's embeddings
    of the source between runs. `name` is the content's file name. `details` has CLIP's similarity to the
    prompt before and after.

    Raises StyleEngineError for a prompt that is empty, unreadable or the same as the source text.
    """
    prompts = parse_prompts(settings.prompt)
    check(prompts, settings, clip)
    rounds = [prompts] if settings.order == "at_once" else [[prompt] for prompt in prompts]
    runs = [
        Run(backbone, way(backbone, settings), part_of(on_step, number, len(rounds)), cache)
        for number in range(len(rounds))
    ]
    size = runs[0].working_size(content, settings.size)
    needed = guidance_bytes(math.prod(size), settings.patches + 1, backbone.dtype.itemsize)
    settings = settings.replace(save_memory=saving(settings.save_memory, needed, backbone.device))
    picture, notes = content, [clip.note_on(text) for text in (settings.source_text, *(p.text for p in prompts))]
    for run, asked in zip(runs, rounds, strict=True):
        picture, note = _sampled(run, fit(picture, size), asked, clip, settings)
        notes.append(note)
    return runs[0].result(
        picture,
        "qs_attn",
        settings,
        [InputRecord("content", content_hash(content), name)],
        details={
            "similarity_before": similarity(clip, fit(content, size), prompts),
            "similarity_after": similarity(clip, picture, prompts),
        },
        notes=notes,
    )


def _sampled(
    run: Run, content: Image.Image, prompts: Sequence[Prompt], clip: Clip, settings: QSAttnSettings
) -> tuple[Image.Image, str]:
    """Inversion and guided sampling, all `prompts` at once; also returns a note. The content has its working size."""
    of_content = inverting("content 1")
    run.plan([of_content, STYLIZING], content)
    trajectory = run.invert(content, content.size, 1, of_content)
    guide = Guide(run, clip, content, trajectory.latents[0], prompts, settings)
    run.begin(STYLIZING)
    x_0 = descend(trajectory.x_T, run.schedule, guide, settings, run.after(STYLIZING))
    return to_images(run.backbone.decode(x_0))[0], guide.note()


def way(backbone: Backbone, settings: QSAttnSettings) -> ddim.Schedule:
    """The lower part of an even schedule: 25 of 50 steps with the defaults, from t = 481 down.

    `depth` is the covered share of the trained timesteps, whatever the number of steps.
    """
    return ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps, settings.depth)


def descend(
    x_T: torch.Tensor,  # noqa: N803 - the paper's symbol
    schedule: ddim.Schedule,
    guide: "Guide",
    settings: QSAttnSettings,
    after_step: ddim.AfterStep | None = None,
) -> torch.Tensor:
    """x_0 from x_T by DDPM steps whose mean is shifted by −σ²·∇L, as in classifier guidance.

    The shift's root mean square is at most `step_limit`·σ. The last `unguided_steps` are not shifted, and the
    last step adds no noise. `after_step` is called as in `ddim.sample`.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x_t = x_T
    for level in range(schedule.steps, 0, -1):
        alpha, alpha_prev = schedule.levels[level], schedule.levels[level - 1]
        noise, gradient = guide.steer(x_t, level)
        clean = ddim.predict_x0(x_t, noise, alpha)
        x_t = ddim.step(x_t, noise, alpha, alpha_prev, settings.eta if level > 1 else 0.0, generator)
        if gradient is not None:
            x_t = x_t - shift(gradient, ddim.step_noise(alpha, alpha_prev), settings.step_limit)
        if after_step:
            after_step(schedule.steps - level + 1, x_t, clean)
    return x_t


def shift(gradient: torch.Tensor, sigma: torch.Tensor, limit: float) -> torch.Tensor:
    """σ²·∇L, scaled down to a root mean square of limit·σ where it is larger."""
    push = sigma**2 * gradient
    size = push.square().mean().sqrt()
    return push * (limit * sigma / size.clamp(min=1e-12)).clamp(max=1)


def _run(call: Call) -> Stylization:
    content, name = call.inputs["content"], call.inputs.name("content")
    more = {"on_step": call.on_step, "cache": call.cache}
    return stylize(call.backbone, content, call.clip(), call.settings, name=name, **more)


QS_ATTN = Method(
    "qs_attn",
    "QS-Attn",
    "Redraws a content image in a style described in words.",
    QSAttnSettings,
    (Role("content", Kind.IMAGE, "The image to redraw."),),
    _run,
    plain_title="Describe a style",
    typed=("prompt",),
    models=True,
    tool="stylize_image_by_words",
)
