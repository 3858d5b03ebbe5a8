"""Downloads a model's folder from the hub, pinned to a revision: the files that are loaded, safetensors only."""

import errno
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from httpx2 import HTTPError  # of the hub's client: not all of them become errors of its own
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from styleengine.backbones.origins import RECOMMENDED_FILE, Origin
from styleengine.errors import StyleEngineError

PATTERNS = ("*.json", "*.txt", "*.safetensors")
UNUSED = ("safety_checker/*", "*.non_ema.*", "*.fp16.*", "v1-5-*", "*/openvino*", "*.msgpack")
INDEX = "model_index.json"
NOT_LOADED = {"safety_checker", "feature_extractor"}  # parts of a pipeline
OWN = {"clip"}  # a folder that no model index names
HALF = ".fp16."
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
CONFIGURATIONS = (INDEX, RECOMMENDED_FILE, "config.json", "unet/config.json")  # what a pixel model's size is read from

OnBytes = Callable[[int, int], None]  # called with the bytes that are here, and those of all files that are loaded


def download(name: str, origin: Origin, half: bool = False, on_bytes: OnBytes | None = None) -> tuple[Path, str]:
    """The model's folder and its revision. With `half`, weights in float16 where the repository has them.

    `on_bytes(done, total)` is called when the sizes are known and with each part of a file that arrives, from any
    thread, one call at a time. An exception that it raises ends the download. Files that are complete are kept.

    Raises StyleEngineError for an unknown model or revision, if it is not on this machine and the hub cannot be
    reached, if it has no safetensors, or if the download breaks off.
    """
    with _errors_in_words(name, origin):
        folder = Path(_snapshot(name, origin, half, on_bytes))
    return folder, folder.name


def configuration(name: str, origin: Origin) -> Path:
    """The model's folder with its configurations only, a few kilobytes. Raises as `download`."""
    with _errors_in_words(name, origin):
        return Path(snapshot_download(origin.location, revision=origin.revision, allow_patterns=list(CONFIGURATIONS)))


@contextmanager
def _errors_in_words(name: str, origin: Origin) -> Iterator[None]:
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise StyleEngineError(
            f"The hub has no model “{origin.location}” that you may read. "
            "Check its name, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise StyleEngineError(
            f"The model “{origin.location}” has no revision “{origin.revision}”. Name a branch, a tag or a commit."
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise StyleEngineError(
            f"The model “{name}” is not on this machine and the hub cannot be reached ({type(error).__name__}). "
            "Connect to the network and try again, or use the embedded model “mini”, which needs none."
        ) from error


def _snapshot(name: str, origin: Origin, half: bool, on_bytes: OnBytes | None) -> str:
    location, revision = origin.location, origin.revision
    try:
        files = HfApi().list_repo_files(location, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except (HTTPError, OSError):  # what is on this machine
        return snapshot_download(
            location, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=list(UNUSED)
        )
    parts: Collection[str] = ()
    if INDEX in files:
        index = Path(snapshot_download(location, revision=revision, allow_patterns=[INDEX]), INDEX)
        parts = named_parts(index.read_text(encoding="utf-8"))
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": loaded_files(files, parts, half)}
    if not any(file.endswith(".safetensors") for file in wanted["allow_patterns"]):
        _refuse_pickles(name, files)
    if on_bytes is None:  # with the hub's own progress bars
        with _broken_off(name):
            return snapshot_download(location, **wanted)
    sizes = [(file.file_size or 0, file.will_download) for file in snapshot_download(location, **wanted, dry_run=True)]
    here, total = sum(size for size, missing in sizes if not missing), sum(size for size, _ in sizes)
    count = _Count(here, total, on_bytes)
    with _broken_off(name, count):
        folder = snapshot_download(location, **wanted, tqdm_class=count.bars())
        count.note(total)  # files of equal content are downloaded once
        return folder


def _refuse_pickles(name: str, files: Sequence[str]) -> None:
    """StyleEngineError if there are weights among the files, since none of them are safetensors."""
    if any(file.endswith(PICKLED) for file in files):
        raise StyleEngineError(
            f"The model “{name}” has its weights only as pickled files, which can contain code and are not loaded. "
            "If you trust it, convert it once by loading it with diffusers and `save_pretrained(FOLDER)`, and give "
            "that folder as the model."
        )


class _Count:
    """Counts the bytes of a download from the hub's progress bars, of which it makes the class.

    A file's bytes are counted by two bars: as they arrive, and as they are written to its file. These differ where
    files are put together from parts (Xet). The higher one counts.
    """

    def __init__(self, here: int, total: int, on_bytes: OnBytes) -> None:
        self.error: BaseException | None = None  # of `on_bytes`; the hub's client may replace or drop it
        self._here, self._total, self._on_bytes = here, total, on_bytes
        self._done = 0
        self._lock = threading.RLock()
        on_bytes(here, total)

    def note(self, done: float) -> None:
        """Reports that a bar is at `done` bytes, unless another is further."""
        self._done = max(self._done, int(done))
        try:
            if self.error is None:
                self._on_bytes(min(self._here + self._done, self._total), self._total)
        except BaseException as error:
            self.error = error
            raise
        if self.error is not None:
            raise self.error

    def bars(self) -> Any:  # a subclass of tqdm
        count, lock = self, self._lock

        class Bar(tqdm):
            """A bar that is not drawn. The hub's client has one more, whose unit is files."""

            def __init__(self, *arguments: Any, unit: str = "files", **options: Any) -> None:
                super().__init__(*arguments, **{**options, "disable": True})
                self.in_bytes = unit == "B"

            def update(self, n: float | None = 1) -> None:
                with lock:
                    self.n += n or 0
                    if self.in_bytes:
                        count.note(self.n)

        return Bar


@contextmanager
def _broken_off(name: str, count: _Count | None = None) -> Iterator[None]:
    """Turns all errors of a download into sentences, but that of `on_bytes`, which is raised as it is."""
    try:
        yield
    except Exception as error:
        if count and count.error:
            raise count.error from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StyleEngineError(
                f"There is no room on the disk for the model “{name}”. Free some, or choose a smaller model."
            ) from error
        raise StyleEngineError(
            f"The download of the model “{name}” broke off ({type(error).__name__}). "
            "Try again: files that are complete are kept."
        ) from error
    if count and count.error:
        raise count.error


def named_parts(index: str) -> set[str]:
    """The folders of the parts that a model index names and that are loaded."""
    try:
        named: dict[str, object] = json.loads(index)
        return {part for part, kind in named.items() if isinstance(kind, list) and all(kind)} - NOT_LOADED | OWN
    except (ValueError, AttributeError):
        return set()  # loading the model states what is wrong


def loaded_files(files: Sequence[str], parts: Collection[str], half: bool) -> list[str]:
    """Of a repository's files, those that are loaded: of `parts`, and of a network at the top level.

    Weights of a folder are its files in float16 with `half`, if there are any, and otherwise those without a variant.
    """
    paths = [PurePosixPath(file) for file in files]
    folders = [path.parent.as_posix() for path in paths]
    at_top = not any(folder in parts for folder in folders if folder not in OWN)  # CLIP and the oldest DDPMs
    chosen: list[str] = []
    for path, folder in zip(paths, folders, strict=True):
        if folder not in (".", *parts):
            continue
        if path.suffix in (".json", ".txt"):
            chosen.append(str(path))
        elif path.suffix == ".safetensors" and (folder != "." or at_top):
            has_half = half and any(HALF in other.name and other.parent == path.parent for other in paths)
            if HALF in path.name if has_half else path.name.count(".") == 1:
                chosen.append(str(path))
    return chosen
