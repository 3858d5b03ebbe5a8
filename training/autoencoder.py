"""Stage 3: train the autoencoder.

The loss compares pixels at full and at coarser scales. A term on the differences between neighbouring
pixels keeps strokes and lines sharp. No pretrained network is used for the loss.

    accelerate launch -m training.autoencoder --work training/work --minutes 30
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderTiny
from PIL import Image

from training.crop_store import as_tensor, load_crops, precision, training_views
from training.warm_start import LATENT_STD, warm_start

LATENT_CHANNELS = 16


def make_autoencoder() -> AutoencoderTiny:
    """8× downsampling, a million parameters; residual blocks only at low resolutions."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48, 48),
        decoder_block_out_channels=(48, 48, 48, 48),
        num_encoder_blocks=(0, 0, 2, 5),
        num_decoder_blocks=(5, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1 / LATENT_STD,
    )


def encode(model, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, and a penalty that keeps each channel's mean at 0 and its standard deviation at LATENT_STD."""
    latents = model.encoder(pixels)
    mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
    return latents, mean.square().mean() + (std / LATENT_STD - 1).square().mean()


def decode(model, latents: torch.Tensor) -> torch.Tensor:
    return model.decoder(latents)


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Charbonnier distance at three scales, of pixels and of differences between neighbouring pixels."""
    loss = output.new_zeros(())
    for scale in range(3):
        difference = output - target
        loss = loss + (difference.square() + 1e-4).sqrt().mean() * (1.0, 0.5, 0.5)[scale]
        if scale < 2:
            across = difference[..., 1:] - difference[..., :-1]
            down = difference[..., 1:, :] - difference[..., :-1, :]
            loss = loss + 0.5 * ((across.square() + 1e-4).sqrt().mean() + (down.square() + 1e-4).sqrt().mean())
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


@torch.no_grad()
def held_out_quality(model, crops: np.ndarray, grid: Path | None) -> float:
    """Mean PSNR (dB) over the crops. Writes the first sixteen and their reconstructions to `grid`."""
    values, rows = [], []
    for start in range(0, len(crops), 16):
        pixels = as_tensor(crops[start : start + 16]).to(next(model.parameters()).device)
        copy = decode(model, encode(model, pixels)[0]).clamp(-1, 1)
        error = ((copy - pixels) / 2).square().mean((1, 2, 3))
        values += (-10 * error.log10()).tolist()
        if start == 0 and grid:
            both = torch.cat([pixels, copy], 2)
            picture = torch.cat(list(both[:8]), 2).add(1).mul(127.5).round().byte()
            rows.append(picture.permute(1, 2, 0).cpu().numpy())
    if rows and grid:
        Image.fromarray(np.concatenate(rows)).save(grid)
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--minutes", type=float, default=30, help="duration of the whole schedule")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    accelerator = Accelerator(mixed_precision=precision())
    torch.manual_seed(0)
    train, held_out = (load_crops(arguments.work, name) for name in ("train", "held-out"))
    judged = held_out[:: max(1, len(held_out) // 64)][:64]
    folder = arguments.work / "autoencoder"
    folder.mkdir(exist_ok=True)
    model = make_autoencoder()
    warm_start(model, as_tensor(train[:: max(1, len(train) // 96)]))
    step, spent = 0, 0.0
    if arguments.resume and (folder / "model").exists():
        model = AutoencoderTiny.from_pretrained(folder / "model")
        state = json.loads((folder / "state.json").read_text())
        step = state["step"]
    on_cuda = accelerator.device.type == "cuda"
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    print(
        f"{sum(p.numel() for p in plain.parameters()) / 1e6:.2f} M parameters, {len(train)} crops, {accelerator.device}"
    )

    average, began, reported = 0.0, time.time(), time.time()
    first_step = step
    while spent < 1:
        progress = spent
        warm = min(1.0, (step - first_step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * warm * (0.02 + 0.98 * (1 + np.cos(np.pi * progress)) / 2)
        indices = np.random.default_rng(step).integers(0, len(train), arguments.batch)
        pixels = training_views(train, indices, arguments.side, step).to(accelerator.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            latents, penalty = encode(plain, pixels)
            noisy = latents + 0.02 * LATENT_STD * torch.randn_like(latents)
            output = decode(plain, noisy)
        loss = picture_loss(output.float(), pixels) + 0.01 * penalty
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        average = 0.99 * average + 0.01 * loss.item() if step - first_step > 1 else loss.item()
        spent = (time.time() - began) / (60 * arguments.minutes)
        if time.time() - reported > 60 or spent >= 1:
            reported = time.time()
            psnr = held_out_quality(plain, judged if on_cuda or spent >= 1 else judged[:16], folder / "grid.png")
            line = {
                "step": step,
                "minutes": round((reported - began) / 60, 1),
                "loss": round(average, 4),
                "psnr": round(psnr, 2),
            }
            print(line, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            plain.save_pretrained(folder / "model")
            (folder / "state.json").write_text(json.dumps({"step": step}))


if __name__ == "__main__":
    main()
