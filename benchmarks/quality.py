"""Z-STAR+ on pairs never trained on: how well inversion comes back, and where the result lies.

python benchmarks/quality.py --pairs 24
"""

import argparse

import numpy as np
from judge import OutsideJudge, mean_of, measure, table
from machine import machine
from pairs import content_image, pairs, style_image

from styleengine import StyleEngine, ZStarSettings
from styleengine.images import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    engine, judge = StyleEngine(arguments.model), OutsideJudge()
    rows: dict[str, list[dict[str, float]]] = {"the content itself": [], "the result": [], "the style itself": []}
    gaps, autoencoder = {}, {}
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
        nearer += measured["outside style"] < alone["outside style"]
        print(f"{content_name:>10} + {style_name:<17} {measured}", flush=True)
    for iterations in (1, 2, 3):
        gaps[iterations] = []
        for name in sorted({content for content, _ in pairs(arguments.pairs)}):
            settings = ZStarSettings(
                size=arguments.size, inversion_iterations=iterations, measure_reconstruction=True
            )
            details = engine.zstar(content_image(name), [style_image("auvers")], settings).details
            gaps[iterations].append(details["autoencoder_psnr"] - details["reconstruction_psnr"])
            autoencoder[name] = details["autoencoder_psnr"]

    print(f"\n{machine()}; {engine.backbone.identity}; {arguments.pairs} pairs at {arguments.size} px\n")
    print(table({name: mean_of(values) for name, values in rows.items()}))
    print(f"\nNearer to the style than the content is, by the outside judge: {nearer} of {arguments.pairs}")
    print(f"Autoencoder alone: {np.mean(list(autoencoder.values())):.2f} dB PSNR, mean of {len(autoencoder)} contents")
    for iterations, values in gaps.items():
        mean, worst = np.mean(values), max(values)
        print(f"Inverted and sampled back, {iterations} iteration(s): {mean:.2f} dB below it (worst {worst:.2f})")


if __name__ == "__main__":
    main()
