"""Downloads a model's folder from the hub, pinned to a revision: the files that are loaded, safetensors only."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from styleengine.backbones.origins import Origin
from styleengine.errors import StyleEngineError

PATTERNS = ("*.json", "*.txt", "*.safetensors")
UNUSED = ("safety_checker/*", "*.non_ema.*", "*.fp16.*", "v1-5-*", "*/openvino*", "*.msgpack")
INDEX = "model_index.json"
NOT_LOADED = {"safety_checker", "feature_extractor"}  # parts of a pipeline
OWN = {"clip"}  # a folder that no model index names
HALF = ".fp16."


def download(name: str, origin: Origin, half: bool = False) -> tuple[Path, str]:
    """The model's folder and its revision. With `half`, weights in float16 where the repository has them.

    Raises StyleEngineError for an unknown model or revision, or if it is not on this machine and the hub cannot be
    reached.
    """
    try:
        folder = _snapshot(origin, half)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise StyleEngineError(
            f"The hub has no model “{origin.location}” that you may read. "
            "Check its name, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise StyleEngineError(
            f"The model “{origin.location}” has no revision “{origin.revision}”. Name a branch, a tag or a commit."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StyleEngineError(
            f"The model “{name}” is not on this machine and the hub cannot be reached ({type(error).__name__}). "
            "Connect to the network and try again, or use the embedded model “mini”, which needs none."
        ) from error
    return Path(folder), Path(folder).name


def _snapshot(origin: Origin, half: bool) -> str:
    location, revision = origin.location, origin.revision
    try:
        files = HfApi().list_repo_files(location, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except (HfHubHTTPError, OSError):  # what is on this machine
        return snapshot_download(
            location, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=list(UNUSED)
        )
    parts: Collection[str] = ()
    if INDEX in files:
        index = Path(snapshot_download(location, revision=revision, allow_patterns=[INDEX]), INDEX)
        parts = named_parts(index.read_text(encoding="utf-8"))
    return snapshot_download(location, revision=revision, allow_patterns=loaded_files(files, parts, half))


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
