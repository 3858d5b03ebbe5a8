"""Everything that only a GPU can answer, in one command of under ten minutes: times, rows, memory, pictures.

    python -m benchmarks.gpu --to gpu                     # Stable Diffusion 1.5, downloaded once
    python -m benchmarks.gpu --to gpu --random            # random weights of its shape, without a network
    python -m benchmarks.gpu --to gpu --random --small    # small networks, for a test of this script on a CPU

Writes gpu.md and the results as PNGs into the folder. A part that fails is named in the table, and the exit status
is 1. Pictures of random weights are noise.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.all import commit  # noqa: E402 - needs the path above
from benchmarks.machine import machine  # noqa: E402
from benchmarks.pairs import content_image, style_image  # noqa: E402
from benchmarks.sd15_shape import write_model, write_pixel_model  # noqa: E402
from benchmarks.speed import bare_seconds, finished, noted_calls  # noqa: E402
from styleengine import (  # noqa: E402
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    QSAttnSettings,
    StyleEngine,
    ZStarSettings,
    ZStarVideoSettings,
)
from styleengine.attention import attend, xformers_works  # noqa: E402
from styleengine.video import write_clip  # noqa: E402

HEADS = 8
LAYERS = ((4096, 40), (1024, 80), (256, 160))  # tokens and head dimension of SD 1.5's self-attention at 512 px
REPEATS = 20


@dataclass(frozen=True)
class Bench:
    """What all parts use. `latent` and `pixel` are models by name or folder."""

    latent: str
    pixel: str
    device: str
    folder: Path
    small: bool

    def engine(self, dtype: str | None = None, model: str | None = None) -> StyleEngine:
        return StyleEngine(model or self.latent, device=self.device, dtype=dtype)

    def least(self, usual: int, small: int) -> int:
        return small if self.small else usual

    def keep(self, name: str, image: Image.Image) -> None:
        image.save(self.folder / f"{name}.png")


Row = dict[str, float | str]


def timed(engine: StyleEngine, function: Callable[[], object]) -> Row:
    """Seconds, U-Net rows and peak memory of a call."""
    device = engine.backbone.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with noted_calls(engine.backbone.unet) as shapes:
        began = finished(device)
        function()
        seconds = finished(device) - began
    row: Row = {"seconds": seconds, "rows": sum(shape[0] for shape in shapes)}
    if device.type == "cuda":
        row["GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


def zstar(bench: Bench) -> dict[str, Row]:
    engine, rows = bench.engine(), {}
    settings = ZStarSettings(size=bench.least(512, 64), steps=bench.least(30, 3))
    first, second = content_image("astronaut"), content_image("cat").crop((0, 0, 300, 300))
    engine.zstar(second, [style_image("auvers")], settings.replace(steps=2))  # warm up
    engine.cache.clear()
    for name, content in (("nothing known", first), ("style known", second), ("both known", second)):
        with noted_calls(engine.backbone.unet) as shapes:
            row = timed(engine, lambda content=content: engine.zstar(content, [style_image("great-wave")], settings))
        row["× bare rows"] = float(row["seconds"]) / bare_seconds(engine.backbone, shapes)
        rows[f"Z-STAR+, {name}"] = row
    bench.keep("zstar", engine.zstar(second, [style_image("great-wave")], settings).image)
    contents = [first, second, first.rotate(90)]
    row = timed(engine, lambda: engine.zstar_all(contents, [style_image("auvers"), style_image("poppies")], settings))
    rows["Z-STAR+, 3 contents, 2 styles"] = {**row, "images per minute": 60 * len(contents) / float(row["seconds"])}
    return rows


def precision(bench: Bench) -> dict[str, Row]:
    """Time of each dtype, and the mean distance of its result to that of float32, of 255."""
    settings = ZStarSettings(size=bench.least(512, 64), steps=bench.least(10, 2))
    rows, images = {}, {}
    for dtype in ("float32", "float16", "bfloat16"):
        engine = bench.engine(dtype)

        def run(engine: StyleEngine = engine, dtype: str = dtype) -> None:
            images[dtype] = engine.zstar(content_image("cat"), [style_image("auvers")], settings).image

        run()
        engine.cache.clear()
        row = timed(engine, run)
        distance = np.abs(np.subtract(images[dtype], images["float32"], dtype=np.int16)).mean()
        rows[f"Z-STAR+ in {dtype}"] = {**row, "distance to float32": float(distance)}
        bench.keep(f"zstar-{dtype}", images[dtype])
    return rows


def inst(bench: Bench) -> dict[str, Row]:
    """A learning step against the U-Net's forward and backward pass alone, and applying a style."""
    engine, steps = bench.engine(), bench.least(20, 2)
    settings = InSTLearningSettings(steps=steps, size=bench.least(512, 64), check_every=1000, batch=bench.least(4, 1))
    moments: list[float] = []

    def on_step(event: object) -> None:
        moments.append(finished(engine.backbone.device))

    rows: dict[str, Row] = {}
    learned = []
    row = timed(engine, lambda: learned.append(engine.inst_learn(style_image("auvers"), settings, on_step=on_step)))
    pace = float(np.median(np.diff(moments[1:] if len(moments) > 3 else moments)))
    backbone, side = engine.backbone, settings.size // engine.backbone.multiple
    x = torch.randn(settings.batch, 4, side, side).to(backbone.device)
    null = backbone.condition([""])

    def bare() -> None:
        condition = null.clone().requires_grad_()
        loss = F.mse_loss(backbone.predict_noise_with_gradient(x, 500, condition), torch.zeros_like(x))
        torch.autograd.grad(loss, condition)

    bare()
    began = finished(backbone.device)
    bare()
    alone = finished(backbone.device) - began
    rows["InST, one learning step"] = {**row, "seconds": pace, "rows": settings.batch, "× bare rows": pace / alone}
    applied = InSTSettings(size=bench.least(512, 64), steps=bench.least(50, 3))
    results = []
    rows["InST, applying a style"] = timed(
        engine, lambda: results.append(engine.inst_apply(content_image("cat"), learned[0], applied))
    )
    bench.keep("inst", results[0].image)
    return rows


def qs_attn(bench: Bench) -> dict[str, Row]:
    engine = bench.engine()
    settings = QSAttnSettings(
        size=bench.least(512, 64), steps=bench.least(25, 2), patches=bench.least(32, 2), prompt="a watercolor painting"
    )
    results = []
    row = timed(engine, lambda: results.append(engine.qs_attn(content_image("temple"), settings=settings)))
    bench.keep("qs_attn", results[0].image)
    return {"QS-Attn": row}


def h_space(bench: Bench) -> dict[str, Row]:
    engine = bench.engine(model=bench.pixel)
    settings = HSpaceSettings(size=bench.least(256, 64), steps=bench.least(50, 4))
    results = []
    pair = content_image("astronaut"), content_image("cat")
    row = timed(engine, lambda: results.append(engine.h_space(*pair, settings)))
    bench.keep("h_space", results[0].image)
    return {"h-space on a DDPM": row}


def video(bench: Bench) -> dict[str, Row]:
    engine, count, size = bench.engine(), bench.least(4, 2), bench.least(512, 64)
    settings = ZStarVideoSettings(size=size, steps=bench.least(30, 2), rate=0, frames=count)
    photo = content_image("temple")
    frames = [photo.crop((4 * i, 0, 4 * i + 240, 240)) for i in range(count)]
    clip, output = bench.folder / "clip.mp4", bench.folder / "video.mp4"
    write_clip(clip, iter(frames), Fraction(8))
    row = timed(engine, lambda: engine.zstar_video(clip, [style_image("auvers")], settings, output=output))
    return {"Z-STAR+ for video, one frame": {**row, "seconds": float(row["seconds"]) / count}}


def kernels(bench: Bench) -> dict[str, Row]:
    """Attention at SD 1.5's sizes: xformers' time as a multiple of PyTorch's."""
    device = torch.device(bench.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    rows: dict[str, Row] = {}
    for tokens, dimension in LAYERS:
        count = bench.least(tokens, 64)
        q = torch.randn(2, HEADS, count, dimension).to(device, dtype)
        ours = call_seconds(lambda q=q: F.scaled_dot_product_attention(q, q, q), device)
        row: Row = {"seconds": ours, "xformers / PyTorch": "xformers does not run here"}
        if xformers_works(device, dtype, dimension):
            row["xformers / PyTorch"] = call_seconds(lambda q=q: attend(q, q, q), device) / ours
        rows[f"attention, {count} tokens of {dimension}"] = row
    return rows


def call_seconds(function: Callable[[], object], device: torch.device) -> float:
    function()
    began = finished(device)
    for _ in range(REPEATS):
        function()
    return (finished(device) - began) / REPEATS


def experiments(bench: Bench) -> dict[str, Row]:
    """Open questions about defaults, as pictures: inversion iterations and pull, SAIN's factor, QS-Attn's depth."""
    engine, size = bench.engine(), bench.least(512, 64)
    steps = bench.least(30, 2)
    content, style = content_image("temple"), style_image("auvers")
    rows: dict[str, Row] = {}
    for iterations in (1, 2, 3):
        for pull in (0.0, 0.01):
            values = {"inversion_iterations": iterations, "content_pull": pull, "measure_reconstruction": True}
            result = engine.zstar(content, [style], ZStarSettings(size=size, steps=steps, **values))
            name = f"zstar-iterations-{iterations}-pull-{pull:g}"
            bench.keep(name, result.image)
            rows[name] = {
                "seconds": result.seconds,
                "PSNR of the reconstruction": result.details["reconstruction_psnr"],
            }
    for factor in (0.0, 0.25, 0.5, 0.75, 1.0):
        result = engine.zstar(content, [style], ZStarSettings(size=size, steps=steps, color_factor=factor))
        bench.keep(f"zstar-color-factor-{factor:g}", result.image)
        rows[f"zstar-color-factor-{factor:g}"] = {"seconds": result.seconds}
    for depth in (0.5, 0.7):
        settings = QSAttnSettings(
            size=size, steps=bench.least(25, 2), patches=bench.least(32, 2), depth=depth, prompt="a watercolor painting"
        )
        result = engine.qs_attn(content, settings=settings)
        bench.keep(f"qs_attn-depth-{depth:g}", result.image)
        rows[f"qs_attn-depth-{depth:g}"] = {"seconds": result.seconds, "similarity": result.details["similarity_after"]}
    learned = engine.inst_learn(style, InSTLearningSettings(steps=bench.least(200, 2), size=size, batch=1))
    for strength in (0.5, 0.7):
        for adain in (False, True):
            values = {"size": size, "steps": bench.least(50, 3), "strength": strength, "adain": adain}
            name = f"inst-strength-{strength:g}{'-adain' if adain else ''}"
            result = engine.inst_apply(content, learned, InSTSettings(**values))
            bench.keep(name, result.image)
            rows[name] = {"seconds": result.seconds}
    return rows


PARTS = (zstar, precision, inst, qs_attn, h_space, video, kernels)


def run_all(bench: Bench, real: bool) -> tuple[dict[str, Row], list[str]]:
    """The rows of all parts, and the names of those that failed."""
    rows: dict[str, Row] = {}
    failed = []
    for part in (*PARTS, *([experiments] if real else [])):
        began = time.monotonic()
        try:
            rows |= part(bench)
        except Exception as error:  # noqa: BLE001 - the other parts still run
            rows[part.__name__] = {"problem": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            failed.append(part.__name__)
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows, failed


def table(rows: dict[str, Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in rows.items():
        cells = (row.get(column, "") for column in columns)
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, required=True, help="the folder for the table and the pictures")
    parser.add_argument("--random", action="store_true", help="random weights of Stable Diffusion 1.5's shape")
    parser.add_argument("--small", action="store_true", help="small networks and few steps (with --random)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with TemporaryDirectory() as made:
        latent, pixel = "sd15", "ddpm-celebahq-256"
        if arguments.random:
            latent, pixel = f"{made}/latent", f"{made}/pixel"
            write_model(Path(latent), arguments.small, clip=True)
            write_pixel_model(Path(pixel), arguments.small)
        bench = Bench(latent, pixel, arguments.device, arguments.to, arguments.small)
        rows, failed = run_all(bench, real=not arguments.random)
    weights = f"random weights, {'small' if arguments.small else 'SD 1.5’s shape'}" if arguments.random else latent
    minutes = (time.monotonic() - began) / 60
    head = f"{machine()}, torch {torch.__version__}; {weights}; commit {commit()}; {minutes:.1f} minutes"
    (arguments.to / "gpu.md").write_text(f"# GPU figures\n\n{head}\n\n{table(rows)}\n")
    print(table(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
