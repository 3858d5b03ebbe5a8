"""Stage 5: train a small CLIP on the captioned crops and their redrawn versions.

Its text encoder conditions the U-Net; its image encoder is InST's eye, QS-Attn's guide and the
judge of the offline measures. Pictures are seen at 128 pixels.

    accelerate launch training/clip.py --work training/work --minutes 25
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from crop_store import as_tensor, load_crops, load_words
from crops import subject_of
from styles import STYLES
from text import LENGTH
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

SIDE = 128
WIDTH = 192  # of the text encoder's states: what the U-Net's cross-attention takes


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
    # softmax(qk)v written out is faster than the fused kernel for so few tokens on a CPU
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


def told(words: dict[str, str], rng: np.random.Generator) -> str:
    """What a crop is called this time: mostly its caption, at times the style or the subject alone."""
    chance = rng.random()
    if words["style"] and chance < 0.25:
        return STYLES[words["style"]].words()
    return subject_of(words["caption"]) if not words["style"] and chance < 0.15 else words["caption"]


def views(crops: np.ndarray, indices: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """The crops as seen this time: a part of each, back at full size, half of them mirrored."""
    side = int(rng.choice((96, 112, 128)))
    batch = np.empty((len(indices), side, side, 3), np.uint8)
    for row, index in enumerate(indices):
        top, left = rng.integers(0, SIDE - side + 1, 2)
        view = crops[index, top : top + side, left : left + side]
        batch[row] = view[:, ::-1] if rng.random() < 0.5 else view
    pixels = as_tensor(batch)
    return pixels if side == SIDE else F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)


def contrastive_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy; pictures whose words are equal share the target."""
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def embeddings(model: CLIPModel, tokenizer: CLIPTokenizer, crops: np.ndarray | None, texts: list[str]) -> torch.Tensor:
    """Unit embeddings of crops, or of texts where crops are None: (count, 256)."""
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


def quality(model: CLIPModel, tokenizer: CLIPTokenizer, crops: np.ndarray, words: list[dict[str, str]]) -> dict:
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
    parser.add_argument("--minutes", type=float, default=25, help="length of the schedule from its start to its end")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--keep-text-encoder", action="store_true", help="leave the U-Net's copy of the text encoder as it knows it"
    )
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16")
    torch.manual_seed(0)
    folder = arguments.work / "clip"
    crops, words = load_crops(arguments.work, "train", SIDE), load_words(arguments.work, "train")
    judged, judged_words = load_crops(arguments.work, "held-out", SIDE), load_words(arguments.work, "held-out")
    tokenizer = CLIPTokenizer.from_pretrained(arguments.work / "tokenizer")
    model, step = make_clip(tokenizer), 0
    if arguments.resume and (folder / "state.json").exists():
        model = CLIPModel.from_pretrained(folder / "model", attn_implementation="eager")
        step = json.loads((folder / "state.json").read_text())["step"]
    decayed, others = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, arguments.rate, betas=(0.9, 0.98), fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    print(f"{size:.1f} M parameters, {len(crops)} crops, {accelerator.device}", flush=True)

    average, spent, first_step = 0.0, 0.0, step
    began = reported = time.time()
    while spent < 1:
        for group in optimizer.param_groups:
            warm = min(1.0, (step - first_step + 1) / 100)
            group["lr"] = arguments.rate * warm * (0.01 + 0.99 * (1 + np.cos(np.pi * spent)) / 2)
        rng = np.random.default_rng(step)
        indices = rng.choice(len(crops), arguments.batch, replace=False)
        texts = [told(words[i], rng) for i in indices]
        numbers = {text: i for i, text in enumerate(texts)}
        labels = torch.tensor([numbers[text] for text in texts])
        same = (labels[:, None] == labels[None]).float().to(accelerator.device)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(accelerator.device)
        with accelerator.autocast():
            logits = model(pixel_values=views(crops, indices, rng).to(accelerator.device), **tokens).logits_per_image
        loss = contrastive_loss(logits.float(), same)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain.logit_scale.data.clamp_(max=np.log(100))
        step += 1
        average = 0.98 * average + 0.02 * loss.item() if step - first_step > 1 else loss.item()
        spent = (time.time() - began) / (60 * arguments.minutes)
        if time.time() - reported > 60 * arguments.report_minutes or spent >= 1:
            reported = time.time()
            plain.eval()
            line = {"step": step, "minutes": round((reported - began) / 60, 1), "loss": round(average, 3)}
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


if __name__ == "__main__":
    main()
