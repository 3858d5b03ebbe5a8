"""Stage 8: export the model as a diffusers folder, in half precision and shards below 10 MB.

python -m training.export --work training/work --to styleengine/models/mini
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from training.unet import make_scheduler

SHARD = "9MB"
KEPT = ("README.md", "recommended.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--to", type=Path, default=Path("styleengine/models/mini"))
    arguments = parser.parse_args()
    work, target = arguments.work, arguments.to
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "autoencoder" / "model"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet" / "ema"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)
    if target.exists():
        for path in target.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in KEPT:
                path.unlink()
    pipeline.save_pretrained(target, max_shard_size=SHARD)
    clip = work / "clip" / "model"
    CLIPModel.from_pretrained(clip).half().save_pretrained(target / "clip", max_shard_size=SHARD)
    CLIPTokenizer.from_pretrained(clip).save_pretrained(target / "clip")
    CLIPImageProcessorPil.from_pretrained(clip).save_pretrained(target / "clip")
    for file in target.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path on the training machine
        if file.parent.name == "vae":
            config.pop("block_out_channels", None)  # AutoencoderTiny derives it, and warns if it is given
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
