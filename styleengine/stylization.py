"""What a run gives (Stylization), what it reports on the way (StepEvent), and how both are kept."""

import base64
import contextlib
import importlib.metadata
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from styleengine.errors import StyleEngineError
from styleengine.images import check_output, content_hash, open_image, save_png, write_whole

METADATA_KEY = "styleengine"
RECORDED_LIBRARIES = ("styleengine", "torch", "diffusers", "transformers", "pillow")


@dataclass(frozen=True)
class StepEvent:
    """Progress of a run: `step` of `total` is done; `preview()` decodes the picture as it stands."""

    phase: str
    step: int
    total: int
    preview: Callable[[], Image.Image]


@dataclass(frozen=True)
class LearningEvent(StepEvent):
    """Progress of learning: `loss` of the step (None before the first), `judged` pairs of step and loss on a fixed set.

    `preview()` draws with what is learnt so far, which takes as long as drawing does.
    """

    loss: float | None
    judged: Sequence[tuple[int, float]]
    steps_per_second: float


OnStep = Callable[[StepEvent], None]


@dataclass(frozen=True)
class InputRecord:
    """One input of a run: its role ("content", "style", "mask", "clip" or "learnt style"), its hash, its file's name.

    Never a path: results are shared. `inverted` says that the run used the negative of the mask with
    this hash. `data` is a mask that exists in no file, as base64 of a PNG, so that it is not lost.
    """

    role: str
    sha256: str
    name: str = ""
    weight: float = 1.0
    inverted: bool = False
    data: str = ""


@dataclass(frozen=True)
class Stylization:
    """A picture and all that is needed to make it again. `notes` say in sentences what differs from what was asked."""

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
        """Everything but the picture, as plain data."""
        return {
            "method": self.method,
            "backbone": self.backbone,
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
        """Writes the PNG with the record as text metadata; raises StyleEngineError where it cannot."""
        return save_png(self.image, path, {METADATA_KEY: json.dumps(self.record(), ensure_ascii=False)})


@dataclass(frozen=True, kw_only=True)
class VideoStylization(Stylization):
    """A redrawn clip: `image` is its first frame, `path` the MP4 that holds all `frames` of them.

    `complete` is False where the
    run was cancelled. `differences` are Diff per pair of neighbouring frames (`frame_differences`):
    of the "result", of the "clip" itself, and of its frames redrawn "alone" where that was asked for.
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
        """The record as the MP4 carries it."""
        return json.dumps({METADATA_KEY: self.record()}, ensure_ascii=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copies the MP4, record included; raises StyleEngineError where it cannot."""
        path = check_output(path, ".mp4")
        try:
            write_whole(path, self.path.read_bytes())
        except OSError as error:
            raise StyleEngineError(f"{path} could not be written ({error.strerror}): save elsewhere.") from error
        return path


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that `Stylization.save` put into a PNG; StyleEngineError if there is none."""
    open_image(path, "result")
    text = None
    with contextlib.suppress(Exception), Image.open(path, formats=["PNG"]) as image:  # others' metadata may be anything
        text = image.info.get(METADATA_KEY)
    try:
        return checked_record(json.loads(text or "null"), path)
    except ValueError:
        return checked_record(None, path)


def checked_record(record: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was read as a record, if it is one; StyleEngineError otherwise."""
    needed = {"method", "backbone", "revision", "settings", "inputs"}
    if not isinstance(record, dict) or not needed <= record.keys():
        raise StyleEngineError(
            f"{Path(path).name} carries no StyleEngine record: it was not saved by StyleEngine, "
            "or another program has stripped its metadata."
        )
    return record


def file_name(source: Any) -> str:
    """The name of the file that an input came from, without its folder; nothing where there is none."""
    if isinstance(source, (str, os.PathLike)):
        return Path(os.fsdecode(source)).name
    named = getattr(source, "filename", "") or getattr(source, "name", "")
    return Path(os.fsdecode(named)).name if isinstance(named, (str, bytes, os.PathLike)) else ""


def mask_record(mask: Image.Image, name: str = "", inverted: bool = False) -> InputRecord:
    """The record of a mask ("L") as the run uses it; one without a file is kept whole."""
    original = ImageOps.invert(mask) if inverted else mask
    data = ""
    if not name:
        buffer = io.BytesIO()
        original.save(buffer, "PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
    return InputRecord("mask", content_hash(original), name, inverted=inverted, data=data)


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose change may change pixels."""
    versions = {}
    for library in RECORDED_LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            from styleengine import __version__

            versions[library] = __version__
    return versions
