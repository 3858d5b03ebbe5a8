"""Stage 1: download the Debian packages, unpack them and list every usable image.

Writes, under --work:
  pictures/PACKAGE/…     the images (also those inside Qt resource files)
  pictures.jsonl         one line per image: path, package, width, height, caption, held_out
  licences.md            the licences in each package's copyright file

    python -m training.collect --work training/work
"""

import argparse
import hashlib
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from training.captions import caption_of, group_of
from training.sources import HELD_OUT_WORDS, PACKAGES, SKIPPED_WORDS

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MANIFEST = "pictures.jsonl"
SMALLEST_SIDE = 112
HELD_OUT_SHARE = 20  # one image in twenty is held out


def fetch(package: str, debs: Path) -> Path:
    """The package's .deb in `debs`, downloaded if it is not there."""
    found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
        found = sorted(debs.glob(f"{package}_*.deb"))
    return found[-1]


def resource_files(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file in a Qt resource collection (.rcc, format versions 1 to 3)."""
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", blob)
    if magic != b"qres":
        return
    node_size = 14 if version == 1 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        start = names + offset + 6
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        position = tree + index * node_size
        name_offset, flags, first, second = struct.unpack_from(">IHII", blob, position)
        path = f"{folder}/{name_at(name_offset)}" if index else ""
        if flags & 2:  # a folder: `first` children from node `second` on
            for child in range(second, second + first):
                yield from walk(child, path)
            return
        (size,) = struct.unpack_from(">I", blob, data + second)
        content = blob[data + second + 4 : data + second + 4 + size]
        if flags & 1:  # qCompress: four length bytes, then a zlib stream
            content = zlib.decompress(content[4:])
        if not flags & 4:  # 4 = zstandard, used by none of our packages
            yield path.lstrip("/"), content

    yield from walk(0, "")


def unpack(package: str, debs: Path, pictures: Path) -> None:
    """Writes the package's images and its copyright file to pictures/PACKAGE."""
    target = pictures / package
    if target.exists():
        return
    scratch = pictures / f".{package}"
    shutil.rmtree(scratch, ignore_errors=True)
    subprocess.run(["dpkg", "-x", fetch(package, debs), scratch], check=True)
    for resource in scratch.rglob("*.rcc"):
        for path, content in resource_files(resource.read_bytes()):
            if Path(path).suffix.lower() in SUFFIXES:
                out = resource.with_suffix("") / path
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(content)
    for file in scratch.rglob("*"):
        if file.is_symlink() or not file.is_file():
            continue
        description = file.suffix == ".txt" and package == "tuxpaint-stamps-default"
        if not (file.suffix.lower() in SUFFIXES or file.name == "copyright" or description):
            file.unlink()
    scratch.rename(target)


def describe(task: tuple[Path, str, Path]) -> dict[str, object] | None:
    """One manifest row; None for an image that cannot be read, is too small or nearly uniform."""
    path, package, root = task
    try:
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < SMALLEST_SIDE or max(width, height) > 12 * min(width, height):
                return None
            image.draft("RGB", (256, 256))
            small = image.convert("RGBA").resize((16, 16), Image.Resampling.BOX)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    pixels = np.asarray(small, np.float32)
    if pixels[..., 3].mean() < 40 or pixels[..., :3].std() < 4:
        return None
    luminance = pixels[::2, ::2].mean(-1)
    fingerprint = np.packbits(luminance > np.median(luminance)).tobytes()
    coarse = (pixels[::4, ::4] // 32).astype(np.uint8).tobytes()
    return {
        "path": str(path.relative_to(root)),
        "package": package,
        "width": width,
        "height": height,
        "caption": caption_of(path, package),
        "group": group_of(path),
        "fingerprint": hashlib.sha1(fingerprint + coarse).hexdigest(),
    }


def licence_lines(package: str, pictures: Path) -> str:
    """The licence names in the package's copyright file, most frequent first."""
    files = sorted((pictures / package).rglob("copyright"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    names = re.findall(r"^License:\s*(\S.*)$", text, re.MULTILINE)
    ordered = sorted(set(names), key=lambda name: (-names.count(name), name))
    return f"- `{package}`: {'; '.join(ordered[:12]) or 'see its copyright file'}"


def read_manifest(work: Path) -> list[dict]:
    """The rows that this stage wrote."""
    with open(work / MANIFEST, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    Image.MAX_IMAGE_PIXELS = 400_000_000  # trusted packages contain very large wallpapers
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    arguments = parser.parse_args()
    debs, pictures = arguments.work / "debs", arguments.work / "pictures"
    debs.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(exist_ok=True)

    tasks = []
    for package in PACKAGES:
        unpack(package, debs, pictures)
        for path in sorted((pictures / package).rglob("*")):
            wanted = path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink()
            if wanted and not any(word in str(path).lower() for word in SKIPPED_WORDS):
                tasks.append((path, package, pictures))

    with ProcessPoolExecutor() as pool:
        described = [row for row in pool.map(describe, tasks, chunksize=32) if row]

    # Wallpapers come in many resolutions: of equal images, keep the largest.
    largest: dict[object, dict[str, object]] = {}
    for row in sorted(described, key=lambda row: -int(str(row["width"])) * int(str(row["height"]))):
        largest.setdefault(row["fingerprint"], row)
    rows = sorted(largest.values(), key=lambda row: str(row["path"]))
    held_groups = set()
    for row in rows:
        digest = int(str(row.pop("fingerprint")), 16)
        if digest % HELD_OUT_SHARE == 0 or any(word in str(row["path"]).lower() for word in HELD_OUT_WORDS):
            held_groups.add(row["group"])
    for row in rows:  # other files with a held-out image are held out, too
        row["held_out"] = row.pop("group") in held_groups

    with open(arguments.work / MANIFEST, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (arguments.work / "licences.md").write_text(
        "\n".join(licence_lines(package, pictures) for package in PACKAGES) + "\n"
    )
    held = sum(bool(row["held_out"]) for row in rows)
    print(f"{len(tasks)} files, {len(rows)} distinct images, {held} of them held out")


if __name__ == "__main__":
    main()
