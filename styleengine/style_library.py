"""The style library: a folder of learned styles, the bundled styles, and unfinished learning runs.

Users may be remote, so messages contain no folder; the log does. Nothing is overwritten. At most
`MOST_UNFINISHED` unfinished runs are kept. Beyond that, a new run replaces the least recently used one that is
not in use and was last used more than an hour (`LATELY`) ago. If there is none, the new run is refused.
"""

import errno
import logging
import os
import shutil
import threading
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.backbones import LatentBackbone
from styleengine.errors import StyleEngineError
from styleengine.images import write_whole
from styleengine.learned_style import MOST_PAINTINGS, SUFFIX, LearnedStyle, fitting_name, quoted, shape_for
from styleengine.workfolder import WorkFolder

FOLDER_VARIABLE = "STYLEENGINE_STYLES"
SHIPPED = Path(__file__).parent / "styles"
MOST_STYLES, MOST_UNFINISHED = 500, 40
LATELY = 3600.0  # seconds after its last use during which an unfinished run is not deleted
MOST_NAMED = 20  # styles in a message
UNFINISHED = "unfinished"
PAINTING, CONTENT = "painting", "content"  # images of an unfinished run
PAINTINGS = "paintings"  # in its manifest: how many; 1 if it does not say

log = logging.getLogger(__name__)

Shape = tuple[str, int, int]


def default_folder() -> Path:
    """$STYLEENGINE_STYLES, else a folder in the user's home."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".styleengine" / "styles")


class StyleLibrary:
    """Styles by name. Added styles get unique names; bundled styles are read-only."""

    def __init__(self, folder: Path | None = None, shipped: Path = SHIPPED) -> None:
        self.folder, self.shipped = folder or default_folder(), shipped
        self._lock = threading.Lock()
        self._shapes: dict[Path, tuple[tuple[int, int], Shape | None]] = {}

    def names(self, backbone: LatentBackbone | None = None) -> list[str]:
        """All styles, or those that fit the backbone: bundled ones first, then the others, oldest first.

        A file is read once, and again when its size or modification time has changed.
        """
        files = self._files()
        if backbone is None:
            return list(files)
        here, known = shape_for(backbone), self._shapes
        self._shapes = shapes = {file: _shape(file, stat, known.get(file)) for file, stat in files.values()}
        return [name for name, (file, _) in files.items() if shapes[file][1] == here]

    def open(self, name: str) -> LearnedStyle:
        """The style of that name; StyleEngineError for one that is not there."""
        return LearnedStyle.open(self.path(name))

    def path(self, name: str) -> Path:
        """The file of a style; StyleEngineError for one that is not there."""
        files = self._files()
        if not isinstance(name, str) or name not in files:
            known = ", ".join(f"“{known}”" for known in list(files)[:MOST_NAMED]) or "none yet"
            more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
            raise StyleEngineError(
                f"There is no style {quoted(name)} in the library. Choose one of these: {known}{more}."
            )
        return files[name][0]

    def add(self, style: LearnedStyle) -> LearnedStyle:
        """Saves a style under a free name; returns it as saved.

        Raises StyleEngineError if the library is full or cannot be written.
        """
        with self._lock:
            return self._keep(style, self._free(style.record.name))

    def put(self, place: "Unfinished", style: LearnedStyle) -> LearnedStyle:
        """Saves the style of an unfinished run, replacing its earlier version.

        The run's folder is deleted if the style is complete. Raises as `add`.
        """
        with self._lock:
            kept = self._keep(style, place.name)
            if style.record.complete:
                place.delete()
            return kept

    def begin(
        self,
        painting: Image.Image,
        name: str,
        run: Mapping[str, Any],
        content: Image.Image | None = None,
        in_use: Collection[str] = (),
        more: Sequence[Image.Image] = (),
    ) -> "Unfinished":
        """Creates the folder of a new run. `run` is its manifest; `content` is the image for previews.

        `more` are further paintings of the same artist.
        Runs named in `in_use` are not deleted, however old.

        Raises StyleEngineError if the library is full or cannot be written.
        """
        with self._lock:
            self._make_room(in_use)
            place = self._claim(name)
        try:
            for number, image in enumerate([painting, *more], 1):
                place.save_image(_painting(number), image)
            if content:
                place.save_image(CONTENT, content)
            place.save_manifest({**run, PAINTINGS: 1 + len(more)} if more else run)
        except BaseException:
            place.delete()
            raise
        return place

    def take_up(self, name: str) -> "Unfinished":
        """The unfinished run of that name, marked as used; StyleEngineError if there is none."""
        with self._lock:
            place = self.unfinished().get(name)
            if place is None:
                raise StyleEngineError(
                    f"There is no unfinished style {quoted(name)}. Choose one from the list, or start again."
                )
            place.touch()
            return place

    def unfinished(self) -> dict[str, "Unfinished"]:
        """The unfinished runs, by name."""
        return {place.name: place for place in self._places() if place.manifest_file.is_file()}

    def _make_room(self, in_use: Collection[str]) -> None:
        """Deletes old incomplete folders of crashed processes, and one unfinished run if there are too many."""
        long_ago = time.time() - LATELY
        left = sorted((place for place in self._places() if place.name not in in_use), key=lambda place: place.touched)
        old = [place for place in left if place.touched < long_ago]
        whole = self.unfinished()
        excess = len(whole) - MOST_UNFINISHED + 1
        if excess > len([place for place in old if place.name in whole]):
            raise StyleEngineError(
                f"{len(whole)} paintings are being learned or were left unfinished within the hour, and no more can be "
                "kept. Finish one of them, or try again later."
            )
        for place in old:
            if place.name not in whole:
                place.delete()
            elif excess > 0:
                log.info("deleted to make room: %s", place.path)
                place.delete()
                excess -= 1

    def _claim(self, name: str) -> "Unfinished":
        """Creates a new run folder. Another process may be creating one of the same name."""
        with self._writing():
            (self.folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
            for _ in range(MOST_STYLES):
                place = Unfinished(self.folder / UNFINISHED / self._free(name))
                with suppress(FileExistsError):
                    place.path.mkdir()
                    if not self._contested(place):
                        return place
                    place.path.rmdir()
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), name)  # a file is in the way

    def _contested(self, place: "Unfinished") -> bool:
        """Whether another process has created a folder whose name counts as equal in the meantime."""
        return any(other.name != place.name and _folded(other.name) == _folded(place.name) for other in self._places())

    def _free(self, name: str) -> str:
        """The name, made valid, else the first free one of “name 2”, “name 3”, ….

        Names that differ only in case or Unicode form count as equal, as in some file systems. Raises
        StyleEngineError if the library is full.
        """
        taken = {_folded(known) for known in [*self._files(), *(place.name for place in self._places())]}
        if len(taken) >= MOST_STYLES:
            log.warning("The library is full: %s", self.folder)
            raise StyleEngineError(
                f"The library is full ({MOST_STYLES} styles). Whoever runs this app must delete some before one more "
                "can be kept."
            )
        name = fitting_name(name)
        candidates = (name, *(f"{name[:40].rstrip('.- ')} {number}" for number in range(2, MOST_STYLES + 2)))
        return next(candidate for candidate in candidates if _folded(candidate) not in taken)

    def _keep(self, style: LearnedStyle, name: str) -> LearnedStyle:
        style, file = style.without_state().renamed(name), self.folder / f"{name}{SUFFIX}"
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, style.to_bytes())
        return style

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts disk errors to messages that do not contain the folder."""
        try:
            yield
        except OSError as error:
            raise _unwritable(error) from error

    def _files(self) -> dict[str, tuple[Path, os.stat_result]]:
        """Each style's file and stat result, by name."""
        own = sorted(_regular(self.folder), key=lambda entry: entry[1].st_mtime_ns)
        return {file.stem: (file, stat) for file, stat in [*sorted(_regular(self.shipped)), *own]}

    def _places(self) -> list["Unfinished"]:
        """All folders of unfinished runs, including incomplete ones."""
        folders = _entries(self.folder / UNFINISHED)
        return [
            Unfinished(Path(entry.path)) for entry in sorted(folders, key=lambda entry: entry.name) if entry.is_dir()
        ]


class Unfinished(WorkFolder):
    """The folder of an unfinished run: the paintings, the run's data, and the progress.

    The manifest is written last: a folder without it is incomplete.
    """

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def partial(self) -> Path:
        """The style file with the progress."""
        return self.path / f"partial{SUFFIX}"

    @property
    def touched(self) -> float:
        """The time of the last saved progress or `touch`, in seconds since the epoch."""
        return max(_modified(self.manifest_file), _modified(self.partial)) or _modified(self.path)

    def touch(self) -> None:
        """Marks the run as used."""
        try:
            os.utime(self.manifest_file)
        except OSError:  # deleted by hand, or of another user
            log.warning("cannot be touched: %s", self.manifest_file)

    def paintings(self) -> list[Image.Image]:
        """The painting, and further ones of the same artist; StyleEngineError if any of them is missing or damaged."""
        count = self.manifest().get(PAINTINGS, 1)
        if type(count) is not int or not 1 <= count <= MOST_PAINTINGS:
            raise self.damaged()
        return [self.image(_painting(number)) for number in range(1, count + 1)]

    def content(self) -> Image.Image | None:
        """The image for previews; None if there is none or it cannot be read."""
        try:
            return self.image(CONTENT)
        except StyleEngineError:
            return None

    def save_preview(self, step: int, preview: Image.Image) -> None:
        """Saves a preview. Errors are only logged, so that learning continues."""
        with suppress(StyleEngineError):
            self.save_image(f"preview-{step:05}", preview)

    def previews(self) -> list[tuple[int, Path]]:
        """(step, file) of each preview, in order."""
        files = [(file.stem.removeprefix("preview-"), file) for file in self.path.glob("preview-*.png")]
        return sorted((int(step), file) for step, file in files if step.isdecimal())

    def damaged(self, file: Path | None = None) -> StyleEngineError:
        return StyleEngineError(f"The saved progress of “{self.name}” is damaged: learn the painting again.")

    def full(self, error: Exception) -> StyleEngineError:
        return _unwritable(error)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _painting(number: int) -> str:
    """The file name of a painting, without its ending; the first is number 1."""
    return PAINTING if number == 1 else f"{PAINTING}-{number}"


def _unwritable(error: Exception) -> StyleEngineError:
    """The error for a library that cannot be written. It contains no folder; the log does."""
    log.warning("The library cannot be written: %s", error)
    return StyleEngineError(
        f"The library cannot be written ({getattr(error, 'strerror', None)}). Whoever runs this app must make room, or "
        f"name another folder in ${FOLDER_VARIABLE}."
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder with printable, visible names; none if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.isprintable() and not entry.name.startswith(".")]
    except OSError:
        return []


def _regular(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The style files in a folder with their stat results. Files that vanish meanwhile are skipped."""
    for entry in _entries(folder):
        try:
            if entry.name.endswith(SUFFIX) and entry.is_file():
                yield Path(entry.path), entry.stat()
        except OSError:
            continue


def _shape(
    file: Path, stat: os.stat_result, known: tuple[tuple[int, int], Shape | None] | None
) -> tuple[tuple[int, int], Shape | None]:
    """A file's size and time, to detect changes, and its style's shape; None for an invalid style."""
    state = stat.st_size, stat.st_mtime_ns
    if known and known[0] == state:
        return known
    try:
        return state, LearnedStyle.open(file).shape
    except StyleEngineError:
        return state, None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
