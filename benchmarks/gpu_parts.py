"""The measurements of gpu.py. Each part is a generator of named table rows, measured one after the other."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.pairs import content_image, style_image
from benchmarks.speed import CASES, Result, bare_gradient, bare_seconds, finished, rows_of, timed
from benchmarks.tables import Cell
from styleengine import (
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    QSAttnSettings,
    StyleEngine,
    ZStarSettings,
    ZStarVideoSettings,
)
from styleengine.attention import attend, xformers_works
from styleengine.backbones import working_dtype
from styleengine.video import write_clip

HEADS = 8
LAYERS = ((4096, 40), (1024, 80), (256, 160))  # tokens and head dimension of SD 1.5's self-attention at 512 px
REPEATS = 20
PEAK = "peak GiB"
MULTIPLE = "× bare U-Net"
PROMPT = "a watercolor painting"

Row = dict[str, Cell]
Rows = Iterator[tuple[str, Row]]


@dataclass(frozen=True)
class Bench:
    """What all parts use. `latent` and `pixel` are models by name or folder; pictures are written to `folder`."""

    latent: str
    pixel: str
    device: str
    folder: Path
    small: bool

    def engine(self, model: str | None = None, dtype: str | None = None) -> StyleEngine:
        """An engine of its own, on the latent model by default. What earlier parts left in memory is released."""
        release()
        return StyleEngine(model or self.latent, device=self.device, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The engines' dtype, unless another is asked for."""
        return working_dtype(None, torch.device(self.device))

    def size(self, usual: int = 512) -> int:
        return 64 if self.small else usual

    def some(self, usual: int, small: int) -> int:
        """A number of steps, frames or patches."""
        return small if self.small else usual

    def keep(self, name: str, image: Image.Image) -> None:
        image.save(self.folder / f"{name}.png")


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_of(device: torch.device, function: Callable[[], Result]) -> tuple[Result, Cell]:
    """A call's result, and the peak of the memory that torch allocated, weights included, in GiB; “-” on a CPU."""
    if device.type != "cuda":
        return function(), "-"
    torch.cuda.reset_peak_memory_stats(device)
    result = function()
    return result, torch.cuda.max_memory_allocated(device) / 2**30


def cost(engine: StyleEngine, function: Callable[[], Result], bare: bool = False) -> tuple[Result, Row]:
    """A call's result and its row. `bare` compares with its U-Net calls alone."""
    backbone = engine.backbone
    (result, seconds, shapes), peak = peak_of(backbone.device, lambda: timed(backbone, function))
    row: Row = {"seconds": seconds, "U-Net rows": rows_of(shapes), PEAK: peak}
    if bare:
        row[MULTIPLE] = seconds / bare_seconds(backbone, shapes)
    return result, row


def loading(bench: Bench) -> Rows:
    """With the named model and an empty cache of downloads, its download is part of it."""
    device = torch.device(bench.device)
    began = finished(device)
    _, peak = peak_of(device, bench.engine)
    yield "loading the model", {"seconds": finished(device) - began, PEAK: peak}


def zstar(bench: Bench) -> Rows:
    engine, style = bench.engine(), [style_image("great-wave")]
    settings = ZStarSettings(size=bench.size(), steps=bench.some(30, 3))
    first, second = content_image("astronaut"), content_image("cat").crop((0, 0, 300, 300))
    engine.zstar(second, style, settings.replace(steps=2))  # warm up
    engine.cache.clear()
    for case, content in zip(CASES, (first, second, second), strict=True):
        result, row = cost(engine, lambda content=content: engine.zstar(content, style, settings), bare=True)
        bench.keep("zstar", result.image)
        row["cached MiB"], row["cache MiB"] = engine.cache.nbytes / 2**20, engine.cache.capacity / 2**20
        yield f"Z-STAR+, {case}", row


def zstar_grid(bench: Bench) -> Rows:
    """Each content in each style: M + N inversions, and batches of contents."""
    engine = bench.engine()
    settings = ZStarSettings(size=bench.size(), steps=bench.some(30, 2))
    photos = [content_image(name) for name in ("astronaut", "cat", "coffee", "rocket")[: bench.some(4, 2)]]
    contents = [photo.crop((0, 0, min(photo.size), min(photo.size))) for photo in photos]
    styles = [style_image(name) for name in ("auvers", "great-wave", "poppies")[: bench.some(3, 2)]]
    engine.zstar(contents[0], styles[0], settings.replace(steps=2))  # warm up
    engine.cache.clear()

    def grid() -> list[list[Any]]:
        return [engine.zstar_all(contents, style, settings) for style in styles]

    results, row = cost(engine, grid)
    count = sum(map(len, results))
    row["images per minute"] = 60 * count / float(row["seconds"])
    for number, of_style in enumerate(results):
        bench.keep(f"zstar-grid-{number + 1}", of_style[0].image)
    yield f"Z-STAR+, {len(contents)} × {len(styles)} grid", row


def dtypes(bench: Bench) -> Rows:
    """Time in each dtype, and the mean distance of its result to that in float32, of 255."""
    reference: Image.Image | None = None
    for dtype in ("float32", "float16", "bfloat16"):
        image, row = _in_dtype(bench, dtype)
        reference = reference or image
        row["distance to float32"] = float(np.abs(np.subtract(image, reference, dtype=np.int16)).mean())
        bench.keep(f"zstar-{dtype}", image)
        yield f"Z-STAR+ in {dtype}", row


def _in_dtype(bench: Bench, dtype: str) -> tuple[Image.Image, Row]:
    engine, settings = bench.engine(dtype=dtype), ZStarSettings(size=bench.size(), steps=bench.some(10, 2))

    def run() -> Image.Image:
        engine.cache.clear()
        return engine.zstar(content_image("cat"), style_image("auvers"), settings).image

    run()  # warm up
    return cost(engine, run)


def inst(bench: Bench) -> Rows:
    """A learning step against the U-Net's forward and backward pass alone, and applying the style."""
    engine, batch = bench.engine(), bench.some(4, 1)
    device, multiple = engine.backbone.device, engine.backbone.multiple
    settings = InSTLearningSettings(steps=bench.some(20, 4), size=bench.size(), check_every=1000, batch=batch)
    moments: list[float] = []

    def learn() -> Any:
        return engine.inst_learn(
            style_image("auvers"), settings, on_step=lambda event: moments.append(finished(device))
        )

    style, row = cost(engine, learn)
    step = float(np.median(np.diff(moments)[1:-1]))  # the first warms up, the last validates
    channels, side = engine.backbone.unet.config.in_channels, settings.size // multiple
    x_t = torch.randn(batch, channels, side, side).to(device)
    alone = [timed(engine.backbone, lambda: bare_gradient(engine.backbone, x_t))[1] for _ in range(6)]
    ratio = step / float(np.median(alone[1:]))
    yield "InST, one learning step", {**row, "seconds": step, "U-Net rows": batch, MULTIPLE: ratio}
    applied = InSTSettings(size=bench.size(), steps=bench.some(50, 3))
    engine.inst_apply(content_image("cat"), style, applied.replace(steps=2))  # warm up
    result, row = cost(engine, lambda: engine.inst_apply(content_image("cat"), style, applied))
    bench.keep("inst", result.image)
    yield "InST, applying a style", row


def qs_attn(bench: Bench) -> Rows:
    engine, content = bench.engine(), content_image("temple")
    settings = qs_attn_settings(bench)
    engine.qs_attn(content, settings=settings.replace(steps=2))  # warm up; loads CLIP
    engine.cache.clear()
    result, row = cost(engine, lambda: engine.qs_attn(content, settings=settings))
    bench.keep("qs_attn", result.image)
    yield "QS-Attn", row


def qs_attn_settings(bench: Bench, size: int = 512, **values: Any) -> QSAttnSettings:
    steps, patches = bench.some(25, 2), bench.some(32, 2)
    return QSAttnSettings(size=bench.size(size), steps=steps, patches=patches, prompt=PROMPT, **values)


def h_space(bench: Bench) -> Rows:
    engine, pair = bench.engine(bench.pixel), (content_image("astronaut"), content_image("cat"))
    settings = HSpaceSettings(size=bench.size(256), steps=bench.some(50, 4))
    engine.h_space(*pair, settings.replace(steps=2))  # warm up
    engine.cache.clear()
    result, row = cost(engine, lambda: engine.h_space(*pair, settings))
    bench.keep("h_space", result.image)
    yield f"h-space on a DDPM, {settings.size} px", row


def video(bench: Bench) -> Rows:
    """The share of a frame in a short clip, whose style and first frame are new."""
    engine, count = bench.engine(), bench.some(4, 2)
    settings = ZStarVideoSettings(size=bench.size(), steps=bench.some(30, 2), rate=0, frames=count)
    photo = content_image("temple")
    clip, output = bench.folder / "clip.mp4", bench.folder / "video.mp4"
    write_clip(clip, (photo.crop((4 * i, 0, 4 * i + 240, 240)) for i in range(count)), Fraction(8))
    result, row = cost(engine, lambda: engine.zstar_video(clip, [style_image("auvers")], settings, output=output))
    shares = {name: float(row[name]) / count for name in ("seconds", "U-Net rows")}
    bench.keep("video", result.image)
    yield "Z-STAR+ for video, one frame", {**row, **shares}


def kernels(bench: Bench) -> Rows:
    """PyTorch's attention at SD 1.5's sizes, and xformers' time as a multiple of it."""
    device, title = torch.device(bench.device), "xformers / PyTorch"
    release()
    for tokens, dimension in LAYERS:
        count = bench.some(tokens, 64)
        q = torch.randn(2, HEADS, count, dimension).to(device, bench.dtype)
        seconds, peak = peak_of(
            device, lambda q=q: _mean_seconds(lambda: F.scaled_dot_product_attention(q, q, q), device)
        )
        row: Row = {"seconds": seconds, PEAK: peak, title: "xformers does not work here"}
        if xformers_works(device, bench.dtype, dimension):
            row[title] = _mean_seconds(lambda q=q: attend(q, q, q), device) / seconds
        yield f"attention, {count} tokens of {dimension}", row


def _mean_seconds(function: Callable[[], object], device: torch.device) -> float:
    function()
    began = finished(device)
    for _ in range(REPEATS):
        function()
    return (finished(device) - began) / REPEATS


PARTS = (loading, zstar, zstar_grid, dtypes, inst, qs_attn, h_space, video, kernels)
