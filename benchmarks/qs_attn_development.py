"""QS-Attn with a model's recommended settings on the development set: similarity to the prompt, content, blockiness.

    python -m benchmarks.qs_attn_development --part report --sheet sheet.png

`blockiness` compares luminance differences across the grid of the latents with those inside it; it is given as a
multiple of the content's own. Settings are chosen on the part `choose`; figures that are published come from `report`.
Further rows: `--variant "name: setting=value, setting=value"`.
"""

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.development import PARTS, contents, square
from benchmarks.machine import machine
from benchmarks.pairs import PROMPTS
from benchmarks.qs_attn import kept
from benchmarks.tables import mean_of, table
from benchmarks.zstar_development import parsed
from styleengine import QSAttnSettings, StyleEngine
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor
from styleengine.metrics import blockiness
from styleengine.perceptual import Clip

OURS = "recommended"
BEFORE = {"depth": 0.5, "unguided": 0.0, "features": "raw"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--contents", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--size", type=int, default=0, help="shorter side; 0 = recommended size of the model")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--before", action="store_true", help="a second row with the settings recommended earlier")
    parser.add_argument("--variant", action="append", type=parsed, default=[], help="NAME: SETTING=VALUE, …")
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    engine = StyleEngine(arguments.model)
    clip, side = Clip(engine.backbone), {"size": arguments.size} if arguments.size else {}
    variants = {OURS: {}, **({"earlier": BEFORE} if arguments.before else {}), **dict(arguments.variant)}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    subjects = [square(picture.image()) for picture in contents(arguments.part)[: arguments.contents]]
    shown: list[list[Image.Image | None]] = [list(subjects)]
    for prompt in PROMPTS[: arguments.prompts]:
        results: dict[str, list[Image.Image | None]] = {name: [] for name in variants}
        for content in subjects:
            for name, values in variants.items():
                result = engine.qs_attn(content, prompt, QSAttnSettings(**{**side, **values}))
                own = blockiness(to_tensor(fit(content, result.image.size)))
                before, after = (result.details[f"similarity_{when}"] for when in ("before", "after"))
                rows[name].append(
                    {
                        "similarity": after,
                        "its rise": after - before,
                        **kept(clip, result.image, content),
                        "blockiness": blockiness(to_tensor(result.image)) / own,
                    }
                )
                results[name].append(result.image)
        shown += results.values()
    print(f"{len(PROMPTS[: arguments.prompts])} prompts × {len(subjects)} contents of the part “{arguments.part}”")
    print(f"{engine.backbone.name}, {machine()}\n")
    print(table({name: mean_of(of) for name, of in rows.items()}))
    if arguments.sheet:
        print(f"\nRows of the sheet: contents, then for each prompt: {', '.join(variants)}")
        contact_sheet(shown, (160, 160)).save(arguments.sheet)


if __name__ == "__main__":
    main()
