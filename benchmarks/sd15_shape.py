"""Z-STAR+ end to end at Stable Diffusion 1.5's architecture with random weights: time and memory.

The result is noise, but its cost is realistic. Writes the model (about 4 GB in float32) to --folder if it does
not exist.

    python -m benchmarks.sd15_shape --folder sd15-shape --steps 30
"""

import styleengine.networks  # noqa: F401 - before diffusers is imported, which would import xformers

# isort: split

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.machine import machine
from benchmarks.pairs import content_image, style_image
from styleengine import StyleEngine, ZStarSettings
from styleengine.backbones import BACKBONES

SMALL_UNET: dict[str, Any] = {
    "block_out_channels": (16, 32, 32, 32),
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def write_model(folder: Path, small: bool = False, clip: bool = False, dtype: torch.dtype = torch.float32) -> None:
    """Writes a model with SD 1.5's configuration, random weights of `dtype` and the embedded model's tokenizer.

    With `small` all channels are fewer. With `clip` the folder also has a CLIP of ViT-L/14's shape, for QS-Attn.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(Path(BACKBONES["mini"].location) / "tokenizer")
    width = 32 if small else 768
    text: dict[str, Any] = {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 1 if small else 12,
        "num_attention_heads": 2 if small else 12,
        "eos_token_id": tokenizer.eos_token_id,  # at which CLIP takes a text's embedding
    }
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16, 16, 16) if small else (128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
            norm_num_groups=4 if small else 32,
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            layers_per_block=1 if small else 2,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=width,
            **(SMALL_UNET if small else {}),
        ),
        scheduler=DDIMScheduler(  # pyright: ignore[reportArgumentType]
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.to(dtype)
    pipeline.save_pretrained(folder)
    if clip:
        _write_clip(folder / "clip", text, tokenizer, small, dtype)


def _write_clip(folder: Path, text: dict[str, Any], tokenizer: CLIPTokenizer, small: bool, dtype: torch.dtype) -> None:
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    if small:
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32 if small else 224, "patch_size": 8 if small else 14}
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = vision["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


def write_pixel_model(folder: Path, small: bool = False) -> None:
    """Writes a DDPM of google/ddpm-celebahq-256's shape with random weights."""
    torch.manual_seed(0)
    channels = (8, 8, 16, 16, 16, 16) if small else (128, 128, 256, 256, 512, 512)
    kinds = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    unet = UNet2DModel(
        sample_size=256,
        block_out_channels=channels,
        down_block_types=tuple(kinds),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        layers_per_block=1 if small else 2,
        attention_head_dim=8 if small else None,  # pyright: ignore[reportArgumentType]
        norm_num_groups=4 if small else 32,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)  # pyright: ignore[reportArgumentType]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    if not (arguments.folder / "model_index.json").exists():
        write_model(arguments.folder)
    engine = StyleEngine(str(arguments.folder), dtype=getattr(torch, arguments.dtype))
    settings = ZStarSettings(size=arguments.size, steps=arguments.steps)
    began = time.perf_counter()
    result = engine.zstar(content_image("astronaut"), [style_image("great-wave").crop((0, 0, 440, 440))], settings)
    seconds = time.perf_counter() - began
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    width, height = result.image.size
    print(f"{machine()}; SD 1.5's shape, random weights, {arguments.dtype}")
    print(f"{width}×{height}, {arguments.steps} steps: {seconds:.0f} s, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
