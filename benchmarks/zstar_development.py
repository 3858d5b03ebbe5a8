"""Z-STAR+ with a model's recommended settings against StyleID on the same weights, on the development set.

    python -m benchmarks.zstar_development --part report --sheet sheet.png

Each content is combined with `--styles` of the style images. Contents and styles are cut to centre squares, on which
both judges work: VGG16 (`judge_vgg`) and the model's own encoder. Settings are chosen on the part `choose`; figures
that are published come from `report`. Further rows: `--variant "name: setting=value, setting=value"`.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.development import PARTS, squares
from benchmarks.judge_vgg import load_vgg16, measure
from benchmarks.machine import machine
from benchmarks.tables import mean_of, table
from styleengine import StyleEngine, ZStarSettings
from styleengine.backbones import LatentBackbone
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor
from styleengine.methods.zstar import PRESETS
from styleengine.metrics import content_loss, encoder_features, ssim, style_loss

BEFORE: dict[str, Any] = {
    "strength": 1.3,
    "query_preservation": 0.0,
    "content_pull": 0.0,
    "temperature": 1.0,
    "color": "sain",
}
MORE_CONTENT: dict[str, Any] = {"query_preservation": 0.75}
MORE_STYLE: dict[str, Any] = {"mode": "style_only", "query_preservation": 0.3, "temperature": 1.25}
OURS, CONTENT, STYLE, STYLEID, EARLIER = "recommended", "γ 0.75", "style_only, γ 0.3, τ 1.25", "StyleID", "earlier"
COMPARED = ((OURS, STYLEID), (CONTENT, STYLEID), (OURS, EARLIER), (STYLE, EARLIER))
JUDGES = ("VGG", "encoder")


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """A variant as NAME: SETTING=VALUE, …"""
    name, _, values = text.partition(":")
    pairs = (pair.strip().partition("=")[::2] for pair in values.split(",") if pair.strip())
    return name.strip(), {key: float(value) if value[:1].isdigit() else value for key, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--contents", type=int, default=6)
    parser.add_argument("--styles", type=int, default=4, help="style images per content")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--variant", action="append", type=parsed, default=[], help="NAME: SETTING=VALUE, …")
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    engine, trunk = StyleEngine(arguments.model), load_vgg16()
    backbone = engine.backbone
    assert isinstance(backbone, LatentBackbone)
    variants = {
        OURS: {},
        CONTENT: MORE_CONTENT,
        STYLE: MORE_STYLE,
        STYLEID: PRESETS[STYLEID],
        EARLIER: BEFORE,
        **dict(arguments.variant),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ["content itself", *variants]}
    shown: list[list[Image.Image | None]] = []
    for content, style in squares(arguments.part, arguments.contents, arguments.styles):
        results = {
            name: engine.zstar(content, [style], ZStarSettings(size=arguments.size, **values)).image
            for name, values in variants.items()
        }
        for name, image in {"content itself": content, **results}.items():
            x, c, s = (to_tensor(fit(picture, (arguments.size,) * 2)) for picture in (image, content, style))
            of_x, of_c, of_s = (encoder_features(backbone.vae, picture) for picture in (x, c, s))
            losses = measure(trunk, image, content, style)
            rows[name].append(
                {
                    "VGG style": losses["VGG style loss"],
                    "VGG content": losses["VGG content loss"],
                    "encoder style": style_loss(of_x, of_s),
                    "encoder content": content_loss(of_x, of_c),
                    "SSIM": ssim(x, c),
                }
            )
        shown.append([content, style, *results.values()])
    count = len(shown)
    print(f"{count} pairs of the part “{arguments.part}”, {arguments.size} pixels, {backbone.name}, {machine()}\n")
    print(table({name: mean_of(of) for name, of in rows.items()}))
    print(f"\nPairs of {count} with a lower loss:\n")
    for (name, reference), judge in product(COMPARED, JUDGES):
        pairs = list(zip(rows[name], rows[reference], strict=True))
        lower = {
            kind: [ours[f"{judge} {kind}"] < other[f"{judge} {kind}"] for ours, other in pairs]
            for kind in ("content", "style")
        }
        both = [content and style for content, style in zip(lower["content"], lower["style"], strict=True)]
        counts = f"content {sum(lower['content'])}, style {sum(lower['style'])}, both {sum(both)}"
        print(f"- {name} than {reference}, {judge}: {counts}")
    if arguments.sheet:
        print(f"\nColumns of the sheet: content, style, {', '.join(variants)}")
        contact_sheet(shown, (160, 160)).save(arguments.sheet)


if __name__ == "__main__":
    main()
