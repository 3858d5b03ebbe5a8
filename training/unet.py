"""Stage 5: train the U-Net on the autoencoder's latents.

Stable Diffusion's blocks, order and schedule at a twentieth of its size. Most of the time is spent
on 128-pixel views (16×16 latents), the last part on whole 256-pixel crops. The weights that are
kept are their exponential moving average.

    accelerate launch training/unet.py --work training/work --minutes 60
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from autoencoder import encode
from crop_store import as_tensor, load_crops, training_views
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from text import WIDTH
from transformers import CLIPTextModel, CLIPTokenizer


def make_unet(latent_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 128, 192, 192),
        layers_per_block=2,
        attention_head_dim=(2, 4, 6, 6),
        cross_attention_dim=WIDTH,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def empty_prompt(work: Path) -> torch.Tensor:
    """The text encoder's states (1, tokens, width) for the empty prompt."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tokens = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    return CLIPTextModel.from_pretrained(work / "text_encoder")(tokens.input_ids)[0]


@torch.no_grad()
def held_out_loss(unet, vae, scheduler, null: torch.Tensor, crops: np.ndarray) -> float:
    """Noise-prediction error on fixed crops, noises and timesteps."""
    generator = torch.Generator().manual_seed(0)
    device, losses = null.device, []
    for start in range(0, len(crops), 8):
        pixels = as_tensor(crops[start : start + 8, 64:192, 64:192]).to(device)
        latents = encode(vae, pixels)[0] * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.linspace(20, 980, len(latents)).long().to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, null.expand(len(latents), -1, -1)).sample
        losses.append(F.mse_loss(predicted.float(), noise).item())
    return float(np.mean(losses))


@torch.no_grad()
def sample_grid(unet, vae, scheduler, null: torch.Tensor, path: Path, side: int, count: int = 8) -> None:
    """Unconditional samples with fixed noise, 25 DDIM steps, written as one row."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, vae.config.latent_channels, side, side, generator=generator).to(null.device)
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        noise = unet(x, t, null.expand(count, -1, -1)).sample.float()
        x = scheduler.step(noise, t, x).prev_sample
    pictures = vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1)
    row = torch.cat(list(pictures), 2).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(row.cpu().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--minutes", type=float, default=60, help="length of the schedule from its start to its end")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--large-share", type=float, default=0.3, help="share of the time on whole 256-pixel crops")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16")
    device = accelerator.device
    torch.manual_seed(0)
    train, held_out = (load_crops(arguments.work, name) for name in ("train", "held-out"))
    judged = held_out[:: max(1, len(held_out) // 64)][:64]
    vae = AutoencoderTiny.from_pretrained(arguments.work / "autoencoder" / "model").to(device).requires_grad_(False)
    scheduler = make_scheduler()
    null = empty_prompt(arguments.work).to(device)
    folder = arguments.work / "unet"
    folder.mkdir(exist_ok=True)

    step = 0
    unet = make_unet(vae.config.latent_channels)
    if arguments.resume and (folder / "state.json").exists():
        unet = UNet2DConditionModel.from_pretrained(folder / "model")
        step = json.loads((folder / "state.json").read_text())["step"]
    ema = EMAModel(unet.parameters(), arguments.ema, use_ema_warmup=True, power=0.75)
    unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    ema.to(device)
    plain = accelerator.unwrap_model(unet)
    predict = torch.compile(unet, dynamic=False) if arguments.compile else unet
    print(f"{sum(p.numel() for p in plain.parameters()) / 1e6:.1f} M parameters, {len(train)} crops, {device}")

    average, spent, first_step = 0.0, 0.0, step
    began = reported = time.time()
    while spent < 1:
        for group in optimizer.param_groups:
            warm = min(1.0, (step - first_step + 1) / 300)
            group["lr"] = arguments.rate * warm * (0.03 + 0.97 * (1 + np.cos(np.pi * spent)) / 2)
        large = spent > 1 - arguments.large_share
        count, side = (max(1, arguments.batch // 4), 256) if large else (arguments.batch, 128)
        indices = np.random.default_rng(step).integers(0, len(train), count)
        pixels = training_views(train, indices, side, step).to(device)
        with torch.no_grad(), accelerator.autocast():
            latents = encode(vae, pixels)[0].float() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        # stratified: each batch covers the whole range of timesteps
        timesteps = ((torch.arange(count) + torch.rand(count)) * 1000 / count).long().to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            predicted = predict(noisy, timesteps, null.expand(count, -1, -1)).sample
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(plain.parameters())
        step += 1
        average = 0.99 * average + 0.01 * loss.item() if step - first_step > 1 else loss.item()
        spent = (time.time() - began) / (60 * arguments.minutes)
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            ema.store(plain.parameters())
            ema.copy_to(plain.parameters())
            with accelerator.autocast():
                judged_loss = held_out_loss(plain, vae, scheduler, null, judged)
                sample_grid(plain, vae, scheduler, null, folder / f"samples-{step:06d}.png", 32 if large else 16)
            plain.save_pretrained(folder / "ema")
            ema.restore(plain.parameters())
            plain.save_pretrained(folder / "model")
            (folder / "state.json").write_text(json.dumps({"step": step}))
            reported = time.time()
            line = {"step": step, "minutes": round((reported - began) / 60, 1), "loss": round(average, 4)}
            line |= {"held_out": round(judged_loss, 4)}
            print(line, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
