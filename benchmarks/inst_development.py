"""InST with the model's recommended settings on the development set: how near to the style, how much content is kept.

    python -m benchmarks.inst_development --part report --sheet sheet.png
    python -m benchmarks.inst_development --setting guidance=8 strength=0.7 --setting adain_gain=1

Each painting is learned from nothing; each `--setting` adds a row with other settings. The style loss is given as a
share of the untouched content's own. Settings are chosen on the part `choose`; figures that are published come from
`report`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.development import PARTS, contents, styles
from benchmarks.judge_vgg import load_vgg16, measure
from benchmarks.machine import machine
from benchmarks.tables import table
from styleengine import InSTLearningSettings, InSTSettings, StyleEngine
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor
from styleengine.metrics import ssim

LOST = 0.3  # SSIM to the content below which a result counts as lost


def parsed(text: str) -> tuple[str, float]:
    """A setting as NAME=NUMBER."""
    name, _, value = text.partition("=")
    return name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--paintings", type=int, default=8)
    parser.add_argument("--contents", type=int, default=4)
    parser.add_argument("--model", default="mini")
    parser.add_argument(
        "--setting", action="append", nargs="+", type=parsed, default=[], help="NAME=NUMBER …, another row"
    )
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    engine, trunk = StyleEngine(arguments.model), load_vgg16()
    subjects = [picture.image() for picture in contents(arguments.part)][: arguments.contents]
    paintings = [picture.image() for picture in styles(arguments.part)][: arguments.paintings]
    variants = {"recommended": InSTSettings()}
    for changed in map(dict, arguments.setting):
        variants[", ".join(f"{name} {value:g}" for name, value in changed.items())] = InSTSettings(**changed)
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    shown: list[list[Image.Image | None]] = [[None, *subjects]]
    for painting in paintings:
        style = engine.inst_learn(painting, InSTLearningSettings())
        results: dict[str, list[Image.Image | None]] = {name: [] for name in variants}
        for subject in subjects:
            own = measure(trunk, subject, subject, painting)["VGG style loss"]
            for name, settings in variants.items():
                image = engine.inst_apply(subject, style, settings).image
                losses = measure(trunk, image, subject, painting)
                kept = ssim(to_tensor(image), to_tensor(fit(subject, image.size)))
                rows[name].append((losses["VGG style loss"] / own, losses["VGG content loss"], kept))
                results[name].append(image)
        shown += [[painting, *images] for images in results.values()]
    print(f"{len(paintings)} paintings × {len(subjects)} contents of the part “{arguments.part}”, {machine()}\n")
    columns = {
        name: {
            "style loss, share of the content's": float(np.mean([row[0] for row in values])),
            "content loss": float(np.mean([row[1] for row in values])),
            "SSIM": float(np.mean([row[2] for row in values])),
            "lowest SSIM": min(row[2] for row in values),
            f"below SSIM {LOST}": float(sum(row[2] < LOST for row in values)),
        }
        for name, values in rows.items()
    }
    print(table(columns))
    if arguments.sheet:
        print(f"\nRows of the sheet: contents, then for each painting: {'; '.join(variants)}")
        contact_sheet(shown, (210, 160)).save(arguments.sheet)


if __name__ == "__main__":
    main()
