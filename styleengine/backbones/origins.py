"""The locations of named models, and their recommended settings per method."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from styleengine.errors import StyleEngineError
from styleengine.stylization import model_name

MODELS = Path(__file__).parents[1] / "models"
RECOMMENDED_FILE = "recommended.json"
MODEL_VARIABLE = "STYLEENGINE_MODEL"
SIZED_AS_TRAINED = ("h_space", "qs_attn")  # methods for pixel models, which work best at the size they were trained at


@dataclass(frozen=True)
class Origin:
    """Where a named backbone's weights are: a local folder, or a hub id pinned to a revision.

    `recommended` are recommended settings per method; those in the model's folder override them.
    """

    location: str
    revision: str | None = None
    title: str = ""
    recommended: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _ddpm_256(name: str, title: str, t_edit: int) -> Origin:
    """One of Google's DDPMs, with the t_edit that the authors of h-space injection measured for it (by LPIPS)."""
    sizes: dict[str, dict[str, Any]] = {method: {"size": 256} for method in SIZED_AS_TRAINED}
    return Origin(f"google/{name}", title=title, recommended={**sizes, "h_space": {"size": 256, "t_edit": t_edit}})


# Not yet compared on a GPU. Each value's reason is in docs/, on the method's page.
SD15: dict[str, dict[str, Any]] = {
    "zstar": {"inversion_iterations": 2},
    "h_space": {"inversion_iterations": 2},
    "qs_attn": {"size": 512, "depth": 0.7},
    "inst_learn": {"patience": 0},
}
BACKBONES = {
    "mini": Origin(str(MODELS / "mini"), title="Mini (embedded, runs anywhere)"),
    "sd15": Origin(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        title="Stable Diffusion 1.5 (for GPUs)",
        recommended=SD15,
    ),
    "figures": Origin(str(MODELS / "figures"), title="Painted figures, 64 pixels (embedded)"),
    "ddpm-celebahq-256": _ddpm_256("ddpm-celebahq-256", "Faces, 256 pixels", t_edit=516),
    "ddpm-church-256": _ddpm_256("ddpm-church-256", "Churches, 256 pixels", t_edit=370),
    "ddpm-bedroom-256": _ddpm_256("ddpm-bedroom-256", "Bedrooms, 256 pixels", t_edit=369),
}


def named_backbones() -> dict[str, Origin]:
    """All named backbones: those of BACKBONES, and the folders beside the embedded model."""
    folders = sorted(index.parent for index in MODELS.glob("*/model_index.json"))
    beside = {folder.name: Origin(str(folder), title=folder.name.capitalize()) for folder in folders}
    return {**BACKBONES, **{name: origin for name, origin in beside.items() if name not in BACKBONES}}


def default_model() -> str:
    """The model to use when none is named: $STYLEENGINE_MODEL, else sd15 with CUDA, else mini."""
    return os.environ.get(MODEL_VARIABLE) or ("sd15" if torch.cuda.is_available() else "mini")


def recommended_settings(model: str) -> Mapping[str, Mapping[str, Any]]:
    """A model's recommended settings per method, as far as known without loading or downloading it."""
    origin = origin_of(model)
    return recommended_by(origin, Path(origin.location))


def is_embedded(name: str) -> bool:
    """Whether the model is one of those in the package, which load within a second or two."""
    named = named_backbones().get(name)
    return named is not None and Path(named.location).parent == MODELS


def short_title(name: str) -> str:
    """The display name of a model without the remark in parentheses: “Stable Diffusion 1.5”."""
    known = named_backbones().get(name)
    return known.title.partition(" (")[0] if known else model_name(name)


def origin_of(name: str) -> Origin:
    named = named_backbones()
    if name in named:
        return named[name]
    if Path(name).is_dir():
        return Origin(name)
    location, _, revision = name.partition("@")
    if location.count("/") == 1 and not location.startswith((".", "/", "~")):
        return Origin(location, revision or None)
    known = ", ".join(f"“{known}”" for known in named)
    raise StyleEngineError(
        f"There is no model “{name}”. Name one of {known}, a local diffusers folder, or a hub id such as owner/name."
    )


def recommended_by(origin: Origin, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Recommended settings per method: a pixel model's trained size, overridden by its origin's, then its folder's."""
    file = folder / RECOMMENDED_FILE
    try:
        stated: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise StyleEngineError(
            f"The file {file.name} of the model “{model_name(str(folder))}” is not valid JSON ({error}): "
            "fix or delete it."
        ) from error
    trained = {method: {"size": size} for method in SIZED_AS_TRAINED} if (size := _trained_size(folder)) else {}
    layers = (trained, origin.recommended, stated)
    methods = dict.fromkeys(method for layer in layers for method in layer)
    return {
        method: {name: value for layer in layers for name, value in layer.get(method, {}).items()} for method in methods
    }


def _trained_size(folder: Path) -> int | None:
    """The shorter side in pixels that a pixel model in this folder was trained at; None for all other folders."""
    try:
        if not works_on_pixels(folder):
            return None
        config = json.loads((folder / unet_folder(folder) / "config.json").read_text())
        size = config["sample_size"]
        return min(size) if isinstance(size, list) else int(size)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def works_on_pixels(folder: Path) -> bool:
    """Whether the folder's index names the parts of a DDPM: a U-Net and a scheduler, no autoencoder."""
    index = json.loads((folder / "model_index.json").read_text())
    return "vae" not in index and index.get("unet", [None, None])[1] == "UNet2DModel"


def unet_folder(folder: Path) -> str:
    """The U-Net's subfolder. The oldest diffusers DDPMs have U-Net and scheduler at the top level."""
    return "unet" if (folder / "unet").is_dir() else ""
