"""Stage 9: train and export "figures", a small unconditional pixel-space DDPM.

Its domain is painted figures, Wesnoth's portraits on plain backgrounds, at 64 pixels. h-space injection was
published for such single-domain models.

    accelerate launch -m training.figures --work training/work --minutes 60
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps

from training.collect import read_manifest
from training.crop_store import as_tensor, precision
from training.unet_common import (
    bottleneck_share,
    dropped_skips,
    rate_at,
    start_lively,
    stratified_timesteps,
    training_options,
    velocity_loss,
)

SIDE = 64
STORED = 96  # pixels; side of a stored figure, from which views are cropped
FOLDER, PACKAGE = "portraits", "wesnoth-1.16-data"
SKIP_LEVELS = 3
TARGET = Path("styleengine/models/figures")


def make_unet() -> UNet2DModel:
    """About seven million parameters; the bottleneck is 8×8."""
    unet = UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(32, 64, 128, 192),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=16,
    )
    start_lively(unet)
    return unet


def make_scheduler() -> DDPMScheduler:
    return DDPMScheduler(prediction_type="v_prediction")


def load_figures(work: Path, held_out: bool) -> list[Image.Image]:
    """Each figure as an RGBA square of STORED pixels, cropped at the bottom if necessary."""
    figures = []
    for row in read_manifest(work):
        if row["package"] == PACKAGE and f"/{FOLDER}/" in row["path"] and row["held_out"] == held_out:
            with Image.open(work / "pictures" / row["path"]) as image:
                figure = image.convert("RGBA")
            figure = figure.crop(figure.getchannel("A").getbbox())
            figures.append(ImageOps.fit(figure, (STORED, STORED), centering=(0.5, 0)))
    return figures


def view(figure: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random view of the figure: mirrored or not, with random scale, on a colour or a gradient."""
    side = rng.uniform(0.8, 1.15) * STORED
    left, top = rng.uniform(0, STORED - side, 2) if side < STORED else (STORED - side) * rng.uniform(0.3, 0.7, 2)
    framed = Image.new("RGBA", (2 * STORED, 2 * STORED))
    framed.paste(ImageOps.mirror(figure) if rng.random() < 0.5 else figure, (STORED // 2, STORED // 2))
    box = (left + STORED / 2, top + STORED / 2, left + side + STORED / 2, top + side + STORED / 2)
    seen = framed.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box).convert("RGBA")
    ends = [tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2)]
    if rng.random() < 0.5:
        under = Image.new("RGB", (SIDE, SIDE), ends[0])
    else:
        under = ImageOps.colorize(Image.linear_gradient("L").resize((SIDE, SIDE)), *ends)
    under.paste(seen, mask=seen.getchannel("A"))
    return np.asarray(under)


def batch_of(figures: list[Image.Image], count: int, rng: np.random.Generator) -> torch.Tensor:
    """(count, 3, SIDE, SIDE) in [−1, 1]."""
    return as_tensor(np.stack([view(figures[i], rng) for i in rng.integers(0, len(figures), count)]))


@torch.no_grad()
def held_out_error(unet: UNet2DModel, scheduler: DDPMScheduler, x_0: torch.Tensor) -> float:
    """Mean velocity error on held-out figures, with fixed noise and timesteps."""
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0)
    timesteps = torch.linspace(20, 980, len(x_0)).long().to(x_0.device)
    predicted = unet(scheduler.add_noise(x_0, noise, timesteps), timesteps).sample
    return velocity_loss(predicted, x_0, noise, timesteps, scheduler)[1]


@torch.no_grad()
def save_samples(unet: UNet2DModel, scheduler: DDPMScheduler, path: Path, count: int = 8) -> None:
    """Samples from fixed noise in 25 DDIM steps, in two rows."""
    sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    sampler.set_timesteps(25)
    x = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(unet.device)
    for t in sampler.timesteps:
        x = sampler.step(unet(x, t).sample.float(), t, x).prev_sample
    rows = [torch.cat(list(half), 2) for half in x.clamp(-1, 1).chunk(2)]
    grid = torch.cat(rows, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(grid.cpu().numpy()).save(path)


def export(unet: UNet2DModel, scheduler: DDPMScheduler, target: Path) -> None:
    """Writes the diffusers folder, in half precision."""
    half = UNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    DDPMPipeline(half.half(), scheduler).save_pretrained(target, max_shard_size="9MB")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    defaults = {"batch": 32, "rate": 1e-3, "decay_share": 0.4, "skip_dropout": 0.4, "ema": 0.998}
    parser = training_options(__doc__.splitlines()[0], **defaults)
    parser.add_argument("--to", type=Path, default=TARGET, help="the folder for the exported model")
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision=precision())
    device = accelerator.device
    torch.manual_seed(0)
    folder = arguments.work / "figures"
    folder.mkdir(exist_ok=True)
    figures, scheduler = load_figures(arguments.work, held_out=False), make_scheduler()
    rng = np.random.default_rng(0)
    judged = as_tensor(np.stack([view(figure, rng) for figure in load_figures(arguments.work, True) for _ in range(8)]))
    judged = judged.to(device)

    unet, step = make_unet(), 0
    if arguments.resume and (folder / "state.json").exists():
        unet = UNet2DModel.from_pretrained(folder / "model")
        step = json.loads((folder / "state.json").read_text())["step"]
    ema = EMAModel(unet.parameters(), arguments.ema, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    ema.to(device)
    plain = accelerator.unwrap_model(unet)
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    print(f"{size:.1f} M parameters, {len(figures)} figures, {device}", flush=True)

    average, spent, first_step = 0.0, 0.0, step
    began = reported = time.time()
    while spent < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - first_step, spent, arguments.rate, arguments.decay_share)
        x_0 = batch_of(figures, arguments.batch, np.random.default_rng(step)).to(device)
        noise, timesteps = torch.randn_like(x_0), stratified_timesteps(len(x_0)).to(device)
        with accelerator.autocast(), dropped_skips(plain, arguments.skip_dropout, SKIP_LEVELS):
            predicted = unet(scheduler.add_noise(x_0, noise, timesteps), timesteps).sample
        loss, error = velocity_loss(predicted, x_0, noise, timesteps, scheduler)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(plain.parameters())
        step += 1
        average = 0.99 * average + 0.01 * error if step - first_step > 1 else error
        spent = (time.time() - began) / (60 * arguments.minutes)
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            plain.save_pretrained(folder / "model")
            (folder / "state.json").write_text(json.dumps({"step": step}))
            ema.store(plain.parameters())
            ema.copy_to(plain.parameters())
            held = held_out_error(plain, scheduler, judged)
            share = bottleneck_share(plain, judged[:16], scheduler)
            save_samples(plain, scheduler, folder / f"samples-{step:06d}.png")
            export(plain, scheduler, folder / "ema")
            ema.restore(plain.parameters())
            reported = time.time()
            line = {"step": step, "minutes": round((reported - began) / 60, 1), "loss": round(average, 4)}
            line |= {"held_out": round(held, 4), "bottleneck": float(f"{share:.2g}")}
            print(line, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
    ema.copy_to(plain.parameters())
    export(plain, scheduler, arguments.to)


if __name__ == "__main__":
    main()
