"""Evaluates the embedded model on held-out images, for its model card.

Needs the held-out crops and the chosen subjects, which training/ `collect.py`, `crops.py` and `subjects.py` write.

python -m benchmarks.embedded_model --work training/work --to FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.machine import machine
from styleengine import ddim
from styleengine.backbones import MODELS, Backbone, load_backbone
from styleengine.images import to_images, to_tensor
from styleengine.metrics import psnr
from training.clip import quality
from training.crop_store import as_tensor, load_crops, load_words

STEPS, GUIDANCE = 30, 4.0
SAMPLE_SIDE = 128  # pixels; the size of most of the training
LINE_STYLES = ("line drawing", "pencil sketch", "ink", "crosshatch")
UNGUIDED = 8
JUDGED, JUDGED_AT = 64, (50, 200, 400, 600, 800, 950)
PROMPTS = (
    "photo of the sky", "photo of a landscape", "photo of a flower", "photo of an animal", "drawing of an animal",
    "an ink drawing of a flower", "an oil painting of a landscape", "painting of a person",
)  # fmt: skip
EACH = 4  # samples of a prompt
STYLED_SUBJECT = "a flower"
STYLE_WORDS = (
    "photo of {}", "a pencil sketch of {}", "a watercolor painting of {}", "a mosaic of {}",
    "a stained glass window of {}", "a neon picture of {}", "a woodcut of {}", "{} at night",
    "a gouache painting of {}", "a sepia photo of {}", "a blueprint of {}", "a low-poly picture of {}",
)  # fmt: skip


def spread(numbers: list[int], count: int) -> list[int]:
    """`count` of the numbers, evenly spaced."""
    return [numbers[i] for i in np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int)]


def copies(backbone: Backbone, crops: np.ndarray, chosen: list[int]) -> tuple[list[float], list[torch.Tensor]]:
    """PSNR of each crop's reconstruction by the autoencoder, and columns of crop above reconstruction."""
    values, columns = [], []
    for i in chosen:
        pixels = as_tensor(crops[i : i + 1])
        copy = backbone.decode(backbone.encode(pixels)).cpu()
        values.append(psnr(copy, pixels))
        columns.append(torch.cat([pixels, copy], 2))
    return values, columns


def inversion_gaps(backbone: Backbone, crops: np.ndarray, chosen: list[int], iterations: int) -> list[float]:
    """PSNR loss in dB of inversion and sampling, relative to the autoencoder alone."""
    schedule = ddim.Schedule.spaced(backbone.alphas_cumprod, STEPS)
    null, gaps = backbone.condition([""]), []

    def predict(x_t: torch.Tensor, level: int) -> torch.Tensor:
        return backbone.predict_noise(x_t, schedule.timesteps[level], null)

    for i in chosen:
        pixels = as_tensor(crops[i : i + 1])
        latents = backbone.encode(pixels)
        noise = ddim.invert(latents, schedule, predict, iterations)[-1]
        again = backbone.decode(ddim.sample(noise, schedule, predict)).cpu()
        gaps.append(psnr(backbone.decode(latents).cpu(), pixels) - psnr(again, pixels))
    return gaps


@torch.no_grad()
def clean_errors(backbone: Backbone, crops: np.ndarray, words: list[dict[str, str]]) -> str:
    """Mean squared error of x̂0 on noised crops, by timestep, with and without captions."""
    chosen = spread(list(range(len(crops))), JUDGED)
    x_0 = torch.cat([backbone.encode(as_tensor(crops[i : i + 1])) for i in chosen])
    captioned, generator = backbone.condition([words[i]["caption"] for i in chosen]), torch.Generator().manual_seed(0)
    cells = []
    for t in JUDGED_AT:
        alpha = backbone.alphas_cumprod[t]
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * torch.randn(x_0.shape, generator=generator).to(x_0)
        errors = [
            (ddim.predict_x0(x_t, backbone.predict_noise(x_t, t, condition), alpha) - x_0).square().mean().item()
            for condition in (captioned, backbone.condition([""]))
        ]
        cells.append("t {}: {:.4f} ({:.4f})".format(t, *errors))
    return ", ".join(cells)


def samples(pipeline: StableDiffusionPipeline, prompts: tuple[str, ...], seed: int) -> list[torch.Tensor]:
    """One sample per prompt from the diffusers pipeline; without guidance if all prompts are empty."""
    (images,) = pipeline(
        list(prompts), num_inference_steps=STEPS, guidance_scale=GUIDANCE if any(prompts) else 1.0,
        height=SAMPLE_SIDE, width=SAMPLE_SIDE, generator=torch.Generator().manual_seed(seed),
        return_dict=False,
    )[:1]  # fmt: skip
    return [to_tensor(image) for image in images]


def nearest(drawn: list[torch.Tensor], views: np.ndarray) -> list[torch.Tensor]:
    """Each sample above its nearest training view, mirrored or not, compared at a quarter of the size."""

    def small(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 4).flatten(1)

    known = as_tensor(views)
    known = torch.cat([known, known.flip(3)])
    found = torch.cdist(small(torch.cat(drawn)), small(known)).argmin(1)
    return [torch.cat([sample, known[row : row + 1]], 2) for sample, row in zip(drawn, found.tolist(), strict=True)]


def save_grid(columns: list[torch.Tensor], per_row: int, path: Path) -> None:
    rows = [torch.cat(columns[i : i + per_row], 3) for i in range(0, len(columns), per_row)]
    widest = max(row.shape[3] for row in rows)
    filled = [torch.nn.functional.pad(row, (0, widest - row.shape[3]), value=1.0) for row in rows]
    image: Image.Image = to_images(torch.cat(filled, 2))[0]
    image.save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--to", type=Path, default=Path())
    parser.add_argument("--earlier", help="a folder with an earlier version of the embedded model, to compare with")
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.model)
    crops, words = load_crops(arguments.work, "held-out"), load_words(arguments.work, "held-out")
    small = load_crops(arguments.work, "held-out", 128)
    print(f"{machine()}; {backbone.identity}; {len(crops)} held-out crops\n")

    def plain(*media: str) -> list[int]:
        return [i for i, entry in enumerate(words) if not entry["style"] and entry["caption"].startswith(media)]

    pictures = spread(plain("photo", "black and white photo"), 20) + spread(plain("painting"), 20)
    constellations = spread([i for i in plain("drawing") if "skycultures" in words[i]["caption"]], 40)
    procedural = spread([i for i, entry in enumerate(words) if entry["style"] in LINE_STYLES], 40)
    sets = {
        "photographs and paintings": pictures,
        "constellation drawings": constellations,
        "line drawings": procedural,
    }
    for name, chosen in sets.items():
        values, columns = copies(backbone, crops, chosen)
        print(f"Autoencoder, {len(values)} {name} at 256 px: {np.mean(values):.2f} dB PSNR (worst {min(values):.2f})")
        save_grid(columns[::5], 8, arguments.to / f"autoencoder-{name.replace(' ', '-')}.jpg")
    for iterations in (1, 2):
        gaps = inversion_gaps(backbone, crops, pictures[::4], iterations)
        print(
            f"Inverted and sampled back, {STEPS} steps, {iterations} iteration(s), {len(gaps)} images: "
            f"{np.mean(gaps):.2f} dB below the autoencoder (worst {max(gaps):.2f})"
        )
    folder = Path(MODELS / arguments.model if arguments.model == "mini" else arguments.model) / "clip"
    clip, tokenizer = CLIPModel.from_pretrained(folder).float().eval(), CLIPTokenizer.from_pretrained(folder)
    print(f"CLIP: {quality(clip, tokenizer, small, words)}")
    print(f"Error of x̂0, captioned (uncaptioned): {clean_errors(backbone, small, words)}")
    if arguments.earlier:
        print(f"The same for the earlier model: {clean_errors(load_backbone(arguments.earlier), small, words)}")
    pipeline = StableDiffusionPipeline.from_pretrained(folder.parent, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    save_grid(samples(pipeline, ("",) * UNGUIDED, 0), UNGUIDED, arguments.to / "samples-unconditional.jpg")
    drawn = samples(pipeline, PROMPTS * EACH, 1)
    save_grid(drawn, len(PROMPTS), arguments.to / "samples-captions.jpg")
    views = load_crops(arguments.work, "subjects", SAMPLE_SIDE)
    save_grid(nearest(drawn, views), len(PROMPTS) * EACH // 2, arguments.to / "samples-nearest.jpg")
    styled = tuple(phrase.format(STYLED_SUBJECT) for phrase in STYLE_WORDS)
    save_grid(samples(pipeline, styled, 2), 6, arguments.to / "samples-styles.jpg")


if __name__ == "__main__":
    main()
