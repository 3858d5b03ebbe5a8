"""Stage 5: train a small CLIP on the captioned crops and their redrawn versions.

Its text encoder conditions the U-Net. Its image encoder is used by InST, by QS-Attn's losses and by the
offline metrics. Images are 128 pixels wide. During training, worker processes redraw crops at every step, in
several styles each, so that the embedding of a style does not depend on the subject. For most of the
training three quarters of the patches are dropped (FLIP, Li et al. 2023).

    accelerate launch -m training.clip --work training/work --minutes 25

With several processes (see unet.py) each contrasts only its own images and texts: two processes and
--batch 96 give 47 negatives per image.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from training.crop_store import as_tensor, load_crops, load_words, precision
from training.crops import in_general, subject_of
from training.styles import STYLES, apply
from training.text import LENGTH

SIDE = 128
REDRAWN_ANEW = (2, 3)  # per step and process: crops, and styles per crop
CROPS_SHARE = 0.5  # of the batch are stored crops, the others redrawn at this or an earlier step
PATCHES_KEPT = 0.25
WHOLE_SHARE = 0.15  # of the training, at the end, uses all patches
STYLE_WEIGHT = 1.0  # weight of the classification of redrawn images among the texts of all styles
COLOURS, DETAIL, DETAIL_GAIN = 3, 2.0, 4.0  # see `start_with_textures`
WIDTH = 192  # of the text encoder's states; the U-Net's cross_attention_dim


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """About eight million parameters; 64 patches of 16 pixels."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "projection_dim": 256,
    }  # fmt: skip
    vision = {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 8,
        "image_size": SIDE, "patch_size": 16, "projection_dim": 256,
    }  # fmt: skip
    # on a CPU, with so few tokens, eager attention is faster than the fused kernel
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=256, attn_implementation="eager")
    )


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


@torch.no_grad()
def start_with_textures(model: CLIPModel, crops: np.ndarray) -> None:
    """Initializes the image encoder so that it represents fine detail from the first step.

    Mean colour is four fifths of a patch's variance, fine detail a hundredth. An embedding trained from the
    default initialisation represents only colour and does not separate mosaic from watercolor. Here the
    principal components of patches after the mean colours get nearly equal scale, each in a direction of its
    own, orthogonal to the colours'. Pairs of units of the first MLP, one per sign, then compute the magnitude
    of each component, wherever in the patch a stroke or a grid line lies. The least used units are replaced.
    """
    vision, layer = model.vision_model, model.vision_model.encoder.layers[0]
    embedding, mlp, norm = vision.embeddings.patch_embedding, layer.mlp, layer.layer_norm2
    size, width = embedding.kernel_size[0], embedding.out_channels
    pixels = as_tensor(crops[np.linspace(0, len(crops) - 1, min(1500, len(crops))).astype(int)])
    patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    covariance = torch.cov(patches.T)
    variances, components = (values.flip(-1) for values in torch.linalg.eigh(covariance))

    held = embedding.weight.flatten(1)
    colours = held @ (components[:, :COLOURS] * variances[:COLOURS] ** 0.5)
    mean = (held @ patches.mean(0))[:, None]
    directions = torch.linalg.qr(torch.cat([colours, mean, torch.randn(width, width - COLOURS - 1)], 1))[0]
    directions = directions[:, COLOURS + 1 :]
    seen = slice(COLOURS, COLOURS + directions.shape[1])
    added = (directions * variances[seen] ** -0.4) @ components[:, seen].T
    power, own = (torch.einsum("ij,jk,ik->", weight, covariance, weight) for weight in (added, held))
    embedding.weight += (DETAIL * (own / power) ** 0.5 * added).view_as(embedding.weight)

    count = directions.shape[1]
    idle = (mlp.fc2.weight.norm(dim=0) * mlp.fc1.weight.norm(dim=1)).argsort()[: 2 * count]
    both_signs = torch.cat([directions.T, -directions.T]) * DETAIL_GAIN
    mlp.fc1.weight[idle] = both_signs / norm.weight
    mlp.fc1.bias[idle] = -(both_signs / norm.weight) @ norm.bias
    said = F.normalize(torch.randn(count, width), dim=1)
    mlp.fc2.weight[:, idle] = torch.cat([said, said]).T


def sampled_caption(words: dict, rng: np.random.Generator) -> str:
    """A random text for a crop: mostly its caption, sometimes only its style or subject, or with its kind."""
    chance = rng.random()
    if words["style"] and chance < 0.2:
        return STYLES[words["style"]].words()
    if not words["style"] and chance < 0.1:
        return subject_of(words["caption"])
    return in_general(words) if chance < 0.35 else words["caption"]


def redrawn(task: tuple[np.ndarray, str, int]) -> np.ndarray:
    """A 256-pixel crop in the style of that name, at 128 pixels: uint8 (128, 128, 3)."""
    crop, style, seed = task
    picture = Image.fromarray(apply(style, crop, np.random.default_rng(seed)))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


class Redrawings:
    """Crops that worker processes redraw at each step. All are kept and sampled again later."""

    def __init__(self, crops: np.ndarray, words: list[dict], workers: Executor) -> None:
        self.crops, self.words, self.workers = crops, words, workers
        self.plain = [i for i, entry in enumerate(words) if not entry["style"]]
        self.pixels: list[np.ndarray] = []  # 49 kB each
        self.of_pixels: list[dict] = []
        self.coming: list[tuple[Future[np.ndarray], dict]] = []

    def begin(self, rng: np.random.Generator) -> None:
        """Starts redrawing the next step's images while the current step computes."""
        count, styles = REDRAWN_ANEW
        for crop in rng.choice(self.plain, count, replace=False):
            words = self.words[crop]
            for style in rng.choice(list(STYLES), styles, replace=False):
                task = self.crops[crop], str(style), int(rng.integers(2**32))
                caption = STYLES[style].words(subject_of(words["caption"]))
                about = words | {"caption": caption, "style": str(style)}
                self.coming.append((self.workers.submit(redrawn, task), about))

    def some(self, count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[dict]]:
        """Images and their annotations: the newest, filled up to `count` with earlier ones."""
        for future, about in self.coming:
            self.pixels.append(future.result())
            self.of_pixels.append(about)
        older = len(self.pixels) - len(self.coming)
        chosen = list(range(older, len(self.pixels)))[:count]
        self.coming.clear()
        chosen += list(rng.choice(older, min(count - len(chosen), older), replace=False)) if older else []
        return [self.pixels[i] for i in chosen], [self.of_pixels[i] for i in chosen]


def views(crops: list[np.ndarray], rng: np.random.Generator) -> torch.Tensor:
    """Augmented crops: a random part of each, resized to full size, half of them mirrored."""
    side = int(rng.choice((96, 112, 128)))
    batch = np.empty((len(crops), side, side, 3), np.uint8)
    for row, crop in enumerate(crops):
        top, left = rng.integers(0, SIDE - side + 1, 2)
        view = crop[top : top + side, left : left + side]
        batch[row] = view[:, ::-1] if rng.random() < 0.5 else view
    pixels = as_tensor(batch)
    return pixels if side == SIDE else F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)


@contextmanager
def patch_dropout(model: CLIPModel, kept: float) -> Iterator[None]:
    """Within the context the image encoder gets a random share `kept` of each image's patches."""

    def choose(module: torch.nn.Module, args: tuple, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = states.shape
        order = torch.rand(batch, tokens - 1, device=states.device).argsort(1)[:, : round(kept * (tokens - 1))]
        patches = states[:, 1:].gather(1, order[..., None].expand(-1, -1, width))
        return torch.cat([states[:, :1], patches], 1)

    if kept == 1:
        yield
        return
    hook = model.vision_model.embeddings.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def style_classification_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, words: list[dict]
) -> torch.Tensor:
    """Cross-entropy of each redrawn image's style among all styles; 0 if no image is redrawn.

    `images` (batch, width) and `texts` (styles, width), those of the styles without subject, are unit vectors.
    """
    names, rows = list(STYLES), [row for row, entry in enumerate(words) if entry["style"]]
    if not rows:
        return images.sum() * 0
    own = torch.tensor([names.index(words[row]["style"]) for row in rows], device=images.device)
    return F.cross_entropy(scale * images[rows] @ texts.T, own)


def contrastive_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy. Images with equal texts share the target."""
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def embeddings(model: CLIPModel, tokenizer: CLIPTokenizer, crops: np.ndarray | None, texts: list[str]) -> torch.Tensor:
    """Unit embeddings of crops, or of texts if crops is None: (count, 256)."""
    device, parts = model.device, []
    for start in range(0, len(texts) if crops is None else len(crops), 64):
        if crops is None:
            tokens = tokenizer(texts[start : start + 64], padding="max_length", truncation=True, return_tensors="pt")
            states = model.text_model(**tokens.to(device)).pooler_output
            parts.append(model.text_projection(states))
        else:
            states = model.vision_model(as_tensor(crops[start : start + 64]).to(device)).pooler_output
            parts.append(model.visual_projection(states))
    return F.normalize(torch.cat(parts).float(), dim=-1)


def quality(model: CLIPModel, tokenizer: CLIPTokenizer, crops: np.ndarray, words: list[dict]) -> dict:
    """On held-out crops: zero-shot top-1 over the styles, and captions found among all of theirs."""
    images = embeddings(model, tokenizer, crops, [])
    names = list(STYLES)
    prompts = embeddings(model, tokenizer, None, [style.words() for style in STYLES.values()])
    styled = [i for i, entry in enumerate(words) if entry["style"]]
    guesses = (images[styled] @ prompts.T).argmax(1).tolist()
    right = [names[guess] == words[i]["style"] for guess, i in zip(guesses, styled, strict=True)]
    plain = list({entry["caption"]: i for i, entry in enumerate(words) if not entry["style"]}.values())
    captions = embeddings(model, tokenizer, None, [words[i]["caption"] for i in plain])
    scores = images[plain] @ captions.T
    ranks = (scores > scores.diag()[:, None]).sum(1)
    return {
        "style_top1": round(float(np.mean(right)), 3),
        "styled": len(styled),
        "caption_top1": round(float((ranks < 1).float().mean()), 3),
        "caption_top5": round(float((ranks < 5).float().mean()), 3),
        "captions": len(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--minutes", type=float, default=25, help="duration of the whole schedule")
    parser.add_argument("--batch", type=int, default=96, help="total over all processes")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, help="redrawing processes per training process")
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--start-with-textures", action="store_true", help="apply that initialisation to a resumed model, once"
    )
    parser.add_argument("--keep-text-encoder", action="store_true", help="do not update the text encoder of the U-Net")
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision=precision())
    device = accelerator.device
    torch.manual_seed(0)
    folder = arguments.work / "clip"
    crops, words = load_crops(arguments.work, "train", SIDE), load_words(arguments.work, "train")
    judged, judged_words = load_crops(arguments.work, "held-out", SIDE), load_words(arguments.work, "held-out")
    tokenizer = CLIPTokenizer.from_pretrained(arguments.work / "tokenizer")
    model, step = make_clip(tokenizer), 0
    resumed = arguments.resume and (folder / "state.json").exists()
    if resumed:
        model = CLIPModel.from_pretrained(folder / "model", attn_implementation="eager")
        step = json.loads((folder / "state.json").read_text())["step"]
    if not resumed or arguments.start_with_textures:
        start_with_textures(model, crops)
    decayed, others = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, arguments.rate, betas=(0.9, 0.98), fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    accelerator.print(f"{size:.1f} M parameters, {len(crops)} crops, {device}", flush=True)

    count, rank = arguments.batch // accelerator.num_processes, accelerator.process_index
    torch.manual_seed(rank)
    workers = arguments.workers or max(1, (os.cpu_count() or 1) // (2 * accelerator.num_processes))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    redrawings = Redrawings(load_crops(arguments.work, "train"), words, pool)
    redrawings.begin(np.random.default_rng((step, rank, 1)))
    style_words = [style.words() for style in STYLES.values()]
    prompts = tokenizer(style_words, padding="longest", truncation=True, return_tensors="pt").to(device)
    average, spent, first_step = np.zeros(2), 0.0, step
    began = reported = time.time()
    while spent < 1:
        for group in optimizer.param_groups:
            warm = min(1.0, (step - first_step + 1) / 100)
            group["lr"] = arguments.rate * warm * (0.01 + 0.99 * (1 + np.cos(np.pi * spent)) / 2)
        rng = np.random.default_rng((step, rank))
        stored = rng.choice(len(crops), round(CROPS_SHARE * count), replace=False)
        pictures, about = redrawings.some(count - len(stored), rng)
        redrawings.begin(rng)
        pictures, about = [*(crops[i] for i in stored), *pictures], [*(words[i] for i in stored), *about]
        texts = [sampled_caption(entry, rng) for entry in about]
        numbers = {text: i for i, text in enumerate(texts)}
        labels = torch.tensor([numbers[text] for text in texts])
        same = (labels[:, None] == labels[None]).float().to(device)
        tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt").to(device)
        kept = PATCHES_KEPT if spent < 1 - WHOLE_SHARE else 1.0
        with accelerator.autocast(), patch_dropout(plain, kept):
            output = model(pixel_values=views(pictures, rng).to(device), **tokens)
            style_texts = plain.get_text_features(**prompts).pooler_output
        style_texts, images = F.normalize(style_texts.float(), dim=-1), output.image_embeds.float()
        styles_apart = style_classification_loss(images, style_texts, plain.logit_scale.exp(), about)
        loss = contrastive_loss(output.logits_per_image.float(), same) + STYLE_WEIGHT * styles_apart
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain.logit_scale.data.clamp_(max=np.log(100))
        step += 1
        losses = np.array([loss.item(), styles_apart.item()])
        average = 0.98 * average + 0.02 * losses if step - first_step > 1 else losses
        spent = (time.time() - began) / (60 * arguments.minutes)
        spent = broadcast(torch.tensor(spent, device=device)).item()  # so that all processes stop at the same step
        if not accelerator.is_main_process:
            continue
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            reported = time.time()
            plain.eval()
            line = {"step": step, "minutes": round((reported - began) / 60, 1)}
            line |= {"loss": round(float(average[0]), 3), "styles": round(float(average[1]), 3)}
            line |= quality(plain, tokenizer, judged, judged_words)
            plain.train()
            print(line, flush=True)
            plain.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
            image_processor().save_pretrained(folder / "model")
            (folder / "state.json").write_text(json.dumps({"step": step}))
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            if not arguments.keep_text_encoder:
                plain.text_model.save_pretrained(arguments.work / "text_encoder")
    pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
