"""Stage 7: train the U-Net on the latents, conditioned on the captions.

Stable Diffusion's architecture and noise schedule at a fortieth of its size. Most of the training uses 16×16
latents (whole crops at 128 pixels, windows of crops at 256), the last part 32×32. Most of the 16×16 latents are
views of a few chosen subjects (`subjects.py`). The exported weights are an exponential moving average.

    accelerate launch -m training.unet --work training/work --minutes 60

On a CPU one process per core is faster than one process with many threads, and less affected by other load:

    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m training.unet --minutes 60
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from training.clip import WIDTH
from training.crop_store import load_words, precision
from training.crops import in_general
from training.unet_common import (
    SEEN_SHARE,
    bottleneck_share,
    dropped_skips,
    pixel_metric,
    rate_at,
    remaining,
    start_lively,
    stratified_timesteps,
    training_options,
    velocity_loss,
    with_upper_levels_of,
    without_traces,
)

SKIP_LEVELS = 3  # levels, of four, whose skip connections may be dropped
WORDS_RATE = 2.5  # factor on the learning rate of cross-attention
EMPTY_SHARE = 0.12  # share of empty captions, for classifier-free guidance
WINDOW_SHARE = 0.3  # of the other 16×16 latents are windows of crops at full size
SUBJECT_SHARE = 0.65  # of the 16×16 latents are views of the chosen subjects
SUBJECTS = {
    "photo of an animal": 4, "photo of a flower": 2.5, "photo of a tree": 0.5, "photo of the sky": 1,
    "photo of a landscape": 1.5, "drawing of an animal": 2, "painting of a person": 1.5,
}  # fmt: skip # captions with the kind, and their relative frequency
PLAIN_SHARE = 0.55  # of those are original views, the others redrawn
GENERAL_SHARE = 0.5  # of the captions have the kind instead of the subject: "photo of an animal"
SUBJECT_TIMESTEP_POWER = 0.5  # half of the subjects' timesteps exceed 700, where composition is decided
METRIC_CROPS = 128  # for `pixel_metric`
GUIDANCE = 3.0
PROMPTS = (
    "photo of the sky", "photo of a landscape", "photo of a flower", "photo of a tree", "photo of an animal",
    "painting of a person", "drawing of an animal", "a pencil sketch of an animal", "an ink drawing of a flower",
    "an oil painting of a landscape", "a watercolor painting of a flower", "a blueprint of a flower",
)  # fmt: skip


def make_unet(latent_channels: int) -> UNet2DConditionModel:
    """Stable Diffusion's U-Net at a fortieth of its size."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 128, 192, 192),
        layers_per_block=2,
        attention_head_dim=(2, 4, 6, 6),
        cross_attention_dim=WIDTH,
    )
    start_lively(unet)
    return unet


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@dataclass
class Captions:
    """The text encoder's states for every caption, computed once; row 0 is the empty one."""

    states: torch.Tensor  # (texts, tokens, width), half precision
    of_crop: np.ndarray  # each crop's row
    in_general: np.ndarray  # likewise, with the kind instead of the subject

    @classmethod
    def encoded(cls, work: Path, names: tuple[str, ...], device: torch.device) -> "Captions":
        words = [entry for name in names for entry in load_words(work, name)]
        captions, general = [entry["caption"] for entry in words], [in_general(entry) for entry in words]
        texts = ["", *sorted({*captions, *general} - {""})]
        rows = {text: row for row, text in enumerate(texts)}
        numbers = (np.array([rows[text] for text in column]) for column in (captions, general))
        return cls(text_states(work, texts, device), *numbers)

    def batch(
        self, crops: np.ndarray, rng: np.random.Generator, device, empty_share: float, general_share: float = 0.0
    ) -> torch.Tensor:
        """(batch, tokens, width): the crops' captions, a share of them with the kind, a share of them empty."""
        rows = np.where(rng.random(len(crops)) < general_share, self.in_general[crops], self.of_crop[crops])
        rows = np.where(rng.random(len(crops)) < empty_share, 0, rows)
        return self.states[rows].to(device).float()


@torch.no_grad()
def text_states(work: Path, texts: list[str], device: torch.device) -> torch.Tensor:
    """The text encoder's last states (texts, tokens, width) in half precision, on the CPU."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(work / "text_encoder").to(device).eval()
    parts = []
    for start in range(0, len(texts), 256):
        tokens = tokenizer(texts[start : start + 256], padding="max_length", truncation=True, return_tensors="pt")
        parts.append(encoder(tokens.input_ids.to(device))[0].half().cpu())
    return torch.cat(parts)


class Latents:
    """Batches of latents and the indices of their crops."""

    def __init__(self, work: Path, name: str) -> None:
        folder = work / "latents"
        self.whole = np.load(folder / f"{name}-128.npy", mmap_mode="r")
        self.full = np.load(folder / f"{name}-256.npy", mmap_mode="r")
        self.full_crops = np.load(folder / f"{name}-256-crops.npy")

    def small(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
        """16×16: crops, and windows of crops at full size."""
        windows = rng.binomial(count, WINDOW_SHARE)
        crops = rng.integers(0, len(self.whole), count - windows)
        parts = [self.whole[crop] for crop in crops]
        side, numbers = self.whole.shape[-1], rng.integers(0, len(self.full), windows)
        for number in numbers:
            top, left = rng.integers(0, self.full.shape[-1] - side + 1, 2)
            parts.append(self.full[number, :, top : top + side, left : left + side])
        return torch.from_numpy(np.stack(parts)).float(), np.concatenate([crops, self.full_crops[numbers]])

    def large(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
        """32×32."""
        numbers = rng.integers(0, len(self.full), count)
        return torch.from_numpy(np.stack([self.full[i] for i in numbers])).float(), self.full_crops[numbers]


class SubjectLatents:
    """Batches of latents of the chosen subjects, and the indices of their views."""

    def __init__(self, work: Path) -> None:
        self.views: dict[str, list[int]] = {subject: [] for subject in SUBJECTS}  # original views
        for view, entry in enumerate(load_words(work, "subjects")):
            if not entry["style"]:
                self.views[in_general(entry)].append(view)
        self.whole = np.load(work / "latents" / "subjects-128.npy", mmap_mode="r")

    def small(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
        """16×16."""
        subjects = rng.choice(list(SUBJECTS), count, p=np.array(list(SUBJECTS.values())) / sum(SUBJECTS.values()))
        views = np.array([rng.choice(self.views[str(subject)]) for subject in subjects], int)
        views += rng.random(count) > PLAIN_SHARE  # each view is followed by its redrawn version
        return torch.from_numpy(self.whole[views]).float(), views


@torch.no_grad()
def held_out_loss(unet, scheduler, latents: Latents, captions: Captions, empty_share: float, device) -> float:
    """Velocity error on fixed crops, noise and timesteps, with captions or without (share 1)."""
    generator, losses = torch.Generator().manual_seed(0), []
    count, batch = min(256, len(latents.whole)), 16
    chosen = np.linspace(0, len(latents.whole) - 1, count).astype(int)
    for start in range(0, count, batch):
        crops = chosen[start : start + batch]
        x_0 = torch.from_numpy(np.stack([latents.whole[i] for i in crops])).float().to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        timesteps = torch.linspace(20, 980, len(x_0)).long().to(device)
        condition = captions.batch(crops, np.random.default_rng(0), device, empty_share)
        predicted = unet(scheduler.add_noise(x_0, noise, timesteps), timesteps, condition).sample
        velocity = scheduler.get_velocity(x_0, noise, timesteps)
        losses.append(torch.nn.functional.mse_loss(predicted.float(), velocity).item())
    return float(np.mean(losses))


@torch.no_grad()
def sample_grid(unet, vae, scheduler, states: torch.Tensor, path: Path, side: int) -> None:
    """A row of guided samples for the prompts above a row of unconditional ones: fixed noise, 25 DDIM steps."""
    device, count = vae.device, len(states) - 1
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(count, vae.config.latent_channels, side, side, generator=generator).to(device)
    null, prompts = states[:1].float().to(device).expand(count, -1, -1), states[1:].float().to(device)
    rows = []
    for guidance in (GUIDANCE, 0.0):
        x = start
        scheduler.set_timesteps(25)
        for t in scheduler.timesteps:
            noise = unet(x, t, null).sample.float()
            if guidance:
                noise = noise + guidance * (unet(x, t, prompts).sample.float() - noise)
            x = scheduler.step(noise, t, x).prev_sample
        pictures = vae.decode(x / vae.config.scaling_factor).sample.float().clamp(-1, 1)
        rows.append(torch.cat(list(pictures), 2))
    grid = torch.cat(rows, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(grid.cpu().numpy()).save(path)


def main() -> None:
    defaults = {"batch": 32, "rate": 8e-4, "decay_share": 0.5, "skip_dropout": 0.25, "ema": 0.999}
    parser = training_options(__doc__.splitlines()[0], **defaults)
    parser.add_argument("--large-share", type=float, default=0.1, help="share of the training on 32×32 latents")
    parser.add_argument("--revive", action="store_true", help="with --resume: reinitialise the deeper levels")
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision=precision())
    device = accelerator.device
    torch.manual_seed(0)
    folder = arguments.work / "unet"
    folder.mkdir(exist_ok=True)
    latents, held_out = Latents(arguments.work, "train"), Latents(arguments.work, "held-out")
    subjects = SubjectLatents(arguments.work)
    captions = Captions.encoded(arguments.work, ("train", "subjects"), device)
    held_out_captions = Captions.encoded(arguments.work, ("held-out",), device)
    prompt_states = text_states(arguments.work, ["", *PROMPTS], device)
    vae = AutoencoderTiny.from_pretrained(arguments.work / "autoencoder" / "model").to(device).requires_grad_(False)
    scheduler = make_scheduler()
    spread = np.linspace(0, len(latents.whole) - 1, METRIC_CROPS).astype(int)
    metric = pixel_metric(vae, torch.from_numpy(latents.whole[spread]).float().to(device))

    step = 0
    unet = make_unet(vae.config.latent_channels)
    if arguments.resume and (folder / "state.json").exists():
        trained = UNet2DConditionModel.from_pretrained(folder / "model")
        unet = with_upper_levels_of(trained, unet) if arguments.revive else trained
        step = json.loads((folder / "state.json").read_text())["step"]
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # for so few tokens a quarter faster than fused
    ema = EMAModel(unet.parameters(), arguments.ema, use_ema_warmup=True, power=0.75)
    groups = [
        {"params": [p for name, p in unet.named_parameters() if (".attn2." in name) == cross], "factor": factor}
        for cross, factor in ((True, WORDS_RATE), (False, 1.0))
    ]
    optimizer = torch.optim.AdamW(groups, arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    unet, optimizer = accelerator.prepare(unet.to(memory_format=torch.channels_last), optimizer)
    ema.to(device)
    plain = accelerator.unwrap_model(unet)
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    accelerator.print(
        f"{size:.1f} M parameters, {len(latents.whole)} crops, {len(captions.states)} captions, {device}", flush=True
    )

    count, rank = arguments.batch // accelerator.num_processes, accelerator.process_index
    torch.manual_seed(rank)
    average, spent, first_step = 0.0, 0.0, step
    began = reported = time.time()
    while spent < 1:
        for group in optimizer.param_groups:
            rate = rate_at(step - first_step, spent, arguments.rate, arguments.decay_share)
            group["lr"] = rate * group["factor"]
        rng = np.random.default_rng((step, rank))
        large = spent > 1 - arguments.large_share
        if large:
            chosen = 0
            x_0, crops = latents.large(max(1, count // 4), rng)
        else:
            chosen = min(rng.binomial(count, SUBJECT_SHARE), count - 1)
            x_0, crops = latents.small(count - chosen, rng)
            views, numbers = subjects.small(chosen, rng)
            x_0, crops = torch.cat([x_0, views]), np.concatenate([crops, len(latents.whole) + numbers])
        x_0 = x_0.to(device)
        condition = captions.batch(crops, rng, device, EMPTY_SHARE, GENERAL_SHARE)
        noise = torch.randn_like(x_0)
        others = stratified_timesteps(len(x_0) - chosen)
        timesteps = torch.cat([others, stratified_timesteps(chosen, SUBJECT_TIMESTEP_POWER)]).to(device)
        noise = without_traces(x_0, noise, timesteps, scheduler)
        with accelerator.autocast(), dropped_skips(plain, arguments.skip_dropout, SKIP_LEVELS):
            predicted = unet(scheduler.add_noise(x_0, noise, timesteps), timesteps, condition).sample
        seen_share = SEEN_SHARE * remaining(spent, arguments.decay_share)  # exact detail is trained last
        loss, error = velocity_loss(predicted, x_0, noise, timesteps, scheduler, metric, seen_share)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        if accelerator.is_main_process:
            ema.step(plain.parameters())
        step += 1
        average = 0.99 * average + 0.01 * error if step - first_step > 1 else error
        spent = (time.time() - began) / (60 * arguments.minutes)
        spent = broadcast(torch.tensor(spent, device=device)).item()  # so that all processes stop at the same step
        if not accelerator.is_main_process:
            continue
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            plain.save_pretrained(folder / "model")
            ema.store(plain.parameters())
            ema.copy_to(plain.parameters())
            plain.save_pretrained(folder / "ema")
            (folder / "state.json").write_text(json.dumps({"step": step}))
            with accelerator.autocast():
                judged = [
                    held_out_loss(plain, scheduler, held_out, held_out_captions, share, device) for share in (0, 1)
                ]
                some = torch.from_numpy(held_out.whole[:16].copy()).float().to(device)
                null = prompt_states[:1].float().to(device).expand(len(some), -1, -1)
                share = bottleneck_share(plain, some, scheduler, null)
                sample_grid(
                    plain, vae, scheduler, prompt_states, folder / f"samples-{step:06d}.png", 32 if large else 16
                )
            ema.restore(plain.parameters())
            reported = time.time()
            line = {"step": step, "minutes": round((reported - began) / 60, 1), "loss": round(average, 4)}
            line |= {"held_out": round(judged[0], 4), "held_out_uncaptioned": round(judged[1], 4)}
            line |= {"bottleneck": float(f"{share:.2g}")}
            print(line, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
