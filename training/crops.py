"""Stage 2: cut the images into 256-pixel crops at many scales, and redraw each in one procedural style.

Writes tar shards below 60 MB under WORK/crops, a training and a held-out set. Each JPEG has a JSON file with
its caption, its kind of subject ("an animal"), whether it shows the whole image, and the name of its
procedural style ("" for the original crop). Cut-outs are composited whole on varying plain or photographic
backgrounds. The crops are deterministic.

    python -m training.crops --work training/work
"""

import argparse
import io
import json
import random
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from training.captions import kind_of
from training.collect import read_manifest
from training.sources import CROPS_OTHERWISE, CROPS_PER_PICTURE
from training.styles import STYLES, apply

SIDE = 256
SHARD_BYTES = 58_000_000
PUZZLE_PIECES = "/paintings/"  # pieces of paintings: transparent at the rim, but not cut-outs
TRANSPARENT_SHARE = 0.05  # images with at least this share of transparent pixels are cut-outs
WHOLE_SHAPE = 1.5  # up to this aspect ratio the centre square counts as the whole image
OFTEN = {"an animal": 4, "a plant": 4}  # crops per training cut-out of these kinds


def backdrop(size: tuple[int, int], photographs: list[Path], rng: random.Random) -> Image.Image:
    """A background for a cut-out: white, a colour, a gradient, or part of a photograph."""
    kind = rng.random()
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(2)]
    if kind < 0.25:
        return Image.new("RGB", size, (255, 255, 255))
    if kind < 0.5:
        return Image.new("RGB", size, colours[0])
    if kind < 0.7 or not photographs:
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size)
        return ImageOps.colorize(ramp, *colours)
    with Image.open(rng.choice(photographs)) as photograph:
        photograph.draft("RGB", (640, 640))
        return ImageOps.fit(photograph.convert("RGB"), size, Image.Resampling.BICUBIC)


def opened(path: Path) -> Image.Image:
    """The image, at most 2048 pixels long: a cut-out as RGBA, cropped to its visible part, others as RGB."""
    with Image.open(path) as image:
        image.draft("RGB", (2048, 2048))
        if max(image.size) > 2048:
            image.thumbnail((2048, 2048), Image.Resampling.LANCZOS)
        if image.mode in {"RGB", "L", "CMYK"}:
            return image.convert("RGB")
        image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if (np.asarray(alpha) < 128).mean() < TRANSPARENT_SHARE:
        return image.convert("RGB")
    return image.crop(alpha.getbbox())


def varied(crop: Image.Image) -> bool:
    return np.asarray(crop.resize((32, 32), Image.Resampling.BOX), np.float32).std() > 6


def laid_out(
    cut_out: Image.Image, count: int, photographs: list[Path], rng: random.Random
) -> list[tuple[Image.Image, bool]]:
    """As `crops_of`, for a cut-out: up to `count` crops with varying position, size and background."""
    crops = []
    for _ in range(count):
        scale = SIDE * rng.uniform(0.7, 0.98) / max(cut_out.size)
        width, height = (max(1, round(side * scale)) for side in cut_out.size)
        crop = backdrop((SIDE, SIDE), photographs, rng)
        small = cut_out.resize((width, height), Image.Resampling.LANCZOS)
        crop.paste(small, (rng.randrange(SIDE - width + 1), rng.randrange(SIDE - height + 1)), small)
        if varied(crop):
            crops.append((crop, True))
    return crops


def crops_of(image: Image.Image, count: int, rng: random.Random) -> list[tuple[Image.Image, bool]]:
    """Up to `count` crops with increasing zoom, and for each whether it shows almost the whole image."""
    width, height = image.size
    short = min(width, height)
    nearest = max(1.0, short / SIDE)
    crops = []
    for index in range(count):
        zoom = 1.0 if index == 0 else rng.uniform(1.0, min(nearest, 1 + index / 4))
        scale = SIDE * zoom / short
        window = min(SIDE / scale, short)
        left, top = rng.random() * (width - window), rng.random() * (height - window)
        whole = index == 0 and max(width, height) <= WHOLE_SHAPE * short
        if whole:
            left, top = (width - window) / 2, (height - window) / 2
        box = (left, top, left + window, top + window)
        crop = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
        if varied(crop):
            crops.append((crop, whole))
        if nearest < 1.25 and index >= 1:
            break
    return crops


def subject_of(caption: str) -> str:
    """ "photo of a frog" → "a frog"."""
    return caption.partition(" of ")[2] or caption


def in_general(words: dict) -> str:
    """A crop's caption with the kind instead of the subject, if it has a kind: "photo of an animal"."""
    caption, kind = words["caption"], words["kind"]
    if words["style"] and kind:
        return STYLES[words["style"]].words(kind)
    return f"{caption.partition(' of ')[0]} of {kind}" if kind and " of " in caption else caption


def encoded(picture: Image.Image | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(buffer, "JPEG", quality=94, subsampling=0)
    return buffer.getvalue()


def cut(task: tuple[dict, Path, list[Path]]) -> list[tuple[bytes, dict, bool]]:
    """(JPEG bytes, annotations, held out) of each crop of one image; each is followed by its redrawn version."""
    row, pictures, photographs = task
    rng = random.Random(row["path"])
    count = CROPS_PER_PICTURE.get(row["package"], CROPS_OTHERWISE)
    kind = kind_of(Path(row["path"]), row["caption"])
    try:
        image = opened(pictures / row["path"])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return []
    cut_out = image.mode == "RGBA"
    if cut_out and PUZZLE_PIECES in row["path"]:
        cut_out, under = False, backdrop(image.size, photographs, rng)
        under.paste(image, mask=image.getchannel("A"))
        image = under
    if cut_out and kind in OFTEN:
        count = max(count, OFTEN[kind])
    if row["held_out"]:
        count = min(count, 2)
    crops = laid_out(image, count, photographs, rng) if cut_out else crops_of(image, count, rng)
    samples = []
    for crop, whole in crops:
        about = {"caption": row["caption"], "kind": kind, "whole": whole, "style": ""}
        samples.append((encoded(crop), about, row["held_out"]))
        style = STYLES[rng.choice(list(STYLES))]
        redrawn = apply(style.name, np.asarray(crop), np.random.default_rng(rng.getrandbits(32)))
        words = {"caption": style.words(subject_of(row["caption"])), "style": style.name}
        samples.append((encoded(redrawn), about | words, row["held_out"]))
    return samples


class Shards:
    """Writes JPEGs and their annotations to numbered tar files of bounded size."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.count = self.shard = self.written = 0
        self.tar: tarfile.TarFile | None = None

    def add(self, jpeg: bytes, words: dict) -> None:
        if self.tar is None or self.written + len(jpeg) > SHARD_BYTES:
            self.close()
            self.tar = tarfile.open(self.folder / f"{self.name}-{self.shard:03d}.tar", "w")  # noqa: SIM115 - kept open
            self.shard, self.written = self.shard + 1, 0
        for suffix, content in (("jpg", jpeg), ("json", json.dumps(words).encode())):
            entry = tarfile.TarInfo(f"{self.count:06d}.{suffix}")
            entry.size = len(content)
            self.tar.addfile(entry, io.BytesIO(content))
            self.written += len(content) + 1024
        self.count += 1

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()


def main() -> None:
    Image.MAX_IMAGE_PIXELS = 400_000_000  # trusted packages contain very large wallpapers
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    arguments = parser.parse_args()
    pictures, folder = arguments.work / "pictures", arguments.work / "crops"
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("train-*.tar"), *folder.glob("held-out-*.tar")):
        old.unlink()

    rows = read_manifest(arguments.work)
    random.Random(0).shuffle(rows)
    photographs = [
        pictures / row["path"]
        for row in rows
        if CROPS_PER_PICTURE.get(row["package"], 0) >= 24 and row["path"].endswith(".jpg") and not row["held_out"]
    ]
    shards = {False: Shards(folder, "train"), True: Shards(folder, "held-out")}
    with ProcessPoolExecutor() as pool:
        tasks = [(row, pictures, photographs) for row in rows]
        for samples in pool.map(cut, tasks, chunksize=8):
            for jpeg, words, held_out in samples:
                shards[held_out].add(jpeg, words)
    for shard in shards.values():
        shard.close()
    print(f"{shards[False].count} training crops, {shards[True].count} held out")


if __name__ == "__main__":
    main()
