"""Copies the committed model to WORK in the layout of the stages, so that each can continue with --resume.

python -m training.restore --work training/work --from styleengine/models/mini
"""

import argparse
import json
from pathlib import Path

from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--from", dest="model", type=Path, default=Path("styleengine/models/mini"))
    arguments = parser.parse_args()
    work, model = arguments.work, arguments.model
    for folder in ("autoencoder", "clip", "unet"):
        (work / folder).mkdir(parents=True, exist_ok=True)
        (work / folder / "state.json").write_text(json.dumps({"step": 0}))
    AutoencoderTiny.from_pretrained(model / "vae").float().save_pretrained(work / "autoencoder" / "model")
    for part in (CLIPModel, CLIPTokenizer, CLIPImageProcessorPil):
        loaded = part.from_pretrained(model / "clip")
        (loaded.float() if part is CLIPModel else loaded).save_pretrained(work / "clip" / "model")
    CLIPTextModel.from_pretrained(model / "text_encoder").float().save_pretrained(work / "text_encoder")
    CLIPTokenizer.from_pretrained(model / "tokenizer").save_pretrained(work / "tokenizer")
    for copy in ("model", "ema"):
        UNet2DConditionModel.from_pretrained(model / "unet").float().save_pretrained(work / "unet" / copy)


if __name__ == "__main__":
    main()
