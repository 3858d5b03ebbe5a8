"""h-space injection: does γ interpolate from style to content, does calibration help, what does a strip cost?

    python -m benchmarks.h_space --pairs 10 --to sheets

    python -m benchmarks.h_space --model figures --pictures examples/figures --size 64 --to sheets

With --pictures the pairs are taken from a folder, else from the example photographs and paintings. With --to,
writes a contact sheet for each pair: the upper row without calibration, the lower with it; in each the style image,
γ = 0, 0.2, … 1, and the content.
"""

import argparse
import statistics
from itertools import pairwise, permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import content_image, pairs, style_image
from benchmarks.tables import mean_of, table
from styleengine import HSpaceSettings, StyleEngine
from styleengine.backbones import Backbone, LatentBackbone, load_backbone
from styleengine.contact_sheet import contact_sheet
from styleengine.engine import STRIP
from styleengine.images import fit, open_image, to_tensor
from styleengine.methods.h_space.bottleneck import injection
from styleengine.metrics import ssim

CALIBRATION = {False: "without", True: "with"}
REACH_AT = (900, 700, 500)
REPEATS = 3
Pair = tuple[str, Image.Image, Image.Image]  # name, content, style
MOST_SINGLE_RUNS = 2.5  # maximum cost of a strip of six


def roughness(image: Image.Image) -> float:
    """Standard deviation of the luminance's Laplacian: speckle and ringing increase it."""
    grey = to_tensor(image).mean(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return float(F.conv2d(grey, kernel).std())


def clipped(image: Image.Image) -> float:
    """The percentage of channel values at the ends of the range."""
    return float((to_tensor(image).abs() > 0.999).float().mean() * 100)


def artefacts(image: Image.Image, unchanged: Image.Image) -> dict[str, float]:
    """Artefacts that injection adds to the style image's reconstruction."""
    return {
        "roughness / γ 0": roughness(image) / roughness(unchanged),
        "clipped, % above γ 0": clipped(image) - clipped(unchanged),
    }


def judged_pairs(folder: Path | None, count: int) -> list[Pair]:
    """`count` pairs, spread over the available images."""
    if folder is None:
        return [(f"{c}-{s}", content_image(c), style_image(s)) for c, s in pairs(count)]
    files = sorted(file for file in folder.iterdir() if file.suffix in {".png", ".jpg"})
    every = sorted(permutations(range(len(files)), 2), key=lambda pair: ((pair[1] - pair[0]) % len(files), pair))
    chosen = [(files[c], files[s]) for c, s in every[:count]]
    return [(f"{c.stem}-{s.stem}", open_image(c), open_image(s)) for c, s in chosen]


@torch.no_grad()
def reach(backbone: Backbone, size: int, pictures: list[Image.Image]) -> dict[int, float]:
    """By timestep: |ε without h − ε| / |ε|, the mean over images. If it is 0, h-space has no effect.

    A briefly trained U-Net relies on its skip connections and leaves its bottleneck unused.
    """
    null, generator = backbone.condition([""]), torch.Generator().manual_seed(0)
    shares: dict[int, list[float]] = {t: [] for t in REACH_AT}
    for x_0 in (backbone.encode(to_tensor(fit(picture, (size, size)))) for picture in pictures):
        for t, values in shares.items():
            alpha = backbone.alphas_cumprod[t]
            noise = torch.randn(x_0.shape, generator=generator).to(x_0)
            with injection(backbone.unet, torch.zeros_like):
                given = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
                plain, without = backbone.predict_noise(given, t, null).chunk(2)
            values.append(float((without - plain).norm() / plain.norm()))
    return {t: statistics.mean(values) for t, values in shares.items()}


def moves_one_way(rows: dict[str, dict[str, float]], name: str, rising: bool) -> bool:
    values = [row[name] for row in rows.values()]
    return all(a < b if rising else a > b for a, b in pairwise(values))


def quality(
    engine: StyleEngine, judged: list[Pair], settings: HSpaceSettings, folder: Path | None
) -> dict[bool, dict[str, dict[str, float]]]:
    """By calibration and γ: the metrics, averaged over the pairs."""
    judge, measuring = OutsideJudge(), engine.backbone
    if not isinstance(measuring, LatentBackbone):
        measuring = load_backbone("mini")  # the metrics need an autoencoder
    rows: dict[bool, dict[str, list[dict[str, float]]]] = {
        calibration: {f"γ {gamma:g}": [] for gamma in STRIP} for calibration in CALIBRATION
    }
    for name, content, style in judged:
        pictures: list[list[Image.Image | None]] = []
        for calibration in CALIBRATION:
            strip = engine.h_space_strip(content, style, STRIP, settings.replace(calibration=calibration))
            images = [result.image for result in strip]
            for image, measured in zip(images, rows[calibration].values(), strict=True):
                near = {"SSIM to γ 0": ssim(to_tensor(image), to_tensor(images[0]))}
                measures = measure(measuring, judge, image, content, style)
                measured.append({**measures, **near, **artefacts(image, images[0])})
            pictures.append([fit(style, images[0].size), *images, fit(content, images[0].size)])
        if folder:
            contact_sheet(pictures, (192, 192)).save(folder / f"{name}.png")
        print(name, flush=True)
    return {
        calibration: {name: mean_of(values) for name, values in by_gamma.items()}
        for calibration, by_gamma in rows.items()
    }


def cost(engine: StyleEngine, settings: HSpaceSettings, pair: Pair) -> tuple[float, float]:
    """Median seconds of a single run and of a strip of six, with an empty cache."""
    _, content, style = pair
    engine.h_space(content, style, settings.replace(steps=4))  # warm up
    single, strip = [], []
    for _ in range(REPEATS):
        engine.cache.clear()
        single.append(engine.h_space(content, style, settings).seconds)
        engine.cache.clear()
        strip.append(sum(result.seconds for result in engine.h_space_strip(content, style, STRIP, settings)))
    return statistics.median(single), statistics.median(strip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--pictures", type=Path, help="a folder with images for the pairs")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--to", type=Path, help="a folder for contact sheets")
    arguments = parser.parse_args()
    if arguments.to:
        arguments.to.mkdir(parents=True, exist_ok=True)
    engine = StyleEngine(arguments.model)
    settings = engine.settings_for(
        HSpaceSettings, "h_space", HSpaceSettings(size=arguments.size, steps=arguments.steps)
    )
    judged = judged_pairs(arguments.pictures, arguments.pairs)
    shares = reach(engine.backbone, arguments.size, [style for _, _, style in judged])
    hanging = ", ".join(f"t {t}: {share:.1e}" for t, share in shares.items())
    print(f"share of the predicted noise that depends on h: {hanging}", flush=True)
    rows = quality(engine, judged, settings, arguments.to)
    single, strip = cost(engine, settings, judged[0])

    about = f"{arguments.pairs} pairs at {arguments.size} px, {arguments.steps} steps"
    print(f"\n{machine()}; {engine.backbone.identity}; {about}")
    for calibration, words in CALIBRATION.items():
        print(f"\n{words} calibration\n\n{table(rows[calibration])}")
    injected = [name for name in rows[True] if name != "γ 0"]

    def mean(calibration: bool, name: str) -> float:
        return statistics.mean(rows[calibration][gamma][name] for gamma in injected)

    default = rows[False]
    claims = {
        "SSIM to the style's reconstruction falls with every γ": moves_one_way(default, "SSIM to γ 0", False),
        "SSIM to the content rises with every γ": moves_one_way(default, "SSIM", True),
        "content loss falls with every γ": moves_one_way(default, "content loss", False),
        "calibration: colours closer to the style's": mean(True, "colours") < mean(False, "colours"),
        "calibration: less roughness added": mean(True, "roughness / γ 0") < mean(False, "roughness / γ 0"),
        "calibration: less clipping added": mean(True, "clipped, % above γ 0") < mean(False, "clipped, % above γ 0"),
        f"a strip of six costs less than {MOST_SINGLE_RUNS:g} single runs": strip < MOST_SINGLE_RUNS * single,
    }
    print(f"\nsingle run {single:.1f} s, strip of six {strip:.1f} s: {strip / single:.2f} single runs\n")
    for claim, holds in claims.items():
        print(f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim}")


if __name__ == "__main__":
    main()
