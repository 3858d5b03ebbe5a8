"""Quick runs of every method, mode and mask, for tests that compare devices and dtypes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from clips import panned, write_raw
from PIL import Image
from skimage import data

from styleengine import (
    Cancelled,
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    QSAttnSettings,
    Style,
    StyleEngine,
    StyTr2Settings,
    ZStarSettings,
    ZStarVideoSettings,
)
from styleengine.methods.zstar import PRESETS
from styleengine.video import open_clip

Images = list[Image.Image]
MASK = Image.linear_gradient("L")
BLACK = Image.new("L", (8, 8), 0)
LEARNING = InSTLearningSettings(steps=3, size=32, batch=2, views=3, check_every=2, learning_rate=1e-3, heads=2)


@dataclass(frozen=True)
class Pictures:
    """Three images for all runs, and a folder that a run may write to."""

    folder: Path
    content: Image.Image
    style: Image.Image
    other: Image.Image


def pictures(folder: Path) -> Pictures:
    """The images of every run, and a new folder of that name."""
    folder.mkdir()
    astronaut, coffee, cat = (Image.fromarray(array) for array in (data.astronaut(), data.coffee(), data.chelsea()))
    return Pictures(folder, astronaut.resize((96, 80)), coffee.resize((96, 64)), cat.resize((80, 96)))


def zstar(**values: Any) -> Callable[[StyleEngine, Pictures], Images]:
    def run(engine: StyleEngine, given: Pictures) -> Images:
        styles = [Style(given.style, 0.7, MASK), Style(given.other, 1.3), Style(given.style, 1, BLACK)]
        settings = ZStarSettings(size=64, steps=3, **values)
        everywhere = [engine.zstar(given.content, chosen, settings).image for chosen in (styles, given.style)]
        return [*everywhere, engine.zstar(given.content, given.style, settings, mask=MASK).image]

    return run


def zstar_grid(engine: StyleEngine, given: Pictures) -> Images:
    settings = ZStarSettings(size=64, steps=2, measure_reconstruction=True)
    contents = [given.content, given.other, given.content.rotate(90)]
    return [result.image for result in engine.zstar_all(contents, given.style, settings)]


def h_space(**values: Any) -> Callable[[StyleEngine, Pictures], Images]:
    def run(engine: StyleEngine, given: Pictures) -> Images:
        settings, masks = HSpaceSettings(size=64, steps=4, seed=1, **values), (None, MASK)
        strips = [engine.h_space_strip(given.content, given.style, (0, 0.6), settings, mask=mask) for mask in masks]
        return [result.image for strip in strips for result in strip]

    return run


def qs_attn(prompt: str = "ink::2 | oil", **values: Any) -> Callable[[StyleEngine, Pictures], Images]:
    def run(engine: StyleEngine, given: Pictures) -> Images:
        settings = QSAttnSettings(size=64, steps=3, patches=3, anchors=16, **values)
        anchors = engine.qs_attn_anchors(given.content, settings)
        return [engine.qs_attn(given.content, prompt, settings).image, anchors]

    return run


def inst(**values: Any) -> Callable[[StyleEngine, Pictures], Images]:
    def run(engine: StyleEngine, given: Pictures) -> Images:
        style = engine.inst_learn([given.style, given.other], LEARNING.replace(**values))
        settings = InSTSettings(size=64, steps=4, strength=0.6, guidance=3, adain=True)
        return [engine.inst_apply(content, style, settings).image for content in (given.content, None)]

    return run


def inst_resumed(engine: StyleEngine, given: Pictures) -> Images:
    """Learning that is stopped after one step and resumed from its file."""
    partial = given.folder / "partial.safetensors"

    def stop(event: Any) -> None:
        if event.step == 1:
            raise Cancelled

    try:
        engine.inst_learn(given.style, LEARNING, partial=partial, on_step=stop)
    except Cancelled:
        style = engine.inst_learn(given.style, LEARNING, partial=partial)
        settings = InSTSettings(size=64, steps=3, noise="random", adain=False)
        return [engine.inst_apply(given.content, [style, style], settings).image]
    raise AssertionError("learning was not stopped")


def zstar_video(**values: Any) -> Callable[[StyleEngine, Pictures], Images]:
    def run(engine: StyleEngine, given: Pictures) -> Images:
        clip, output = given.folder / "clip.mkv", given.folder / "result.mp4"
        write_raw(clip, panned(given.content, 4, (64, 64), 6), codec="ffv1")
        settings = ZStarVideoSettings(size=64, steps=2, rate=0, **values)
        engine.zstar_video(clip, [given.style], settings, output=output, mask=MASK, work=given.folder / "work")
        return list(open_clip(output).select(0, 0, 8).frames())

    return run


def stytr2(engine: StyleEngine, given: Pictures) -> Images:
    styles = [Style(given.style, 0.7, MASK), Style(given.other, 1.3)]
    settings = StyTr2Settings(size=64, strength=0.8)
    everywhere = [engine.stytr2(given.content, chosen, settings).image for chosen in (styles, given.style)]
    return [*everywhere, engine.stytr2(given.content, given.style, settings, mask=MASK).image]


LATENT_RUNS: dict[str, Callable[[StyleEngine, Pictures], Images]] = {
    "zstar": zstar(variation=0.3),
    "zstar, recommended on mini": zstar(query_preservation=0.5, temperature=0.75, content_pull=0.01, color="adain"),
    "zstar, StyleID": zstar(**PRESETS["StyleID"]),
    "zstar, addition": zstar(mode="simple_addition", color="mean", inversion_iterations=2),
    "zstar, grid": zstar_grid,
    "h_space": h_space(),
    "h_space, calibrated and boosted": h_space(calibration=True, t_boost=900, measure_reconstruction=True),
    "qs_attn": qs_attn(),
    "qs_attn, all losses": qs_attn(
        features="instance_norm", selection="local_global", global_whole=1000.0, direction_whole=1000.0, unguided=0.4
    ),
    "qs_attn, in sequence": qs_attn("ink | oil", order="in_sequence", selection="local", save_memory=True),
    "inst": inst(),
    "inst, plain embedding": inst(mode="embedding", save_memory=True),
    "inst, resumed": inst_resumed,
    "stytr2": stytr2,
    "zstar_video": zstar_video(),
    "zstar_video, backprop": zstar_video(gradient="backprop", attention="styled", compare=True),
}
PIXEL_RUNS: dict[str, Callable[[StyleEngine, Pictures], Images]] = {
    "h_space": h_space(),
    "h_space, calibrated and boosted": h_space(calibration=True, t_boost=900),
    "qs_attn": qs_attn(),
    "stytr2": stytr2,
}


def largest_difference(one: Images, other: Images) -> int:
    """The largest difference of a channel's value, of 255, between two lists of images of equal sizes."""
    assert [image.size for image in one] == [image.size for image in other]
    pairs = zip(one, other, strict=True)
    return max(int(np.abs(np.subtract(a, b, dtype=np.int16)).max()) for a, b in pairs)


def mean_difference(one: Images, other: Images) -> float:
    """As `largest_difference`, the mean over all values."""
    assert [image.size for image in one] == [image.size for image in other]
    return float(np.mean([np.abs(np.subtract(a, b, dtype=np.int16)).mean() for a, b in zip(one, other, strict=True)]))
