"""InST: does training converge, does strength interpolate, which parts matter, and what does a step cost?

    python -m benchmarks.inst --to sheets
    python -m benchmarks.inst --shape sd15-shape --size 256

With --to, writes a contact sheet: a row per content, a column per style. With --shape, measures only the cost of
a step at Stable Diffusion 1.5's architecture, whose random model is written to that folder if it does not exist.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import CONTENTS, STYLES, content_image, style_image
from benchmarks.sd15_shape import write_model
from benchmarks.speed import bare_gradient, timed
from benchmarks.tables import mean_of, table
from styleengine import InSTLearningSettings, InSTSettings, LearnedStyle, StyleEngine
from styleengine.backbones import PLACEHOLDER, LatentBackbone, load_backbone, with_text_encoder
from styleengine.cache import ByteCache
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit
from styleengine.methods.inst import Learner, learn
from styleengine.methods.inst.views import TrainingViews, prepare
from styleengine.perceptual import Clip

STRENGTHS = (0.3, 0.5, 0.7, 0.9)
MEASURES = ("content loss", "style loss", "external style", "colours", "SSIM")
PLAIN_RATES = (1e-4, 1e-3, 1e-2)  # learning rates of textual inversion; the best counts
LEAST_OF_BOUND = 0.8
FINE = ".4g"  # losses differ in the third digit
CLIP_L = (257 - 1, 1024, 768)  # patches, their width and the pooled width of CLIP ViT-L/14


def learned(
    engine: StyleEngine, names: Sequence[str], settings: InSTLearningSettings
) -> tuple[dict[str, LearnedStyle], dict[str, dict[str, float]]]:
    """Trains the styles. Returns them, and for each its validation losses and speed."""
    backbone, cache = with_text_encoder(engine.backbone), ByteCache(1 << 30)
    clip = Clip(backbone)
    styles, rows = dict[str, LearnedStyle](), dict[str, dict[str, float]]()
    for name in names:
        painting, began = style_image(name), time.perf_counter()
        *_, last = learn(backbone, painting, lambda: clip, settings, name=name, cache=cache)
        seconds = time.perf_counter() - began
        styles[name] = last.style(False)
        null = Learner(backbone, prepare(backbone, painting, lambda: clip, settings, cache), settings).validation_loss(
            backbone.condition([""])
        )
        rows[name] = {
            "empty prompt": null,
            "untrained": last.validations[0][1],
            "trained": min(loss for _, loss in last.validations),
            "steps": last.step,
            "steps/s": last.steps_per_second,
            "seconds": seconds,
        }
        print(name, rows[name], flush=True)
    return styles, rows


def strengths(
    engine: StyleEngine,
    judge: OutsideJudge,
    styles: dict[str, LearnedStyle],
    contents: Sequence[str],
    settings: InSTSettings,
) -> dict[str, dict[str, float]]:
    """The mean metrics of all pairs at each strength, with random noise at the default one, and with AdaIN.

    AdaIN transfers the painting's colours to the content before sampling. So the effect of strength is measured
    without it.
    """
    plain = settings.replace(adain=False)
    variants = {f"strength {strength:g}": plain.replace(strength=strength) for strength in STRENGTHS}
    variants["strength 0.7, random noise"] = plain.replace(strength=0.7, noise="random")
    variants |= {f"strength {s:g}, AdaIN": settings.replace(strength=s, adain=True) for s in STRENGTHS}
    rows = {}
    for variant, chosen in variants.items():
        found = []
        for content_name in contents:
            content = content_image(content_name)
            for name, style in styles.items():
                result = engine.inst_apply(content, [style], chosen).image
                found.append(measure(engine.backbone, judge, result, content, style_image(name)))
        rows[variant] = {key: mean_of(found)[key] for key in MEASURES}
        print(variant, rows[variant], flush=True)
    return rows


def ablation(
    engine: StyleEngine, names: Sequence[str], settings: InSTLearningSettings
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The mean validation loss during training, by variant, and the lowest one of each."""
    backbone, cache = with_text_encoder(engine.backbone), ByteCache(1 << 30)
    clip = Clip(backbone)
    quarter = max(1, settings.steps // 4)
    common = settings.replace(patience=0, check_every=quarter, steps=4 * quarter)
    variants = {
        "attention": common,
        "attention, no dropout": common.replace(dropout=0.0),
        **{f"embedding, rate {rate:g}": common.replace(mode="embedding", learning_rate=rate) for rate in PLAIN_RATES},
    }
    rows = {}
    for variant, chosen in variants.items():
        curves = []
        for name in names:
            *_, last = learn(backbone, style_image(name), lambda: clip, chosen, cache=cache)
            curves.append([loss for _, loss in last.validations])
        means = [statistics.mean(losses) for losses in zip(*curves, strict=True)]
        rows[variant] = {f"step {i * quarter}": loss for i, loss in enumerate(means)}
        print(variant, rows[variant], flush=True)
    return rows, {variant: min(row.values()) for variant, row in rows.items()}


def pictures(
    engine: StyleEngine,
    styles: dict[str, LearnedStyle],
    contents: Sequence[str],
    settings: InSTSettings,
    to: Path,
) -> None:
    """Contact sheets: contents × styles, and one content at all strengths and from the prompt alone."""
    rows: list[list[Image.Image | None]] = [[None, *(style_image(name) for name in styles)]]
    for name in contents:
        content = content_image(name)
        results = [engine.inst_apply(content, [style], settings).image for style in styles.values()]
        rows.append([fit(content, results[0].size), *results])
    contact_sheet(rows, (192, 192)).save(to / "inst.png")
    content, rows = content_image(contents[0]), []
    for style in styles.values():
        row: list[Image.Image | None] = [
            engine.inst_apply(content, [style], settings.replace(strength=s)).image for s in STRENGTHS
        ]
        row.append(engine.inst_apply(None, [style], settings.replace(prompt=PLACEHOLDER)).image)
        rows.append(row)
    contact_sheet(rows, (192, 192)).save(to / "inst-strengths.png")


def cost(
    backbone: LatentBackbone, views: TrainingViews, settings: InSTLearningSettings, repeats: int
) -> tuple[float, float]:
    """Median seconds of a training step and of a bare U-Net forward and backward pass, measured alternately."""
    learner = Learner(backbone, views, settings.replace(check_every=1000))
    x = views.latents[torch.arange(settings.batch) % len(views.latents)]
    taken: list[tuple[float, float]] = []
    for _ in range(repeats + 1):  # the first repeat is a warm-up
        _, step, _ = timed(backbone, learner.advance)
        _, alone, _ = timed(backbone, lambda: bare_gradient(backbone, x))
        taken.append((step, alone))
    steps, bound = zip(*taken[1:], strict=True)
    return statistics.median(steps), statistics.median(bound)


def true_shape(folder: Path, size: int, batch: int, dtype: str, repeats: int, save_memory: bool) -> None:
    """One step at SD 1.5's architecture with random weights; CLIP features are random, in their real shape."""
    if not (folder / "model_index.json").exists():
        write_model(folder)
    backbone = with_text_encoder(load_backbone(str(folder), dtype=getattr(torch, dtype)))
    settings = InSTLearningSettings(size=size, batch=batch, save_memory="on" if save_memory else "off")
    patches, width, pooled = CLIP_L
    generator = torch.Generator().manual_seed(0)
    shapes = (settings.views, 4, size // 8, size // 8), (settings.views, pooled), (settings.views, patches, width)
    latents, whole, tokens = (torch.randn(shape, generator=generator).to(backbone.device) for shape in shapes)
    views = TrainingViews(latents, whole, tokens)
    step, bound = cost(backbone, views, settings, repeats)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{machine()}; SD 1.5's shape, random weights, {dtype}, {size} px, batch {batch}")
    print(f"a step {step:.2f} s, bare U-Net forward and backward {bound:.2f} s: {bound / step:.2f} of its speed")
    print(f"peak memory {peak:.1f} GiB")
    print(f"- {'holds' if bound / step >= LEAST_OF_BOUND else 'DOES NOT HOLD'}: at least {LEAST_OF_BOUND:g} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--styles", type=int, default=5)
    parser.add_argument("--contents", type=int, default=3)
    parser.add_argument("--ablated", type=int, default=2, help="number of paintings in the ablation")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--learning-steps", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--to", type=Path, help="a folder for contact sheets")
    parser.add_argument("--shape", type=Path, help="folder for a model of SD 1.5's shape; measure only a step on it")
    parser.add_argument("--batch", type=int, default=1, help="with --shape")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="with --shape")
    parser.add_argument("--save-memory", action="store_true", help="with --shape")
    arguments = parser.parse_args()
    if arguments.shape:
        true_shape(
            arguments.shape,
            arguments.size,
            arguments.batch,
            arguments.dtype,
            arguments.repeats,
            arguments.save_memory,
        )
        return
    engine = StyleEngine(arguments.model)
    given = {"steps": arguments.learning_steps} if arguments.learning_steps else {}
    learning = engine.settings_for(InSTLearningSettings, "inst_learn", InSTLearningSettings(**given))
    drawing = engine.settings_for(InSTSettings, "inst", InSTSettings(size=arguments.size, steps=arguments.steps))
    contents, names = CONTENTS[-arguments.contents :], STYLES[: arguments.styles]

    styles, losses = learned(engine, names, learning)
    if arguments.to:
        arguments.to.mkdir(parents=True, exist_ok=True)
        pictures(engine, styles, contents, drawing, arguments.to)
    by_strength = strengths(engine, OutsideJudge(), styles, contents, drawing)
    by_variant, ends = ablation(engine, names[: arguments.ablated], learning)

    print(f"\n{machine()}; {engine.backbone.identity}; {learning}\n\n{table(losses, FINE)}\n")
    print(f"{len(styles)} styles × {len(contents)} contents; {drawing}\n\n{table(by_strength)}\n")
    print(f"validation loss, mean of {arguments.ablated} paintings\n\n{table(by_variant, FINE)}\n")
    over = [by_strength[f"strength {strength:g}"] for strength in STRENGTHS]
    style_falls = [row["style loss"] for row in over]
    content_rises = [row["content loss"] for row in over]
    plain = min(end for variant, end in ends.items() if variant.startswith("embedding"))
    claims = {
        "each painting's loss falls below the empty prompt's": all(
            row["trained"] < row["empty prompt"] for row in losses.values()
        ),
        "and below the untrained module's": all(row["trained"] < row["untrained"] for row in losses.values()),
        "style loss falls over strength": style_falls == sorted(style_falls, reverse=True),
        "content loss rises over strength": content_rises == sorted(content_rises),
        "stochastic inversion keeps the content better than random noise": by_strength["strength 0.7"]["content loss"]
        < by_strength["strength 0.7, random noise"]["content loss"],
        "attention ends below textual inversion at its best rate": ends["attention"] < plain,
    }
    for claim, holds in claims.items():
        print(f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim}")


if __name__ == "__main__":
    main()
