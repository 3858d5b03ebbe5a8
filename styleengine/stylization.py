"""The results of runs (Stylization), their progress events (StepEvent), and their records."""

import base64
import contextlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from PIL import Image, ImageOps
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from styleengine.errors import StyleEngineError
from styleengine.images import check_output, content_hash, open_image, png, save_png, write_whole
from styleengine.phases import Phase
from styleengine.settings import on_one_line, shortened
from styleengine.version import __version__

METADATA_KEY = "styleengine"
RECORDED_LIBRARIES = ("torch", "diffusers", "transformers", "pillow")
MOST_RECORD = 32 << 20  # characters of a record that is read
MOST_MASK = 8 << 20  # characters of a mask inside a record
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")

Line = Annotated[str, Field(max_length=4096), AfterValidator(on_one_line)]
Plain = bool | int | float | str


@dataclass(frozen=True)
class StepEvent:
    """Progress of a run: `step` of `total` is done; `preview()` decodes the current image.

    `phase` is a string, such as "content 1" or "stylizing", with a stage and a display title.
    """

    phase: Phase
    step: int
    total: int
    preview: Callable[[], Image.Image]


@dataclass(frozen=True)
class LearningEvent(StepEvent):
    """Progress of learning: the step's `loss` (None before the first), and `validations`: (step, validation loss) each.

    `preview()` generates an image with the current embedding, which takes a whole sampling run.
    """

    loss: float | None
    validations: Sequence[tuple[int, float]]
    steps_per_second: float


OnStep = Callable[[StepEvent], None]


@dataclass(frozen=True)
class InputRecord:
    """One input of a run: its role ("content", "style", "mask", "clip" or "learnt style"), its hash, its file's name.

    The name is never a path, because results are shared. `inverted` means that the run used the negative of the
    mask with this hash. `data` is a mask without a file, as a base64-encoded PNG.
    """

    role: Line
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: Line = ""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    inverted: bool = False
    data: Annotated[str, Field(max_length=MOST_MASK)] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", file_name(self.name))


@dataclass(frozen=True)
class Stylization:
    """An image and everything needed to reproduce it. `notes` are sentences on differences from the request."""

    image: Image.Image
    method: str
    settings: Mapping[str, Any]
    backbone: str
    revision: str
    inputs: Sequence[InputRecord]
    seconds: float
    details: Mapping[str, float]
    device: str = ""
    dtype: str = ""
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())

    def record(self) -> dict[str, Any]:
        """Everything except the image, as JSON data."""
        return {
            "method": self.method,
            "backbone": model_name(self.backbone),
            "revision": self.revision,
            "settings": dict(self.settings),
            "inputs": [vars(entry) for entry in self.inputs],
            "seconds": round(self.seconds, 2),
            "details": {name: round(value, 4) for name, value in self.details.items()},
            "device": self.device,
            "dtype": self.dtype,
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the PNG with the record as text metadata; raises StyleEngineError if it cannot."""
        return save_png(self.image, path, {METADATA_KEY: _as_json(self.record())})


@dataclass(frozen=True, kw_only=True)
class VideoStylization(Stylization):
    """A redrawn clip: `image` is its first frame, `path` the MP4 with all `frames` frames.

    `complete` is False if the run was cancelled. `differences` are Diff per pair of neighbouring frames
    (`frame_differences`): of the "result", of the input "clip", and, if requested, of its frames redrawn "alone".
    """

    path: Path
    frames: int
    rate: Fraction
    complete: bool
    differences: Mapping[str, Sequence[float]]

    def record(self) -> dict[str, Any]:
        differences = {name: [round(value, 5) for value in values] for name, values in self.differences.items()}
        return {
            **super().record(),
            "details": {name: round(value, 6) for name, value in self.details.items()},
            "frames": self.frames,
            "rate": str(self.rate),
            "complete": self.complete,
            "differences": differences,
        }

    def as_text(self) -> str:
        """The record as stored in the MP4."""
        return _as_json({METADATA_KEY: self.record()})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copies the MP4, record included; raises StyleEngineError if it cannot."""
        path = check_output(path, ".mp4")
        try:
            write_whole(path, self.path.read_bytes())
        except OSError as error:
            raise StyleEngineError(f"{path} could not be written ({error.strerror}): save elsewhere.") from error
        return path


class Record(BaseModel):
    """The record in a saved result. It is untrusted, so each value is validated."""

    method: Line
    backbone: Annotated[Line, Field(min_length=1)]
    revision: Line
    settings: Annotated[dict[Annotated[str, Field(max_length=100)], Plain], Field(max_length=200)]
    inputs: Annotated[list[InputRecord], Field(max_length=1000)]
    device: Line = ""
    dtype: Line = ""
    versions: Annotated[dict[Line, Line], Field(max_length=100)] = {}

    @field_validator("inputs", mode="before")
    @classmethod
    def _names_of_older_records(cls, entries: Any) -> Any:
        """Records of the first version have a path, `source`, instead of `name`."""
        if not isinstance(entries, list):
            return entries
        return [
            {**entry, "name": entry.get("name", entry["source"])}
            if isinstance(entry, dict) and isinstance(entry.get("source"), str)
            else entry
            for entry in entries
        ]


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that `Stylization.save` put into a PNG; StyleEngineError if there is none, or a damaged one."""
    open_image(path, "result")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(METADATA_KEY)
    except (OSError, ValueError, SyntaxError):
        text = None
    stated = parsed_record(text)
    record = checked_record(stated, path)
    return {**stated, "inputs": [vars(entry) for entry in record.inputs]}


def parsed_record(text: Any) -> Any:
    """The JSON value of a text; None if it is invalid or too long."""
    if not isinstance(text, str) or len(text) > MOST_RECORD:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def checked_record(stated: Any, path: str | os.PathLike[str]) -> Record:
    """The validated record; StyleEngineError if it is not one."""
    name = shortened(file_name(path))
    needed = {"method", "backbone", "revision", "settings", "inputs"}
    if not isinstance(stated, dict) or not needed <= stated.keys():
        raise StyleEngineError(
            f"{name} carries no StyleEngine record: it was not saved by StyleEngine, "
            "or another program has stripped its metadata."
        )
    try:
        return Record.model_validate(stated)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = shortened(".".join(str(part) for part in problem["loc"]))
        raise StyleEngineError(
            f"The record that {name} carries cannot be used ({place}: {problem['msg']}): another program has changed "
            "it, or another version of StyleEngine wrote it."
        ) from error


def file_name(source: Any) -> str:
    """The name of an input's file, without its folder; empty if there is none.

    Characters that are not UTF-8 become "?", because records are UTF-8.
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        source = getattr(source, "filename", "") or getattr(source, "name", "")
    if not isinstance(source, (str, bytes, os.PathLike)):
        return ""
    path = os.fsdecode(source)
    name = (PureWindowsPath(path) if WINDOWS_PATH.match(path) else Path(path)).name
    return name.encode(errors="replace").decode()


def model_name(model: str) -> str:
    """A model's name for shared files: its name or hub id, or a local folder's name without its path."""
    location = model.partition("@")[0]
    on_hub = location.count("/") <= 1 and not location.startswith((".", "/", "~"))
    if on_hub and not WINDOWS_PATH.match(model) and not os.path.isdir(model):
        return model
    return file_name(model.rstrip("/\\")) or file_name(os.path.abspath(model)) or "model"


def mask_record(mask: Image.Image, name: str = "", inverted: bool = False) -> InputRecord:
    """The record of a mask ("L") as the run uses it. One without a file is stored whole, unless it is very large."""
    original = ImageOps.invert(mask) if inverted else mask
    data = ""
    if not name:
        data = base64.b64encode(png(original, optimize=True)).decode()
    return InputRecord(
        "mask", content_hash(original), name, inverted=inverted, data=data if len(data) <= MOST_MASK else ""
    )


def library_versions() -> dict[str, str]:
    """The versions of this package and of libraries that may change pixels."""
    versions = {"styleengine": __version__}
    for library in RECORDED_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _as_json(value: Any) -> str:
    """JSON that is valid UTF-8, whatever file names and notes contain."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
