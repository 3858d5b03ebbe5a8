"""Z-STAR+ end to end at Stable Diffusion 1.5's architecture with random weights: time and memory.

The result is noise, but its cost is realistic. Writes the model (about 4 GB in float32) to --folder if it does
not exist.

    python -m benchmarks.sd15_shape --folder sd15-shape --steps 30
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.machine import machine
from benchmarks.pairs import content_image, style_image
from styleengine import StyleEngine, ZStarSettings
from styleengine.backbones import BACKBONES


def write_model(folder: Path) -> None:
    """Writes a model with SD 1.5's configuration, random weights and the embedded model's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(Path(BACKBONES["mini"].location) / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
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
    pipeline.save_pretrained(folder)


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
