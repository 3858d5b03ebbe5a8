"""The library: a folder of learnt styles, those that come with the package, and paintings not yet learnt to the end."""

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.backbone import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import open_image, save_png, write_whole
from styleengine.learned_style import SUFFIX, LearnedStyle, fitting_name

FOLDER_VARIABLE = "STYLEENGINE_STYLES"
SHIPPED = Path(__file__).parent / "styles"
MOST_STYLES, MOST_UNFINISHED = 500, 20
UNFINISHED = "unfinished"


def default_folder() -> Path:
    """$STYLEENGINE_STYLES, else a folder in the user's home."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".styleengine" / "styles")


class StyleLibrary:
    """Styles by their names. What is added gets a name of its own; what comes with the package is only read."""

    def __init__(self, folder: Path | None = None, shipped: Path = SHIPPED) -> None:
        self.folder, self.shipped = folder or default_folder(), shipped
        self._lock = threading.Lock()

    def names(self, backbone: LatentBackbone | None = None) -> list[str]:
        """All styles, or those that the backbone can read: the package's first, the newest of the others last."""
        return [name for name, file in self._files().items() if backbone is None or _fits(file, backbone)]

    def open(self, name: str) -> LearnedStyle:
        """The style of that name; StyleEngineError for one that is not there."""
        files = self._files()
        if name not in files:
            known = ", ".join(f"“{known}”" for known in files) or "none yet"
            raise StyleEngineError(f"There is no style “{name}” in the library. Choose one of these: {known}.")
        return LearnedStyle.open(files[name])

    def path(self, name: str) -> Path:
        """The file of a style; StyleEngineError as for `open`."""
        return Path(self.open(name).source)

    def add(self, style: LearnedStyle) -> LearnedStyle:
        """Keeps a style, under a name that is still free; gives it as it is kept.

        Raises StyleEngineError where the library is full or cannot be written.
        """
        with self._lock:
            name = _free(fitting_name(style.record.name), {**self._files(), **self.unfinished()})
            return self._keep(style, name)

    def put(self, place: "Unfinished", style: LearnedStyle) -> LearnedStyle:
        """Keeps what has been learnt at a place, in the place of what was kept from there before.

        The place is given up if the style is complete. Raises as `add`.
        """
        with self._lock:
            kept = self._keep(style, place.name)
            if style.record.complete:
                place.delete()
            return kept

    def begin(self, painting: Image.Image, name: str, run: Mapping[str, Any]) -> "Unfinished":
        """A place for a painting that is to be learnt; `run` is plain data about how.

        Of too many, the one longest untouched gives way.
        """
        with self._lock:
            oldest = sorted(self.unfinished().values(), key=lambda known: known.touched)
            for known in oldest[: max(0, len(oldest) - MOST_UNFINISHED + 1)]:
                known.delete()
            name = _free(fitting_name(name), {**self._files(), **self.unfinished()})
            place = Unfinished(self.folder / UNFINISHED / name)
            _make(place.folder)
            save_png(painting, place.painting_file, {})
            write_whole(place.run_file, json.dumps(dict(run), ensure_ascii=False).encode())
            return place

    def unfinished(self) -> dict[str, "Unfinished"]:
        """The paintings not yet learnt to the end, by name."""
        places = map(Unfinished, sorted((self.folder / UNFINISHED).glob("*")))
        return {place.name: place for place in places if place.run_file.is_file()}

    def _keep(self, style: LearnedStyle, name: str) -> LearnedStyle:
        files = self._files()
        if len(files) >= MOST_STYLES and name not in files:
            raise StyleEngineError(
                f"The library is full ({MOST_STYLES} styles): delete some of the files in {self.folder}."
            )
        _make(self.folder)
        style = style.without_state().renamed(name)
        style.save(self.folder / f"{name}{SUFFIX}")
        return style

    def _files(self) -> dict[str, Path]:
        own = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
        return {file.stem: file for file in [*sorted(self.shipped.glob(f"*{SUFFIX}")), *own]}


@dataclass(frozen=True)
class Unfinished:
    """A folder with a painting, how it is to be learnt, and what has been learnt of it so far."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def painting_file(self) -> Path:
        return self.folder / "painting.png"

    @property
    def run_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def partial(self) -> Path:
        """The style file that learning is kept in."""
        return self.folder / f"partial{SUFFIX}"

    @property
    def touched(self) -> float:
        return max(file.stat().st_mtime for file in (self.run_file, self.partial) if file.is_file())

    def painting(self) -> Image.Image:
        return open_image(self.painting_file, "painting")

    def run(self) -> dict[str, Any]:
        """What `begin` was told; StyleEngineError where it is damaged."""
        try:
            return dict(json.loads(self.run_file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise StyleEngineError(
                f"What was kept of learning “{self.name}” is damaged: learn the painting anew."
            ) from error

    def save_preview(self, step: int, preview: Image.Image) -> None:
        save_png(preview, self.folder / f"preview-{step:05}.png", {})

    def previews(self) -> list[tuple[int, Path]]:
        """Step and file of each, in order."""
        files = sorted(self.folder.glob("preview-*.png"))
        return [(int(file.stem.removeprefix("preview-")), file) for file in files]

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _fits(file: Path, backbone: LatentBackbone) -> bool:
    try:
        LearnedStyle.open(file).check_fits(backbone)
    except StyleEngineError:
        return False
    return True


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name itself, else the first of “name 2”, “name 3”, … that nobody has."""
    candidates = (name, *(f"{name[:40].rstrip()} {number}" for number in range(2, 10_000)))
    folded = {known.casefold() for known in taken}
    return next(candidate for candidate in candidates if candidate.casefold() not in folded)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StyleEngineError(
            f"The library cannot be written ({folder}: {error.strerror}): name another folder in ${FOLDER_VARIABLE}."
        ) from error
