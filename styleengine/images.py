"""Opens, checks, resizes and saves images.

Inside the package an image is a float32 tensor (batch, 3, height, width) in [−1, 1].
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from styleengine.errors import StyleEngineError
from styleengine.image_files import ADVICE, EncodedSource, decoder, encoded_content, is_encoded, shown_name

ImageSource: TypeAlias = EncodedSource | Image.Image | np.ndarray

SMALLEST_SIDE = 16
MOST_PIXELS = 50_000_000
MOST_WORKING_PIXELS = 4_000_000
MOST_ELONGATED = 8
LARGEST_STRETCH = 1.02  # of a mask; less is a rounding difference

WHITES = (1, 255, 1023, 4095, 65535)  # the usual maxima: binary (or float), 8, 10, 12 and 16 bits
OVERSHOOT = 0.1  # share of white by which resampled floats may exceed their range
DARKEST_WHITE = 1 / 16
TURNS: dict[Any, Image.Transpose] = {  # by Exif's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROFILED = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # modes, and the colour spaces of their profiles


def open_image(source: ImageSource, what: str = "image") -> Image.Image:
    """The image upright, as 8-bit sRGB; transparency is laid on white.

    Takes a path, encoded bytes, an open binary file (read from its start and left open), a PIL image
    of any mode, or an array (height, width[, 1, 3 or 4]) of uint8, uint16, bool or floats in [0, 1].
    Greys of more than eight bits are scaled by the smallest of the usual ranges (`WHITES`) that contains
    them. `what` names the image in error messages, which never contain a folder.

    Raises StyleEngineError if the image cannot be read, is smaller than 16 pixels on a side, has more
    than 50 megapixels, is more than eight times as long as wide, or has greys in no usual range.
    """
    colours, alpha = _colours(source, what)
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def open_mask(source: ImageSource, what: str = "mask") -> Image.Image:
    """A mask as 8-bit grey ("L"), white = 255 = inside; colour becomes luminance. As `open_image`.

    For an image with transparency the mask is its alpha, whatever the colour: strokes on a transparent
    layer, or a cutout. Only if the visible part is itself a mask, that is grey from black to white, the
    mask is luminance times alpha.
    """
    colours, alpha = _colours(source, what)
    luminance = colours.convert("L")
    if alpha is None or alpha.getextrema() == (255, 255):
        return luminance
    return ImageChops.multiply(luminance, alpha) if _is_mask(colours, alpha) else alpha


def check_size(size: tuple[int, int], what: str) -> None:
    """Raises StyleEngineError for fewer than 16 pixels on a side, too many pixels, or too long a shape."""
    width, height = size
    shown = f"{width}×{height} pixels"
    if width * height > MOST_PIXELS:
        raise StyleEngineError(
            f"The {what} has {shown}, more than {MOST_PIXELS / 1e6:.0f} megapixels. Scale it down first."
        )
    if min(size) < SMALLEST_SIDE:
        raise StyleEngineError(f"The {what} has only {shown}; both sides must have at least {SMALLEST_SIDE}.")
    if max(size) > MOST_ELONGATED * min(size):
        raise StyleEngineError(
            f"The {what} has {shown}: more than {MOST_ELONGATED} times as long as wide. Crop it first."
        )


def working_size(image: Image.Image, size: int, multiple: int) -> tuple[int, int]:
    """(width, height) with the image's aspect ratio, the shorter side `size`, both of `multiple`."""
    scale = size / min(image.size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in image.size)
    if width * height > MOST_WORKING_PIXELS:
        raise StyleEngineError(
            f"At size {size} this image would be processed at {width}×{height} pixels, which is more "
            f"than {MOST_WORKING_PIXELS / 1e6:.0f} megapixels. Choose a smaller size."
        )
    return width, height


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at exactly (width, height): scaled to cover it, then cropped."""
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def lay_over(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask ("L") stretched to exactly (width, height), so that it covers the whole content."""
    return mask if mask.size == size else mask.resize(size, Image.Resampling.LANCZOS)


def stretch_note(mask: Image.Image, content: Image.Image) -> str:
    """A sentence if the mask's aspect ratio clearly differs from the content's, else an empty string."""
    stretch = (mask.width / mask.height) / (content.width / content.height)
    if 1 / LARGEST_STRETCH <= stretch <= LARGEST_STRETCH:
        return ""
    return (
        f"The mask has {mask.width}×{mask.height} pixels, the content {content.width}×{content.height}: "
        "it was stretched over the whole content."
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image → float32 (1, 3, height, width) in [−1, 1]."""
    array = np.asarray(image.convert("RGB"), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


def to_images(tensor: torch.Tensor) -> list[Image.Image]:
    """(batch, 3, height, width) in [−1, 1], values beyond it clipped → RGB images."""
    pixels = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def content_hash(image: Image.Image) -> str:
    """SHA-256 over mode, size and pixels: equal for equal images, whatever the file format."""
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def save_png(image: Image.Image, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Path:
    """Writes a PNG with text metadata, atomically.

    Text that is not UTF-8, as in some file names, is written as JSON escapes.
    """
    path = check_output(path)
    text = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        text.add_itxt(key, value.encode("utf-8", "backslashreplace"))
    content = png(image, pnginfo=text)
    try:
        write_whole(path, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name is possible"
        raise StyleEngineError(f"{shown_name(path)} could not be written ({reason}): save elsewhere.") from error
    return path


def png(image: Image.Image, **options: Any) -> bytes:
    """The image as a PNG, without the metadata of the file that it was read from."""
    bare, buffer = image.copy(), io.BytesIO()
    bare.info = {}
    bare.save(buffer, "PNG", **options)
    return buffer.getvalue()


def check_output(path: str | os.PathLike[str], suffix: str = ".png") -> Path:
    """The path, if a result can be saved there. StyleEngineError for another suffix or a missing folder."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        kind = suffix.removeprefix(".").upper()
        better = shown_name(f"{path.stem}{suffix}")
        raise StyleEngineError(f"Results are saved as {kind}: name the file {better}, not {shown_name(path)}.")
    if not path.parent.is_dir():
        raise StyleEngineError(f"There is no folder {shown_name(path.parent)}: make it first, or save elsewhere.")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` atomically: to a temporary file beside `path`, which is then renamed."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _colours(source: ImageSource, what: str) -> tuple[Image.Image, Image.Image | None]:
    """The image upright in sRGB ("RGB"), and its alpha ("L") if it has any."""
    image, name = _opened(source, what)
    check_size(image.size, what)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, what)
    try:
        image.load()
        check_size(image.size, what)
        turn = _turn(image)
        profile = image.info.get("icc_profile") if image.mode != "LAB" else None  # LAB needs no profile
        image = _to_eight_bits(image.transpose(turn) if turn is not None else image, what)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = _to_srgb(_without_alpha(image), profile)
    except StyleEngineError:
        raise
    except Exception as error:  # decoders raise any exception for damaged files
        raise StyleEngineError(
            f"{name} could not be decoded (it may be cut off or damaged). Save it again as PNG or JPEG."
        ) from error
    colours.info = {}  # removes metadata that would be applied again
    return colours, alpha


def _opened(source: ImageSource, what: str) -> tuple[Image.Image, str]:
    """The image, not yet decoded if it was encoded, and its name in messages."""
    if isinstance(source, Image.Image):
        return source, f"The {what}"
    if isinstance(source, np.ndarray):
        return _from_array(source, what), f"The {what}"
    if not is_encoded(source):
        raise StyleEngineError(f"No {what} was given. Choose an image, such as a PNG or JPEG.")
    encoded, name = encoded_content(source, what)
    try:
        image = decoder(encoded)
    except Image.DecompressionBombError as error:
        raise StyleEngineError(
            f"{name} has far more than {MOST_PIXELS / 1e6:.0f} megapixels. Scale it down first."
        ) from error
    if image is None:
        raise StyleEngineError(f"{name} is not an image that can be read. {ADVICE}")
    return image, name


def _check_tiles(image: TiffImagePlugin.TiffImageFile, what: str) -> None:
    """Rejects huge tiles: a TIFF file's tiles are decoded completely, however small the image."""
    width, height = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if not isinstance(width, int) or not isinstance(height, int) or width * height > MOST_PIXELS:
        raise StyleEngineError(f"The {what} has tiles of more than {MOST_PIXELS / 1e6:.0f} megapixels. Save it again.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transpose for the image's Exif orientation; None if that cannot be read."""
    with contextlib.suppress(Exception):  # metadata may contain anything
        value = image.getexif().get(ExifTags.Base.Orientation)
        return TURNS.get(value[0] if isinstance(value, (tuple, bytes)) else value)
    return None


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    shaped = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if shaped.ndim not in (2, 3) or (shaped.ndim == 3 and shaped.shape[-1] not in (3, 4)) or 0 in shaped.shape:
        raise StyleEngineError(
            f"The {what} is an array of shape {array.shape}; it must be (height, width), with 3 or 4 channels last."
        )
    check_size((shaped.shape[1], shaped.shape[0]), what)
    if np.issubdtype(shaped.dtype, np.floating):
        if not np.isfinite(shaped).all() or shaped.min() < 0 or shaped.max() > 1:
            raise StyleEngineError(f"The {what} is an array of floats, which must lie in [0, 1].")
        shaped = (shaped * 255).round()
    elif shaped.dtype.kind == "u" and shaped.dtype.itemsize == 2:
        shaped = _scaled(shaped, what)
    elif shaped.dtype == np.bool_:
        shaped = shaped * 255
    elif shaped.dtype != np.uint8:
        raise StyleEngineError(f"The {what} is an array of {array.dtype}; use uint8, uint16, bool or floats in [0, 1].")
    return Image.fromarray(np.ascontiguousarray(shaped.astype(np.uint8)))


def _to_eight_bits(image: Image.Image, what: str) -> Image.Image:
    """16-bit, 32-bit and float greys, which Pillow's own conversion would clip, scaled to 8 bits."""
    if image.mode not in {"I", "F"} and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray(_scaled(values, what))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return grey


def _scaled(values: np.ndarray, what: str) -> np.ndarray:
    """Values of any range as uint8, 255 = the smallest of `WHITES` that contains them all.

    Raises StyleEngineError if no range fits: for values below zero, above 16 bits or NaN, or with a maximum
    below `DARKEST_WHITE` of the range.
    """
    low, high = float(values.min()), float(values.max())
    slack = OVERSHOOT if values.dtype.kind == "f" else 0
    white = next((white for white in WHITES if high <= white * (1 + slack)), None)
    if white is None or low < -slack * white or (white > 1 and high < white * DARKEST_WHITE):
        raise StyleEngineError(
            f"The {what} has values from {low:g} to {high:g}: "
            "scale them, so that black is 0 and white is 1, 255 or 65535."
        )
    return (np.asarray(values, np.float32) * np.float32(255 / white)).clip(0, 255).round().astype(np.uint8)


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours without alpha, in a mode that colour profiles apply to."""
    if image.mode in PROFILED:
        return image
    grey = image.mode in {"1", "LA", "La"}
    if image.has_transparency_data:
        image = image.convert("LA" if grey else "RGBA")
    return image.convert("L" if grey else "RGB")


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """The colours in sRGB ("RGB"), converted by the profile if it is valid for the image's colour space."""
    if isinstance(profile, bytes) and profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile is ignored
            embedded = ImageCms.core.profile_frombytes(profile)
            if embedded.xcolor_space == PROFILED[image.mode]:
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB") or image.convert("RGB")
    return image.convert("RGB")


def _is_mask(colours: Image.Image, alpha: Image.Image) -> bool:
    """Whether the visible pixels are grey, with both dark and bright parts."""
    opacity, pixels = np.asarray(alpha), np.asarray(colours)
    visible = pixels[opacity >= max(1, int(opacity.max()) / 2)]
    if not visible.size:
        return False
    brightest = visible.max(-1)
    return int((brightest - visible.min(-1)).max()) < 32 and int(brightest.min()) < 64 and int(brightest.max()) > 191
