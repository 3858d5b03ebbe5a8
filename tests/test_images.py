"""Opening pictures: every input gives the right picture or an error message."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageCms, ImageFile, PngImagePlugin
from skimage import data

from styleengine import StyleEngineError, image_files
from styleengine.images import (
    content_hash,
    fit,
    open_image,
    open_mask,
    save_png,
    to_images,
    to_tensor,
    working_size,
    write_whole,
)
from styleengine.stylization import read_record

PICTURE = Image.fromarray(data.coffee()).resize((60, 40))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: tuple[int, int], depth: int, kind: int, rows: bytes, *chunks: bytes, after: bytes = b"") -> bytes:
    """A PNG of any kind of pixels, with chunks of any content before and after them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + after + chunk(b"IEND", b"")


def picture_png(*chunks: bytes, after: bytes = b"") -> bytes:
    """`PICTURE` as a PNG with further chunks."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(PICTURE))
    return png(PICTURE.size, 8, 2, rows, *chunks, after=after)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of 70 bytes whose header claims any size."""
    return png((width, height), 8, 2, b"\0")


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


GREY = np.linspace(0, 65535, 40 * 60).reshape(40, 60)

BAD = {
    "text": (b"This is no picture, whatever its name says.", "is not an image that can be read"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "has only 1×1 pixels; both sides must have at least 16"),
    "thin": (encoded(Image.new("RGB", (200, 15)), "PNG"), "has only 200×15 pixels"),
    "claims 20000×20000": (png_claiming(20000, 20000), "50 megapixels. Scale it down first"),
    "claims 8000×7000": (png_claiming(8000, 7000), "has 8000×7000 pixels, more than 50 megapixels"),
    "elongated": (encoded(Image.new("RGB", (16 * 8 + 1, 16)), "PNG"), "more than 8 times as long as wide"),
    "cut JPEG": (encoded(PICTURE, "JPEG")[:900], "could not be decoded .*cut off"),
    "cut PNG": (encoded(PICTURE, "PNG")[:900], "could not be decoded"),
    "header alone": (encoded(PICTURE, "JPEG")[:20], "is not an image|could not be decoded"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_with_a_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "some picture.png"
    file.write_bytes(content)
    for source in (content, file, str(file)):
        with pytest.raises(StyleEngineError, match=sentence) as caught:
            open_image(source, "style image")
        assert str(caught.value).startswith("The style image")
        assert str(caught.value).endswith(".")


def test_enormous_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    began = time.perf_counter()
    for side in (7100, 9500, 20000, 2**31 - 1):
        with pytest.raises(StyleEngineError, match="megapixels"):
            open_image(png_claiming(side, side))
    assert time.perf_counter() - began < 5


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match=r"The content image gone\.jpg does not exist"):
        open_image(tmp_path / "gone.jpg", "content image")
    with pytest.raises(StyleEngineError, match="does not exist or is not a file"):
        open_image(tmp_path)


@pytest.mark.parametrize("source", [None, 3, [PICTURE], {}])
def test_what_is_no_picture_at_all_is_refused(source: object) -> None:
    with pytest.raises(StyleEngineError, match="No mask was given"):
        open_mask(source)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_damaged_files_never_raise_anything_else(form: str) -> None:
    original = encoded(PICTURE, form)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(original)
        reach = int(rng.choice([64, 400, len(damaged)]))
        for place in rng.integers(0, min(reach, len(damaged)), rng.choice([1, 3, 20])):
            damaged[place] = rng.integers(256)
        try:
            image = open_image(bytes(damaged[: rng.integers(len(damaged) // 2, len(damaged) + 1)]))
            assert image.mode == "RGB"
        except StyleEngineError:
            pass


def test_whatever_a_decoder_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> None:
        raise RuntimeError("Decoding of color planes failed")

    monkeypatch.setattr(Image.Image, "load", broken)
    with pytest.raises(StyleEngineError, match="could not be decoded"):
        open_image(PICTURE)


def sixteen_bit_rgb_png() -> bytes:
    """PIL writes none, so the chunks are put together here: a red ramp from left to right."""
    rows = np.zeros((40, 60, 3), ">u2")
    rows[..., 0] = np.linspace(0, 65535, 60).astype(np.uint16)
    return png((60, 40), 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def transparent_palette_png() -> bytes:
    """Left half: palette colour 0, which is transparent; right half: blue."""
    image = Image.new("P", (60, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (30, 0, 60, 40))
    return encoded(image, "PNG", transparency=0)


def test_plain_pictures_pass_unchanged() -> None:
    for source in (PICTURE, encoded(PICTURE, "PNG"), encoded(PICTURE, "BMP"), np.asarray(PICTURE)):
        assert open_image(source).tobytes() == PICTURE.tobytes()


def test_cmyk_jpegs_keep_their_colours() -> None:
    opened = open_image(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95))
    assert opened.mode == "RGB"
    assert mean_difference(opened, PICTURE) < 5


def test_palettes_are_resolved() -> None:
    assert mean_difference(open_image(encoded(PICTURE.quantize(256), "PNG")), PICTURE) < 6


@pytest.mark.parametrize("form", ["palette", "RGBA", "LA", "premultiplied", "array"])
def test_transparency_is_composited_on_white(form: str) -> None:
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    rgba = np.dstack([np.zeros((40, 60, 2), np.uint8), np.full((40, 60), 255, np.uint8), alpha])  # blue
    blue = Image.fromarray(rgba)
    source = {
        "palette": transparent_palette_png(),
        "RGBA": encoded(blue, "PNG"),
        "LA": encoded(blue.convert("LA"), "PNG"),
        "premultiplied": blue.convert("RGBa"),
        "array": rgba,
    }[form]
    opened = np.asarray(open_image(source))
    assert (opened[:, :29] == 255).all()
    assert (opened[:, 31:] == ([29] * 3 if form == "LA" else [0, 0, 255])).all()


def test_half_transparent_is_half_white() -> None:
    opened = open_image(Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert opened.getpixel((3, 3)) == (127, 127, 127)


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    sixteen = Image.fromarray(GREY.astype(np.uint16))
    assert sixteen.mode == "I;16"
    expected = GREY / 65535 * 255
    for source in (sixteen, encoded(sixteen, "PNG"), encoded(sixteen, "TIFF"), GREY.astype(np.uint16)):
        opened = np.asarray(open_image(source), np.float32)
        assert np.abs(opened[..., 1] - expected).max() <= 1


def test_sixteen_bit_colours_are_scaled() -> None:
    opened = np.asarray(open_image(sixteen_bit_rgb_png()), np.float32)
    assert np.abs(opened[7, :, 0] - np.linspace(0, 255, 60)).max() <= 1
    assert opened[..., 1:].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_with_an_exif_orientation_are_turned_upright(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = PICTURE.transpose(undo[orientation]) if orientation in undo else PICTURE
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert mean_difference(opened, PICTURE) < 5


def test_damaged_exif_does_not_matter() -> None:
    opened = open_image(encoded(PICTURE, "JPEG", exif=b"Exif\0\0garbage", quality=95))
    assert mean_difference(opened, PICTURE) < 5


def test_a_profile_is_applied_and_a_damaged_one_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert mean_difference(open_image(encoded(PICTURE, "PNG", icc_profile=srgb)), PICTURE) < 1
    assert mean_difference(open_image(encoded(PICTURE, "PNG", icc_profile=b"no profile")), PICTURE) == 0


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "lime", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(animation).getpixel((5, 5)) == (255, 0, 0)


def test_up_to_eight_times_as_long_as_wide_passes() -> None:
    assert open_image(Image.new("RGB", (16 * 8, 16))).size == (128, 16)


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda x: (x * 255).round().astype(np.uint8),
    "uint16": lambda x: (x * 65535).round().astype(np.uint16),
    "float16": lambda x: x.astype(np.float16),
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x,
    "one channel": lambda x: x[..., None],
    "three channels": lambda x: np.dstack([x] * 3),
    "four channels": lambda x: np.dstack([x, x, x, np.ones_like(x)]),
    "transposed": lambda x: np.asfortranarray(x),
    "a view": lambda x: np.repeat(x, 2, 0)[::2],
}


@pytest.mark.parametrize("convert", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_of_every_usual_kind_are_taken(convert: Callable[[np.ndarray], np.ndarray]) -> None:
    ramp = np.linspace(0, 1, 40 * 60).reshape(40, 60)
    opened = np.asarray(open_image(convert(ramp)), np.float32)
    assert opened.shape == (40, 60, 3)
    assert np.abs(opened - ramp[..., None] * 255).max() <= 1


def test_a_bool_array_is_black_and_white() -> None:
    mask = open_mask(np.arange(400).reshape(20, 20) % 2 == 0)
    assert mask.mode == "L"
    assert sorted(np.unique(np.asarray(mask))) == [0, 255]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((20, 20), np.nan), "must lie in"),
        (np.full((20, 20), np.inf), "must lie in"),
        (np.full((20, 20), 1.01), "must lie in"),
        (np.full((20, 20, 3), -0.01), "must lie in"),
        (np.zeros((20, 20), np.int64), "array of int64; use uint8"),
        (np.zeros((20, 20), np.complex64), "array of complex64"),
        (np.full((20, 20), None), "array of object"),
        (np.zeros(20), r"shape \(20,\)"),
        (np.zeros((2, 20, 20, 3)), r"shape \(2, 20, 20, 3\)"),
        (np.zeros((3, 20, 20)), r"shape \(3, 20, 20\)"),
        (np.zeros((20, 20, 2)), "3 or 4 channels last"),
        (np.zeros((0, 20, 3)), r"shape \(0, 20, 3\)"),
        (np.zeros((1, 1)), "has only 1×1 pixels"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray, sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        open_image(array)


@pytest.mark.parametrize("size", [64, 100, 512])
@pytest.mark.parametrize("multiple", [4, 8])
@pytest.mark.parametrize("shape", [(300, 211), (211, 300), (16, 128), (1000, 1000), (4032, 3024)])
def test_the_working_size_keeps_the_shape_in_multiples(size: int, multiple: int, shape: tuple[int, int]) -> None:
    width, height = working_size(Image.new("L", shape), size, multiple)
    assert width % multiple == height % multiple == 0
    for side, original in ((width, shape[0]), (height, shape[1])):
        assert abs(side - original * size / min(shape)) <= multiple / 2


def test_working_sizes_too_large_for_any_memory_are_refused() -> None:
    with pytest.raises(StyleEngineError, match=r"processed at 12288×1536 pixels.*Choose a smaller size"):
        working_size(Image.new("L", (128, 16)), 1536, 8)


def test_fit_covers_without_distortion() -> None:
    circle = np.hypot(*np.mgrid[-50:50, -100:100]) < 40
    fitted = np.asarray(fit(Image.fromarray(circle.astype(np.uint8) * 255), (50, 50)))
    height, width = (np.ptp(places) for places in np.nonzero(fitted > 128))
    assert abs(int(width) - int(height)) <= 1


def test_pixels_survive_the_conversion_to_tensors_and_back() -> None:
    tensor = to_tensor(PICTURE)
    assert tensor.shape == (1, 3, 40, 60)
    assert float(tensor.min()) >= -1
    assert float(tensor.max()) <= 1
    assert to_images(tensor)[0].tobytes() == PICTURE.tobytes()
    assert np.asarray(to_images(tensor * 100)[0]).max() == 255


def test_the_hash_is_of_the_pixels_not_of_the_file() -> None:
    again = open_image(encoded(PICTURE, "PNG", compress_level=1))
    assert content_hash(again) == content_hash(PICTURE)
    changed = PICTURE.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert content_hash(changed) != content_hash(PICTURE)
    reshaped = Image.frombytes("RGB", (30, 80), PICTURE.tobytes())
    assert content_hash(reshaped) != content_hash(PICTURE)


def test_pngs_are_written_with_their_text(tmp_path: Path) -> None:
    path = save_png(PICTURE, tmp_path / "out.PNG", {"styleengine": "λ → “ü”"})
    with Image.open(path) as image:
        assert image.info["styleengine"] == "λ → “ü”"
        assert image.tobytes() == PICTURE.tobytes()
    assert save_png(PICTURE.rotate(180), path, {}) == path
    assert open_image(path).tobytes() == PICTURE.rotate(180).tobytes()


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StyleEngineError, match=r"saved as PNG: name the file .*\.png"):
        save_png(PICTURE, tmp_path / name, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match=r"There is no folder .*gone"):
        save_png(PICTURE, tmp_path / "gone" / "out.png", {})
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_a_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(StyleEngineError, match=r"out\.png could not be written"):
        save_png(PICTURE, tmp_path / "out.png", {})
    with pytest.raises(StyleEngineError, match="could not be written"):
        save_png(PICTURE, tmp_path / f"{'x' * 250}.png", {})
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("call", ["os.replace", "os.chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(call, fail)
        with pytest.raises(type(error)):
            write_whole(path, b"new")
        with pytest.raises((StyleEngineError, KeyboardInterrupt)):
            save_png(PICTURE, path, {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


EXIF_TURNED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_90)  # as a camera stores it with orientation 6
WIDE = (
    # A profile of wide gamut: the primaries of Adobe RGB (adapted to D50) and gamma 2.2.
    (0.6097, 0.3111, 0.0195),
    (0.2053, 0.6257, 0.0609),
    (0.1492, 0.0632, 0.7446),
)


def profile(space: bytes = b"RGB ", gamma: float = 563 / 256, size: int = 0) -> bytes:
    """An ICC profile of version 2, of wide gamut if it is of colours; padded with zeros to `size` bytes."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78 + 1)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    if space == b"RGB ":
        tags |= {name + b"XYZ": xyz(value) for name, value in zip((b"r", b"g", b"b"), WIDE, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    head = bytes(8) + b"\x02\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    whole = struct.pack(">I", place + len(body)) + head[4:] + struct.pack(">I", len(tags)) + table + body
    return whole.ljust(size, b"\0")


def text(name: bytes, key: bytes, body: bytes) -> bytes:
    packed = zlib.compress(body)
    start = key + {b"zTXt": b"\0\0", b"iTXt": b"\0\x01\0\0\0"}[name]
    return chunk(name, start + packed)


def tiff(*tags: tuple[int, int, int, int | bytes], next_page: int = 0) -> bytes:
    """`PICTURE` as a TIFF with further entries (tag, type, count, value or place), valid or not."""
    pixels, (width, height) = PICTURE.tobytes(), PICTURE.size
    own = {256: width, 257: height, 258: 8 + len(pixels), 259: 1, 262: 2, 273: 8, 277: 3, 278: height}
    entries = [(tag, 4, 1, value) for tag, value in (own | {279: len(pixels)}).items()] + list(tags)
    folder = b""
    for tag, kind, count, value in sorted(entries):
        kind, count = (3, 3) if tag == 258 else (kind, count)
        packed = (
            value
            if isinstance(value, bytes)
            else struct.pack(
                "<HH" if (kind, count) == (3, 1) else "<I", *((value, 0) if (kind, count) == (3, 1) else (value,))
            )
        )
        folder += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels) + 6) + pixels + struct.pack("<3H", 8, 8, 8)
    return head + struct.pack("<H", len(entries)) + folder + struct.pack("<I", next_page)


BOMB = zlib.compress(bytes(200_000_000))  # 200 kB of a chunk
ODD_CHUNKS = {
    "text larger than Pillow takes": text(b"iTXt", b"Comment", b"x" * (2**20 + 1)),
    "packed text larger than Pillow takes": text(b"zTXt", b"Comment", b"x" * (2**20 + 1)),
    "packed text in an unknown way": chunk(b"zTXt", b"Comment\0\x07junk"),
    "a profile in an unknown way": chunk(b"iCCP", b"name\0\x07junk"),
    "an empty profile": chunk(b"iCCP", b""),
    "a profile without a name": chunk(b"iCCP", b"\0\0" + zlib.compress(b"no profile")),
    "a profile that is cut off": chunk(b"iCCP", b"name\0\0" + zlib.compress(profile())[:-40]),
    "a text bomb": chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "a bomb for Exif data": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "Exif data that are none": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03junk"),
    "Exif data as text that is none": text(b"zTXt", b"Raw profile type exif", b"\nexif\n 4\nno hexadecimals"),
    "short density": chunk(b"pHYs", b"\0\0"),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short primaries": chunk(b"cHRM", b"\0\0\0"),
    "no intent": chunk(b"sRGB", b""),
    "short animation": chunk(b"acTL", b"\0"),
    "an animation that is too large": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 6000, 6000, 0, 0, 1, 1, 1, 0)),
    "transparency of another kind": chunk(b"tRNS", b"\0"),
    "a wrong checksum": chunk(b"tEXt", b"Comment\0text")[:-1] + b"?",
    "an unknown chunk": chunk(b"abCd", b"anything"),
}


@pytest.mark.parametrize("odd", ODD_CHUNKS.values(), ids=ODD_CHUNKS.keys())
def test_chunks_of_a_png_that_cannot_be_read_do_not_matter(odd: bytes) -> None:
    assert open_image(picture_png(odd)).tobytes() == PICTURE.tobytes()
    assert open_image(picture_png(after=odd)).tobytes() == PICTURE.tobytes()
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(TURNED))
    turned = png(TURNED.size, 8, 2, rows, odd, chunk(b"eXIf", EXIF_TURNED)) if b"eXIf" not in odd else None
    assert turned is None or open_image(turned).tobytes() == PICTURE.tobytes()


def test_a_bomb_in_metadata_takes_little_memory() -> None:
    bomb = chunk(b"iCCP", b"bomb\0\0" + BOMB)
    tracemalloc.start()
    try:
        assert open_image(picture_png(bomb, ODD_CHUNKS["a text bomb"])).tobytes() == PICTURE.tobytes()
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


ODD_SEGMENTS = {
    "short JFIF": segment(0xE0, b"JFIF\0\x01"),
    "short Adobe": segment(0xEE, b"Adobe\0"),
    "Exif data that are none": segment(0xE1, b"Exif\0\0junk"),
    "Exif data that point beyond": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "a profile in parts that miss": segment(0xE2, b"ICC_PROFILE\0\x01\x03part"),
    "an empty part of a profile": segment(0xE2, b"ICC_PROFILE\0"),
    "Photoshop's": segment(0xED, b"Photoshop 3.0\08BIM\x03\xed\0\0\0\0\0\x02\0\0"),
    "cut off Photoshop's": segment(0xED, b"Photoshop 3.0\08BIM\x03"),
    "several pictures that are none": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0junk"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "a comment": segment(0xFE, b"\xff\xfe"),
}


@pytest.mark.parametrize("odd", ODD_SEGMENTS.values(), ids=ODD_SEGMENTS.keys())
def test_segments_of_a_jpeg_that_cannot_be_read_do_not_matter(odd: bytes) -> None:
    stored = encoded(PICTURE, "JPEG", quality=95)
    expected = open_image(stored).tobytes()
    without_jfif = stored[:2] + stored[20:]
    assert open_image(stored[:2] + odd + stored[2:]).tobytes() == expected
    assert open_image(stored[:2] + odd + without_jfif[2:]).tobytes() == expected


BEYOND = 0xFFFFFFF0
ODD_TAGS = {
    "Exif beyond the end": (34665, 4, 1, BEYOND),
    "Exif in the pixels": (34665, 4, 1, 9),
    "Exif that is text": (34665, 2, 4, b"abc\0"),
    "GPS in the pixels": (34853, 4, 1, 100),
    "XMP of another type": (700, 3, 1, 7),
    "XMP beyond the end": (700, 1, 1000, BEYOND),
    "a description beyond the end": (270, 2, 1000, BEYOND),
    "a description without end": (270, 2, 2**31, 8),
    "a resolution that is text": (282, 2, 4, b"abc\0"),
    "a profile beyond the end": (34675, 7, 1000, BEYOND),
    "a profile of another type": (34675, 3, 1, 5),
    "Photoshop's": (34377, 7, 100, 8),
    "a thumbnail beyond the end": (330, 4, 1, BEYOND),
    "orientation beyond the end": (274, 5, 1, BEYOND),
    "orientation as text": (274, 2, 2, b"6\0"),
    "an unknown orientation": (274, 3, 1, 99),
    "an unknown type": (306, 129, 4, 1),
}


@pytest.mark.parametrize("odd", ODD_TAGS.values(), ids=ODD_TAGS.keys())
def test_entries_of_a_tiff_that_cannot_be_read_do_not_matter(odd: tuple[int, int, int, int | bytes]) -> None:
    assert open_image(tiff()).tobytes() == PICTURE.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tiff(odd)).tobytes() == PICTURE.tobytes()


def test_further_pages_of_a_tiff_do_not_matter() -> None:
    for place in (8, 9, BEYOND):
        assert open_image(tiff(next_page=place)).tobytes() == PICTURE.tobytes()
    pages = encoded(PICTURE, "TIFF", save_all=True, append_images=[Image.new("L", (9000, 1000)), PICTURE.rotate(9)])
    assert open_image(pages).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("big", [False, True])
def test_compressed_tiffs_open(big: bool) -> None:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", None):
        stored = encoded(PICTURE, "TIFF", compression=compression, big_tiff=big)
        assert open_image(stored).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("kind", [3, 4, 8, 9])
def test_orientation_counts_as_a_number_of_any_type(kind: int) -> None:
    upright = PICTURE.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert open_image(tiff((274, kind, 1, 6))).tobytes() == upright
    value = b"\0\x06\0\0" if kind in {3, 8} else b"\0\0\0\x06"
    # The other entries have a type that cannot be written again.
    beside = b"\x01\x1b\0\x09\0\0\0\x01\xff\xff\xff\xfb"
    exif = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0" + bytes([kind]) + b"\0\0\0\x01" + value + beside + bytes(4)
    assert open_image(picture_png(chunk(b"eXIf", exif))).tobytes() == upright
    stored = encoded(PICTURE, "JPEG", quality=95)
    turned = open_image(stored[:2] + segment(0xE1, b"Exif\0\0" + exif) + stored[2:])
    assert turned.size == (40, 60)


def test_orientation_is_found_where_image_editors_put_it() -> None:
    upright = PICTURE.transpose(Image.Transpose.ROTATE_270).tobytes()
    raw = b"\nexif\n%8d\n%s\n" % (len(EXIF_TURNED) + 6, (b"Exif\0\0" + EXIF_TURNED).hex().encode())
    assert open_image(picture_png(text(b"zTXt", b"Raw profile type exif", raw))).tobytes() == upright
    assert open_image(picture_png(after=chunk(b"eXIf", EXIF_TURNED))).tobytes() == upright
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    assert open_image(picture_png(xmp)).tobytes() == upright


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "HEIC", "PNG"])
def test_exif_data_with_a_damaged_head_do_not_matter(form: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    stored = heic(PICTURE, exif=exif.tobytes()) if form == "HEIC" else encoded(PICTURE, form, exif=exif)
    assert b"MM\0*" in stored or b"II*\0" in stored
    expected = open_image(stored).tobytes()
    damaged = stored.replace(b"MM\0*", b"XX\0*").replace(b"II*\0", b"XX*\0")
    assert open_image(damaged).tobytes() == expected


def test_a_png_with_odd_metadata_carries_no_record(tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    path.write_bytes(picture_png(ODD_CHUNKS["text larger than Pillow takes"]))
    with pytest.raises(StyleEngineError, match=r"other\.png carries no StyleEngine record"):
        read_record(path)


def test_opening_twice_changes_nothing() -> None:
    rgba = PICTURE.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(PICTURE.size))
    sources = [
        encoded(rgba, "PNG", icc_profile=profile()),
        encoded(PICTURE.convert("L"), "PNG", icc_profile=profile()),  # not of this mode, so ignored
        encoded(PICTURE, "PNG", icc_profile=b"no profile"),
        encoded(TURNED, "PNG", exif=b"Exif\0\0" + EXIF_TURNED),
        transparent_palette_png(),
    ]
    for source in sources:
        once = open_image(source)
        assert once.info == {}
        assert open_image(once).tobytes() == once.tobytes() == open_image(source).tobytes()


def test_a_given_picture_is_not_changed() -> None:
    given = Image.open(io.BytesIO(encoded(TURNED, "JPEG", exif=b"Exif\0\0" + EXIF_TURNED, icc_profile=profile())))
    info = dict(given.info)
    open_image(given)
    assert given.info == info
    assert given.getexif()[ExifTags.Base.Orientation] == 6


def wide_gamut_sources() -> dict[str, object]:
    """A plain red with a profile in every mode; where there is alpha, half of the picture is transparent."""
    red, icc = Image.new("RGB", (40, 40), (220, 38, 28)), profile()
    rgba = red.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 20)[None].repeat(40, 0)))
    palette = red.quantize(4)
    clear = Image.new("P", (40, 40), 1)
    clear.putpalette([9, 9, 9, 220, 38, 28])
    clear.paste(0, (0, 0, 20, 40))
    held = rgba.copy()
    held.info["icc_profile"] = icc
    jpeg = encoded(red, "JPEG", quality=100, subsampling=0, icc_profile=icc)
    return {
        "RGB": encoded(red, "PNG", icc_profile=icc),
        "RGBA": encoded(rgba, "PNG", icc_profile=icc),
        "palette": encoded(palette, "PNG", icc_profile=icc),
        "transparent palette": encoded(clear, "PNG", icc_profile=icc, transparency=0),
        "transparent colour": encoded(red, "PNG", icc_profile=icc, transparency=(1, 2, 3)),
        "a large profile": encoded(rgba, "PNG", icc_profile=profile(size=2**21)),
        "RGBA TIFF": encoded(rgba, "TIFF", icc_profile=icc),
        "palette TIFF": encoded(palette, "TIFF", icc_profile=icc),
        "JPEG": jpeg,
        "WebP": encoded(rgba, "WEBP", lossless=True, icc_profile=icc),
        "AVIF": encoded(rgba, "AVIF", quality=100, subsampling="4:4:4", icc_profile=icc),
        "PIL": held,
        "premultiplied": _with_profile(rgba.convert("RGBa"), icc),
        "PA": _with_profile(rgba.convert("PA"), icc),
        "RGBX": _with_profile(red.convert("RGBX"), icc),
    }


def _with_profile(image: Image.Image, icc: bytes) -> Image.Image:
    image.info["icc_profile"] = icc
    return image


@pytest.mark.parametrize("mode", wide_gamut_sources().keys())
def test_profiles_are_honoured_in_every_mode(mode: str) -> None:
    source = wide_gamut_sources()[mode]
    opened = open_image(source)  # type: ignore[arg-type]
    near = 8 if mode in {"AVIF", "JPEG"} else 3
    assert np.abs(np.subtract(opened.getpixel((30, 20)), (255, 33, 21))).max() <= near
    see_through = mode not in {"RGB", "palette", "transparent colour", "palette TIFF", "JPEG", "RGBX"}
    left = opened.getpixel((5, 20))
    assert left == (255, 255, 255) if see_through else np.abs(np.subtract(left, (255, 33, 21))).max() <= near


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "L TIFF", "I;16 TIFF"])
def test_profiles_of_greys_are_honoured(mode: str) -> None:
    mode, _, form = mode.partition(" ")
    grey = Image.new("L", (20, 20), 128)
    image = Image.fromarray(np.full((20, 20), 128 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    linear = encoded(image, form or "PNG", icc_profile=profile(b"GRAY", 1.0))
    assert np.abs(np.subtract(open_image(linear).getpixel((5, 5)), 188)).max() <= 2  # half of the light
    assert open_image(encoded(image, form or "PNG", icc_profile=profile())).getpixel((5, 5)) == (128, 128, 128)


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    for image in (PICTURE, PICTURE.convert("RGBA")):
        stored = encoded(image, "PNG", icc_profile=profile(b"GRAY", 1.0))
        assert open_image(stored).tobytes() == PICTURE.tobytes()
    cmyk = PICTURE.convert("CMYK")
    expected = open_image(encoded(cmyk, "TIFF")).tobytes()
    assert open_image(encoded(cmyk, "TIFF", icc_profile=profile())).tobytes() == expected
    lab = Image.new("LAB", (20, 20), (128, 128, 128))
    assert (
        open_image(encoded(lab, "TIFF", icc_profile=profile())).tobytes() == open_image(encoded(lab, "TIFF")).tobytes()
    )


RAMP = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
RANGES: dict[str, tuple[np.ndarray, float]] = {
    "float to 1": (RAMP, 1),
    "float a little over 1": (RAMP * 1.04 - 0.02, 1),
    "float to 255": (RAMP * 255, 255),
    "float a little over 255": (RAMP * 265 - 5, 255),
    "float to 65535": (RAMP * 65535, 65535),
    "int32 to 1": ((RAMP > 0.5).astype(np.int32), 1),
    "int32 to 255": ((RAMP * 255).astype(np.int32), 255),
    "int32 to 4095": ((RAMP * 4095).astype(np.int32), 4095),
    "int32 to 65535": ((RAMP * 65535).astype(np.int32), 65535),
    "16 bits to 255": ((RAMP * 255).astype(np.uint16), 255),
    "16 bits to 4095": ((RAMP * 4095).astype(np.uint16), 4095),
    "16 bits, rather dark": ((RAMP * 20000).astype(np.uint16), 65535),
    "16 bits": ((RAMP * 65535).astype(np.uint16), 65535),
    "black": (np.zeros_like(RAMP), 1),
    "black int32": (np.zeros((40, 60), np.int32), 1),
}


@pytest.mark.parametrize(("values", "white"), RANGES.values(), ids=RANGES.keys())
def test_greys_are_scaled_by_the_range_of_their_values(values: np.ndarray, white: float) -> None:
    image = Image.fromarray(values)
    expected = (values.astype(np.float64) / white).clip(0, 1) * 255
    for source in (image, encoded(image, "TIFF")):
        opened = np.asarray(open_image(source), np.float64)
        assert np.abs(opened - expected[..., None]).max() <= 1
        assert np.abs(np.asarray(open_mask(source), np.float64) - expected).max() <= 1
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    if values.dtype == np.uint16:
        stored = Image.frombytes("I;16B", (60, 40), big_endian.tobytes())
        assert np.abs(np.asarray(open_image(stored), np.float64) - expected[..., None]).max() <= 1
        for array in (values, big_endian, np.dstack([values] * 3)):
            assert np.abs(np.asarray(open_image(array), np.float64) - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        RAMP * 2 - 1,
        RAMP * 3,
        RAMP * 1e6,
        -RAMP,
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
        (RAMP * 5).astype(np.int32),
        (RAMP * 100_000).astype(np.int32),
        (RAMP * 255 - 100).astype(np.int32),
        (RAMP * 5).astype(np.uint16),
    ],
)
def test_greys_in_no_usual_range_are_refused(values: np.ndarray) -> None:
    image = Image.fromarray(values)
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(StyleEngineError, match=r"has values from .* scale them, so that black is 0"):
            open_image(source)


def test_a_grey_of_16_bits_keeps_its_transparency() -> None:
    rows = (b"\0" + b"\x40\x01" * 10 + b"\x40\x02" * 10) * 20
    opened = open_image(png((20, 20), 16, 0, rows, chunk(b"tRNS", b"\x40\x01")))
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    assert opened.getpixel((15, 5)) == (64, 64, 64)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_is_found_in_every_depth(depth: int) -> None:
    values = np.zeros((16, 16, depth), np.uint8)
    values[:, 8:, -1] = 1  # the right half: value 1
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in values)
    opened = open_image(png((16, 16), depth, 0, rows, chunk(b"tRNS", b"\0\x01")))
    assert opened.getpixel((12, 5)) == (255, 255, 255)
    assert opened.getpixel((3, 5)) == (0, 0, 0)


def test_a_transparent_colour_of_16_bits_is_found() -> None:
    rows = (b"\0" + b"\x40\1\x41\1\x42\1" * 10 + b"\x80\0\0\0\0\0" * 10) * 20
    opened = open_image(png((20, 20), 16, 2, rows, chunk(b"tRNS", b"\x40\1\x41\1\x42\1")))
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    assert opened.getpixel((15, 5)) == (128, 0, 0)


DISC = (np.hypot(*np.mgrid[-20:20, -30:30]) < 15).astype(np.uint8) * 255


def strokes(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (60, 40), (*colour, 0))
    image.paste((*colour, 255), mask=Image.fromarray(DISC))
    return image


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (128, 128, 128)])
def test_strokes_of_any_colour_on_transparency_are_the_mask(colour: tuple[int, int, int]) -> None:
    image = strokes(colour)
    sources = [image, encoded(image, "PNG"), encoded(image, "WEBP", lossless=True), encoded(image, "TIFF")]
    sources += [np.asarray(image), image.convert("RGBa"), image.convert("PA")]
    palette = Image.fromarray(DISC // 255).convert("P")
    palette.putpalette([9, 9, 9, *colour])
    sources += [encoded(palette, "PNG", transparency=0), encoded(palette, "PNG", transparency=b"\0\xff")]
    sources.append(encoded(palette, "GIF", transparency=0))
    for source in sources:
        assert np.array_equal(np.asarray(open_mask(source)), DISC)


def test_grey_modes_with_transparency_are_masks_too() -> None:
    white = strokes((255, 255, 255)).convert("LA")
    assert np.array_equal(np.asarray(open_mask(encoded(white, "PNG"))), DISC)
    one = Image.fromarray(DISC).convert("1")
    assert np.array_equal(np.asarray(open_mask(one)), DISC)
    assert np.array_equal(np.asarray(open_mask(encoded(one, "PNG", transparency=0))), DISC)
    sixteen = Image.fromarray(DISC.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(open_mask(encoded(sixteen, "PNG"))), DISC)


def test_soft_strokes_keep_their_softness() -> None:
    soft = Image.new("RGBA", (256, 256), "black")
    soft.putalpha(Image.linear_gradient("L"))
    assert open_mask(soft).tobytes() == Image.linear_gradient("L").tobytes()


def test_the_opaque_part_of_a_cut_out_is_the_mask() -> None:
    cut = PICTURE.copy()
    cut.putalpha(Image.fromarray(DISC))
    assert np.array_equal(np.asarray(open_mask(cut)), DISC)


def test_the_luminance_counts_where_black_and_white_are_visible() -> None:
    grey = Image.fromarray(np.repeat(np.uint8([0, 255]), 30)[None].repeat(40, 0))
    layer = Image.merge("LA", (grey, Image.fromarray(DISC)))
    expected = np.minimum(np.asarray(grey), DISC)
    assert np.array_equal(np.asarray(open_mask(encoded(layer, "PNG"))), expected)


def test_an_opaque_mask_is_its_luminance() -> None:
    assert open_mask(encoded(PICTURE, "PNG")).tobytes() == PICTURE.convert("L").tobytes()
    assert open_mask(PICTURE.convert("RGBA")).tobytes() == PICTURE.convert("L").tobytes()
    assert open_mask(Image.new("RGBA", (20, 20), "black")).getextrema() == (0, 0)


def test_a_mask_without_strokes_is_black() -> None:
    assert open_mask(Image.new("RGBA", (20, 20), (255, 255, 255, 0))).getextrema() == (0, 0)


def test_only_formats_that_are_named_are_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object, **options: object) -> None:
        pytest.fail("another program was started")

    eps = encoded(PICTURE, "EPS")
    for call in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, call, fail)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    others = [eps, encoded(PICTURE, "PDF"), encoded(PICTURE, "ICNS"), encoded(PICTURE, "SGI"), encoded(PICTURE, "PCX")]
    others += [b"8BPS\0\x01" + bytes(100), b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'/>"]
    others += [b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20) + eps]
    for other in others:
        path = tmp_path / "a.jpg"
        path.write_bytes(other)
        for source in (other, path):
            with pytest.raises(
                StyleEngineError, match=r"is not an image that can be read\. Choose a PNG, JPEG, WebP, HEIC"
            ):
                open_image(source)


@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG2000", "PPM", "ICO", "TGA", "MPO"]
)
def test_every_format_that_is_named_opens(form: str) -> None:
    square = PICTURE.resize((48, 48))
    options = {"ICO": {"sizes": [(48, 48)]}}.get(form, {})
    stored = heic(square) if form == "HEIC" else encoded(square, form, **options)
    assert mean_difference(open_image(stored), square) < 12


@pytest.mark.parametrize("bitmap", ["png", "bmp"])
def test_of_an_icon_the_largest_picture_is_taken(bitmap: str) -> None:
    stored = encoded(strokes((255, 0, 0)).resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)], bitmap_format=bitmap)
    opened = open_image(stored)
    assert opened.size == (64, 64)
    assert opened.getpixel((32, 32)) == (255, 0, 0)
    assert opened.getpixel((1, 1)) == (255, 255, 255)


def test_photographs_taken_by_phones_open() -> None:
    stored = heic(PICTURE, icc_profile=profile())
    assert mean_difference(open_image(stored), open_image(encoded(PICTURE, "PNG", icc_profile=profile()))) < 8
    for damaged in (stored[:200], stored[: len(stored) // 2], stored[:60] + b"?" * 60 + stored[120:]):
        with pytest.raises(StyleEngineError, match=r"is not an image|could not be decoded"):
            open_image(damaged)


def icon(content: bytes, bits: int = 32) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, bits, len(content), 22) + content


def gif(width: int, height: int, frame: tuple[int, int]) -> bytes:
    """A GIF whose first frame is to be cleared after it, for which memory is allocated at once."""
    control = b"\x21\xf9\x04\x08\0\0\0\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + control
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x08\x02\0\0\0;"
    )


def bitmap(width: int, height: int, bits: int = 24) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)


ANIMATED = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(
    b"fcTL", struct.pack(">IIIIIHHBB", 0, 60000, 60000, 0, 0, 1, 1, 1, 0)
)
ENORMOUS = {
    "animated PNG": png((60000, 60000), 8, 6, b"\0", ANIMATED),
    "GIF": gif(60000, 60000, (60000, 60000)),
    "frame of a GIF": gif(20, 20, (60000, 60000)),
    "BMP": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bitmap(30000, 30000),
    "BMP from below": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bitmap(30000, -30000),
    "icon with a PNG": icon(png((30000, 30000), 8, 6, b"\0")),
    "icon with a PNG of 81 megapixels": icon(png((9000, 9000), 8, 6, b"\0")),
    "icon with a bitmap": icon(bitmap(10000, 20000, 32)),
    "PPM": b"P6 60000 60000 255\n",
    "TGA": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 60000, 60000, 24, 0),
    "tiles of a TIFF": tiff((322, 4, 1, 40000), (323, 4, 1, 40000), (324, 4, 1, 8), (325, 4, 1, 7200)),
}


@pytest.mark.parametrize("content", ENORMOUS.values(), ids=ENORMOUS.keys())
def test_sizes_in_headers_are_checked_before_memory_is_allocated(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(Image.core, "fill", lambda *arguments: pytest.fail("memory was taken"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StyleEngineError, match=r"megapixels|is not an image that can be read"):
            open_image(content)


def test_pillow_prints_no_warning_of_its_own(tmp_path: Path) -> None:
    paths = []
    for name, content in {
        "bomb.png": png_claiming(12000, 12000),
        "frame.gif": gif(20, 20, (12000, 12000)),
        "tag.tif": tiff((34665, 4, 1, 9), (282, 2, 4, b"abc\0")),
    }.items():
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    program = (  # the package without what it imports, which takes seconds
        "import sys, types\n"
        "sys.modules['styleengine'] = package = types.ModuleType('styleengine')\n"
        "package.__path__ = sys.argv[1:2]\n"
        "from styleengine.image_files import decoder\n"
        "for path in sys.argv[2:]:\n"
        "    image = decoder(open(path, 'rb').read())\n"
        "    print(image.size)\n"
        "    image.size > (1000, 1000) or image.load()\n"
    )
    package = str(Path(image_files.__file__).parent)
    done = subprocess.run([sys.executable, "-c", program, package, *paths], capture_output=True, text=True, check=True)
    assert done.stdout == "(12000, 12000)\n(12000, 12000)\n(60, 40)\n"
    assert done.stderr == ""


SOURCES: dict[str, Callable[[Path], object]] = {
    "a path": lambda path: path,
    "its name": lambda path: str(path),
    "bytes": lambda path: path.read_bytes(),
    "a bytearray": lambda path: bytearray(path.read_bytes()),
    "a memoryview": lambda path: memoryview(path.read_bytes()),
    "a memoryview of a part": lambda path: memoryview(b"..." + path.read_bytes())[3:],
    "a BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "an open file": lambda path: path.open("rb"),
    "an unbuffered file": lambda path: path.open("rb", buffering=0),
    "a PIL image": lambda path: Image.open(path),
    "an array": lambda path: np.asarray(Image.open(path)),
}


@pytest.mark.parametrize("given", SOURCES.values(), ids=SOURCES.keys())
def test_every_source_is_accepted_and_can_be_reused(given: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    source = given(path)
    if hasattr(source, "seek") and not isinstance(source, Image.Image):
        source.seek(7)  # type: ignore[attr-defined] - files have it
    for _ in range(2):
        assert open_image(source).tobytes() == PICTURE.tobytes()  # type: ignore[arg-type]
    assert not getattr(source, "closed", False)
    if hasattr(source, "close"):
        source.close()


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        with os.fdopen(writing, "wb") as other_end:
            other_end.write(encoded(PICTURE.resize((30, 20)), "PNG"))
        assert open_image(source).size == (30, 20)


def test_an_object_with_only_a_read_method_is_accepted() -> None:
    class Download:
        def __init__(self) -> None:
            self.content = io.BytesIO(encoded(PICTURE, "PNG"))

        def read(self, size: int = -1) -> bytes:
            return self.content.read(min(size, 100))

    assert open_image(Download()).tobytes() == PICTURE.tobytes()  # type: ignore[arg-type]


def test_avif_opens_without_the_library_for_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr(image_files, "_register_heif", missing)
    assert open_image(encoded(PICTURE, "AVIF")).size == PICTURE.size


def test_what_cannot_be_read_as_a_file_gets_a_sentence(tmp_path: Path) -> None:
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise RuntimeError("anything")

    path = tmp_path / "picture.png"
    PICTURE.save(path)
    closed = path.open("rb")
    closed.close()
    with path.open(encoding="latin-1") as as_text, (tmp_path / "new.png").open("wb") as for_writing:
        for source in (as_text, for_writing, closed, io.StringIO("text"), Broken()):
            with pytest.raises(StyleEngineError, match=r"The style image cannot be read: open the file .*“rb”"):
                open_image(source, "style image")  # type: ignore[arg-type]


def test_files_far_too_large_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image_files, "MOST_BYTES", 2**21)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**30)
    with path.open("rb") as file:
        for source in (path, file):
            with pytest.raises(StyleEngineError, match="has more than 2 MB"):
                open_image(source)
        assert file.tell() < 2**23


ODD_NAMES = ["a\x00b.png", "x" * 300 + ".png", "\udcff\udcfe.png", "line\nbreak\x1b[31m.png", "\u202egnp.png", " ", "~"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_get_a_sentence_that_can_be_printed(name: str, tmp_path: Path) -> None:
    path = os.path.join(tmp_path, name)
    with pytest.raises(StyleEngineError, match="does not exist or is not a file") as caught:
        open_image(path)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.encode("utf-8")
    assert len(sentence) < 200
    assert str(tmp_path) not in sentence


def test_pictures_with_odd_names_open(tmp_path: Path) -> None:
    for name in (b"\xff\xfe.png", "ü λ 画.png".encode(), b"new\nline.png"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.write_bytes(encoded(PICTURE, "PNG"))
        assert open_image(path).tobytes() == open_image(str(path)).tobytes() == PICTURE.tobytes()
        assert save_png(PICTURE, path, {}) == path
        path.write_bytes(b"damaged")
        with pytest.raises(StyleEngineError) as caught:
            open_image(path)
        assert str(caught.value).isprintable()


def test_a_name_that_is_not_utf8_survives_in_the_metadata(tmp_path: Path) -> None:
    record = {"name": os.fsdecode(b"caf\xe9.png"), "other": "λ → “ü”"}
    path = save_png(PICTURE, tmp_path / "out.png", {"styleengine": json.dumps(record, ensure_ascii=False)})
    with Image.open(path) as image:
        assert json.loads(image.info["styleengine"]) == record


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    (tmp_path / "folder.png").mkdir()
    for path in (pipe, "/dev/zero", "/dev/stdin", tmp_path / "folder.png", tmp_path / "folder.png" / "a.png"):
        with pytest.raises(StyleEngineError, match="does not exist or is not a file"):
            open_image(path)


def test_a_file_that_may_not_be_read_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "secret.png"))

    (tmp_path / "secret.png").write_bytes(encoded(PICTURE, "PNG"))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(StyleEngineError, match=r"secret\.png may not be read") as caught:
        open_image(tmp_path / "secret.png")
    assert str(tmp_path) not in str(caught.value)


def test_no_sentence_contains_a_folder(tmp_path: Path) -> None:
    failures: list[Callable[[], object]] = [lambda: open_image(tmp_path / "gone.png")]
    for content, _ in BAD.values():
        path = tmp_path / f"{len(failures)}.png"
        path.write_bytes(content)
        failures.append(lambda path=path: open_image(path))
        failures.append(lambda path=path: open_mask(str(path)))
    failures.append(lambda: save_png(PICTURE, tmp_path / "gone" / "out.png", {}))
    failures.append(lambda: save_png(PICTURE, tmp_path / "out.jpg", {}))
    failures.append(lambda: save_png(PICTURE, tmp_path / f"{'x' * 250}.png", {}))
    failures.append(lambda: save_png(PICTURE, tmp_path / "a\0b.png", {}))
    for failure in failures:
        with pytest.raises(StyleEngineError) as caught:
            failure()
        assert str(tmp_path) not in str(caught.value)
        assert str(tmp_path.parent.name) not in str(caught.value)


def test_a_decoders_message_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> None:
        raise OSError("/srv/secret/libpng said no")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", broken)
    with pytest.raises(StyleEngineError, match="could not be decoded") as caught:
        open_image(encoded(PICTURE, "PNG"))
    assert "secret" not in str(caught.value)
