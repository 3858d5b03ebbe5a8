"""The folder of a run that can be resumed: its manifest and its finished parts."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from styleengine.errors import StyleEngineError
from styleengine.images import png, write_whole


class WorkFolder:
    """Images as PNG, tensors as safetensors, and a manifest with data about the run.

    Files are written atomically. Methods raise StyleEngineError, which `damaged` and `full` put into words, for
    files that are missing or damaged, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest_file = self.path / "run.json"

    def resume(self, manifest: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Begins the run that `manifest` identifies, or resumes it. Returns `fixed` as it was when the run began.

        Raises StyleEngineError if the folder belongs to another run or cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            begun = self.manifest_file.is_file()
            foreign = not begun and any(self.path.iterdir())
        except OSError as error:
            raise StyleEngineError(
                f"The work folder {self.path.name} cannot be used ({error.strerror}): name another."
            ) from error
        if foreign:
            raise StyleEngineError(
                f"The folder {self.path.name} holds other things than a run's work: name an empty or a new one."
            )
        if not begun:
            self.save_manifest({"run": dict(manifest), "fixed": dict(fixed)})
        known = self.manifest()
        try:
            run, fixed = dict(known["run"]), dict(known["fixed"])
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged(self.manifest_file) from error
        check_same_run(f"The work folder {self.path.name}", run, manifest)
        return fixed

    def manifest(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.manifest_file.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise self.damaged(self.manifest_file) from error

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        with self._writing():
            write_whole(self.manifest_file, json.dumps(dict(manifest), indent=1).encode())

    def save_image(self, name: str, image: Image.Image) -> None:
        """Saves an image, without the metadata of its file."""
        with self._writing():
            write_whole(self._image(name), png(image))

    def image(self, name: str) -> Image.Image:
        try:
            with Image.open(self._image(name), formats=["PNG"]) as image:
                return image.convert("RGB")
        except Exception as error:  # decoders raise any exception for damaged files
            raise self.damaged(self._image(name)) from error

    def save_frame(self, kind: str, number: int, image: Image.Image) -> None:
        """Saves frame `number` of a series of frames."""
        with self._writing():
            (self.path / kind).mkdir(exist_ok=True)
        self.save_image(_frame(kind, number), image)

    def frame(self, kind: str, number: int) -> Image.Image:
        """Frame `number` of a series."""
        return self.image(_frame(kind, number))

    def frames(self, kind: str, count: int) -> Iterator[Image.Image]:
        """The first `count` frames of a series, one at a time."""
        return (self.frame(kind, number) for number in range(count))

    def finished(self, kind: str) -> int:
        """The number of frames of a series before the first gap."""
        count = 0
        while self._image(_frame(kind, count)).is_file():
            count += 1
        return count

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], number: int) -> None:
        """Saves named tensors, and the number of the frame they belong to."""
        partial = self.path / f".{name}.partial"
        try:
            with self._writing():
                save_file({key: x.contiguous().cpu() for key, x in tensors.items()}, partial, {"frame": str(number)})
                os.replace(partial, self._tensors(name))
        finally:
            partial.unlink(missing_ok=True)

    def load_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], int] | None:
        """The tensors and frame number last saved, or None."""
        if not self._tensors(name).is_file():
            return None
        try:
            with safe_open(self._tensors(name), "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, int(file.metadata()["frame"])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(self._tensors(name)) from error

    def damaged(self, file: Path) -> StyleEngineError:
        """The error for a damaged or missing file."""
        return StyleEngineError(f"The file {file.name} is damaged: delete the work folder and start again.")

    def full(self, error: Exception) -> StyleEngineError:
        """The error for a file that cannot be written."""
        why = getattr(error, "strerror", None) or error
        return StyleEngineError(f"The run could not be kept in {self.path.name} ({why}): make room or name another.")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise self.full(error) from error

    def _image(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def _tensors(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def check_same_run(saved: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises StyleEngineError, which names `saved` and what differs, if two manifests are of different runs."""
    asked = json.loads(json.dumps(asked))
    names = dict.fromkeys([*asked, *known])
    others = [name.replace("_", " ") for name in names if asked.get(name) != known.get(name)]
    if others:
        raise StyleEngineError(
            f"{saved} belongs to another run (what differs: {', '.join(others)}). Delete it to start again, or repeat "
            "that run."
        )


def _frame(kind: str, number: int) -> str:
    return f"{kind}/{number:05}"
