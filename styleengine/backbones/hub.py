"""Downloads a model's folder from the hub, pinned to a revision, safetensors only."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from styleengine.backbones.origins import Origin
from styleengine.errors import StyleEngineError


def download(name: str, origin: Origin) -> tuple[Path, str]:
    patterns = ["*.json", "*.txt", "*.safetensors"]
    unused = ["safety_checker/*", "*.non_ema.*", "*.fp16.*", "v1-5-*", "*/openvino*", "*.msgpack"]
    try:
        folder = snapshot_download(
            origin.location, revision=origin.revision, allow_patterns=patterns, ignore_patterns=unused
        )
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
