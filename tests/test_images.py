"""The door for pictures: what comes in becomes the right picture or a sentence."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from skimage import data

from styleengine import StyleEngineError
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

PICTURE = Image.fromarray(data.coffee()).resize((60, 40))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of 70 bytes whose header claims any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


GREY = np.linspace(0, 65535, 40 * 60).reshape(40, 60)

BAD = {
    "text": (b"This is no picture, whatever its name says.", "is not a picture that can be read"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "has only 1×1 pixels; both sides must have at least 16"),
    "thin": (encoded(Image.new("RGB", (200, 15)), "PNG"), "has only 200×15 pixels"),
    "claims 20000×20000": (png_claiming(20000, 20000), "50 megapixels. Scale it down first"),
    "claims 8000×7000": (png_claiming(8000, 7000), "has 8000×7000 pixels, more than 50 megapixels"),
    "elongated": (encoded(Image.new("RGB", (16 * 8 + 1, 16)), "PNG"), "more than 8 times as long as wide"),
    "cut JPEG": (encoded(PICTURE, "JPEG")[:900], "could not be decoded .*cut off"),
    "cut PNG": (encoded(PICTURE, "PNG")[:900], "could not be decoded"),
    "header alone": (encoded(PICTURE, "JPEG")[:20], "is not a picture|could not be decoded"),
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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_enormous_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    began = time.perf_counter()
    for side in (7100, 9500, 20000, 2**31 - 1):
        with pytest.raises(StyleEngineError, match="megapixels"):
            open_image(png_claiming(side, side))
    assert time.perf_counter() - began < 1


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
    body = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


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
def test_transparency_is_laid_on_white(form: str) -> None:
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
def test_pictures_that_are_turned_by_exif_come_upright(orientation: int) -> None:
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
    with pytest.raises(StyleEngineError, match=r"worked on at 12288×1536 pixels.*Choose a smaller size"):
        working_size(Image.new("L", (128, 16)), 1536, 8)


def test_fit_covers_without_distortion() -> None:
    circle = np.hypot(*np.mgrid[-50:50, -100:100]) < 40
    fitted = np.asarray(fit(Image.fromarray(circle.astype(np.uint8) * 255), (50, 50)))
    height, width = (np.ptp(places) for places in np.nonzero(fitted > 128))
    assert abs(int(width) - int(height)) <= 1


def test_pixels_survive_the_way_to_tensors_and_back() -> None:
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
