"""Backbones: finding, loading and asking a diffusion model. Nothing else knows how weights are stored.

A backbone turns pictures into latents and back, and predicts noise. Methods see only this class.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from styleengine.errors import StyleEngineError
from styleengine.images import to_images, to_tensor

MODELS = Path(__file__).parent / "models"
RECOMMENDED_FILE = "recommended.json"
MODEL_VARIABLE = "STYLEENGINE_MODEL"
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True)
class Origin:
    """Where a named backbone's weights are: a local folder, or a hub id pinned to a revision."""

    location: str
    revision: str | None = None
    title: str = ""


BACKBONES = {
    "mini": Origin(str(MODELS / "mini"), title="Mini (embedded, runs anywhere)"),
    "sd15": Origin(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        title="Stable Diffusion 1.5 (for GPUs)",
    ),
}


@dataclass
class Backbone:
    """A latent diffusion model of Stable Diffusion 1's topology.

    Pictures are float32 (batch, 3, height, width) in [−1, 1]; latents float32 (batch, channels,
    height / `multiple`, width / `multiple`), scaled to about unit variance; the networks run in
    `dtype`, schedules and arithmetic between them in float32.
    """

    name: str
    revision: str
    unet: UNet2DConditionModel
    vae: Any  # AutoencoderKL or AutoencoderTiny
    tokenizer: Any
    text_encoder: nn.Module
    alphas_cumprod: torch.Tensor
    device: torch.device
    dtype: torch.dtype
    recommended: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def multiple(self) -> int:
        """Picture sides must be a multiple of this many pixels."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def identity(self) -> str:
        """Names the weights and the precision: results of equal identity can be shared."""
        return f"{self.name}@{self.revision}/{str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures → latents (the mean of the posterior, so without chance)."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → pictures."""
        scaled = latents / self.vae.config.scaling_factor
        return self.vae.decode(scaled.to(self.device, self.dtype)).sample.float()

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (batch, tokens, width) of the prompts; "" is the null condition."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0].to(self.dtype)

    @torch.no_grad()
    def predict_noise(self, latents: torch.Tensor, timestep: int, condition: torch.Tensor) -> torch.Tensor:
        """ε_θ(x_t, t, c); a condition of batch 1 serves the whole batch."""
        return self.predict_noise_with_gradient(latents, timestep, condition)

    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int, condition: torch.Tensor
    ) -> torch.Tensor:
        """`predict_noise`, differentiable by the latents where gradients are enabled."""
        expanded = condition.expand(len(latents), -1, -1)
        return self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=expanded).sample.float()

    def settings_for(self, method: str) -> Mapping[str, Any]:
        """The values this backbone recommends for a method, over the method's own defaults."""
        return self.recommended.get(method, {})


def default_model() -> str:
    """The model to use when none is named: $STYLEENGINE_MODEL, else sd15 with CUDA, else mini."""
    return os.environ.get(MODEL_VARIABLE) or ("sd15" if torch.cuda.is_available() else "mini")


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def load_backbone(
    model: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Loads a backbone by name ("mini", "sd15"), folder, or hub id ("owner/name" or "owner/name@revision").

    Weights are read as safetensors only. A hub id without a revision is pinned to the one that is
    current when it is loaded, and results record it.

    Raises StyleEngineError for an unknown model, a folder that is no such model, or a hub that
    cannot be reached.
    """
    name = model or default_model()
    origin = _origin(name)
    device = torch.device(device) if device else default_device()
    dtype = dtype or default_dtype(device)
    folder = Path(origin.location)
    if not folder.is_dir():
        folder, revision = _download(name, origin)
    else:
        revision = _folder_revision(folder)
    parts = _read(name, folder, dtype)
    networks: tuple[Any, ...] = (parts.unet, parts.vae, parts.text_encoder)
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    return Backbone(
        name=name,
        revision=revision,
        unet=parts.unet,
        vae=parts.vae,
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        alphas_cumprod=parts.alphas_cumprod.float().to(device),
        device=device,
        dtype=dtype,
        recommended=_recommended(folder / RECOMMENDED_FILE),
    )


def reconstruct(backbone: Backbone, image: Image.Image) -> Image.Image:
    """A PIL image through the autoencoder and back: what no method on this backbone can exceed."""
    return to_images(backbone.decode(backbone.encode(to_tensor(image))))[0]


def _origin(name: str) -> Origin:
    if name in BACKBONES:
        return BACKBONES[name]
    if Path(name).is_dir():
        return Origin(name)
    location, _, revision = name.partition("@")
    if location.count("/") == 1 and not location.startswith((".", "/", "~")):
        return Origin(location, revision or None)
    known = ", ".join(f"“{known}”" for known in BACKBONES)
    raise StyleEngineError(
        f"There is no model “{name}”. Name one of {known}, a local diffusers folder, or a hub id such as owner/name."
    )


def _download(name: str, origin: Origin) -> tuple[Path, str]:
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


def _folder_revision(folder: Path) -> str:
    """A short fingerprint of a local folder: its configurations' and weights' names and contents.

    Whole files are read: the first 64 KiB of a large network's weights hold nothing but a header.
    """
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*/*.safetensors")]):
        with open(file, "rb") as content:
            digest.update(f"{file.relative_to(folder).as_posix()} ".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


@dataclass
class _Parts:
    unet: UNet2DConditionModel
    vae: Any
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    alphas_cumprod: torch.Tensor


def _recommended(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise StyleEngineError(f"The file {file} is not valid JSON ({error}): mend or delete it.") from error


def _read(name: str, folder: Path, dtype: torch.dtype) -> _Parts:
    """The five parts of a Stable Diffusion 1 folder, each by its own loader, safetensors only."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise StyleEngineError(
            f"The folder {folder} holds no diffusers model (model_index.json is missing). "
            "Give a folder written by save_pretrained."
        )
    weights: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        if not any((folder / "tokenizer" / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise OSError("the tokenizer's vocabulary is missing")  # transformers would make up an empty one
        vae_class = VAE_CLASSES[json.loads(index.read_text())["vae"][1]]
        scheduler: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        parts = _Parts(
            unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=dtype, **weights),
            vae=vae_class.from_pretrained(folder, subfolder="vae", dtype=dtype, **weights),
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
            text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **weights),
            alphas_cumprod=scheduler.alphas_cumprod,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StyleEngineError(
            f"The model “{name}” could not be loaded ({reason}). "
            "It must be a Stable Diffusion 1 model in diffusers' format with safetensors weights."
        ) from error
    if scheduler.config.prediction_type != "epsilon":
        raise StyleEngineError(
            f"The model “{name}” predicts “{scheduler.config.prediction_type}”; StyleEngine works with models "
            "that predict the noise (epsilon), such as Stable Diffusion 1.x."
        )
    return parts
