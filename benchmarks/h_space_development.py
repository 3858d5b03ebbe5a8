"""h-space injection with a model's recommended settings on the development set: style and content loss by γ.

    python -m benchmarks.h_space_development --part report --sheet sheet.png

The rows are γ = 0.3 and 0.6 without calibration, as recommended, and with it, as in earlier versions. “style image” is
the untouched style image, with which γ = 0 ends. Settings are chosen on the part `choose`; figures that are published
come from `report`.
"""

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.development import PARTS, squares
from benchmarks.judge_vgg import load_vgg16, measure
from benchmarks.machine import machine
from benchmarks.tables import mean_of, table
from styleengine import HSpaceSettings, StyleEngine
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor
from styleengine.metrics import ssim

GAMMAS = (0.3, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--contents", type=int, default=6)
    parser.add_argument("--styles", type=int, default=2, help="style images per content")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    engine, trunk = StyleEngine(arguments.model), load_vgg16()
    variants = {"recommended": HSpaceSettings(), "with calibration": HSpaceSettings(calibration=True)}
    rows: dict[str, list[dict[str, float]]] = {"style image": []}
    shown: list[list[Image.Image | None]] = []
    for content, style in squares(arguments.part, arguments.contents, arguments.styles):
        results = {"style image": style}
        for name, settings in variants.items():
            strip = engine.h_space_strip(content, style, GAMMAS, settings)
            results |= {f"{name}, γ {g:g}": result.image for g, result in zip(GAMMAS, strip, strict=True)}
        for name, image in results.items():
            losses = measure(trunk, image, content, style)
            rows.setdefault(name, []).append(
                {
                    "VGG style": losses["VGG style loss"],
                    "VGG content": losses["VGG content loss"],
                    "SSIM to the content": ssim(to_tensor(image), to_tensor(fit(content, image.size))),
                }
            )
        shown.append([content, *results.values()])
    print(f"{len(shown)} pairs of the part “{arguments.part}”, {engine.backbone.name}, {machine()}\n")
    print(table({name: mean_of(of) for name, of in rows.items()}))
    if arguments.sheet:
        print(f"\nColumns of the sheet: content, {', '.join(rows)}")
        contact_sheet(shown, (160, 160)).save(arguments.sheet)


if __name__ == "__main__":
    main()
