"""Reads encoded images and selects their decoder, before any pixel is decoded.

A file is read once and completely, up to `MOST_BYTES`. For PNG, JPEG and TIFF, Pillow gets only the data of
the pixels; colour profile and orientation are parsed here, so that unreadable metadata is dropped.
"""

import contextlib
import functools
import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeGuard

from PIL import BmpImagePlugin, IcoImagePlugin, Image

from styleengine.errors import StyleEngineError

EncodedSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# The only formats decoded; none of the decoders runs another program. TGA has no signature, so it is last.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO", "TGA")
ADVICE = "Choose a PNG, JPEG, WebP, HEIC, AVIF, GIF, TIFF or BMP file."

MOST_BYTES = 512 * 2**20
LARGEST_METADATA = 16 * 2**20  # bytes of a colour profile or of Exif data, unpacked
LONGEST_NAME = 80
BLOCK = 2**20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
JPEG_SIGNATURE = b"\xff\xd8\xff"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MOST_TAGS = 2**16 - 1
TIFF_SIDE_MATTERS = {330, 700, 34665, 34853, 40965}  # further directories (thumbnails, Exif, GPS) and XMP
ICON_SIGNATURE = b"\0\0\1\0"
LARGEST_ICON = 256

# Problems that Pillow warns of are either ignored or reported as errors.
warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")


def is_encoded(source: object) -> TypeGuard[EncodedSource]:
    """Whether `encoded_content` accepts this type. An empty path is not accepted."""
    return isinstance(source, (bytes, bytearray, memoryview, os.PathLike)) or (
        source != "" if isinstance(source, str) else hasattr(source, "read")
    )


def encoded_content(source: EncodedSource, what: str) -> tuple[bytes, str]:
    """The bytes of an image, and its name in messages, such as "The style image waves.jpg".

    An open file is read from its start (a pipe from its position) and left open.
    Raises StyleEngineError if it is not a file, cannot be read, is empty, or has more than 512 MB.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, content = f"The {what}", bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = f"The {what} {shown_name(path)}".rstrip()
        content = _file_content(path, name)
    else:
        name = f"The {what}"
        content = _stream_content(source, name)
    if not content:
        raise StyleEngineError(f"{name} is empty (0 bytes). Choose an image, such as a PNG or JPEG.")
    return content, name


def shown_name(path: str | os.PathLike[str]) -> str:
    """A file's name without its folder, shortened, with "?" for unprintable characters."""
    name = "".join(letter if letter.isprintable() else "?" for letter in Path(os.fsdecode(path)).name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def decoder(encoded: bytes) -> Image.Image | None:
    """The image with its header read and no pixel decoded; None if its format is not in `FORMATS`.

    Metadata (`info`, `getexif`) that could make loading fail is removed.
    Raises Image.DecompressionBombError if a decoder rejects the size in the header.
    """
    info: dict[str, Any] = {}
    if encoded.startswith(PNG_SIGNATURE):
        encoded, info = png_pixels(encoded)
    elif encoded.startswith(JPEG_SIGNATURE):
        encoded, info = jpeg_pixels(encoded)
    elif encoded.startswith(ICON_SIGNATURE):
        with contextlib.suppress(Exception):
            return _icon(encoded)
        return None
    elif encoded.startswith(TIFF_SIGNATURES):
        with contextlib.suppress(struct.error, OverflowError):
            encoded = tiff_pixels(encoded)
    image = _identified(encoded)
    if image is None and encoded[4:8] == b"ftyp":  # the AVIF decoder reads Exif data on opening
        image = _identified(encoded.replace(b"Exif", b"free"))
    if image:
        image.info |= info
    return image


def png_pixels(encoded: bytes) -> tuple[bytes, dict[str, Any]]:
    """A PNG reduced to its pixel data, and the metadata that affects its display.

    The metadata is as in Pillow's `info`: "icc_profile", "exif", "Raw profile type exif" and "xmp". Chunks with
    a wrong checksum are dropped, as are those of an animation: its first frame remains.
    """
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    info: dict[str, Any] = {}
    view, place = memoryview(encoded), len(PNG_SIGNATURE)
    while place + 8 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, place)
        end = place + 12 + length
        if not name.isalpha():
            break
        if name in PNG_PIXELS:
            kept.append(view[place:end])
        elif end <= len(encoded) and zlib.crc32(view[place + 4 : end - 4]) == int.from_bytes(view[end - 4 : end]):
            body = bytes(view[place + 8 : end - 4])
            if name == b"tRNS" and place > len(PNG_SIGNATURE):  # bit depth and colour type are in the first chunk
                kept.append(_transparency_chunk(body, *encoded[24:26]))
            else:
                _note_png_chunk(name, body, info)
        place = end
    kept.append(view[place:])
    return b"".join(kept), info


def jpeg_pixels(encoded: bytes) -> tuple[bytes, dict[str, Any]]:
    """A JPEG reduced to its pixel data, and the metadata that affects its display, as in `png_pixels`."""
    kept: list[bytes | memoryview] = [encoded[:2]]
    info: dict[str, Any] = {}
    profile: list[bytes] = []
    view, place = memoryview(encoded), 2
    while encoded[place : place + 1] == b"\xff" and place + 4 <= len(encoded):
        marker, end = encoded[place + 1], place + 2 + int.from_bytes(view[place + 2 : place + 4])
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or end > len(encoded):  # start of the scan, or an unknown marker
            break
        body = bytes(view[place + 4 : end])
        jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        adobe = marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        if jfif or adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # these two define the colours
            kept.append(view[place:end])
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            info.setdefault("exif", body)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            info.setdefault("xmp", body)
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile.append(body[12:])
        place = end
    profile.sort()
    if profile and profile[0][1:2] and profile[0][1] == len(profile):
        info["icc_profile"] = b"".join(part[2:] for part in profile)
    kept.append(view[place:])
    return b"".join(kept), info


def tiff_pixels(encoded: bytes) -> bytes:
    """A TIFF reduced to its first page, with only the entries whose values lie inside the file.

    Exif, GPS and XMP are removed: Pillow reads them while decoding, and orientation is a separate entry.
    Raises struct.error if the file is too short to have a page.
    """
    order, big = "<" if encoded.startswith(b"II") else ">", b"+" in encoded[2:4]
    count_form, entry_form, pointer_form = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    count_form, entry_form, pointer_form = (order + form for form in (count_form, entry_form, pointer_form))
    entry_size, inline = struct.calcsize(entry_form), struct.calcsize(pointer_form)
    (page,) = struct.unpack_from(pointer_form, encoded, 8 if big else 4)
    (count,) = struct.unpack_from(count_form, encoded, page)
    first = page + struct.calcsize(count_form)
    last = min(first + min(count, MOST_TAGS) * entry_size, len(encoded) - entry_size + 1)
    kept = []
    for place in range(first, last, entry_size):
        tag, kind, values, where = struct.unpack_from(entry_form, encoded, place)
        size = values * TIFF_SIZES.get(kind, len(encoded) + 1)
        inside = size <= inline or struct.unpack(pointer_form, where)[0] + size <= len(encoded)
        if inside and tag not in TIFF_SIDE_MATTERS:
            kept.append(encoded[place : place + entry_size])
    folder = struct.pack(count_form, len(kept)) + b"".join(kept) + bytes(inline)
    return encoded[:page] + folder + encoded[page + len(folder) :]


def _file_content(path: str, name: str) -> bytes:
    """The content of a regular file. Devices and pipes are rejected: reading them may never end."""
    missing = f"{name} does not exist or is not a file: check where it is."
    try:
        file = open(path, "rb") if stat.S_ISREG(os.stat(path).st_mode) else None  # noqa: SIM115 - closed below
    except PermissionError as error:
        raise StyleEngineError(f"{name} may not be read: check the file's permissions.") from error
    except (OSError, ValueError) as error:
        raise StyleEngineError(missing) from error
    if not file:
        raise StyleEngineError(missing)
    with file:
        return _read(file, name)


def _stream_content(stream: BinaryIO, name: str) -> bytes:
    try:
        with contextlib.suppress(OSError, AttributeError):  # a pipe cannot seek
            stream.seek(0)
        return _read(stream, name)
    except StyleEngineError:
        raise
    except Exception as error:  # file-like objects may raise anything
        raise StyleEngineError(f"{name} cannot be read: open the file for reading, in binary mode (“rb”).") from error


def _read(stream: BinaryIO, name: str) -> bytes:
    blocks, size = [], 0
    while block := stream.read(BLOCK):
        blocks.append(block)
        size += len(block)
        if size > MOST_BYTES:
            raise StyleEngineError(f"{name} has more than {MOST_BYTES // 2**20} MB. Save it as JPEG or scale it down.")
    return b"".join(blocks)


def _identified(encoded: bytes) -> Image.Image | None:
    """As `Image.open(…, formats=FORMATS)`, without its size limit: see `check_size`."""
    Image.init()
    if encoded[4:8] == b"ftyp":
        with contextlib.suppress(ImportError):  # not needed for AVIF
            _register_heif()
    for form in FORMATS:
        factory, accepts = Image.OPEN.get(form, (None, None))
        if factory and (not accepts or accepts(encoded[:16]) is not False):
            try:
                return factory(io.BytesIO(encoded), "")
            except Image.DecompressionBombError:
                raise
            except Exception:  # noqa: BLE001 - decoders raise any exception for damaged files
                continue
    return None


@functools.cache
def _register_heif() -> None:
    """Called once, and only if a file needs it."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _icon(encoded: bytes) -> Image.Image | None:
    """The largest image of an icon file. The size in the directory may differ from the image's own."""
    largest = IcoImagePlugin.IcoFile(io.BytesIO(encoded)).entry[0]
    content = encoded[largest.offset :]
    if content.startswith(PNG_SIGNATURE):
        return decoder(content)
    width, height = BmpImagePlugin.DibImageFile(io.BytesIO(content)).size  # the colours, and the mask below them
    return _identified(encoded) if width <= LARGEST_ICON and height <= 2 * LARGEST_ICON else None


def _transparency_chunk(body: bytes, depth: int, kind: int) -> bytes:
    """A tRNS chunk as Pillow compares it with 8-bit pixels; empty if it does not fit the colour type."""
    if kind == 0 and len(body) == 2 and depth in {2, 4}:
        body = bytes([0, (body[1] * 255 // (2**depth - 1)) & 255])
    elif kind == 2 and len(body) == 6 and depth == 16:
        body = bytes([0, body[0], 0, body[2], 0, body[4]])
    elif len(body) != {0: 2, 2: 6}.get(kind) and not (kind == 3 and 0 < len(body) <= 256):
        return b""
    return struct.pack(">I", len(body)) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))


def _note_png_chunk(name: bytes, body: bytes, info: dict[str, Any]) -> None:
    """Adds a chunk's colour profile or orientation to `info`. The first of several counts."""
    key, _, rest = body.partition(b"\0")
    if name == b"iCCP":
        info.setdefault("icc_profile", _unpacked(rest[1:]))
    elif name == b"eXIf":
        info.setdefault("exif", b"Exif\0\0" + body)
    elif name in {b"zTXt", b"tEXt"} and key == b"Raw profile type exif":
        text = _unpacked(rest[1:]) if name == b"zTXt" else rest
        info.setdefault("Raw profile type exif", text.decode("latin-1"))
    elif name == b"iTXt" and key == b"XML:com.adobe.xmp":
        info.setdefault("xmp", rest)


def _unpacked(packed: bytes) -> bytes:
    """Decompressed zlib data; empty if it is damaged or larger than `LARGEST_METADATA`."""
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, LARGEST_METADATA)
    except zlib.error:
        return b""
    return content if unpacking.eof else b""
