"""How alike InST's results are when a painting is learned twice: with another number of threads, and another seed.

    python -m benchmarks.inst_alike --part report --sheet sheet.png

Each painting is learned with seed 0 on one thread, with seed 0 on two threads, and with seed 1 on one thread. Results
on one content are compared with the first. For reference, “other painting” is the result with the embedding of the
next painting, and the first result with the painting's own channel statistics.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.development import PARTS, contents, styles
from benchmarks.judge_vgg import load_vgg16, measure
from benchmarks.machine import machine
from benchmarks.tables import mean_of, table
from styleengine import InSTLearningSettings, LearnedStyle, StyleEngine
from styleengine.contact_sheet import contact_sheet
from styleengine.images import to_tensor
from styleengine.metrics import ssim

FIRST, OTHER = "seed 0, 1 thread", "other painting"
VARIANTS = {FIRST: (0, 1), "seed 0, 2 threads": (0, 2), "seed 1, 1 thread": (1, 1)}


def learned(engine: StyleEngine, painting: Image.Image, seed: int, threads: int) -> LearnedStyle:
    torch.set_num_threads(threads)
    try:
        return engine.inst_learn(painting, InSTLearningSettings(seed=seed))
    finally:
        torch.set_num_threads(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--paintings", type=int, default=3)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sheet", type=Path, help="where to write all results as a contact sheet")
    arguments = parser.parse_args()
    engine, trunk = StyleEngine(arguments.model), load_vgg16()
    content = contents(arguments.part)[0].image()
    paintings = [picture.image() for picture in styles(arguments.part)][: arguments.paintings]
    words = [{name: learned(engine, image, *how) for name, how in VARIANTS.items()} for image in paintings]
    rows: dict[str, list[dict[str, float]]] = {}
    shown: list[list[Image.Image | None]] = []
    for number, (painting, known) in enumerate(zip(paintings, words, strict=True)):
        next_one = words[(number + 1) % len(words)][FIRST]
        known = {**known, OTHER: replace(known[FIRST], word=next_one.word)}
        results = {name: engine.inst_apply(content, style).image for name, style in known.items()}
        own = measure(trunk, content, content, painting)["VGG style loss"]
        for name, image in results.items():
            to_style = measure(trunk, image, content, painting)
            to_first = measure(trunk, image, results[FIRST], results[FIRST])
            rows.setdefault(name, []).append(
                {
                    "style loss, share of the content's": to_style["VGG style loss"] / own,
                    "style loss to the first": to_first["VGG style loss"],
                    "content loss to the first": to_first["VGG content loss"],
                    "SSIM to the first": ssim(to_tensor(image), to_tensor(results[FIRST])),
                }
            )
        shown.append([painting, *results.values()])
    print(f"{len(paintings)} paintings of the part “{arguments.part}”, {engine.backbone.name}, {machine()}\n")
    print(table({name: mean_of(of) for name, of in rows.items()}))
    if arguments.sheet:
        print(f"\nColumns of the sheet: painting, {', '.join(rows)}")
        contact_sheet(shown, (210, 160)).save(arguments.sheet)


if __name__ == "__main__":
    main()
