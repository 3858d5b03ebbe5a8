"""Pictures in and out: opened, checked and sized once, at the door.

Inside the package a picture is a float32 tensor (batch, 3, height, width) in [−1, 1].
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from styleengine.errors import StyleEngineError

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

SMALLEST_SIDE = 16
MOST_PIXELS = 50_000_000
MOST_WORKING_PIXELS = 4_000_000
MOST_ELONGATED = 8
LARGEST_STRETCH = 1.02  # of a mask: less is rounding


def open_image(source: ImageSource, what: str = "image") -> Image.Image:
    """The picture upright, as 8-bit sRGB without transparency (which is laid on white).

    Takes a path, encoded bytes, a PIL image of any mode, or an array (height, width[, 1, 3 or 4])
    of uint8, uint16 or floats in [0, 1]. `what` names the picture in error messages.

    Raises StyleEngineError for what cannot be read, is smaller than 16 pixels on a side, has more
    than 50 megapixels or is more than eight times as long as wide.
    """
    image = _opened(source, what)
    check_size(image.size, what)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        image = _to_srgb(image)
        image = _to_eight_bits(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            image = Image.alpha_composite(white, rgba)
        return image.convert("RGB")
    except Exception as error:  # damaged files make decoders raise anything, RuntimeError included
        raise StyleEngineError(
            f"The {what} could not be decoded ({error}): it may be cut off. Save it again as PNG or JPEG."
        ) from error


def open_mask(source: ImageSource, what: str = "mask") -> Image.Image:
    """A mask as 8-bit grey ("L"), white = 255 = inside; colour becomes luminance. As `open_image`."""
    return open_image(source, what).convert("L")


def check_size(size: tuple[int, int], what: str) -> None:
    """StyleEngineError for fewer than 16 pixels on a side, too many in all, or too long a shape."""
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
            f"At size {size} this picture would be worked on at {width}×{height} pixels, which is more "
            f"than {MOST_WORKING_PIXELS / 1e6:.0f} megapixels. Choose a smaller size."
        )
    return width, height


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at exactly (width, height): scaled evenly to cover it, the overhang cut off."""
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def lay_over(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask ("L") at exactly (width, height), stretched: its corners lie on the content's corners."""
    return mask if mask.size == size else mask.resize(size, Image.Resampling.LANCZOS)


def stretch_note(mask: Image.Image, content: Image.Image) -> str:
    """A sentence where the mask's aspect ratio is clearly not the content's, else nothing."""
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
    """SHA-256 over mode, size and pixels: equal for equal pictures, however they were stored."""
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def save_png(image: Image.Image, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Path:
    """Writes a PNG with text metadata; the file appears whole or not at all."""
    path = check_output(path)
    text = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        text.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise StyleEngineError(f"{path} could not be written ({error.strerror}): save elsewhere.") from error
    return path


def check_output(path: str | os.PathLike[str], suffix: str = ".png") -> Path:
    """The path, if a result can be saved there; StyleEngineError for another suffix or no folder."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        kind = suffix.removeprefix(".").upper()
        raise StyleEngineError(f"Results are saved as {kind}: name the file {path.stem}{suffix}, not {path.name}.")
    if not path.parent.is_dir():
        raise StyleEngineError(f"There is no folder {path.parent}: make it first, or save elsewhere.")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and moves it there: a reader never sees half a file."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _opened(source: ImageSource, what: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, what)
    if isinstance(source, bytes):
        name, stream = f"The {what}", io.BytesIO(source)
        empty = not source
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name, stream = f"The {what} {path.name}", path
        if not path.is_file():
            raise StyleEngineError(f"{name} does not exist or is not a file: check the path {path}.")
        empty = path.stat().st_size == 0
    else:
        raise StyleEngineError(f"No {what} was given. Choose a picture, such as a PNG or JPEG.")
    if empty:
        raise StyleEngineError(f"{name} is empty (0 bytes). Choose a picture, such as a PNG or JPEG.")
    try:
        return Image.open(stream)
    except Image.DecompressionBombError as error:
        raise StyleEngineError(
            f"{name} has far more than {MOST_PIXELS / 1e6:.0f} megapixels. Scale it down first."
        ) from error
    except Exception as error:  # as in open_image
        raise StyleEngineError(f"{name} is not a picture that can be read. Choose a PNG, JPEG or WebP file.") from error


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    shaped = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if shaped.ndim not in (2, 3) or (shaped.ndim == 3 and shaped.shape[-1] not in (3, 4)) or 0 in shaped.shape:
        raise StyleEngineError(
            f"The {what} is an array of shape {array.shape}; it must be (height, width), with 3 or 4 channels last."
        )
    if np.issubdtype(shaped.dtype, np.floating):
        if not np.isfinite(shaped).all() or shaped.min() < 0 or shaped.max() > 1:
            raise StyleEngineError(f"The {what} is an array of floats, which must lie in [0, 1].")
        shaped = (shaped * 255).round()
    elif shaped.dtype == np.uint16:
        shaped = shaped >> 8
    elif shaped.dtype == np.bool_:
        shaped = shaped * 255
    elif shaped.dtype != np.uint8:
        raise StyleEngineError(f"The {what} is an array of {array.dtype}; use uint8, uint16, bool or floats in [0, 1].")
    return Image.fromarray(np.ascontiguousarray(shaped.astype(np.uint8)))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours in the sRGB sense, where the file carries a profile that can be applied."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in {"RGB", "CMYK", "L"}:
        return image
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):  # a damaged profile: the bare numbers are the best there is
        return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greys, which PIL's own conversion would clip, scaled to 8 bits."""
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        top = 65535 if image.mode != "F" or values.max() > 1 else 1
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    return image
