"""Procedural styles such as pencil sketch, mosaic or night, each with a phrase for captions.

Their redrawn images train the model on style words. Each takes an image and a random generator and returns an
image: float32 arrays (height, width, 3) in [0, 1].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter
from scipy.ndimage import (
    binary_dilation,
    distance_transform_edt,
    gaussian_filter,
    map_coordinates,
    sobel,
    uniform_filter,
    zoom,
)
from scipy.spatial import Delaunay, cKDTree

Array = np.ndarray
Render = Callable[[Array, Generator], Array]


@dataclass(frozen=True)
class ProceduralStyle:
    """`phrase` with {} for the subject: "a watercolor painting of {}"."""

    name: str
    phrase: str
    render: Render

    def words(self, subject: str = "") -> str:
        """ "a mosaic of a frog", or without a subject "a mosaic"; likewise "a picture at night"."""
        if subject:
            bare = self.phrase.startswith("a ") and " of {}" not in self.phrase  # "a golden {}"
            return self.phrase.format(re.sub(r"^(a|an|the) ", "", subject) if bare else subject)
        if " of {}" in self.phrase:
            return self.phrase.replace(" of {}", "")
        return self.phrase.replace("{}", "picture" if self.phrase.startswith("a ") else "a picture")


STYLES: dict[str, ProceduralStyle] = {}


def style(phrase: str) -> Callable[[Render], Render]:
    """Registers a function in STYLES under its own name."""

    def enter(render: Render) -> Render:
        name = render.__name__.replace("_", " ")
        STYLES[name] = ProceduralStyle(name, phrase, render)
        return render

    return enter


def apply(name: str, picture: Array, rng: Generator) -> Array:
    """A uint8 image (height, width, 3) redrawn in the style `name`, as uint8."""
    out = STYLES[name].render(picture.astype(np.float32) / 255, rng)
    return (np.clip(out, 0, 1) * 255).round().astype(np.uint8)


# Functions shared by several styles


def grey(picture: Array) -> Array:
    """Luminance (height, width)."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def grey3(values: Array) -> Array:
    return np.repeat(values[..., None], 3, 2)


def blur(values: Array, sigma: float) -> Array:
    return gaussian_filter(values, (sigma, sigma, 0)[: values.ndim])


def ramp(values: Array, *colors: tuple[float, float, float]) -> Array:
    """Values in [0, 1] → colours, evenly spaced from dark to light."""
    stops = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(values, stops, [c[i] for c in colors]) for i in range(3)], 2).astype(np.float32)


def saturate(picture: Array, factor: float) -> Array:
    middle = grey(picture)[..., None]
    return np.clip(middle + factor * (picture - middle), 0, 1)


def stretch(values: Array) -> Array:
    """Values scaled to [0, 1], except the outermost two percent."""
    low, high = np.percentile(values, (2, 98))
    return np.clip((values - low) / max(high - low, 0.05), 0, 1)


def grain(shape: tuple[int, int], sigma: float, rng: Generator) -> Array:
    """Smooth noise of unit standard deviation."""
    noise = gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return noise / noise.std()


def edges(picture: Array, sigma: float = 1.0) -> Array:
    """Gradient magnitude, about in [0, 1]."""
    smooth = gaussian_filter(grey(picture), sigma)
    strength = np.hypot(sobel(smooth, 0), sobel(smooth, 1))
    return np.clip(strength / max(np.percentile(strength, 98), 0.15), 0, 1)


def lines(picture: Array, sigma: float = 1.0, sharpness: float = 12.0) -> Array:
    """Extended difference of Gaussians: dark lines (0) on white (1)."""
    luminance = stretch(grey(picture))
    difference = gaussian_filter(luminance, sigma) - 0.98 * gaussian_filter(luminance, 1.6 * sigma)
    return np.where(difference > 0.005, 1.0, 1 + np.tanh(sharpness * 8 * (difference - 0.005))).astype(np.float32)


def kuwahara(picture: Array, radius: int) -> Array:
    """Kuwahara filter: each pixel takes the mean of the neighbouring window, of four, with least variance."""
    size, shift = radius + 1, radius // 2 + radius % 2
    mean = uniform_filter(picture, (size, size, 0))
    square = uniform_filter(picture**2, (size, size, 0))
    variance = (square - mean**2).sum(2)
    means, variances = [], []
    for dy in (-shift, shift):
        for dx in (-shift, shift):
            means.append(np.roll(mean, (dy, dx), (0, 1)))
            variances.append(np.roll(variance, (dy, dx), (0, 1)))
    chosen = np.argmin(np.stack(variances), 0)
    return np.take_along_axis(np.stack(means), chosen[None, ..., None], 0)[0]


def median(picture: Array, side: int) -> Array:
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MedianFilter(side)), np.float32) / 255


def quantized(picture: Array, colors: int) -> Array:
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.quantize(colors, Image.Quantize.MEDIANCUT).convert("RGB"), np.float32) / 255


def cells(shape: tuple[int, int], count: int, rng: Generator) -> tuple[Array, Array]:
    """Voronoi cells: each pixel's cell number and its distance to the border in pixels."""
    height, width = shape
    points = rng.random((count, 2)) * (height, width)
    grid = np.stack(np.mgrid[:height, :width], 2).reshape(-1, 2)
    distances, index = cKDTree(points).query(grid, k=2)
    return index[:, 0].reshape(shape), (distances[:, 1] - distances[:, 0]).reshape(shape)


def means_of(picture: Array, labels: Array) -> Array:
    """Each label's region filled with its mean colour."""
    flat = labels.ravel()
    counts = np.maximum(np.bincount(flat), 1)
    sums = np.stack([np.bincount(flat, picture[..., i].ravel()) for i in range(3)], 1)
    return (sums / counts[:, None])[labels].astype(np.float32)


def strokes(picture: Array, length: int, rng: Generator, softness: float = 3.0) -> Array:
    """The image smoothed along its contours, like brush strokes (line integral convolution)."""
    smooth = gaussian_filter(grey(picture), 1.5)
    gy, gx = sobel(smooth, 0), sobel(smooth, 1)
    jxx, jyy, jxy = (gaussian_filter(values, softness) for values in (gx * gx, gy * gy, gx * gy))
    angle = 0.5 * np.arctan2(2 * jxy, jxx - jyy) + np.pi / 2 + 0.2 * grain(smooth.shape, 16, rng)
    dy, dx = np.sin(angle), np.cos(angle)
    y, x = np.mgrid[: smooth.shape[0], : smooth.shape[1]].astype(np.float32)
    texture = picture + 0.14 * grain(smooth.shape, 0.9, rng)[..., None]
    total = np.zeros_like(picture)
    for way in (-1, 1):
        py, px = y.copy(), x.copy()
        for _ in range(length):
            iy = np.clip(py.round().astype(int), 0, smooth.shape[0] - 1)
            ix = np.clip(px.round().astype(int), 0, smooth.shape[1] - 1)
            total += texture[iy, ix]
            py, px = py + way * dy[iy, ix], px + way * dx[iy, ix]
    return total / (2 * length)


def relief(picture: Array, sigma: float = 1.2, depth: float = 5.0) -> Array:
    """The image shaded as a relief, lit from the upper left; about 0.5 in flat regions."""
    height = gaussian_filter(stretch(grey(picture)), sigma)
    return np.clip(0.5 + depth * (np.roll(height, (1, 1), (0, 1)) - np.roll(height, (-1, -1), (0, 1))) / 2, 0, 1)


def hatching(shape: tuple[int, int], angle: float, spacing: float, rng: Generator) -> Array:
    """A slightly irregular wave in [0, 1] across lines of the given angle."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    phase = (x * np.sin(angle) + y * np.cos(angle)) / spacing + 0.25 * grain(shape, 8, rng)
    return (0.5 + 0.5 * np.cos(2 * np.pi * phase)).astype(np.float32)


# Drawings


@style("a pencil sketch of {}")
def pencil_sketch(picture: Array, rng: Generator) -> Array:
    luminance = stretch(grey(picture))
    dodge = np.clip(luminance / (1 - gaussian_filter(1 - luminance, rng.uniform(4, 8)) + 0.05), 0, 1)
    shade = 0.8 + 0.2 * luminance + 0.05 * (1 - luminance) * grain(luminance.shape, 0.7, rng)
    return grey3(dodge**2.5 * shade * 0.97)


@style("a colored pencil drawing of {}")
def colored_pencil(picture: Array, rng: Generator) -> Array:
    stroke = hatching(picture.shape[:2], rng.uniform(0.5, 1.1), 3.0, rng) + 0.5 * grain(picture.shape[:2], 0.6, rng)
    cover = np.clip(1.15 - grey(picture) * 0.8 + 0.35 * (stroke - 0.5), 0, 1)[..., None]
    drawn = 1 - cover * (1 - saturate(blur(picture, 1), 1.2) * 0.95)
    return drawn * (0.55 + 0.45 * lines(picture, 0.8))[..., None]


@style("a crayon drawing of {}")
def crayon(picture: Array, rng: Generator) -> Array:
    flat = saturate(quantized(blur(median(picture, 7), 1), 9), 1.6)
    wax = grain(picture.shape[:2], 1.0, rng) + 1.2 * (hatching(picture.shape[:2], rng.uniform(0, 3), 6, rng) - 0.5)
    cover = np.clip(0.9 - 0.45 * grey(flat) - 0.45 * np.clip(wax - 0.1, 0, 2), 0, 1)[..., None]
    outline = np.clip(1.3 * edges(flat, 1.5) - 0.3 - 0.3 * np.clip(wax, 0, 1), 0, 1)[..., None]
    return (1 - cover * (1 - flat)) * (1 - 0.8 * outline)


@style("a charcoal drawing of {}")
def charcoal(picture: Array, rng: Generator) -> Array:
    luminance = stretch(gaussian_filter(grey(picture), 1.5))
    smear = np.clip(1.25 * luminance + 0.12 * grain(luminance.shape, 0.9, rng), 0, 1)
    line = np.clip(1 - 1.2 * np.clip(edges(picture, 2) - 0.25, 0, 1), 0, 1)
    return grey3(0.08 + 0.82 * smear * line) * np.array([1, 0.98, 0.94], np.float32)


@style("an ink drawing of {}")
def ink(picture: Array, rng: Generator) -> Array:
    dark = 1 / (1 + np.exp(-14 * (stretch(gaussian_filter(grey(picture), 1.5)) - rng.uniform(0.25, 0.35))))
    return grey3(np.minimum(lines(picture, 1.1, 20), dark))


@style("a line drawing of {}")
def line_drawing(picture: Array, rng: Generator) -> Array:
    return grey3(lines(kuwahara(picture, 4), rng.uniform(0.8, 1.3), 20))


@style("a crosshatched drawing of {}")
def crosshatch(picture: Array, rng: Generator) -> Array:
    luminance, paper = stretch(grey(picture)), np.ones(picture.shape[:2], np.float32)
    for level, angle in ((0.75, 0.8), (0.5, 2.35), (0.3, 0.1), (0.15, 1.6)):
        wave = hatching(luminance.shape, angle, 5, rng)
        paper = np.minimum(paper, 1 - (wave > 0.72) * np.clip((level - luminance) * 6, 0, 1))
    return grey3(gaussian_filter(paper, 0.5) * (0.4 + 0.6 * lines(picture)))


@style("a chalk drawing of {} on a blackboard")
def chalk(picture: Array, rng: Generator) -> Array:
    strength = np.clip(1.3 * edges(picture, 1.2) - 0.15, 0, 1) * np.clip(
        0.75 + 0.35 * grain(picture.shape[:2], 0.7, rng), 0, 1.2
    )
    board = np.array([0.13, 0.18, 0.16], np.float32) + 0.015 * grain(picture.shape[:2], 3, rng)[..., None]
    color = 0.75 + 0.25 * saturate(picture, 1.5)
    return board + strength[..., None] * (color - board) + 0.18 * (stretch(grey(picture)) ** 2)[..., None]


@style("an engraving of {}")
def engraving(picture: Array, rng: Generator) -> Array:
    luminance = stretch(gaussian_filter(grey(picture), 0.8))
    y, x = np.mgrid[: luminance.shape[0], : luminance.shape[1]]
    phase = (y + 6 * luminance + 0.15 * x) / 4.0
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    paper = 1 / (1 + np.exp(-10 * (luminance * 1.25 - wave * 0.9)))
    return ramp(paper, (0.12, 0.1, 0.1), (0.95, 0.92, 0.85))


@style("a blueprint of {}")
def blueprint(picture: Array, rng: Generator) -> Array:
    drawn = 1 - lines(picture, 1.0, 16)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    grid = 0.18 * ((x % 32 == 0) | (y % 32 == 0))
    return ramp(np.clip(0.12 * (1 - grey(picture)) + np.maximum(drawn, grid), 0, 1), (0.05, 0.2, 0.5), (0.95, 0.97, 1))


# Paintings and prints


@style("a watercolor painting of {}")
def watercolor(picture: Array, rng: Generator) -> Array:
    wash = kuwahara(kuwahara(median(picture, 5), 6), 6)
    rims = np.clip(edges(wash, 1.5) - 0.2, 0, 1)[..., None]
    pigment = (
        1 + 0.07 * grain(picture.shape[:2], 6, rng)[..., None] + 0.03 * grain(picture.shape[:2], 0.8, rng)[..., None]
    )
    light = 1 - (1 - saturate(wash, 1.25)) * 0.78 * pigment
    return np.clip(light, 0, 1) * (1 - 0.35 * rims * (1 - light))


@style("an oil painting of {}")
def oil_painting(picture: Array, rng: Generator) -> Array:
    painted = saturate(strokes(kuwahara(picture, 6), 7, rng), 1.35)
    return painted + 0.25 * (relief(painted, 0.6, 3) - 0.5)[..., None]


@style("an impressionist painting of {}")
def impressionist(picture: Array, rng: Generator) -> Array:
    hue = 1 + 0.07 * np.stack([grain(picture.shape[:2], 4, rng) for _ in range(3)], 2)
    labels, _ = cells(picture.shape[:2], 1500, rng)
    return saturate(strokes(means_of(picture * hue, labels), 9, rng, 5), 1.5) * 1.08


@style("a pointillist painting of {}")
def pointillism(picture: Array, rng: Generator) -> Array:
    step = 6
    height, width = picture.shape[:2]
    out = np.ones_like(picture) * np.array([0.96, 0.94, 0.88], np.float32)
    y, x = np.mgrid[:height, :width]
    for layer in range(2):
        rows, columns = np.mgrid[0:height:step, 0:width:step] + layer * step // 2
        points = np.stack([rows, columns], 2).reshape(-1, 2) + rng.uniform(-1.5, 1.5, (rows.size, 2))
        distance, nearest = cKDTree(points).query(np.stack([y, x], 2).reshape(-1, 2))
        at = np.clip(points.round().astype(int), 0, (height - 1, width - 1))
        colors = saturate(blur(picture, 2), 1.7)[at[:, 0], at[:, 1]] + rng.normal(0, 0.09, (len(points), 3))
        dot = np.clip(3.1 - distance, 0, 1).reshape(height, width, 1)
        out = out * (1 - dot) + dot * colors[nearest].reshape(height, width, 3)
    return out


@style("a pastel drawing of {}")
def pastel(picture: Array, rng: Generator) -> Array:
    soft = strokes(blur(picture, 1.5), 4, rng)
    chalky = 0.34 + 0.66 * saturate(soft, 0.9)
    return chalky + 0.04 * grain(picture.shape[:2], 0.8, rng)[..., None]


@style("a gouache painting of {}")
def gouache(picture: Array, rng: Generator) -> Array:
    flat = quantized(kuwahara(kuwahara(picture, 8), 5), 12)
    return saturate(flat, 0.85) * 0.9 + 0.06 + 0.012 * grain(picture.shape[:2], 1, rng)[..., None]


@style("an ink wash painting of {}")
def ink_wash(picture: Array, rng: Generator) -> Array:
    tone = stretch(grey(kuwahara(median(picture, 5), 7))) ** 0.8
    tone = tone + 0.04 * (1 - tone) * grain(tone.shape, 5, rng)
    return ramp(np.clip(tone * (0.6 + 0.4 * lines(picture, 1.6)), 0, 1), (0.1, 0.1, 0.12), (0.95, 0.93, 0.88))


@style("a woodblock print of {}")
def woodblock_print(picture: Array, rng: Generator) -> Array:
    flat = quantized(kuwahara(median(picture, 5), 6), 7)
    paper = saturate(flat, 0.75) * np.array([0.95, 0.9, 0.78], np.float32) * 0.85 + 0.1
    fibre = 0.02 * gaussian_filter(rng.standard_normal(picture.shape[:2]), (0.5, 4))[..., None] * 3
    return (paper + fibre) * (0.15 + 0.85 * lines(flat, 1.2, 20))[..., None]


@style("a woodcut of {}")
def woodcut(picture: Array, rng: Generator) -> Array:
    luminance = stretch(gaussian_filter(grey(picture), 1.5))
    wave = hatching(luminance.shape, rng.uniform(0, 3.1), 7, rng)
    return ramp((luminance > 0.15 + 0.7 * wave).astype(np.float32), (0.06, 0.05, 0.05), (0.93, 0.88, 0.76))


@style("a poster of {}")
def poster(picture: Array, rng: Generator) -> Array:
    return saturate(quantized(median(blur(picture, 1.5), 7), int(rng.integers(4, 7))), 1.6)


@style("a comic book drawing of {}")
def comic(picture: Array, rng: Generator) -> Array:
    flat = saturate(quantized(kuwahara(picture, 6), 8), 1.7)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    dots = ((x % 5 - 2) ** 2 + (y % 5 - 2) ** 2) < 3
    shaded = np.where((dots & (grey(flat) < 0.6))[..., None], flat * 0.72, flat)
    return np.clip(shaded * 1.1, 0, 1) * (lines(picture, 1.4, 20) > 0.5)[..., None]


@style("a cartoon of {}")
def cartoon(picture: Array, rng: Generator) -> Array:
    flat = saturate(quantized(kuwahara(kuwahara(picture, 7), 7), 10), 1.4)
    return np.clip(flat * 1.08, 0, 1) * (0.1 + 0.9 * lines(flat, 1.2, 16))[..., None]


@style("a pop art print of {}")
def pop_art(picture: Array, rng: Generator) -> Array:
    palettes = (
        ((0.1, 0.05, 0.3), (0.95, 0.1, 0.45), (1.0, 0.85, 0.1), (0.6, 0.95, 0.95)),
        ((0.05, 0.1, 0.2), (0.0, 0.6, 0.75), (1.0, 0.4, 0.6), (1.0, 0.95, 0.4)),
        ((0.2, 0.0, 0.2), (0.9, 0.2, 0.1), (0.3, 0.8, 0.3), (1.0, 0.9, 0.3)),
    )
    colors = np.array(palettes[rng.integers(len(palettes))], np.float32)
    level = np.digitize(stretch(gaussian_filter(grey(picture), 2)), (0.25, 0.5, 0.75))
    return colors[level]


# Materials


@style("a mosaic of {}")
def mosaic(picture: Array, rng: Generator) -> Array:
    step, (height, width) = int(rng.integers(8, 13)), picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    labels = (y // step) * (width // step + 1) + x // step
    tiles = means_of(picture, labels)
    tiles = tiles + rng.normal(0, 0.05, (labels.max() + 1, 1))[labels]
    grout = ((y % step) < 1) | ((x % step) < 1)
    return np.where(grout[..., None], np.float32(0.42), saturate(tiles, 1.3))


@style("a stained glass window of {}")
def stained_glass(picture: Array, rng: Generator) -> Array:
    labels, border = cells(picture.shape[:2], int(rng.integers(120, 220)), rng)
    glass = saturate(means_of(picture, labels), 2.2) * 1.15 + 0.05 * grain(picture.shape[:2], 6, rng)[..., None]
    return glass * np.clip((border - 1.2) / 1.5, 0, 1)[..., None]


@style("a low-poly picture of {}")
def low_poly(picture: Array, rng: Generator) -> Array:
    height, width = picture.shape[:2]
    weight = edges(picture, 2).ravel() + 0.06
    chosen = rng.choice(height * width, 350, replace=False, p=weight / weight.sum())
    points = np.stack([chosen % width, chosen // width], 1).astype(float)
    corners = np.array([[x, y] for x in (-9, width / 2, width + 9) for y in (-9, height / 2, height + 9)], float)
    triangles = Delaunay(np.concatenate([points, corners]))
    y, x = np.mgrid[:height, :width]
    labels = triangles.find_simplex(np.stack([x, y], 2).reshape(-1, 2)).reshape(height, width)
    return saturate(means_of(picture, np.maximum(labels, 0)), 1.2)


@style("pixel art of {}")
def pixel_art(picture: Array, rng: Generator) -> Array:
    step = int(rng.integers(6, 9))
    height, width = picture.shape[:2]
    small = picture[: height // step * step, : width // step * step]
    small = small.reshape(height // step, step, width // step, step, 3).mean((1, 3))
    colors = saturate(quantized(small, 16), 1.3)
    rows, columns = (np.minimum(np.arange(side) // step, side // step - 1) for side in (height, width))
    return colors[rows][:, columns]


@style("a halftone print of {}")
def halftone(picture: Array, rng: Generator) -> Array:
    luminance, spacing = stretch(gaussian_filter(grey(picture), 1)), 5.0
    y, x = np.mgrid[: luminance.shape[0], : luminance.shape[1]]
    u, v = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * u / spacing) + np.cos(2 * np.pi * v / spacing))
    paper = 1 / (1 + np.exp(-12 * (luminance - screen)))
    return ramp(paper, (0.1, 0.1, 0.1), (0.95, 0.94, 0.9))


@style("an embossed relief of {}")
def embossed(picture: Array, rng: Generator) -> Array:
    return grey3(relief(picture, 1.0, 6)) * 0.9 + 0.05


@style("a golden {}")
def golden(picture: Array, rng: Generator) -> Array:
    shine = np.clip(0.6 * relief(picture, 1.5, 7) + 0.4 * stretch(grey(picture)), 0, 1)
    return ramp(shine, (0.14, 0.06, 0.0), (0.55, 0.33, 0.04), (0.92, 0.7, 0.2), (1.0, 0.95, 0.7))


@style("a silver {}")
def silver(picture: Array, rng: Generator) -> Array:
    shine = np.clip(0.65 * relief(picture, 1.5, 7) + 0.35 * stretch(grey(picture)), 0, 1)
    shine = 0.5 + 0.5 * np.sin((shine - 0.5) * 5.5)
    return ramp(shine, (0.08, 0.09, 0.12), (0.5, 0.53, 0.58), (0.97, 0.98, 1.0))


@style("a marble statue of {}")
def marble(picture: Array, rng: Generator) -> Array:
    form = 0.35 * stretch(grey(blur(picture, 2))) + 0.45 * relief(picture, 2, 6) + 0.28
    veins = np.clip(1 - 7 * np.abs(grain(picture.shape[:2], 14, rng) * 0.5), 0, 1) * 0.18
    return ramp(np.clip(form - veins, 0, 1), (0.35, 0.33, 0.32), (0.93, 0.91, 0.88))


@style("a wooden {}")
def wooden(picture: Array, rng: Generator) -> Array:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] / 256.0
    rings = np.sin(2 * np.pi * (14 * y + 2.2 * np.sin(3 * x + rng.uniform(0, 6)) + 0.35 * grain(y.shape, 10, rng)))
    fibre = gaussian_filter(rng.standard_normal(y.shape), (0.4, 6)) * 2
    tone = 0.45 * stretch(grey(picture)) + 0.4 * relief(picture, 1.2, 5) + 0.07 * rings + 0.05 * fibre + 0.05
    return ramp(np.clip(tone, 0, 1), (0.16, 0.07, 0.02), (0.5, 0.27, 0.1), (0.85, 0.6, 0.33))


@style("{} made of red bricks")
def red_bricks(picture: Array, rng: Generator) -> Array:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    height, width = 12, 28
    row = y // height
    shifted = x + (row % 2) * width // 2
    mortar = (y % height < 2) | (shifted % width < 2)
    labels = row * 40 + shifted // width
    brick = rng.normal(0, 0.05, labels.max() + 1)[labels] + 0.03 * grain(row.shape, 0.8, rng)
    tone = np.clip(0.7 * stretch(grey(picture)) + 0.15 + brick, 0, 1)
    wall = ramp(tone, (0.22, 0.05, 0.03), (0.66, 0.22, 0.14), (0.93, 0.55, 0.42))
    return np.where(mortar[..., None], 0.35 + 0.45 * tone[..., None] * np.ones(3), wall)


@style("an embroidery of {}")
def embroidery(picture: Array, rng: Generator) -> Array:
    step = 6
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    labels = (y // step) * (picture.shape[1] // step + 1) + x // step
    colors = saturate(means_of(picture, labels), 1.2)
    u, v = (x % step - 2.5) / 3, (y % step - 2.5) / 3
    thread = np.maximum(np.clip(1 - 2.2 * np.abs(u - v), 0, 1), np.clip(1 - 2.2 * np.abs(u + v), 0, 1))
    return colors * (0.35 + 0.75 * thread)[..., None]


@style("a knitted picture of {}")
def knitted(picture: Array, rng: Generator) -> Array:
    step = 8
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    slanted = y + np.abs(x % step - step / 2) * 1.2
    labels = (slanted // step).astype(int) * (picture.shape[1] // step + 1) + x // step
    colors = means_of(picture, labels)
    yarn = 0.6 + 0.4 * np.sin(np.pi * (slanted % step) / step) * np.abs(np.sin(2 * np.pi * x / step + 0.3))
    return colors * (yarn + 0.04 * grain(y.shape, 0.7, rng))[..., None]


@style("a paper cut-out of {}")
def paper_cut(picture: Array, rng: Generator) -> Array:
    flat = quantized(median(blur(picture, 2.5), 9), 6)
    border = binary_dilation(np.abs(np.diff(grey(flat), axis=0, prepend=0)) > 0.02)
    shadow = np.clip(distance_transform_edt(~border) / 7, 0, 1)
    shadow = np.roll(shadow, (2, 2), (0, 1))
    return saturate(flat, 1.2) * (0.62 + 0.38 * shadow)[..., None] + 0.015 * grain(shadow.shape, 1, rng)[..., None]


@style("a cubist painting of {}")
def cubist(picture: Array, rng: Generator) -> Array:
    labels, border = cells(picture.shape[:2], 45, rng)
    offsets = rng.normal(0, 12, (labels.max() + 1, 2))[labels]
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    where = [y + offsets[..., 0], x + offsets[..., 1]]
    moved = np.stack([map_coordinates(picture[..., i], where, order=1, mode="reflect") for i in range(3)], 2)
    slope = (x * np.cos(labels) + y * np.sin(labels)) / 60 % 1
    shaded = kuwahara(moved, 5) * (0.7 + 0.5 * slope[..., None])
    return shaded * np.clip(0.3 + border / 3, 0, 1)[..., None]


# Light, weather, season, darkroom


@style("a sepia photo of {}")
def sepia(picture: Array, rng: Generator) -> Array:
    return ramp(np.clip(grey(picture) * 1.05, 0, 1), (0.13, 0.07, 0.03), (0.6, 0.45, 0.3), (0.98, 0.92, 0.8))


@style("a black and white photo of {}")
def black_and_white(picture: Array, rng: Generator) -> Array:
    return grey3(np.clip((stretch(grey(picture)) - 0.5) * 1.15 + 0.5, 0, 1))


@style("a cyanotype of {}")
def cyanotype(picture: Array, rng: Generator) -> Array:
    return ramp(stretch(grey(picture)), (0.02, 0.08, 0.25), (0.2, 0.45, 0.7), (0.93, 0.96, 0.97))


@style("a neon picture of {}")
def neon(picture: Array, rng: Generator) -> Array:
    strength = edges(picture, 1.0)[..., None]
    shift = rng.uniform(0, 6.28)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] / 256.0
    hue = shift + 4 * (x + y) + 3 * blur(grey(picture), 6)
    color = np.stack([0.5 + 0.5 * np.cos(hue + phase) for phase in (0, 2.1, 4.2)], 2)
    glow = blur(strength * color, 3) * 1.6
    return 0.02 + strength**1.3 * (0.3 + 0.9 * color) + glow


@style("{} at night")
def night(picture: Array, rng: Generator) -> Array:
    dark = saturate(picture, 0.45) ** 1.35 * np.array([0.28, 0.36, 0.62], np.float32)
    lamps = np.clip(picture - 0.85, 0, 1) * np.array([3.0, 2.5, 1.2], np.float32)
    return dark + 0.4 * blur(lamps, 4)


@style("{} in the snow")
def snow(picture: Array, rng: Generator) -> Array:
    lit = np.clip(-sobel(gaussian_filter(grey(picture), 2), 0) * 3, 0, 1)
    cover = np.clip(0.35 + lit + 0.4 * stretch(grey(picture)), 0, 1)[..., None]
    white = saturate(picture, 0.35) * (1 - 0.75 * cover) + 0.75 * cover * np.array([0.93, 0.96, 1.0], np.float32)
    flakes = (rng.random(picture.shape[:2]) > 0.994).astype(np.float32)
    return white + np.clip(gaussian_filter(flakes, 1.0) * 6, 0, 0.8)[..., None]


@style("{} in autumn colors")
def autumn(picture: Array, rng: Generator) -> Array:
    green = np.clip(picture[..., 1] - picture[..., 2], 0, 1)[..., None] * 2.2
    warm = ramp(np.clip(grey(picture) * 1.1, 0, 1), (0.2, 0.04, 0.0), (0.8, 0.33, 0.05), (1.0, 0.85, 0.45))
    share = np.clip(0.3 + green, 0, 0.9)
    return (1 - share) * picture * np.array([1.08, 0.97, 0.8], np.float32) + share * warm


@style("{} at sunset")
def sunset(picture: Array, rng: Generator) -> Array:
    sky = np.linspace(0, 1, picture.shape[0], dtype=np.float32)[:, None]
    light = ramp(np.repeat(sky, picture.shape[1], 1), (0.75, 0.35, 0.6), (1.25, 0.65, 0.35), (0.9, 0.45, 0.3))
    return picture * light * 1.05 + 0.12 * light - 0.05


@style("{} in the fog")
def fog(picture: Array, rng: Generator) -> Array:
    veil = np.clip(0.62 + 0.13 * grain(picture.shape[:2], 35, rng), 0.3, 0.9)[..., None]
    return blur(saturate(picture, 0.5), 1.2) * (1 - veil) + veil * np.array([0.82, 0.85, 0.88], np.float32)


@style("a negative of {}")
def negative(picture: Array, rng: Generator) -> Array:
    return 1 - picture


@style("{} behind frosted glass")
def frosted_glass(picture: Array, rng: Generator) -> Array:
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    shifts = rng.uniform(-7, 7, (2, height, width))
    moved = picture[np.clip(y + shifts[0], 0, height - 1).astype(int), np.clip(x + shifts[1], 0, width - 1).astype(int)]
    return blur(moved, 0.6)


@style("a faded old photo of {}")
def faded_photo(picture: Array, rng: Generator) -> Array:
    spots = np.clip(grain(picture.shape[:2], 2, rng) - 2.6, 0, 1)[..., None]
    tone = saturate(picture, 0.45) * np.array([0.72, 0.66, 0.55], np.float32) + np.array([0.25, 0.22, 0.17], np.float32)
    rough = zoom(rng.random((17, 17)).astype(np.float32), picture.shape[0] / 17, order=1)[: picture.shape[0]]
    return tone + 0.06 * (rough[:, : picture.shape[1], None] - 0.5) + 0.5 * spots
