"""A folder for the finished parts of a long run, so that it can be resumed."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from styleengine.errors import StyleEngineError
from styleengine.images import save_png, write_whole

MANIFEST = "run.json"


class WorkFolder:
    """Frames as PNG, tensors as safetensors, and a manifest that identifies their run.

    Files are written atomically. `fixed` are manifest values that a resumed run takes from the folder
    instead of its own.

    Raises StyleEngineError if the folder belongs to another run or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            known = self._known()
            if known is None:
                self.fixed = dict(fixed)
                whole = {"run": dict(manifest), "fixed": self.fixed}
                write_whole(self.path / MANIFEST, json.dumps(whole, indent=1).encode())
                return
        except OSError as error:
            raise StyleEngineError(
                f"The work folder {self.path.name} cannot be used ({error.strerror}): name another."
            ) from error
        self.fixed = known["fixed"]
        asked = json.loads(json.dumps(manifest))
        others = sorted(name for name in {*asked, *known["run"]} if asked.get(name) != known["run"].get(name))
        if others:
            raise StyleEngineError(
                f"The work folder {self.path.name} belongs to another run (what differs: {', '.join(others)}). "
                "Delete it to start again, name another, or repeat that run."
            )

    def save_frame(self, kind: str, number: int, image: Image.Image) -> None:
        """Saves frame `number` of a series of frames."""
        try:
            (self.path / kind).mkdir(exist_ok=True)
        except OSError as error:
            raise self._full(error) from error
        save_png(image, self._frame(kind, number), {})

    def frame(self, kind: str, number: int) -> Image.Image:
        """Frame `number` of a series."""
        file = self._frame(kind, number)
        try:
            with Image.open(file, formats=["PNG"]) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for files that are cut off or not PNG
            raise self._damaged(file) from error

    def frames(self, kind: str, count: int) -> Iterator[Image.Image]:
        """The first `count` frames of a series, one at a time."""
        return (self.frame(kind, number) for number in range(count))

    def finished(self, kind: str) -> int:
        """The number of frames of a series before the first gap."""
        count = 0
        while self._frame(kind, count).is_file():
            count += 1
        return count

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], number: int) -> None:
        """Saves named tensors, and the number of the frame they belong to."""
        file, partial = self._tensors(name), self.path / f".{name}.partial"
        try:
            save_file({key: x.contiguous().cpu() for key, x in tensors.items()}, partial, {"frame": str(number)})
            os.replace(partial, file)
        except (OSError, SafetensorError) as error:
            raise self._full(error) from error
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
            raise self._damaged(self._tensors(name)) from error

    def _known(self) -> dict[str, Any] | None:
        file = self.path / MANIFEST
        if not file.is_file():
            if any(self.path.iterdir()):
                raise StyleEngineError(
                    f"The folder {self.path.name} holds other things than a run's work: name an empty or a new one."
                )
            return None
        try:
            known = json.loads(file.read_text())
            return {"run": dict(known["run"]), "fixed": dict(known["fixed"])}
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(file) from error

    def _full(self, error: Exception) -> StyleEngineError:
        why = getattr(error, "strerror", None) or error
        return StyleEngineError(f"The run could not be kept in {self.path.name} ({why}): make room there.")

    def _damaged(self, file: Path) -> StyleEngineError:
        return StyleEngineError(f"The file {file.name} is damaged: delete the work folder and start again.")

    def _frame(self, kind: str, number: int) -> Path:
        return self.path / kind / f"{number:05}.png"

    def _tensors(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"
