"""Small valid files of many formats, and ways to damage them: bytes, parts, lengths, and false sizes."""

import functools
import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from clips import greys, write_raw
from PIL import Image, ImageCms

WIDTH, HEIGHT = 52, 36  # found again as numbers in the files' headers
GIANTS = (0, 1, 15, 20_000, 65_535, 2**31 - 1, 2**32 - 1)
BOMBS = ((7000, 7000), (7072, 7072), (2400, 19_000), (16_383, 3000), (20_000, 20_000), (65_535, 65_535))
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63 - 1, 2**64 - 1)

Damage = tuple[str, int, int]  # what is done, where (0 … 65535, from start to end), and a number for it


@dataclass(frozen=True)
class Part:
    """A chunk, segment, box or entry of a file. `length` is the length stated in the file, None for the true one."""

    tag: bytes
    body: bytes
    length: int | None = None

    @property
    def stated(self) -> int:
        return len(self.body) if self.length is None else self.length


@dataclass(frozen=True)
class Layout:
    """The structure of a file format; `nests` are the tags of parts that contain parts."""

    split: Callable[[bytes], tuple[bytes, list[Part], bytes]]
    join: Callable[[bytes, Sequence[Part], bytes], bytes]
    nests: tuple[bytes, ...] = ()


def split_png(content: bytes) -> tuple[bytes, list[Part], bytes]:
    parts, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if at + 12 + length > len(content):
            break
        parts.append(Part(content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return content[:8], parts, content[at:]


def join_png(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    chunks = [
        struct.pack(">I", part.stated % 2**32)
        + part.tag
        + part.body
        + struct.pack(">I", zlib.crc32(part.tag + part.body))
        for part in parts
    ]
    return before + b"".join(chunks) + after


def split_jpeg(content: bytes) -> tuple[bytes, list[Part], bytes]:
    parts, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xD9:
        (length,) = struct.unpack_from(">H", content, at + 2)
        parts.append(Part(content[at : at + 2], content[at + 4 : at + 2 + length]))
        at += 2 + length
        if parts[-1].tag == b"\xff\xda":
            break
    return content[:2], parts, content[at:]


def join_jpeg(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    return (
        before + b"".join(part.tag + struct.pack(">H", (part.stated + 2) % 2**16) + part.body for part in parts) + after
    )


def split_riff(content: bytes) -> tuple[bytes, list[Part], bytes]:
    start = 12 if content[:4] == b"RIFF" else 4  # a LIST is split without its own tag and length
    parts, at = [], start
    while at + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, at + 4)
        parts.append(Part(content[at : at + 4], content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return content[:start], parts, b""


def join_riff(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    whole = b"".join(
        part.tag + struct.pack("<I", part.stated % 2**32) + part.body + b"\0" * (len(part.body) % 2) for part in parts
    )
    if before[:4] == b"RIFF":
        before = b"RIFF" + struct.pack("<I", len(whole) + 4) + before[8:]
    return before + whole + after


def split_boxes(content: bytes) -> tuple[bytes, list[Part], bytes]:
    parts, at = [], 0
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if length < 8:
            break
        parts.append(Part(content[at + 4 : at + 8], content[at + 8 : at + length]))
        at += length
    return b"", parts, content[at:]


def join_boxes(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    return (
        before + b"".join(struct.pack(">I", (part.stated + 8) % 2**32) + part.tag + part.body for part in parts) + after
    )


def split_ebml(content: bytes) -> tuple[bytes, list[Part], bytes]:
    parts, at = [], 0
    while at < len(content) and content[at]:
        name = 9 - content[at].bit_length()
        tag, at = content[at : at + name], at + name
        if at >= len(content) or not content[at]:
            break
        width = 9 - content[at].bit_length()
        length = int.from_bytes(content[at : at + width], "big") & ((1 << 7 * width) - 1)
        parts.append(Part(tag, content[at + width : at + width + length]))
        at += width + length
    return b"", parts, content[at:]


def join_ebml(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    return before + b"".join(
        part.tag + (part.stated % 2**56 | 1 << 56).to_bytes(8, "big") + part.body for part in parts
    )


def split_tiff(content: bytes) -> tuple[bytes, list[Part], bytes]:
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = [content[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    return content, [Part(entry[:2], entry[2:]) for entry in entries], b""


def join_tiff(before: bytes, parts: Sequence[Part], after: bytes) -> bytes:
    """Writes the directory again at the end, so the offsets in its entries stay valid."""
    entries = b"".join(part.tag + part.body[:10].ljust(10, b"\0") for part in parts)
    directory = struct.pack("<H", len(parts) % 2**16) + entries + struct.pack("<I", 0)
    return before[:4] + struct.pack("<I", len(before)) + before[8:] + directory


BOXES = b"moov trak mdia minf stbl dinf edts udta meta iprp ipco".split()
ELEMENTS = tuple(map(bytes.fromhex, ("18538067", "1654ae6b", "ae", "e0", "1f43b675", "1254c367", "1549a966", "a0")))
PNG, JPEG, TIFF = Layout(split_png, join_png), Layout(split_jpeg, join_jpeg), Layout(split_tiff, join_tiff)
RIFF = Layout(split_riff, join_riff, (b"LIST",))
ISO = Layout(split_boxes, join_boxes, tuple(BOXES))
EBML = Layout(split_ebml, join_ebml, ELEMENTS)
LAYOUTS = (
    (b"\x89PNG", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"RIFF", RIFF),
    (b"II*\0", TIFF),
    (b"\x1a\x45\xdf\xa3", EBML),
)


def layout_of(content: bytes) -> Layout | None:
    if content[4:8] == b"ftyp":
        return ISO
    return next((layout for magic, layout in LAYOUTS if content.startswith(magic)), None)


BYTE_DAMAGE = ("flip", "extreme", "cut", "drop", "double", "junk", "zeros", "giant", "bomb")
PART_DAMAGE = ("part-dropped", "part-doubled", "part-moved", "part-length", "part-flip", "part-extreme", "part-emptied")
DAMAGE = (*BYTE_DAMAGE, *PART_DAMAGE, *PART_DAMAGE, "splice")


def damaged(content: bytes, damages: Sequence[Damage], other: bytes = b"") -> bytes:
    """The file with all damages, in order; `other` is the file that "splice" continues with."""
    for what, where, number in damages:
        layout = layout_of(content)
        if what == "splice":
            content = content[: at(content, where)] + other[at(other, number % 65536) :]
        elif what.startswith("part-") and layout:
            content = damaged_parts(content, layout, what.removeprefix("part-"), where, number)
        else:
            content = damaged_bytes(content, what.removeprefix("part-"), where, number)
    return content


def damaged_bytes(content: bytes, what: str, where: int, number: int) -> bytes:
    place = at(content, where)
    length = 1 + number % 64
    if what == "flip":
        return (
            content[:place] + bytes(x ^ (number % 255 + 1) for x in content[place : place + 1]) + content[place + 1 :]
        )
    if what == "extreme":
        width = (1, 2, 4, 8)[number % 4]
        value = EXTREMES[number // 4 % len(EXTREMES)] % 256**width
        order = "big" if number // 64 % 2 else "little"
        return content[:place] + value.to_bytes(width, order) + content[place + width :]
    if what in ("cut", "emptied", "length"):
        return content[:place]
    if what in ("drop", "dropped"):
        return content[:place] + content[place + length :]
    if what in ("double", "doubled", "moved"):
        return content[: place + length] + content[place:]
    if what == "junk":
        return content[:place] + number.to_bytes(4, "little") * (length // 4 + 1) + content[place:]
    if what == "zeros":
        return content[:place] + bytes(length) + content[place + length :]
    if what == "giant":
        return with_giant_size(content, where, number)
    if what == "bomb":
        return as_large_as(content, *BOMBS[where % len(BOMBS)])
    raise ValueError(what)


def damaged_parts(content: bytes, layout: Layout, what: str, where: int, number: int) -> bytes:
    try:
        before, parts, after = layout.split(content)
    except struct.error:
        parts = []
    if not parts:
        return damaged_bytes(content, "flip", where, number)
    chosen = where % len(parts)
    part, rest = parts[chosen], where // len(parts)
    if part.tag in layout.nests and number % 8:
        offset = 4 if part.tag == b"meta" else 0
        inner = part.body[:offset] + damaged_parts(part.body[offset:], layout, what, rest, number // 8)
        parts[chosen] = replace(part, body=inner)
    elif what == "dropped":
        del parts[chosen]
    elif what == "doubled":
        parts[chosen:chosen] = [part] * (1 + number % 3)
    elif what == "moved":
        parts.insert(number % len(parts), parts.pop(chosen))
    elif what == "length":
        parts[chosen] = replace(part, length=EXTREMES[number % len(EXTREMES)])
    elif what == "emptied":
        parts[chosen] = replace(part, body=b"")
    else:
        parts[chosen] = replace(part, body=damaged_bytes(part.body, what, (rest * 7919 + number) % 65536, number))
    return layout.join(before, parts, after)


def with_giant_size(content: bytes, where: int, number: int) -> bytes:
    """Replaces a number that equals the picture's width or height; a PNG's checksums are updated."""
    found = [
        (place, form)
        for form in (">I", "<I", ">H", "<H")
        for side in (WIDTH, HEIGHT, WIDTH - 1, HEIGHT - 1)
        for place in places_of(content[:4096], struct.pack(form, side))
    ]
    if not found:
        return damaged_bytes(content, "extreme", where, number)
    place, form = found[where % len(found)]
    value = GIANTS[number % len(GIANTS)] % 256 ** struct.calcsize(form)
    content = content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]
    return join_png(*split_png(content)) if layout_of(content) is PNG else content


def as_large_as(content: bytes, width: int, height: int) -> bytes:
    """Replaces the picture's width and height wherever the header states them."""
    head, rest = content[:2048], content[2048:]
    for form in (">I", "<I", ">H", "<H"):
        for side, other in ((WIDTH, width), (HEIGHT, height)):
            head = head.replace(struct.pack(form, side), struct.pack(form, other))
    return join_png(*split_png(head + rest)) if layout_of(content) is PNG else head + rest


def places_of(content: bytes, sought: bytes) -> list[int]:
    places, place = [], content.find(sought)
    while place >= 0:
        places.append(place)
        place = content.find(sought, place + 1)
    return places


def at(content: bytes, where: int) -> int:
    return where % 65536 * len(content) >> 16


MAGICS = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "gif": b"GIF89a",
    "webp": b"RIFF\xff\0\0\0WEBPVP8 ",
    "tiff": b"II*\0\x08\0\0\0",
    "tiff-be": b"MM\0*\0\0\0\x08",
    "bigtiff": b"II+\0\x08\0\0\0",
    "bmp": b"BM",
    "ico": b"\0\0\1\0\1\0",
    "cur": b"\0\0\2\0\1\0",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 52 36\n",
    "psd": b"8BPS\0\1",
    "dds": b"DDS \x7c\0\0\0",
    "icns": b"icns\0\0\1\0",
    "pcx": b"\x0a\x05\x01\x08",
    "ppm": b"P6 52 36 255\n",
    "pfm": b"PF\n52 36\n-1\n",
    "qoi": b"qoif\0\0\0\x34\0\0\0\x24\3\0",
    "fits": b"SIMPLE  =                    T",
    "wmf": b"\xd7\xcd\xc6\x9a\0\0",
    "svg": b"<svg xmlns='x'>",
    "sgi": b"\1\xda\1\1",
    "xbm": b"#define x_width 52\n#define x_height 36\n",
    "xpm": b"/* XPM */\n",
    "blp": b"BLP2",
    "fli": b"\0\0\0\0\x11\xaf",
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "webm": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\0\0\1\0AVI LIST",
    "ts": b"\x47\x40\0\x10" + b"\xff" * 184,
    "flv": b"FLV\1\5\0\0\0\x09",
    "ogg": b"OggS\0\2",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "mpeg": b"\0\0\1\xba",
    "h264": b"\0\0\0\1\x67\x42\0\x0a",
    "hevc": b"\0\0\0\1\x40\1",
    "wav": b"RIFF\0\0\1\0WAVEfmt ",
    "mp3": b"\xff\xfb\x90\x64",
    "id3": b"ID3\4\0\0\0\0\0\x10",
    "flac": b"fLaC",
    "aac": b"\xff\xf1\x50\x80",
    "m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
    "concat": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "zip": b"PK\3\4",
    "nothing": b"",
}


def drawing(mode: str = "RGB") -> Image.Image:
    """A picture with some content."""
    down, right = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([right * 4, down * 6, (right * down) % 251], -1).astype(np.uint8)
    image = Image.fromarray(rgb)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((right * 4).astype(np.uint8)))
    if mode == "I;16":
        return Image.fromarray((right * 1000).astype(np.uint16))
    return image.convert(mode)


@functools.cache
def pictures() -> dict[str, bytes]:
    """Valid pictures of many formats, modes and compressions."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    known = {"icc_profile": profile, "exif": exif.tobytes()}
    animated: dict[str, Any] = {"save_all": True, "append_images": [drawing(), drawing("L").convert("RGB")]}
    forms: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")),
        ("PNG", "RGB", known),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "RGB", animated),
        *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", known),
        ("JPEG", "RGB", {"progressive": True, "comment": b"a comment"}),
        ("MPO", "RGB", animated),
        *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
        ("WEBP", "RGB", known),
        ("WEBP", "RGB", animated),
        ("GIF", "P", {}),
        ("GIF", "P", {"transparency": 2}),
        ("GIF", "L", {"interlace": 1}),
        ("GIF", "RGB", animated),
        *(("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16")),
        *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "RGB", known),
        ("TIFF", "L", {"save_all": True, "append_images": [drawing("L")]}),
        ("TIFF", "RGB", {"big_tiff": True}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        ("AVIF", "RGB", {}),
        ("AVIF", "RGBA", {}),
        ("AVIF", "RGB", known),
        ("AVIF", "RGB", animated),
        ("ICO", "RGBA", {"sizes": [(32, 32)]}),
        ("ICO", "RGBA", {"sizes": [(16, 16), (32, 32)], "bitmap_format": "bmp"}),
        ("JPEG2000", "RGB", {}),
        ("TGA", "RGBA", {}),
        ("PPM", "RGB", {}),
        ("SGI", "RGB", {}),
        ("PCX", "P", {}),
        ("DDS", "RGBA", {}),
        ("EPS", "RGB", {}),
        ("QOI", "RGBA", {}),
        ("IM", "RGB", {}),
        ("MSP", "1", {}),
        ("SPIDER", "F", {}),
        ("XBM", "1", {}),
    ]
    made = {}
    for number, (form, mode, options) in enumerate(forms):
        buffer = io.BytesIO()
        drawing(mode).save(buffer, form, **options)
        made[f"{form.lower()}-{mode}-{number}"] = buffer.getvalue()
    return made


@functools.cache
def clips() -> dict[str, bytes]:
    """Valid clips of a few frames, of many containers and codecs."""
    size = (WIDTH, HEIGHT)
    uneven = [Fraction(0), Fraction(1, 10), Fraction(1, 2)]
    forms: dict[str, dict[str, Any]] = {
        "h264.mp4": {},
        "sound.mp4": {"sound": "aac"},
        "turned.mp4": {"rotation": 90},
        "oblong.mp4": {"aspect": Fraction(4, 3)},
        "uneven.mp4": {"moments": uneven},
        "h264.mov": {},
        "mpeg4.mp4": {"codec": "mpeg4"},
        "vp9.webm": {"codec": "libvpx-vp9"},
        "vp8.webm": {"codec": "libvpx"},
        "ffv1.mkv": {"codec": "ffv1", "sound": "aac"},
        "h264.mkv": {"aspect": Fraction(4, 3)},
        "ffv1.avi": {"codec": "ffv1"},
        "mpeg4.avi": {"codec": "mpeg4", "sound": "mp3"},
        "png.mov": {"codec": "png"},
        "h264.ts": {},
        "flv1.flv": {"codec": "flv"},
    }
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in forms.items():
            made[name] = write_raw(Path(folder) / name, greys(3, size), **{"rate": 25, **options}).read_bytes()
    buffer = io.BytesIO()
    drawing().save(buffer, "GIF", save_all=True, append_images=greys(3, size), duration=100)
    return {**made, "animated.gif": buffer.getvalue()}
