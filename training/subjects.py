"""Stage 2b: a few hundred selected images of simple subjects, whole and in similar compositions.

A small U-Net trained for an hour or two on a CPU cannot learn arbitrary subjects and compositions. It can
learn animals and flowers on a plain background, portraits, skies, and fields under a sky. Writes tar shards
in the format of `crops.py`, WORK/crops/subjects-….tar: one view per style in REDRAWN of each image, each
followed by its version in that style. Held-out images are not used.

    python -m training.subjects --work training/work
"""

import argparse
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from training.collect import read_manifest
from training.crops import SIDE, Shards, encoded, opened, subject_of
from training.styles import STYLES, apply

REDRAWN = (  # styles that differ in light, colour and background, which a small model learns first
    "pencil sketch", "ink", "watercolor", "oil painting", "woodcut", "neon", "night", "sepia", "blueprint",
)  # fmt: skip
WHITE = ("white", "white")


@dataclass(frozen=True)
class Subject:
    """Images of one kind: their path patterns (! excludes) and how their views are made."""

    caption: str  # with the kind as subject: "photo of an animal"
    patterns: tuple[str, ...]
    ground: tuple[str, str] = WHITE  # background colours at top and bottom, for cut-outs
    cut_out: Literal["whole", "down from the top", "part"] = "whole"  # how a cut-out is shown
    part: float = 1.0  # share of the height of other images to show, from the top

    @property
    def kind(self) -> str:
        return subject_of(self.caption)

    def shows(self, path: str) -> bool:
        within = [fnmatch(path, pattern) for pattern in self.patterns if not pattern.startswith("!")]
        return any(within) and not any(fnmatch(path, pattern[1:]) for pattern in self.patterns if pattern[0] == "!")


ANIMALS = (  # file names in a folder of drawings
    "bear", "bee", "beetle", "bird", "bug", "bull", "camel", "cat", "chicken", "cow", "dog", "dolphin", "dragon",
    "duck", "fish", "fox", "frog", "gorilla", "hedgehog", "hippopotamus", "horse", "kangaroo", "lizard", "mosquito",
    "mouse", "owl", "panda", "pig", "rabbit", "shark", "sheep", "snail", "snake", "spider", "turkey", "turtle",
    "whale", "wolf",
)  # fmt: skip
SUBJECTS = (
    Subject("photo of an animal", ("*/stamps/animals/*", "!*/cartoon/*")),
    Subject("photo of a flower", ("*/stamps/plants/flowers/*",)),
    Subject("photo of a tree", ("*/stamps/plants/trees/*",)),
    Subject("drawing of an animal", tuple(f"*/words_sample/{animal}.webp" for animal in ANIMALS)),
    Subject(
        "photo of the sky",
        (
            "*/skybox/genericskybox_[ensw]*", "*/skybox/generic_lightblue_skybox_[ensw]*",
            "*/skybox/generic_purple_skybox_[ensw]*", "*/gran_paradiso*skybox_side*", "*/sun_behind_clouds*",
            "*/EveningGlow/*", "*/summer_1am/*",
        ),
        part=0.6,
    ),
    Subject(
        "photo of a landscape",
        (
            "*aitzgorri*", "*picosdeeuropa*", "*/Path/*", "*mate/nature/Dune*", "*/gpwin/skybox_side*",
            "*/landscapes/guereins/*[0-8].png", "*/landscapes/hurricane/*[0-7].png",
        ),
        ground=("#5f9fe6", "#dfeefa"),  # some are cut-outs without sky
        cut_out="part",
    ),
    Subject(
        "painting of a person",
        ("wesnoth*/portraits/humans/*", "wesnoth*/portraits/elves/*"),
        ground=("#2a2622", "#7a6a58"),
        cut_out="down from the top",
    ),
)  # fmt: skip


def on_ground(cut_out: Image.Image, subject: Subject, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    """The cut-out on the subject's background of `size`, with its upper left corner at `corner`."""
    ground = ImageOps.colorize(Image.linear_gradient("L").resize(size), *subject.ground)
    ground.paste(cut_out, corner, cut_out)
    return ground


def views(image: Image.Image, subject: Subject, rng: random.Random) -> list[Image.Image]:
    """Squares of SIDE pixels, one per style in REDRAWN, every second one mirrored."""
    squares = []
    if image.mode == "RGBA" and subject.cut_out == "part":
        image = on_ground(image, subject, image.size, (0, 0))
    for number in range(len(REDRAWN)):
        if image.mode == "RGBA":
            whole = subject.cut_out == "whole"
            scale = SIDE * rng.uniform(0.88, 0.98) / (max(image.size) if whole else min(image.size))
            width, height = (max(1, round(side * scale)) for side in image.size)
            small = image.resize((width, height), Image.Resampling.LANCZOS)
            left, top = (SIDE - width) // 2, (SIDE - height) // 2 if whole else 0
            corner = left + rng.randint(-6, 6), top + rng.randint(-6, 6)
            square = on_ground(small, subject, (SIDE, SIDE), corner)
        else:
            width, height = image.width, image.height * subject.part
            side = min(width, height) * rng.uniform(0.75, 1)
            left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
            square = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        squares.append(ImageOps.mirror(square) if number % 2 else square)
    return squares


def cut(task: tuple[str, str, Subject, Path]) -> list[tuple[bytes, dict]]:
    """(JPEG bytes, annotations) of each view of one image; each is followed by its redrawn version."""
    path, caption, subject, pictures = task
    rng = random.Random(path)
    image = opened(pictures / path)
    samples = []
    for view, style_name in zip(views(image, subject, rng), REDRAWN, strict=True):
        words = {"caption": caption, "kind": subject.kind, "whole": True, "style": ""}
        samples.append((encoded(view), words))
        style = STYLES[style_name]
        redrawn = apply(style.name, np.asarray(view), np.random.default_rng(rng.getrandbits(32)))
        about = {"caption": style.words(subject_of(caption)), "style": style.name}
        samples.append((encoded(redrawn), words | about))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    arguments = parser.parse_args()
    folder = arguments.work / "crops"
    for old in folder.glob("subjects-*.tar"):
        old.unlink()
    tasks = []
    for row in read_manifest(arguments.work):
        for subject in SUBJECTS:
            if not row["held_out"] and subject.shows(row["path"]):
                medium = subject.caption.partition(" of ")[0]
                caption = f"{medium} of {subject_of(row['caption'])}"
                tasks.append((row["path"], caption, subject, arguments.work / "pictures"))
    shards = Shards(folder, "subjects")
    with ProcessPoolExecutor() as pool:
        for samples in pool.map(cut, tasks, chunksize=4):
            for jpeg, words in samples:
                shards.add(jpeg, words)
    shards.close()
    print(f"{shards.count} views of {len(tasks)} images")


if __name__ == "__main__":
    main()
