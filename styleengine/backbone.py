"""Backbones: finding, loading and asking a diffusion model. Nothing else knows how weights are stored.

A backbone turns pictures into latents and back, and predicts noise. Methods see only the class
`Backbone`; a latent model and one that works on the pixels themselves differ below it.
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from styleengine.errors import StyleEngineError
from styleengine.file_hashes import file_sha256
from styleengine.images import to_images, to_tensor
from styleengine.memory import is_out_of_memory, memory_in_words
from styleengine.networks import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from styleengine.stylization import model_name

MODELS = Path(__file__).parent / "models"
RECOMMENDED_FILE = "recommended.json"
MODEL_VARIABLE = "STYLEENGINE_MODEL"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FOLDERS = re.compile(
    r"(?<![\w:./])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"“”]+[/\\])*(?=[^\s/\\'\"“”])"
)  # before a file's name
PREDICTION_TYPES = ("epsilon", "v_prediction")
PLACEHOLDER = "*"  # in a prompt, where a learnt word goes
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True)
class Origin:
    """Where a named backbone's weights are: a local folder, or a hub id pinned to a revision.

    `recommended` are the values per method to start from; those in the model's folder win over them.
    """

    location: str
    revision: str | None = None
    title: str = ""
    recommended: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# Judges pictures and words for models that bring no CLIP of their own; Stable Diffusion 1 listens to its text side.
CLIP_ON_HUB = Origin("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", title="CLIP ViT-L/14")
CLIP_FOLDER = "clip"  # of a model's folder: a CLIPModel, its tokenizer and image processor

SIZED_AS_TRAINED = ("h_space", "qs_attn")  # methods that run on pixel models, which have one size that suits them
PIXELS_256 = {method: {"size": 256} for method in SIZED_AS_TRAINED}
BACKBONES = {
    "mini": Origin(str(MODELS / "mini"), title="Mini (embedded, runs anywhere)"),
    "sd15": Origin(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        title="Stable Diffusion 1.5 (for GPUs)",
    ),
    "figures": Origin(str(MODELS / "figures"), title="Painted figures, 64 pixels (embedded)"),
    "ddpm-celebahq-256": Origin("google/ddpm-celebahq-256", title="Faces, 256 pixels", recommended=PIXELS_256),
    "ddpm-church-256": Origin("google/ddpm-church-256", title="Churches, 256 pixels", recommended=PIXELS_256),
    "ddpm-bedroom-256": Origin("google/ddpm-bedroom-256", title="Bedrooms, 256 pixels", recommended=PIXELS_256),
}


@dataclass
class Backbone(ABC):
    """A diffusion model that predicts noise, in whatever space it works.

    Pictures are float32 (batch, 3, height, width) in [−1, 1]; latents float32 (batch, channels,
    height, width); the networks run in `dtype`, schedules and arithmetic between them in float32.
    """

    name: str
    revision: str
    unet: Any  # UNet2DConditionModel or UNet2DModel
    alphas_cumprod: torch.Tensor
    device: torch.device
    dtype: torch.dtype
    recommended: Mapping[str, Mapping[str, Any]]
    folder: Path
    prediction_type: str  # of PREDICTION_TYPES: what the U-Net gives, turned into noise by `predict_noise`

    @property
    def identity(self) -> str:
        """Names the weights and the precision: results of equal identity can be shared."""
        return f"{self.name}@{self.revision}/{self.precision}"

    @property
    def title(self) -> str:
        """What people are told it is called: its name, of a local folder without the path."""
        return model_name(self.name)

    @property
    def precision(self) -> str:
        """The networks' number type, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """What the networks' weights take."""
        return sum(weight.nbytes for network in self.networks for weight in network.parameters())

    def finite(self, x: torch.Tensor, what: str) -> torch.Tensor:
        """x itself; StyleEngineError where it has numbers that are not finite. `what` they stand for is said.

        All that a run's networks give passes through here, so that no picture of such numbers is ever drawn.
        """
        if bool(x.isfinite().all()):
            return x
        better = {"float16": "Load the model in bfloat16 or float32", "bfloat16": "Load the model in float32"}
        others = f"{better[self.precision]}, or try" if self.precision in better else "Try"
        raise StyleEngineError(
            f"The model “{self.title}” computed numbers that are not finite ({what}, in {self.precision}). "
            f"{others} gentler settings: less strength or guidance, or another size."
        )

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]: ...

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Picture sides must be a multiple of this many pixels."""

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures → latents, without chance; StyleEngineError where they are not finite."""

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → pictures; StyleEngineError where they are not finite."""
        return self.finite(self.decode_with_gradient(latents), "the picture")

    @abstractmethod
    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        """`decode`, differentiable by the latents where gradients are enabled."""

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """What the U-Net is told beside the timestep; that of "" is the null condition."""

    @abstractmethod
    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """`predict_noise`, differentiable by the latents and the condition where gradients are enabled.

        `timestep` may be a tensor (batch,), one for each row.
        """

    def noise_of(self, output: torch.Tensor, latents: torch.Tensor, timestep: int | torch.Tensor) -> torch.Tensor:
        """The noise in what the U-Net gave: itself, or ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t (Salimans & Ho 2022, App. D).

        A hook may make the U-Net answer each batch several times over, one after another.
        """
        if self.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[timestep].view(-1, 1, 1, 1).expand(len(latents), -1, -1, -1)
        alpha, latents = (x.repeat(len(output) // len(latents), 1, 1, 1) for x in (alpha, latents))
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents

    @torch.no_grad()
    def predict_noise(self, latents: torch.Tensor, timestep: int, condition: torch.Tensor) -> torch.Tensor:
        """ε_θ(x_t, t, c); a condition of batch 1 serves the whole batch. StyleEngineError where it is not finite."""
        noise = self.predict_noise_with_gradient(latents, timestep, condition)
        return self.finite(noise, f"the noise at timestep {timestep}")

    def settings_for(self, method: str) -> Mapping[str, Any]:
        """The values this backbone recommends for a method, over the method's own defaults."""
        return self.recommended.get(method, {})


@dataclass
class LatentBackbone(Backbone):
    """A latent diffusion model of Stable Diffusion 1's topology.

    Latents are pictures at 1 / `multiple` of their size, scaled to about unit variance.
    """

    vae: Any  # AutoencoderKL or AutoencoderTiny
    tokenizer: Any
    text_encoder: nn.Module

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.unet, self.vae, self.text_encoder

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures → latents (the mean of the posterior, so without chance)."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        return self.finite(latents.float() * self.vae.config.scaling_factor, "the picture's latents")

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
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

    @property
    def words(self) -> str:
        """The shape of the text encoder: words learnt on one are read by any other of the same."""
        config: Any = self.text_encoder.config
        return f"{config.vocab_size} tokens, width {config.hidden_size}, {config.num_hidden_layers} layers"

    @property
    def word_width(self) -> int:
        return self._dictionary.weight.shape[1]

    @property
    def word_size(self) -> float:
        """The root mean square of the token embeddings: how large a number in a word is."""
        return float(self._dictionary.weight.float().square().mean().sqrt())

    def condition_with_word(self, prompt: str, words: torch.Tensor) -> torch.Tensor:
        """Text embeddings (batch, tokens, width) of the prompt, its “*” standing for each of `words` in turn.

        `words` are token embeddings (batch, word_width); differentiable by them where gradients are
        enabled. “*” may stand several times; the tokenizer need not know it.

        Raises StyleEngineError for a prompt without “*”, or with so much before it that it is cut off.
        """
        ids, places, _ = self._tokens_around_word(prompt)
        tokens = torch.tensor([ids], dtype=torch.long, device=self.device).expand(len(words), -1)
        with _spoken(self._dictionary, torch.tensor(places, dtype=torch.bool, device=self.device), words):
            return self.text_encoder(tokens)[0].to(self.dtype)

    @property
    def _dictionary(self) -> nn.Embedding:
        encoder: Any = self.text_encoder
        return encoder.get_input_embeddings()

    def note_on(self, prompt: str) -> str:
        """A sentence where `condition_with_word` reads only the beginning of the prompt, else nothing."""
        *_, read = self._tokens_around_word(prompt)
        return cut_note(prompt, read, self.tokenizer.model_max_length)

    def _tokens_around_word(self, prompt: str) -> tuple[list[int], list[bool], str]:
        """Token ids of full length, which of them the word replaces, and the part of the prompt that is read."""
        before, *others = prompt.split(PLACEHOLDER)
        if not others:
            raise StyleEngineError(
                f"The prompt “{prompt}” says nowhere where the learnt style goes: put a {PLACEHOLDER} there, "
                f"as in “a lighthouse in the style of {PLACEHOLDER}”."
            )
        tokenizer, room = self.tokenizer, self.tokenizer.model_max_length
        ids, places, ends, end = [tokenizer.bos_token_id], [False], [0], 0

        def read(text: str) -> None:
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids.extend(tokens.input_ids)
            places.extend([False] * len(tokens.input_ids))
            ends.extend(end + stop for _, stop in tokens.offset_mapping)

        read(before)
        if len(ids) > room - 2:
            raise StyleEngineError(
                f"The prompt “{prompt}” is too long: of {room} tokens, {len(ids)} come before the {PLACEHOLDER}. "
                "Shorten what stands before it."
            )
        end = len(before)
        for piece in others:
            end += len(PLACEHOLDER)
            ids.append(tokenizer.bos_token_id)
            places.append(True)
            ends.append(end)
            read(piece)
            end += len(piece)
        text = prompt if len(ids) < room else prompt[: ends[room - 2]]
        ids, places = [*ids[: room - 1], tokenizer.eos_token_id], [*places[: room - 1], False]
        padding = room - len(ids)
        return ids + [tokenizer.pad_token_id] * padding, places + [False] * padding, text

    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        expanded = condition.expand(len(latents), -1, -1)
        output = self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=expanded).sample.float()
        return self.noise_of(output, latents, timestep)


@dataclass
class PixelBackbone(Backbone):
    """An unconditional diffusion model that works on the pixels themselves (DDPM): latents are pictures."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        return (self.unet,)

    @property
    def multiple(self) -> int:
        """What the U-Net halves: any such size works, the one it was trained at works best."""
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return (
            self.finite(pixels, "the picture").to(self.device, torch.float32).contiguous()
        )  # kernels round by memory layout

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """Nothing, whatever the prompts: (batch, 0, 0)."""
        return torch.empty(len(prompts), 0, 0, dtype=torch.float32, device=self.device)

    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        return self.noise_of(self.unet(latents.to(self.dtype), timestep).sample.float(), latents, timestep)


@contextmanager
def _spoken(dictionary: nn.Embedding, places: torch.Tensor, words: torch.Tensor) -> Iterator[None]:
    """Within the context the dictionary gives row i of `words` for the tokens of row i at `places` (tokens,)."""

    def put_in(layer: nn.Module, given: Any, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.where(places[None, :, None], words[:, None].to(embeddings.dtype), embeddings)

    handle = dictionary.register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()


def that_listens(backbone: Backbone) -> LatentBackbone:
    """The backbone, if words can be said to it; StyleEngineError for one without a text encoder."""
    if not isinstance(backbone, LatentBackbone):
        raise StyleEngineError(
            f"The model “{backbone.title}” listens to no words, so it can learn none. Choose a latent model."
        )
    return backbone


def named_backbones() -> dict[str, Origin]:
    """All that can be named: those of BACKBONES, and the folders that lie beside the embedded model."""
    folders = sorted(index.parent for index in MODELS.glob("*/model_index.json"))
    beside = {folder.name: Origin(str(folder), title=folder.name.capitalize()) for folder in folders}
    return {**BACKBONES, **{name: origin for name, origin in beside.items() if name not in BACKBONES}}


def default_model() -> str:
    """The model to use when none is named: $STYLEENGINE_MODEL, else sd15 with CUDA, else mini."""
    return os.environ.get(MODEL_VARIABLE) or ("sd15" if torch.cuda.is_available() else "mini")


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def working_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tried by computing something on it; the default for none.

    Raises StyleEngineError, which names those that work, for any that this machine or this torch lacks.
    """
    if device is None or device == "":
        return default_device()
    try:
        found = torch.device(device.strip().lower() if isinstance(device, str) else device)
        if found == default_device():  # which needs no trial; on ZeroGPU none is possible before a call
            return found
        if torch.ones(1, dtype=torch.float32, device=found).add(1).item() == 2:
            return found
    except Exception as error:  # what torch raises differs from device to device
        if is_out_of_memory(error):
            raise StyleEngineError(f"The device “{device}” has no memory left. Free some, or choose “cpu”.") from error
    known = ", ".join(f"“{name}”" for name in devices())
    raise StyleEngineError(f"The device “{device}” cannot be used here. Choose one of: {known}.")


def devices() -> list[str]:
    """The devices of this machine that can be named."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def working_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The number type, which may be named by text; StyleEngineError for one that models do not run in."""
    if dtype is None:
        return default_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise StyleEngineError(f"Models cannot run in “{name}”. Choose one of: {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_backbone(
    model: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Backbone:
    """Loads a backbone by name ("mini", "sd15", "ddpm-church-256", …), folder, or hub id ("owner/name[@revision]").

    Weights are read as safetensors only. A hub id without a revision is pinned to the one that is
    current when it is loaded, and results record it.

    Raises StyleEngineError for an unknown model, a folder that is no such model, a hub that cannot be
    reached, a device or a number type that cannot be used, or too little memory.
    """
    name = model or default_model()
    origin = _origin(name)
    device = working_device(device)
    dtype = working_dtype(dtype, device)
    folder = Path(origin.location)
    with memory_in_words(_too_large(model_name(name))):
        if not folder.is_dir():
            folder, revision = _download(name, origin)
        else:
            revision = _folder_revision(folder)
        parts = _read(name, folder, dtype)
        common: dict[str, Any] = {
            "name": name,
            "revision": revision,
            "alphas_cumprod": parts.pop("alphas_cumprod").float().to(device),
            "device": device,
            "dtype": dtype,
            "recommended": _recommended(origin, folder),
            "folder": folder,
        }
        backbone = LatentBackbone(**common, **parts) if "vae" in parts else PixelBackbone(**common, **parts)
        for network in backbone.networks:
            network.to(device).eval().requires_grad_(False)
    return backbone


def _too_large(model: str) -> str:
    return f"There is not enough memory to load the model “{model}”. Choose a smaller model, or free some memory."


def load_clip(backbone: Backbone) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """The CLIP that goes with a backbone, float32 on its device: in its folder, else OpenAI's ViT-L/14 from the hub.

    The one from the hub is pinned to a revision, so that a version of StyleEngine always means the same CLIP.

    Raises StyleEngineError where it cannot be had, or not for want of memory.
    """
    folder = backbone.folder / CLIP_FOLDER
    if not folder.is_dir():
        try:
            folder, _ = _download(CLIP_ON_HUB.location, CLIP_ON_HUB)
        except StyleEngineError as error:
            raise StyleEngineError(
                f"The model “{backbone.title}” brings no CLIP to compare pictures and words with, and "
                f"“{CLIP_ON_HUB.location}” is not on this machine and the hub cannot be reached. Connect to the "
                f"network and try again, or choose a model with a CLIP in its folder “{CLIP_FOLDER}”."
            ) from error
    with memory_in_words(_too_large(f"CLIP of {backbone.title}")):
        try:
            model: Any = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise StyleEngineError(
                f"The CLIP of the model “{backbone.title}” could not be loaded ({_reason(error, folder)}). It must be "
                "a CLIPModel with its tokenizer and image processor, with safetensors weights."
            ) from error
        return model.to(backbone.device).eval().requires_grad_(False), tokenizer, processor


def cut_note(text: str, read: str, limit: int) -> str:
    """A sentence where of a text for a text encoder of `limit` tokens only the beginning `read` is read."""
    if len(read.strip()) >= len(text.strip()):
        return ""
    return (
        f"Of the words “{text.strip()[:40].strip()}…” only those up to “…{read.strip()[-40:].strip()}” were read: "
        f"the text encoder takes {limit} tokens. Put what matters first."
    )


def recommended_settings(model: str) -> Mapping[str, Mapping[str, Any]]:
    """What a model recommends per method, as far as it can be told without loading or downloading it."""
    origin = _origin(model)
    return _recommended(origin, Path(origin.location))


def reconstruct(backbone: Backbone, image: Image.Image) -> Image.Image:
    """A PIL image through the autoencoder and back: what no method on this backbone can exceed."""
    return to_images(backbone.decode(backbone.encode(to_tensor(image))))[0]


def _origin(name: str) -> Origin:
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

    What it recommends is no part of it: results record the settings themselves. Whole files count: the
    first 64 KiB of a large network's weights hold nothing but a header.
    """
    digest = hashlib.sha256()
    patterns = ("*.json", "*/*.json", "*.safetensors", "*/*.safetensors")
    files = {file for pattern in patterns for file in folder.glob(pattern)} - {folder / RECOMMENDED_FILE}
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()} ".encode())
        digest.update(file_sha256(file))
    return digest.hexdigest()[:12]


def _recommended(origin: Origin, folder: Path) -> dict[str, Mapping[str, Any]]:
    """The size a pixel model was trained at, then what its origin says, then what its folder says."""
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
        if not _works_on_pixels(folder):
            return None
        config = json.loads((folder / _unet_folder(folder) / "config.json").read_text())
        size = config["sample_size"]
        return min(size) if isinstance(size, list) else int(size)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _works_on_pixels(folder: Path) -> bool:
    """Whether the folder's index names the parts of a DDPM: a U-Net and a scheduler, no autoencoder."""
    index = json.loads((folder / "model_index.json").read_text())
    return "vae" not in index and index.get("unet", [None, None])[1] == "UNet2DModel"


def _unet_folder(folder: Path) -> str:
    """DDPMs of diffusers' first days keep U-Net and scheduler at the top, later ones in folders of their own."""
    return "unet" if (folder / "unet").is_dir() else ""


def _read(name: str, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a model as keyword arguments of its backbone, each by its own loader, safetensors only."""
    if not (folder / "model_index.json").is_file():
        raise StyleEngineError(
            f"The folder “{model_name(str(folder))}” holds no diffusers model (model_index.json is missing). "
            "Give a folder written by save_pretrained."
        )
    weights: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        read = _read_pixel_model if _works_on_pixels(folder) else _read_latent_model
        parts, scheduler = read(folder, {**weights, "dtype": dtype})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise StyleEngineError(
            f"The model “{model_name(name)}” could not be loaded ({_reason(error, folder)}). It must be a Stable "
            "Diffusion 1 model or an unconditional DDPM of RGB pixels, in diffusers' format with safetensors weights."
        ) from error
    predicted = scheduler.config.prediction_type
    if predicted not in PREDICTION_TYPES:
        raise StyleEngineError(
            f"The model “{model_name(name)}” predicts “{predicted}”; StyleEngine works with models that "
            "predict the noise (“epsilon”), such as Stable Diffusion 1.x, or the velocity (“v_prediction”)."
        )
    return {**parts, "alphas_cumprod": scheduler.alphas_cumprod, "prediction_type": predicted}


def _reason(error: Exception, folder: Path) -> str:
    """The first line of what a library says of a model's folder, its paths without their folders."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return FOLDERS.sub("", lines[0].replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name))


def _read_latent_model(folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The five parts of a Stable Diffusion 1 folder: four networks and the scheduler."""
    if not any((folder / "tokenizer" / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise OSError("the tokenizer's vocabulary is missing")  # transformers would make up an empty one
    vae_class = VAE_CLASSES[json.loads((folder / "model_index.json").read_text())["vae"][1]]
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options),
        "vae": vae_class.from_pretrained(folder, subfolder="vae", **options),
        "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **options),
    }, scheduler


def _read_pixel_model(folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """U-Net and scheduler of a DDPM's folder."""
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler" if _unet_folder(folder) else "")
    unet: Any = UNet2DModel.from_pretrained(folder, subfolder=_unet_folder(folder), **options)
    if (unet.config.in_channels, unet.config.out_channels) != (3, 3):
        raise ValueError(
            f"it takes {unet.config.in_channels} channels and gives {unet.config.out_channels}, not 3 and 3"
        )
    if unet.class_embedding is not None:
        raise ValueError("it must be told a class, and StyleEngine has none to tell")
    if unet.mid_block is None:
        raise ValueError("its U-Net has no mid block")
    return {"unet": unet}, scheduler
