"""Small random models in diffusers' folder format: of Stable Diffusion's topology, and of DDPM's."""

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

WIDTH = 32


def write_tiny_tokenizer() -> CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


def write_random_model(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A pipeline of well under a million parameters: 4× autoencoder, 16 self-attention layers."""
    torch.manual_seed(0)
    tokenizer = write_tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.7,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    write_random_clip(folder / "clip", tokenizer)
    return folder


def write_random_clip(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """A CLIP of 32-pixel pictures and 8-pixel patches, with its tokenizer and image processor."""
    common = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.4],
    ).save_pretrained(folder)
    return folder


def write_random_pixel_model(folder: Path, prediction_type: str = "epsilon", **options: Any) -> Path:
    """An unconditional DDPM of RGB pixels in `DDPMPipeline`'s format; its configuration states 64 pixels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        **{
            "sample_size": 64,
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            **options,
        }
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(prediction_type=prediction_type)).save_pretrained(folder)
    return folder
