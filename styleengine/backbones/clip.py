"""The CLIP model of a backbone."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from styleengine.backbones.base import Backbone
from styleengine.backbones.hub import OnBytes, download
from styleengine.backbones.loading import reason, too_large
from styleengine.backbones.origins import Origin
from styleengine.errors import StyleEngineError
from styleengine.memory import is_out_of_memory, memory_in_words

# For models without a CLIP; its text encoder is that of Stable Diffusion 1.
CLIP_ON_HUB = Origin("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", title="CLIP ViT-L/14")
CLIP_FOLDER = "clip"  # of a model's folder: a CLIPModel, its tokenizer and image processor


def load_clip(
    backbone: Backbone, on_bytes: OnBytes | None = None
) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """The CLIP of a backbone, in float32 on its device: from its folder, else OpenAI's ViT-L/14 from the hub.

    The one from the hub is pinned to a revision, so that a version of StyleEngine always uses the same CLIP.
    `on_bytes` is called during its download, as in `hub.download`.

    Raises StyleEngineError if it cannot be loaded, also for lack of memory.
    """
    folder = backbone.folder / CLIP_FOLDER
    if not folder.is_dir():
        try:
            folder, _ = download(CLIP_ON_HUB.location, CLIP_ON_HUB, on_bytes=on_bytes)
        except StyleEngineError as error:
            raise StyleEngineError(
                f"The model “{backbone.title}” has no CLIP to compare images and text with, and "
                f"“{CLIP_ON_HUB.location}” is not on this machine and the hub cannot be reached. Connect to the "
                f"network and try again, or choose a model with a CLIP in its folder “{CLIP_FOLDER}”."
            ) from error
    with memory_in_words(too_large(f"CLIP of {backbone.title}")):
        return _loaded(backbone, folder)


def _loaded(backbone: Backbone, folder: Path) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    try:
        model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise StyleEngineError(
            f"The CLIP of the model “{backbone.title}” could not be loaded ({reason(error, folder)}). It must be "
            "a CLIPModel with its tokenizer and image processor, with safetensors weights."
        ) from error
    return model.to(backbone.device).eval().requires_grad_(False), tokenizer, processor
