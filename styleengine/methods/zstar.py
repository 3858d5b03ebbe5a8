"""Z-STAR+: zero-shot style transfer by reweighted attention.

Content and styles are inverted to noise. While the content's noise is denoised, its self-attention
attends to the styles' keys and values of the same timestep together with its own; the attention
weights determine the mixture (`styleengine/style_attention.py`).
After "Z-STAR+: A Zero-shot Style Transfer Method via Adjusting Style Distribution".
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.images import content_hash, fit, to_images, to_tensor, working_size
from styleengine.method import Call, Kind, Method, Role, styles_and_mask
from styleengine.metrics import psnr
from styleengine.phases import RECONSTRUCTION, STYLIZING
from styleengine.run import Run, part_of
from styleengine.settings import knob
from styleengine.style_attention import (
    StyleAttention,
    StyleAttentionSettings,
    check,
    invert_styles,
    queries_of_contents,
    style_phases,
)
from styleengine.styles import Style, mask_notes, style_records
from styleengine.stylization import InputRecord, OnStep, Stylization


class ZStarSettings(StyleAttentionSettings):
    """Settings of Z-STAR+ for images."""

    measure_reconstruction: bool = knob(
        False, "Also reconstruct the content without styles and report its PSNR (samples once more).", rare=True
    )


PRESETS: dict[str, dict[str, Any]] = {
    "StyleID": {
        "mode": "style_only",
        "query_preservation": 0.75,
        "temperature": 1.5,
        "first_layer": 11,
        "last_layer": 15,
        "start": 0.0,
        "end": 1.0,
        "color": "adain",
        "color_factor": 1.0,
        "content_pull": 0.0,
    },
}
"""Settings with which Z-STAR+ is another published method: StyleID (Chung et al., CVPR 2024)."""


def stylize(
    backbone: Backbone,
    content: Image.Image,
    styles: Sequence[Style],
    settings: ZStarSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
) -> Stylization:
    """One content image in one or more styles. See `stylize_all`."""
    return stylize_all(backbone, [content], styles, settings, on_step=on_step, cache=cache)[0]


def stylize_all(
    backbone: Backbone,
    contents: Sequence[Image.Image],
    styles: Sequence[Style],
    settings: ZStarSettings,
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    names: Sequence[str] = (),
) -> list[Stylization]:
    """Contents of one shape, as a batch, all in the same styles.

    `contents` are RGB images with the same aspect ratio, `names` their files' names. `on_step` is called
    after each U-Net step and may raise `Cancelled`. `cache` keeps inversions and styles' keys and values
    between runs.

    Raises StyleEngineError for no style, no positive weight, or an empty range of layers or steps.
    """
    check(backbone, styles, settings)
    styles = [style for style in styles if style.weight > 0]
    run = Run(backbone, ddim.Schedule.spaced(backbone.alphas_cumprod, settings.steps), on_step, cache)
    size = run.working_size(contents[0], settings.size)
    phases = run.phases_of("content", len(contents), size)
    last = [STYLIZING] + [RECONSTRUCTION] * settings.measure_reconstruction
    run.plan([*phases, *style_phases(styles), *last], contents[0])

    inverted = run.invert_all(contents, size, settings.inversion_iterations, phases, queries_of_contents(settings))
    attention = StyleAttention(run, settings, styles, invert_styles(run, styles, settings), size)
    x_0 = attention.sample(inverted, STYLIZING)
    images = to_images(backbone.decode(x_0))

    details = [
        {"autoencoder_psnr": run.autoencoder_psnr(content, size, trajectory.latents[0])}
        for content, trajectory in zip(contents, inverted, strict=True)
    ]
    if settings.measure_reconstruction:
        x_T = torch.cat([trajectory.x_T for trajectory in inverted])  # noqa: N806 - the paper's symbol
        copies = backbone.decode(run.sample(x_T, run.noise, RECONSTRUCTION)).cpu()
        for i, content in enumerate(contents):
            details[i]["reconstruction_psnr"] = psnr(copies[i : i + 1], to_tensor(fit(content, size)))
    return [
        run.result(
            image,
            "zstar",
            settings,
            [InputRecord("content", content_hash(content), names[i] if names else ""), *style_records(styles)],
            details=details[i],
            notes=mask_notes(styles, content),
            share=len(contents),
        )
        for i, (image, content) in enumerate(zip(images, contents, strict=True))
    ]


def stylize_in_batches(
    backbone: Backbone,
    contents: Sequence[Image.Image],
    styles: Sequence[Style],
    settings: ZStarSettings,
    room: Callable[[int, int], int],
    *,
    on_step: OnStep | None = None,
    cache: ByteCache | None = None,
    names: Sequence[str],
) -> list[Stylization]:
    """Contents of any shapes, those of one shape in batches. `room(pixels, styles)` is the largest size of a batch."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, image in enumerate(contents):
        groups[working_size(image, settings.size, backbone.multiple)].append(index)
    batches: list[list[int]] = []
    for (width, height), members in groups.items():
        most = room(width * height, len(styles))
        batches += [members[start : start + most] for start in range(0, len(members), most)]
    results: dict[int, Stylization] = {}
    for number, batch in enumerate(batches):
        done = stylize_all(
            backbone,
            [contents[i] for i in batch],
            styles,
            settings,
            on_step=part_of(on_step, number, len(batches)),
            cache=cache,
            names=[names[i] for i in batch],
        )
        results.update(zip(batch, done, strict=True))
    return [results[i] for i in range(len(contents))]


def _run(call: Call) -> Stylization:
    contents, names = [call.inputs["content"]], [call.inputs.name("content")]
    styles, more = call.inputs["style"], {"on_step": call.on_step, "cache": call.cache}
    return stylize_all(call.backbone, contents, styles, call.settings, **more, names=names)[0]


ZSTAR = Method(
    "zstar",
    "Z-STAR+",
    "Redraws a content image in the style of one or more other images.",
    ZStarSettings,
    (
        Role("content", Kind.IMAGE, "The image to redraw."),
        *styles_and_mask(most=3),
    ),
    _run,
    plain_title="Paint like this picture",
    paper="https://arxiv.org/abs/2411.19231",
    presets=PRESETS,
    tool="stylize_image_like_images",
)
