"""What a run gives (Stylization), what it reports on the way (StepEvent), and how both are kept."""

import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, check_output, open_image, save_png, write_whole

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
    """One input of a run: its role ("content", "style", "mask" or "learnt style"), its hash, its origin."""

    role: str
    sha256: str
    source: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Stylization:
    """A picture and all that is needed to make it again."""

    image: Image.Image
    method: str
    settings: Mapping[str, Any]
    backbone: str
    revision: str
    inputs: Sequence[InputRecord]
    seconds: float
    details: Mapping[str, float]
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
            "versions": dict(self.versions),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the PNG with the record as text metadata; raises StyleEngineError where it cannot."""
        return save_png(self.image, path, {METADATA_KEY: json.dumps(self.record(), ensure_ascii=False)})


@dataclass(frozen=True, kw_only=True)
class VideoStylization(Stylization):
    """A redrawn clip: `image` is its first frame, `path` the MP4 that holds all `frames` of them.

    `notes` say in sentences what of the clip was left out or changed; `complete` is False where the
    run was cancelled. `differences` are Diff per pair of neighbouring frames (`frame_differences`):
    of the "result", of the "clip" itself, and of its frames redrawn "alone" where that was asked for.
    """

    path: Path
    frames: int
    rate: Fraction
    complete: bool
    notes: Sequence[str]
    differences: Mapping[str, Sequence[float]]

    def record(self) -> dict[str, Any]:
        differences = {name: [round(value, 5) for value in values] for name, values in self.differences.items()}
        return {
            **super().record(),
            "details": {name: round(value, 6) for name, value in self.details.items()},
            "frames": self.frames,
            "rate": str(self.rate),
            "complete": self.complete,
            "notes": list(self.notes),
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
    with Image.open(path) as image:
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


def source_name(source: ImageSource) -> str:
    """Where an input came from, as far as it can be told: an absolute path, or nothing."""
    if isinstance(source, (str, os.PathLike)):
        return str(Path(source).resolve())
    filename = getattr(source, "filename", "")
    return str(Path(filename).resolve()) if filename else ""


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
