"""Z-STAR+ on pairs that its U-Net was not trained on: inversion error, and distances to content and style.

python -m benchmarks.quality --pairs 24
"""

import argparse

import numpy as np
import torch

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import CONTENTS, STYLES, content_image, pairs, style_image
from benchmarks.tables import mean_of, table
from styleengine import StyleEngine, ZStarSettings, ddim
from styleengine.backbones import Backbone
from styleengine.images import fit, to_tensor
from styleengine.metrics import psnr

STEPS = 30


def inversion_gaps(backbone: Backbone, size: int) -> tuple[dict[int, list[float]], list[float]]:
    """By iterations: the PSNR loss in dB of inversion and sampling against the autoencoder, per image."""
    pictures = [content_image(name) for name in CONTENTS] + [style_image(name) for name in STYLES]
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, STEPS)
    null = backbone.condition([""])
    gaps: dict[int, list[float]] = {1: [], 2: []}
    autoencoder = []
    for picture in pictures:
        pixels = to_tensor(fit(picture, (size, size)))
        latents = backbone.encode(pixels)
        autoencoder.append(psnr(backbone.decode(latents).cpu(), pixels))
        for iterations, values in gaps.items():

            def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
                return backbone.predict_noise(x_t, schedule.timesteps[level], null)

            noise = ddim.invert(latents, schedule, predict, iterations)[-1]
            copy = backbone.decode(ddim.sample(noise, schedule, predict)).cpu()
            values.append(autoencoder[-1] - psnr(copy, pixels))
    return gaps, autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    engine, judge = StyleEngine(arguments.model), OutsideJudge()
    rows: dict[str, list[dict[str, float]]] = {"the content itself": [], "the result": [], "the style itself": []}
    nearer = 0
    for content_name, style_name in pairs(arguments.pairs):
        content, style = content_image(content_name), style_image(style_name)
        result = engine.zstar(content, [style], ZStarSettings(size=arguments.size))
        content, style = fit(content, result.image.size), fit(style, result.image.size)
        measured = measure(engine.backbone, judge, result.image, content, style)
        alone = measure(engine.backbone, judge, content, content, style)
        rows["the result"].append(measured)
        rows["the content itself"].append(alone)
        rows["the style itself"].append(measure(engine.backbone, judge, style, content, style))
        nearer += measured["external style"] < alone["outside style"]
        print(f"{content_name:>10} + {style_name:<17} {measured}", flush=True)
    gaps, autoencoder = inversion_gaps(engine.backbone, arguments.size)

    print(f"\n{machine()}; {engine.backbone.identity}; {arguments.pairs} pairs at {arguments.size} px\n")
    print(table({name: mean_of(values) for name, values in rows.items()}))
    print(f"\nCloser to the style than the content is, by the external style metric: {nearer} of {arguments.pairs}")
    print(f"Autoencoder alone: {np.mean(autoencoder):.2f} dB PSNR, mean of {len(autoencoder)} images")
    for iterations, values in gaps.items():
        mean, worst = np.mean(values), max(values)
        print(f"Inverted and sampled back, {iterations} iteration(s): {mean:.2f} dB below it (worst {worst:.2f})")


if __name__ == "__main__":
    main()
