"""Stage 6: encode the crops once, before the training of the U-Net.

Writes scaled latents in half precision under WORK/latents. NAME-128.npy has every crop at 128 pixels
(count, channels, 16, 16), every second one mirrored. NAME-256.npy has --large evenly chosen crops at full
size (large, channels, 32, 32), for the held-out set a twentieth of that number; NAME-256-crops.npy has their
indices. The chosen subjects are encoded at 128 pixels only.

    accelerate launch -m training.latents --work training/work
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny

from training.collect import HELD_OUT_SHARE
from training.crop_store import as_tensor, load_crops, precision

BATCH = 32


@torch.no_grad()
def encode_all(accelerator: Accelerator, vae: AutoencoderTiny, crops: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Scaled latents of the chosen crops, odd indices mirrored: float16 (count, channels, side / 8, side / 8)."""
    parts = []
    for start in range(0, len(chosen), BATCH):
        numbers = chosen[start : start + BATCH]
        pixels = as_tensor(np.stack([crops[i][:, ::-1] if i % 2 else crops[i] for i in numbers]))
        pixels = pixels.to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            latents = vae.encode(pixels).latents
        parts.append((latents.float() * vae.config.scaling_factor).cpu().numpy().astype(np.float16))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--large", type=int, default=5_000, help="number of crops at full size")
    parser.add_argument("--sets", nargs="+", default=["subjects", "held-out", "train"], help="sets to encode")
    arguments = parser.parse_args()
    accelerator = Accelerator(mixed_precision=precision())
    vae = AutoencoderTiny.from_pretrained(arguments.work / "autoencoder" / "model").to(accelerator.device)
    vae = vae.to(memory_format=torch.channels_last).requires_grad_(False)
    folder = arguments.work / "latents"
    folder.mkdir(exist_ok=True)
    for name in arguments.sets:
        whole = load_crops(arguments.work, name, 128)
        np.save(folder / f"{name}-128.npy", encode_all(accelerator, vae, whole, np.arange(len(whole))))
        if name == "subjects":
            continue
        full = load_crops(arguments.work, name)
        share = 1 if name == "train" else HELD_OUT_SHARE
        large = np.linspace(0, len(full) - 1, min(arguments.large // share, len(full))).astype(int)
        np.save(folder / f"{name}-256-crops.npy", large)
        np.save(folder / f"{name}-256.npy", encode_all(accelerator, vae, full, large))
        print(f"{name}: {len(whole)} whole, {len(large)} at full size", flush=True)


if __name__ == "__main__":
    main()
