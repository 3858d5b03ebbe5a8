"""QS-Attn text-guided style transfer: the style said in words, the content held by attention-selected contrast.

The picture is noised half way by DDIM inversion and denoised again. On the way back each step is
pushed down the gradient of a loss: CLIP says how far the picture still is from the words, and a
contrast of the U-Net's own features says how far it has left the content. The contrast looks at
the places that the source's self-attention is surest about ("query-selected"). Nothing is trained.
After Hwang and Lee, "Query-Selected Global Attention for Text guided Image Style Transfer using
Diffusion Model"; the losses around it are those of its base, ZeCon (Yang, Hwang and Ye, 2023).
"""

import time
from collections.abc import Sequence

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_images, working_size
from styleengine.inversion import Inverter
from styleengine.methods.qs_attn.clip_losses import similarity
from styleengine.methods.qs_attn.guide import Guide
from styleengine.methods.qs_attn.prompts import Prompt, check, parse_prompts
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip
from styleengine.progress import Progress, part_of
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
    """The content in the style that `settings.prompt` says.

    Several styles go into one picture with weights, or in sequence, each over the result of the
    one before. `on_step` is called after each step and may raise `Cancelled`. `cache` keeps the
    inversion, the anchors and CLIP's embeddings of the source between runs. `name` is the
    content's file name. `details` has CLIP's similarity to the words before and after.

    Raises StyleEngineError for a prompt that is empty, unreadable or the same as the source text.
    """
    began = time.perf_counter()
    prompts = parse_prompts(settings.prompt)
    texts = [settings.source_text, *(prompt.text for prompt in prompts)]
    size = working_size(content, settings.size, backbone.multiple)
    check(prompts, settings, clip)
    cache = cache if cache is not None else ByteCache(0)
    rounds = [prompts] if settings.order == "at_once" else [[prompt] for prompt in prompts]
    picture, notes = content, [clip.note_on(text) for text in texts]
    for number, asked in enumerate(rounds):
        on_part = part_of(on_step, number, len(rounds))
        picture, note = _drawn(backbone, fit(picture, size), asked, clip, settings, on_part, cache)
        notes.append(note)
    return Stylization(
        image=picture,
        method="qs_attn",
        settings=settings.model_dump(),
        backbone=backbone.name,
        revision=backbone.revision,
        device=backbone.device.type,
        dtype=backbone.precision,
        inputs=[InputRecord("content", content_hash(content), name)],
        seconds=time.perf_counter() - began,
        details={
            "similarity_before": similarity(clip, fit(content, size), prompts),
            "similarity_after": similarity(clip, picture, prompts),
        },
        notes=list(dict.fromkeys(filter(None, notes))),
    )


def _drawn(
    backbone: Backbone,
    content: Image.Image,
    prompts: Sequence[Prompt],
    clip: Clip,
    settings: QSAttnSettings,
    on_step: OnStep | None,
    cache: ByteCache,
) -> tuple[Image.Image, str]:
    """One way up and down again, all `prompts` at once, and a note; the content has its working size."""
    schedule = way(backbone, settings)
    progress = Progress(backbone, ["content 1", "stylizing"], settings.steps, on_step, content)
    trajectory = Inverter(backbone, schedule, 1, cache, progress)(content, content.size, "content 1")
    x_0, x_T = trajectory.latents[0], trajectory.latents[-1]  # noqa: N806
    guide = Guide(backbone, clip, content, x_0, prompts, settings, cache)
    progress.skip_to("stylizing")
    x_0 = descend(x_T, schedule, guide, settings, progress.after("stylizing"))
    return to_images(backbone.decode(x_0))[0], guide.note()


def way(backbone: Backbone, settings: QSAttnSettings) -> ddim.Schedule:
    """The lower part of an even schedule: 25 of 50 steps with the defaults, from t = 481 down.

    `depth` is the part of the trained timesteps that is covered, whatever the number of steps.
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

    The shift's root mean square is held below `step_limit`·σ. The last step adds no noise and is
    not shifted. `after_step` is called as in `ddim.sample`.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x_t = x_T
    for level in range(schedule.steps, 0, -1):
        alpha, alpha_prev = schedule.levels[level], schedule.levels[level - 1]
        timestep, last = schedule.timesteps[level], level == 1
        noise, gradient = guide.steer(x_t, timestep, alpha, schedule.steps - level, last)
        clean = ddim.predict_x0(x_t, noise, alpha)
        x_t = ddim.step(x_t, noise, alpha, alpha_prev, 0.0 if last else settings.eta, generator)
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
