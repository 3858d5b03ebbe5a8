"""The development set: images that no model here was trained on, for tuning settings and for reported results.

Settings are tuned on `choose` and results reported on `report`, since results on images used for tuning are
biased. pictures/SOURCES.md lists the source of each image.

    python -m benchmarks.development [--training training/work]

checks the set: counts, sizes, sources, and that no image is in examples/ or in the training set.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from styleengine.images import fit, open_image

Part: TypeAlias = Literal["choose", "report"]
Role: TypeAlias = Literal["content", "style"]

PICTURES = Path(__file__).parent / "pictures"
EXAMPLES = Path(__file__).parent.parent / "examples"
PARTS: tuple[Part, ...] = ("choose", "report")
COUNTS: dict[Role, int] = {"content": 6, "style": 12}
LONGEST_SIDE, SHORTEST_SIDE = 640, 250
MOST_BYTES = 4_000_000
HASH_SIDE = 16
SAME = 32  # maximum number of differing bits, of 256, between two files of one image
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Picture:
    """One image of the set."""

    part: Part
    role: Role
    name: str

    @property
    def path(self) -> Path:
        return PICTURES / self.part / self.role / f"{self.name}.jpg"

    def image(self) -> Image.Image:
        return open_image(self.path)


@dataclass(frozen=True)
class Source:
    """One row of SOURCES.md: subject, author and licence, package."""

    what: str
    licence: str
    taken_from: str


def contents(part: Part) -> list[Picture]:
    """The content images of one part, by name."""
    return _listed(part, "content")


def styles(part: Part) -> list[Picture]:
    """The style images of one part, by name."""
    return _listed(part, "style")


def squares(part: Part, of_contents: int, of_styles: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Pairs of content and style, each cut to its largest centre square: `of_styles` styles for each content."""
    paintings = styles(part)
    for index, subject in enumerate(contents(part)[:of_contents]):
        for number in range(of_styles):
            yield square(subject.image()), square(paintings[(2 * index + 5 * number) % len(paintings)].image())


def square(image: Image.Image) -> Image.Image:
    """The largest centre square."""
    side = min(image.size)
    return fit(image, (side, side))


def _listed(part: Part, role: Role) -> list[Picture]:
    return [Picture(part, role, path.stem) for path in sorted((PICTURES / part / role).glob("*.jpg"))]


def sources(text: str) -> dict[tuple[str, str, str], Source]:
    """The rows of SOURCES.md by (part, role, name)."""
    found, place = {}, ("", "")
    for line in text.splitlines():
        if heading := re.fullmatch(r"## (\w+)/(\w+)/", line):
            place = (heading[1], heading[2])
        elif row := re.fullmatch(r"\| `([\w-]+)\.jpg` \| (.+?) \| (.+?) \| (.+?) \|", line):
            found[(*place, row[1])] = Source(row[2], row[3], row[4])
    return found


def fingerprint(image: Image.Image) -> np.ndarray:
    """256 bits: where brightness increases to the right on a 16×16 grid. Almost invariant to scaling."""
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, np.int16)
    return (values[:, 1:] > values[:, :-1]).ravel()


def differing_bits(image: Image.Image, others: np.ndarray) -> np.ndarray:
    """For each of `others` (count, 256): the smaller number of differing bits to the image and its mirror image."""
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.min([(fingerprint(view) != others).sum(1) for view in (image, mirrored)], axis=0)


def lookalikes(pictures: Iterable[Picture], files: list[Path]) -> list[str]:
    """One sentence for each image that is also among `files`. Crops of an image are not detected."""
    known = np.array([fingerprint(opened) for opened in map(_quickly, files)])
    faults = []
    for picture in pictures:
        bits = differing_bits(picture.image(), known)
        faults += [f"{picture.name} equals {files[index]}." for index in np.flatnonzero(bits <= SAME)]
    return faults


def _quickly(path: Path) -> Image.Image:
    """The image on white, at reduced size if the decoder supports it."""
    with Image.open(path) as image:
        image.draft("RGB", (256, 256))
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def training_files(work: Path) -> list[Path]:
    """The distinct images listed by training/collect.py in its work folder."""
    lines = (work / "pictures.jsonl").read_text(encoding="utf-8").splitlines()
    return [work / "pictures" / json.loads(line)["path"] for line in lines]


def faults_of_the_set() -> list[str]:
    """One sentence for each fault of the set itself."""
    faults, every = [], []
    rows = sources((PICTURES / "SOURCES.md").read_text(encoding="utf-8"))
    for part in PARTS:
        for role, count in COUNTS.items():
            listed = _listed(part, role)
            every += listed
            if len(listed) != count:
                faults.append(f"{part}/{role} has {len(listed)} images, not {count}.")
    for picture in every:
        if (picture.part, picture.role, picture.name) not in rows:
            faults.append(f"SOURCES.md does not list {picture.part}/{picture.role}/{picture.name}.jpg.")
        size = picture.image().size
        if max(size) > LONGEST_SIDE or min(size) < SHORTEST_SIDE:
            faults.append(f"{picture.name} has {size[0]}×{size[1]} pixels.")
    named = {(picture.part, picture.role, picture.name) for picture in every}
    faults += [f"SOURCES.md lists {'/'.join(row)}.jpg, which does not exist." for row in rows if row not in named]
    weight = sum(picture.path.stat().st_size for picture in every)
    if weight > MOST_BYTES:
        faults.append(f"The set has {weight} bytes, more than {MOST_BYTES}.")
    for index, picture in enumerate(every):
        faults += lookalikes([picture], [other.path for other in every[index + 1 :]]) if every[index + 1 :] else []
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, help="the work folder of training/collect.py, to check against")
    arguments = parser.parse_args()
    every = [picture for part in PARTS for picture in contents(part) + styles(part)]
    faults = faults_of_the_set()
    examples = [path for path in sorted(EXAMPLES.rglob("*")) if path.suffix.lower() in SUFFIXES]
    faults += lookalikes(every, examples)
    if arguments.training:
        Image.MAX_IMAGE_PIXELS = 400_000_000  # trusted packages contain very large wallpapers
        faults += lookalikes(every, training_files(arguments.training))
    print(*faults, sep="\n", end="\n" if faults else "")
    compared = "examples and training images" if arguments.training else "examples (no training images given)"
    print(f"{len(every)} images checked against {compared}: {len(faults)} faults")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
