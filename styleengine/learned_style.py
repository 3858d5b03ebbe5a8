"""A painting's style learned as a token embedding, and its file: safetensors with metadata, never a pickle.

Style files are untrusted. The lengths of file and header are limited before anything is read, and names,
shapes, types and values are checked before anything is used. No message contains a file's folder.
"""

import base64
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias

import torch
from PIL import Image
from pydantic import AfterValidator, Field
from safetensors.torch import load, save

from styleengine.backbones import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import check_output, fit, png, write_whole
from styleengine.settings import Settings
from styleengine.stylization import model_name

SUFFIX = ".safetensors"
METADATA_KEY, THUMBNAIL_KEY = "styleengine_style", "thumbnail"
FORMAT = 1
THUMBNAIL_SIDE = 128
MOST_BYTES = 1 << 20  # of a style
MOST_BYTES_WITH_STATE = 1 << 29
MOST_HEADER_BYTES = 1 << 19
MOST_NAME = 48  # characters: a file name has at most 255 bytes
MOST_PAINTINGS = 16  # of one artist, from which a style is learned
LARGEST_NUMBER = 1e4  # in an embedding or a latent: those of trained models are below 100
TENSORS = ("word", "latent_mean", "latent_std")
STATE = "state."  # name prefix of the tensors needed to resume learning
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}
# Marks and letters without a glyph: variation selectors, Hangul fillers, joiners and the like.
INVISIBLE = {*"\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0", *map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10)))}

StyleSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


Text = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
ModelName = Annotated[str, AfterValidator(model_name), Field(max_length=200), AfterValidator(_printable)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Plain = bool | Whole | Finite | Text
Judged = tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class StyleRecord(Settings):
    """Everything about a learned style except its tensors, as written to its file and validated on reading.

    `painting` is the painting's `content_hash`, or a hash over several; `paintings` says how many.
    `words` is `LatentBackbone.words` of the model it was learned on; `history` are pairs of step and
    validation loss on the fixed (t, ε) set; `best_step` is the step whose embedding was kept, `step` the last one.
    """

    format: Literal[1] = FORMAT
    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)]
    painting: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    paintings: Annotated[int, Field(ge=1, le=MOST_PAINTINGS)] = 1
    backbone: ModelName
    revision: Text
    words: Text
    settings: Annotated[dict[Annotated[str, Field(max_length=40)], Plain], Field(max_length=40)]
    step: Annotated[int, Field(ge=0, le=1_000_000)]
    best_step: Annotated[int, Field(ge=0, le=1_000_000)]
    complete: bool
    history: Annotated[list[Judged], Field(max_length=10_000)]
    version: Text


@dataclass(frozen=True)
class LearnedStyle:
    """A token embedding of a painting's style, on the CPU in float32.

    `word` (width,) is the token embedding; `latent_mean` and `latent_std` (channels,) are those of the
    painting's latents, or the means of several paintings'. `state` is needed to resume learning, and empty in a
    shared style.
    """

    record: StyleRecord
    word: torch.Tensor
    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    thumbnail: Image.Image
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    source: str = ""

    @property
    def sha256(self) -> str:
        """A hash of the tensors, independent of the name."""
        digest = hashlib.sha256()
        for x in (self.word, self.latent_mean, self.latent_std):
            digest.update(x.numpy().tobytes())
        return digest.hexdigest()

    def without_state(self) -> "LearnedStyle":
        return replace(self, state={})

    def renamed(self, name: str) -> "LearnedStyle":
        """A copy with another name, made valid by `fitting_name`."""
        return replace(self, record=self.record.replace(name=fitting_name(name)))

    @property
    def shape(self) -> tuple[str, int, int]:
        """What a model must have in common with the one the style was learned on: see `shape_for`."""
        return self.record.words, len(self.word), len(self.latent_mean)

    def check_fits(self, backbone: LatentBackbone) -> None:
        """Raises StyleEngineError unless the embedding fits the backbone's text encoder."""
        record = self.record
        if self.shape != shape_for(backbone):
            raise StyleEngineError(
                f"The style “{record.name}” was learned on the model “{record.backbone}” ({record.words}); the model "
                f"“{model_name(backbone.name)}” cannot use it ({backbone.words}). Choose that model, or learn the "
                "painting again."
            )

    def note_for(self, backbone: LatentBackbone) -> str:
        """A sentence if the model is not exactly the one it was learned on, else an empty string."""
        record = self.record
        if record.revision == backbone.revision:
            return ""
        return (
            f"The style “{record.name}” was learned on {record.backbone} ({record.revision}), this is "
            f"{model_name(backbone.name)} ({backbone.revision}): it may look different."
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file atomically; StyleEngineError if it cannot be written."""
        path = check_output(path, SUFFIX)
        try:
            write_whole(path, self.to_bytes())
        except OSError as error:
            raise StyleEngineError(f"{path.name} could not be written ({error.strerror}): save elsewhere.") from error
        return path

    def to_bytes(self) -> bytes:
        """The file's content, deterministic for a style."""
        tensors: dict[str, torch.Tensor] = {name: getattr(self, name) for name in TENSORS}
        tensors |= {STATE + name: x for name, x in self.state.items()}
        thumbnail = base64.b64encode(png(self.thumbnail, optimize=True)).decode()
        # The number 1 is left out, so that earlier versions read the style of one painting, too.
        stated = self.record.model_dump(exclude={"paintings"} if self.record.paintings == 1 else None)
        record = json.dumps(stated, ensure_ascii=False)
        content = save(
            {name: x.detach().float().cpu().contiguous() for name, x in tensors.items()},
            {METADATA_KEY: record, THUMBNAIL_KEY: thumbnail},
        )
        return _in_order(content)

    @classmethod
    def open(cls, source: StyleSource, *, with_state: bool = False) -> "LearnedStyle":
        """Reads an untrusted style from a path, bytes or an open binary file.

        `with_state` also accepts the state for resuming. Reading stops at the largest size a style may have.

        Raises StyleEngineError for a file that is missing, damaged, too large or not a style.
        """
        most = MOST_BYTES_WITH_STATE if with_state else MOST_BYTES
        name, content = _content(source, most)
        try:
            if len(content) > most:
                raise _NoStyleError(f"it has more than {most >> 20} MiB")
            style = cls._read(content, with_state)
        except _NoStyleError as error:
            raise StyleEngineError(
                f"{name} is not a usable style: {error}. Choose a file that StyleEngine has saved."
            ) from error
        return replace(style, source=str(Path(source).resolve()) if isinstance(source, (str, os.PathLike)) else "")

    @classmethod
    def _read(cls, content: bytes, with_state: bool) -> "LearnedStyle":
        metadata = _metadata(content)
        record = _record(metadata)
        thumbnail = _thumbnail(metadata)
        try:
            tensors = load(content)
        except Exception as error:  # it raises any exception for damaged files
            raise _NoStyleError("its tensors are damaged or cut off") from error
        _check(tensors, with_state)
        state = {name.removeprefix(STATE): tensors.pop(name) for name in list(tensors) if name.startswith(STATE)}
        word, mean, std = (tensors[name] for name in TENSORS)
        return cls(record, word, mean, std, thumbnail, state)


def shape_for(backbone: LatentBackbone) -> tuple[str, int, int]:
    """The `LearnedStyle.shape` that fits the backbone: its text encoder, embedding width, latent channels."""
    return backbone.words, backbone.word_width, backbone.unet.config.in_channels


def mixed(one: LearnedStyle, other: LearnedStyle, share: float) -> LearnedStyle:
    """A mix of two styles: `share` 0 is `one` itself, 1 is `other`.

    The embeddings are interpolated linearly, then scaled to the interpolated norm: the mean of two
    dissimilar embeddings is otherwise too short to have an effect.

    Raises StyleEngineError for embeddings of different width.
    """
    if one.word.shape != other.word.shape or one.latent_mean.shape != other.latent_mean.shape:
        raise StyleEngineError(
            f"The styles “{one.record.name}” and “{other.record.name}” were learned on models of different shape "
            "and cannot be mixed. Mix styles of one model."
        )
    if share in (0, 1):
        return other if share else one
    word = torch.lerp(one.word, other.word, share)
    length = torch.lerp(one.word.norm(), other.word.norm(), share)
    return replace(
        one,
        word=word * (length / word.norm().clamp(min=1e-12)),
        latent_mean=torch.lerp(one.latent_mean, other.latent_mean, share),
        latent_std=torch.lerp(one.latent_std, other.latent_std, share),
        state={},
    )


def thumbnail_of(painting: Image.Image) -> Image.Image:
    """The central square of a painting, scaled down."""
    return fit(painting, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def fitting_name(text: str) -> str:
    """A valid style name from any text: letters, digits, spaces, hyphens, dots and underscores, limited in length.

    It is a safe file name on every system. The function is idempotent.
    """
    kept = "".join(_kept(unicodedata.normalize("NFC", text)))
    kept = unicodedata.normalize("NFC", kept)  # letters that combine may have become adjacent
    name = " ".join(kept.split()).strip(".- ")
    if name.partition(".")[0].rstrip().casefold() in RESERVED:  # device names on Windows
        name = f"style {name}"
    return name[:MOST_NAME].rstrip(".- ") or "style"


def _kept(text: str) -> Iterator[str]:
    """The allowed characters, and spaces for the others. Combining marks stay on their letters."""
    before = " "
    for char in text:
        kind = unicodedata.category(char)[0]
        fits = char in " .-_" or kind in "LN" or (kind == "M" and before not in " .-_")
        before = char if fits and char not in INVISIBLE else " "
        if kind != "M" or before != " ":
            yield before


def quoted(text: object) -> str:
    """Text from a user, quoted and shortened for a message."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    return f"“{shown[:60]}…”" if len(shown) > 60 else f"“{shown}”"


class _NoStyleError(ValueError):
    """The reason why a file is not a style, as the end of a sentence."""


def _content(source: StyleSource, most: int) -> tuple[str, bytes]:
    """The name for messages, and the content, read up to `most` + 1 bytes."""
    name = "The file"
    try:
        if isinstance(source, bytes):
            content = source
        elif isinstance(source, (str, os.PathLike)):
            name = "".join(char if char.isprintable() else "?" for char in Path(source).name) or name
            if not os.path.isfile(source):  # pipes and devices may never end
                raise StyleEngineError(f"The style {name} does not exist or is not a file: check the path.")
            with open(source, "rb") as file:
                content = file.read(most + 1)
        else:
            content = source.read(most + 1)
    except OSError as error:
        raise StyleEngineError(f"The style {name} cannot be read ({error.strerror}).") from error
    except (AttributeError, TypeError):
        content = None
    if not isinstance(content, bytes):
        raise StyleEngineError("No style was given. Choose a file that StyleEngine has saved.")
    return name, content


def _in_order(content: bytes) -> bytes:
    """The safetensors file with its metadata sorted by name: safetensors writes them in any order."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors for memory mapping
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file. The header's length is checked before parsing."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or content[8:9] != b"{":
        raise _NoStyleError("it is not a safetensors file")
    if length > MOST_HEADER_BYTES:
        raise _NoStyleError(f"its header has more than {MOST_HEADER_BYTES >> 10} KiB")
    if len(content) < 8 + length:
        raise _NoStyleError("it is cut off")
    try:
        metadata = _from_json(content[8 : 8 + length]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError) as error:
        raise _NoStyleError("its header is damaged") from error
    expected = (METADATA_KEY, THUMBNAIL_KEY)
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), str) for key in expected):
        raise _NoStyleError("it holds tensors, but no style of StyleEngine")
    return metadata


def _from_json(text: str | bytes) -> Any:
    """Parses JSON; ValueError for duplicate names."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate name")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _record(metadata: Mapping[str, str]) -> StyleRecord:
    try:
        stated: Any = _from_json(metadata[METADATA_KEY])
        record = StyleRecord(**stated)
    except (StyleEngineError, ValueError, TypeError, RecursionError) as error:
        raise _NoStyleError("its metadata is damaged or of another version") from error
    if fitting_name(record.name) != record.name:
        raise _NoStyleError("its name has invalid characters")
    return record


def _thumbnail(metadata: Mapping[str, str]) -> Image.Image:
    try:
        content = base64.b64decode(metadata[THUMBNAIL_KEY], validate=True)
        with Image.open(io.BytesIO(_bare_png(content)), formats=["PNG"]) as image:
            if image.size != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
                raise ValueError("of another size")
            return image.convert("RGB")
    except Exception as error:  # decoders raise any exception for damaged files
        raise _NoStyleError("its thumbnail is damaged") from error


def _bare_png(content: bytes) -> bytes:
    """The PNG without its ancillary chunks, such as texts and profiles, which may decompress to any size."""
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("no PNG")
    bare, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, type, data, checksum
        if content[place + 4 : place + 5].isupper():
            bare.append(content[place:end])
        place = end
    return b"".join(bare)


def _check(tensors: Mapping[str, torch.Tensor], with_state: bool) -> None:
    named = {name for name in tensors if not name.startswith(STATE)}
    if named != {*TENSORS} or (len(named) < len(tensors) and not with_state):
        raise _NoStyleError("its tensors are not those of a style")
    for name, x in tensors.items():
        if x.dtype != torch.float32:
            raise _NoStyleError(f"“{name}” is of type {str(x.dtype).removeprefix('torch.')}, not float32")
        if not x.numel() or not x.isfinite().all() or (name in named and x.abs().max() > LARGEST_NUMBER):
            raise _NoStyleError(f"“{name}” has non-finite or implausible values")
    word, mean, std = (tensors[name] for name in TENSORS)
    if word.dim() != 1 or mean.dim() != 1 or mean.shape != std.shape or (std < 0).any():
        raise _NoStyleError("its tensors have the wrong shape")
