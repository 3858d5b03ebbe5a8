"""A painting learnt as a word, and the file that carries it: safetensors with metadata, never a pickle.

A file may come from anybody. Its length and its header's length are bounded before anything is
read, and names, shapes, types and values are checked before anything is used.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from styleengine.backbone import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import check_output, fit, write_whole
from styleengine.settings import Settings
from styleengine.stylization import model_name

SUFFIX = ".safetensors"
METADATA_KEY, THUMBNAIL_KEY = "styleengine_style", "thumbnail"
FORMAT = 1
THUMBNAIL_SIDE = 128
MOST_BYTES = 1 << 20  # of a style
MOST_BYTES_WITH_STATE = 1 << 29
MOST_HEADER_BYTES = 1 << 19
MOST_NAME = 48  # letters: a file name holds 255 bytes
LARGEST_NUMBER = 1e4  # in a word or a latent: those of trained models are below 100
TENSORS = ("word", "latent_mean", "latent_std")
STATE = "state."  # tensors to go on learning with begin so

Text = Annotated[str, Field(max_length=200)]
Plain = bool | int | float | Text
Judged = tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class StyleRecord(Settings):
    """All about a learnt style but its tensors: what is written into its file, and checked when it is read.

    `words` is `LatentBackbone.words` of the model it was learnt on; `history` are pairs of step and
    loss on the fixed (t, ε) set; `best_step` is the step whose word was kept, `step` the last one.
    """

    format: Literal[1] = FORMAT
    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)]
    painting: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    backbone: Annotated[Text, AfterValidator(model_name)]
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
    """A word that says a painting's style, on the CPU in float32.

    `word` (width,) is a token embedding; `latent_mean` and `latent_std` (channels,) are those of the
    painting's latents. `state` is what learning needs to go on, and empty in a style that is shared.
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
        """Equal for styles that draw equally, whatever they are called."""
        digest = hashlib.sha256()
        for x in (self.word, self.latent_mean, self.latent_std):
            digest.update(x.numpy().tobytes())
        return digest.hexdigest()

    def without_state(self) -> "LearnedStyle":
        return replace(self, state={})

    def renamed(self, name: str) -> "LearnedStyle":
        """The style under another name, made to fit; the file's name does not matter."""
        return replace(self, record=self.record.replace(name=fitting_name(name)))

    def check_fits(self, backbone: LatentBackbone) -> None:
        """StyleEngineError unless the backbone's text encoder can read the word."""
        record = self.record
        here = backbone.words, backbone.word_width, backbone.unet.config.in_channels
        if (record.words, len(self.word), len(self.latent_mean)) != here:
            raise StyleEngineError(
                f"The style “{record.name}” was learnt on the model “{record.backbone}” ({record.words}); the model "
                f"“{backbone.name}” cannot read it ({backbone.words}). Choose that model, or learn the painting anew."
            )

    def note_for(self, backbone: LatentBackbone) -> str:
        """A sentence where the model is not the very one it was learnt on, else nothing."""
        record = self.record
        if record.revision == backbone.revision:
            return ""
        return (
            f"The style “{record.name}” was learnt on {record.backbone} ({record.revision}), this is {backbone.name} "
            f"({backbone.revision}): it may look different."
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file, which appears whole or not at all; StyleEngineError where it cannot."""
        path = check_output(path, SUFFIX)
        try:
            write_whole(path, self.to_bytes())
        except OSError as error:
            raise StyleEngineError(f"{path} could not be written ({error.strerror}): save elsewhere.") from error
        return path

    def to_bytes(self) -> bytes:
        """The file's content."""
        tensors: dict[str, torch.Tensor] = {name: getattr(self, name) for name in TENSORS}
        tensors |= {STATE + name: x for name, x in self.state.items()}
        buffer = io.BytesIO()
        self.thumbnail.save(buffer, "PNG", optimize=True, icc_profile=None)
        record = json.dumps(self.record.model_dump(), ensure_ascii=False)
        return save(
            {name: x.detach().float().cpu().contiguous() for name, x in tensors.items()},
            {METADATA_KEY: record, THUMBNAIL_KEY: base64.b64encode(buffer.getvalue()).decode()},
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, with_state: bool = False) -> "LearnedStyle":
        """Reads a style file, which may be anybody's. What `with_state` adds only the learner needs.

        Raises StyleEngineError, in one sentence, for what is missing, damaged, too large or no style.
        """
        path, most = Path(path), MOST_BYTES_WITH_STATE if with_state else MOST_BYTES
        if not path.is_file():
            raise StyleEngineError(f"The style {path.name} does not exist or is not a file: check the path {path}.")
        try:
            if path.stat().st_size > most:
                raise _NoStyleError(f"it has more than {most >> 20} MiB")
            style = cls._read(path.read_bytes(), with_state)
        except OSError as error:
            raise StyleEngineError(f"The style {path.name} cannot be read ({error.strerror}).") from error
        except _NoStyleError as error:
            raise StyleEngineError(
                f"{path.name} is no style that can be used: {error}. Choose a file that StyleEngine has saved."
            ) from error
        return replace(style, source=str(path.resolve()))

    @classmethod
    def _read(cls, content: bytes, with_state: bool) -> "LearnedStyle":
        metadata = _metadata(content)
        record = _record(metadata)
        thumbnail = _thumbnail(metadata)
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise _NoStyleError("its tensors are damaged or cut off") from error
        _check(tensors, with_state)
        state = {name.removeprefix(STATE): tensors.pop(name) for name in list(tensors) if name.startswith(STATE)}
        word, mean, std = (tensors[name] for name in TENSORS)
        return cls(record, word, mean, std, thumbnail, state)


def mixed(one: LearnedStyle, other: LearnedStyle, share: float) -> LearnedStyle:
    """The style between two: `share` 0 is `one` itself, 1 is `other`.

    The words are interpolated in a straight line and brought to the length between theirs: the
    middle of two words that point apart is otherwise too short to say anything.

    Raises StyleEngineError for words of different width.
    """
    if one.word.shape != other.word.shape or one.latent_mean.shape != other.latent_mean.shape:
        raise StyleEngineError(
            f"The styles “{one.record.name}” and “{other.record.name}” were learnt on models of different shape "
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
    """The middle square of a painting, small."""
    return fit(painting, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def fitting_name(text: str) -> str:
    """A name for a style from any text: letters, digits, spaces, hyphens, dots and underscores, not too long."""
    kept = re.sub(r"[^\w .\-]+", " ", text)
    return " ".join(kept.split()).strip(". ")[:MOST_NAME].rstrip(". ") or "style"


class _NoStyleError(ValueError):
    """Why a file is not a style, as the rest of a sentence."""


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, its header bounded before it is parsed."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or content[8:9] != b"{":
        raise _NoStyleError("it is not a safetensors file")
    if length > MOST_HEADER_BYTES:
        raise _NoStyleError(f"its header has more than {MOST_HEADER_BYTES >> 10} KiB")
    if len(content) < 8 + length:
        raise _NoStyleError("it is cut off")
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError) as error:
        raise _NoStyleError("its header is damaged") from error
    expected = (METADATA_KEY, THUMBNAIL_KEY)
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), str) for key in expected):
        raise _NoStyleError("it holds tensors, but no style of StyleEngine")
    return metadata


def _record(metadata: Mapping[str, str]) -> StyleRecord:
    try:
        stated: Any = json.loads(metadata[METADATA_KEY])
        record = StyleRecord(**stated)
    except (StyleEngineError, ValueError, TypeError, RecursionError) as error:
        raise _NoStyleError("what it says about itself is damaged, or of another version") from error
    if fitting_name(record.name) != record.name:
        raise _NoStyleError("its name has characters that a name may not have")
    return record


def _thumbnail(metadata: Mapping[str, str]) -> Image.Image:
    try:
        content = base64.b64decode(metadata[THUMBNAIL_KEY], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
                raise ValueError("of another size")
            return image.convert("RGB")
    except Exception as error:  # damaged files make decoders raise anything
        raise _NoStyleError("its picture is damaged") from error


def _check(tensors: Mapping[str, torch.Tensor], with_state: bool) -> None:
    named = {name for name in tensors if not name.startswith(STATE)}
    if named != {*TENSORS} or (len(named) < len(tensors) and not with_state):
        raise _NoStyleError("its tensors are not those of a style")
    for name, x in tensors.items():
        if x.dtype != torch.float32:
            raise _NoStyleError(f"“{name}” is of type {str(x.dtype).removeprefix('torch.')}, not float32")
        if not x.numel() or not x.isfinite().all() or (name in named and x.abs().max() > LARGEST_NUMBER):
            raise _NoStyleError(f"“{name}” has numbers that no style has")
    word, mean, std = (tensors[name] for name in TENSORS)
    if word.dim() != 1 or mean.dim() != 1 or mean.shape != std.shape or (std < 0).any():
        raise _NoStyleError("its tensors have the wrong shape")
