"""Validation of everything that clients send: uploaded files, example files, and plain values."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from styleengine.errors import StyleEngineError
from styleengine.ui.examples import FOLDER

# The same message in all cases, so that it does not reveal which files exist.
REFUSED = "This file was not uploaded to the server. Upload it first, then send the path that the upload returned."
FILE_ADDRESS = "/gradio_api/file="  # in the URLs of files on this server
FILE_COMPONENTS = (gr.Image, gr.Video, gr.File, gr.UploadButton)
PAINTED = ("background", "composite")
MOST_LAYERS = 8
MOST_FILES = 50  # of one input
MOST_CHOICES = 100  # of a group of checkboxes
MOST_SAID = 500  # characters of an error
FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/“”\"']+/)+(?=[^\s/])")  # of an absolute path in a message
MOST_CHARACTERS = 100_000  # of a value that is not a file


def path_of(upload: Any) -> str | None:
    """The path of an input's file, which Gradio sends as a mapping with "path"; None for an empty input.

    Raises StyleEngineError for anything but a file in Gradio's upload folder or among the examples, after
    resolving symbolic links. URLs are accepted only if they refer to such a file on this server.
    """
    if upload is None:
        return None
    named = upload.get("path") if isinstance(upload, Mapping) else None
    found = _resolved(named) if isinstance(named, str) else None
    if found is None:
        raise StyleEngineError(REFUSED)
    folder = Path(get_upload_folder())
    try:
        if found.is_relative_to(folder.resolve()):
            return str(folder / found.relative_to(folder.resolve()))
        if found.is_relative_to(FOLDER.resolve()):
            return save_file_to_cache(found, str(folder))
    except OSError:
        pass
    raise StyleEngineError(REFUSED)


def sentence(error: Exception) -> str:
    """An error's message, with file names instead of paths, truncated if too long."""
    said = FOLDERS.sub("", error.message if isinstance(error, gr.Error) else str(error))
    return said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"


def admitted(components: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The values of an event's inputs, with each file checked as in `path_of`.

    Raises StyleEngineError for a rejected file, too many files, too few values, lists, and values that are too long.
    """
    if len(values) < len(components):
        raise StyleEngineError(f"{len(components)} values are needed; {len(values)} were sent.")
    return [_admitted(component, value) for component, value in zip(components, values, strict=False)]


def _admitted(component: Any, value: Any) -> Any:
    component = getattr(component, "control", component)  # of an API parameter
    if value is None or isinstance(component, gr.State):
        return value
    if isinstance(component, gr.ImageEditor):
        return _painting(value)
    if isinstance(component, gr.File) and component.file_count == "multiple":
        return _files(value)
    if isinstance(component, FILE_COMPONENTS):
        return _file(value)
    if isinstance(component, gr.CheckboxGroup) and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = value[:MOST_CHOICES]
    elif isinstance(value, (list, dict)) and not isinstance(component, gr.Dataset):
        raise StyleEngineError("A list or an object was sent where a single value is needed.")
    if len(str(value)) > MOST_CHARACTERS:
        raise StyleEngineError(f"A value has more than {MOST_CHARACTERS} characters. Send a shorter one.")
    return value


def _file(value: Any) -> dict[str, Any] | None:
    """A file in the form of Gradio's components, without any other fields that the client sent."""
    path = path_of(value)
    return path and {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}  # type: ignore[return-value]


def _files(values: Any) -> list[dict[str, Any]]:
    """The files of an input that takes several."""
    files = [_file(value) for value in values[: MOST_FILES + 1]] if isinstance(values, list) else [None]
    if len(files) > MOST_FILES:
        raise StyleEngineError(f"More than {MOST_FILES} files were sent. Send fewer.")
    if None in files:
        raise StyleEngineError(REFUSED)
    return files  # type: ignore[return-value]


def _painting(value: Any) -> dict[str, Any]:
    layers = value.get("layers") or [] if isinstance(value, Mapping) else None
    if not isinstance(layers, list) or len(layers) > MOST_LAYERS:
        raise StyleEngineError(REFUSED)
    return {"layers": [_file(layer) for layer in layers], **{name: _file(value.get(name)) for name in PAINTED}}


def _resolved(named: str) -> Path | None:
    """The absolute path of an existing file, with symbolic links resolved; None for anything else."""
    if named.startswith(("http://", "https://")):
        named = unquote(named.partition(FILE_ADDRESS)[2])
    try:
        path = Path(named)
        found = path.resolve(strict=True) if path.is_absolute() else None
        return found if found and found.is_file() else None
    except (OSError, ValueError, RuntimeError):  # unreadable, a null byte, a symlink loop
        return None
