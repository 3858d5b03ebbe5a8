"""Loads a model's folder: each part by its own loader, safetensors only."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from styleengine.attention import use_fused_attention
from styleengine.backbones.base import PREDICTION_TYPES, Backbone
from styleengine.backbones.devices import working_device, working_dtype
from styleengine.backbones.hub import OnBytes, configuration, download
from styleengine.backbones.latent import LatentBackbone
from styleengine.backbones.origins import (
    MODELS,
    RECOMMENDED_FILE,
    Origin,
    default_model,
    named_backbones,
    origin_of,
    recommended_by,
    unet_folder,
    works_on_pixels,
)
from styleengine.backbones.pixel import PixelBackbone
from styleengine.errors import StyleEngineError
from styleengine.file_hashes import file_sha256
from styleengine.memory import is_out_of_memory, memory_in_words
from styleengine.networks import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    UNet2DModel,
)
from styleengine.stylization import model_name

FOLDERS = re.compile(
    r"(?<![\w:./])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"“”]+[/\\])*(?=[^\s/\\'\"“”])"
)  # before a file's name
Network = TypeVar("Network", bound=ModelMixin)

VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_backbone(
    model: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Backbone:
    """Loads a backbone by name ("mini", "sd15", "ddpm-church-256", …), folder, or hub id ("owner/name[@revision]").

    Weights are read as safetensors only. A hub id without a revision is resolved to the
    current revision, which results record.

    Raises StyleEngineError for an unknown model, a folder that is no such model, an unreachable hub, a
    device or dtype that cannot be used, or too little memory.
    """
    device = working_device(device)
    return find_model(model or default_model(), device, working_dtype(dtype, device)).load()


@dataclass(frozen=True)
class ModelFiles:
    """A model's files on this machine, and the device and dtype in which it is to be loaded from them."""

    name: str
    origin: Origin
    folder: Path
    revision: str
    device: torch.device
    dtype: torch.dtype

    def load(self) -> Backbone:
        """The backbone; StyleEngineError for a folder that is no such model, or too little memory."""
        with memory_in_words(too_large(model_name(self.name))):
            return _loaded(self)


def find_model(name: str, device: torch.device, dtype: torch.dtype, on_bytes: OnBytes | None = None) -> ModelFiles:
    """The files of a model, named as in `load_backbone`, downloaded if necessary; `on_bytes` as in `download`.

    Raises StyleEngineError for an unknown model, an unreachable hub, or a download that breaks off.
    """
    origin = origin_of(name)
    folder = Path(origin.location)
    if folder.is_dir():
        revision = folder_revision(folder)
    else:
        folder, revision = download(name, origin, device.type == "cuda" and dtype == torch.float16, on_bytes)
    return ModelFiles(name, origin, folder, revision, device, dtype)


def stated_settings(model: str) -> Mapping[str, Mapping[str, Any]]:
    """A model's recommended settings per method, from its configurations; its weights are neither read nor downloaded.

    Raises StyleEngineError for an unknown model, or if a hub id's configurations are not on this machine and the hub
    cannot be reached. The named models need no hub.
    """
    origin = origin_of(model)
    known = model in named_backbones() or Path(origin.location).is_dir()
    return recommended_by(origin, Path(origin.location) if known else configuration(model, origin))


def _loaded(files: ModelFiles) -> Backbone:
    """The backbone; its networks are referenced by no frame outside, so that a failure releases them."""
    name, folder, device, dtype = files.name, files.folder, files.device, files.dtype
    parts = _read(name, folder, dtype)
    common: dict[str, Any] = {
        "name": name,
        "revision": files.revision,
        "alphas_cumprod": parts.pop("alphas_cumprod").float().to(device),
        "device": device,
        "dtype": dtype,
        "recommended": recommended_by(files.origin, folder),
        "folder": folder,
    }
    backbone = LatentBackbone(**common, **parts) if "vae" in parts else PixelBackbone(**common, **parts)
    for network in backbone.networks:
        network.to(device).eval().requires_grad_(False)
    if device.type != "cpu":  # on the CPU, diffusers' processor calls the same kernel
        use_fused_attention(backbone.unet)
    return backbone


@functools.cache
def embedded_autoencoder() -> AutoencoderTiny:
    """The autoencoder of the embedded model “mini”, in float32 on the CPU."""
    return embedded_network(AutoencoderTiny, "mini", "vae")


def embedded_network(kind: type[Network], model: str, part: str = "") -> Network:
    """A network from a folder among the embedded models, without gradients, in float32 on the CPU."""
    options: dict[str, Any] = {"subfolder": part, "use_safetensors": True, "local_files_only": True}
    network: Any = kind.from_pretrained(MODELS / model, **options)
    return network.float().eval().requires_grad_(False)


def too_large(model: str) -> str:
    return f"There is not enough memory to load the model “{model}”. Choose a smaller model, or free some memory."


def folder_revision(folder: Path) -> str:
    """A short hash of a local folder: the names and contents of its configurations and weights.

    Recommended settings are excluded, because results record their settings. Whole files are hashed: the
    first 64 KiB of a large network's weights contain only a header.
    """
    digest = hashlib.sha256()
    patterns = ("*.json", "*/*.json", "*.safetensors", "*/*.safetensors")
    files = {file for pattern in patterns for file in folder.glob(pattern)} - {folder / RECOMMENDED_FILE}
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()} ".encode())
        digest.update(file_sha256(file))
    return digest.hexdigest()[:12]


def _read(name: str, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a model as keyword arguments of its backbone, each by its own loader, safetensors only."""
    if not (folder / "model_index.json").is_file():
        raise StyleEngineError(
            f"The folder “{model_name(str(folder))}” holds no diffusers model (model_index.json is missing). "
            "Give a folder written by save_pretrained."
        )
    weights: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        read = _read_pixel_model if works_on_pixels(folder) else _read_latent_model
        parts, scheduler = read(folder, {**weights, "dtype": dtype})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise StyleEngineError(
            f"The model “{model_name(name)}” could not be loaded ({reason(error, folder)}). It must be a Stable "
            "Diffusion 1 model or an unconditional DDPM of RGB pixels, in diffusers' format with safetensors weights."
        ) from error
    predicted = scheduler.config.prediction_type
    if predicted not in PREDICTION_TYPES:
        raise StyleEngineError(
            f"The model “{model_name(name)}” predicts “{predicted}”; StyleEngine works with models that "
            "predict the noise (“epsilon”), such as Stable Diffusion 1.x, or the velocity (“v_prediction”)."
        )
    return {**parts, "alphas_cumprod": scheduler.alphas_cumprod, "prediction_type": predicted}


def reason(error: Exception, folder: Path) -> str:
    """The first line of a library's error about a model's folder, with paths reduced to file names."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return FOLDERS.sub("", lines[0].replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name))


def _read_latent_model(folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The five parts of a Stable Diffusion 1 folder: four networks and the scheduler."""
    if not any((folder / "tokenizer" / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise OSError("the tokenizer's vocabulary is missing")  # transformers would create an empty one
    vae_class = VAE_CLASSES[json.loads((folder / "model_index.json").read_text())["vae"][1]]
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **_variant(folder / "unet"), **options),
        "vae": vae_class.from_pretrained(folder, subfolder="vae", **_variant(folder / "vae"), **options),
        "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
        "text_encoder": CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", **_variant(folder / "text_encoder"), **options
        ),
    }, scheduler


def _variant(folder: Path) -> dict[str, str]:
    """The option for weights of which only the float16 files are there."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return {"variant": "fp16"} if names and all(".fp16." in name for name in names) else {}


def _read_pixel_model(folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """U-Net and scheduler of a DDPM's folder."""
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler" if unet_folder(folder) else "")
    unet: Any = UNet2DModel.from_pretrained(folder, subfolder=unet_folder(folder), **options)
    if (unet.config.in_channels, unet.config.out_channels) != (3, 3):
        raise ValueError(
            f"it takes {unet.config.in_channels} channels and gives {unet.config.out_channels}, not 3 and 3"
        )
    if unet.class_embedding is not None:
        raise ValueError("it is conditioned on classes; only unconditional models can be used")
    if unet.mid_block is None:
        raise ValueError("its U-Net has no mid block")
    return {"unet": unet}, scheduler
