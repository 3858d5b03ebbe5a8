"""Converts decoded video frames to images: 8-bit RGB on white, square pixels, display rotation applied."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

# Matrices by their number in ITU-T H.273. Others are guessed, as if none were stated.
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
UNSTATED = {0, 2}
HD_WIDTH, HD_HEIGHT = 1280, 720  # if no matrix is stated: BT.709 from this width or height on, else BT.601

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Linear RGB of wide gamuts → linear RGB of BT.709, which has sRGB's primaries.
FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
FROM_P3 = np.array(
    [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
)
WIDE = {ColorPrimaries.BT2020: FROM_BT2020, ColorPrimaries.SMPTE431: FROM_P3, ColorPrimaries.SMPTE432: FROM_P3}
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
WHITE = 203.0  # cd/m² of diffuse white in HDR (ITU-R BT.2408)
PEAK = 1000.0  # cd/m² that become full white; brighter values are clipped
SDR_GAMMA = 2.4  # of the signal that an SDR version of the clip would have (ITU-R BT.1886)
KNEE = 0.8  # share of WHITE up to which luminance is unchanged
BAND = 1 << 20  # pixels converted at a time

TURNS = {  # by the signs of the display matrix's entries
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
ASKEW = 0.02  # share of the largest entry that counts as zero: about one degree


def to_image(frame: Any, aspect: Fraction | float = 1) -> Image.Image:
    """The frame as players display it; `aspect` is the width of a pixel over its height."""
    image = _colored(frame)
    size = square_size(image.size, aspect)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    turn = turn_of(_display_matrix(frame))
    return image if turn is None else image.transpose(turn)


def square_size(size: tuple[int, int], aspect: Fraction | float) -> tuple[int, int]:
    """(width, height) of a frame once its pixels are square."""
    return max(1, round(size[0] * aspect)), size[1]


def turn_of(matrix: tuple[float, float, float, float]) -> Image.Transpose | None:
    """The PIL transpose for a display matrix (a, b, c, d): x' = a·x + c·y, y' = b·x + d·y, y downwards.

    The scale is ignored. None for a matrix that is not one of the eight rotations and reflections.
    """
    largest = max(map(abs, matrix))
    a, b, c, d = (0 if abs(entry) <= ASKEW * largest else int(math.copysign(1, entry)) for entry in matrix)
    return TURNS.get((a, b, c, d))


def color_note(frame: Any) -> str:
    """A sentence if the frame's colours had to be mapped to another range, else an empty string."""
    curve = HDR.get(frame.color_trc)
    if not curve:
        return ""
    return (
        f"The clip is HDR ({curve}): it was mapped to standard range, its white ({WHITE:.0f} cd/m²) to white, "
        "and brighter areas were dimmed."
    )


def _colored(frame: Any) -> Image.Image:
    """The frame's pixels in their stored orientation, as 8-bit RGB on white."""
    transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    curve = HDR.get(frame.color_trc)
    wide = WIDE.get(frame.color_primaries, FROM_BT2020 if curve else None)
    kind = ("rgba" if transparent else "rgb24") if wide is None else ("rgba64le" if transparent else "rgb48le")
    pixels = frame.reformat(format=kind, interpolation=EXACT, **_encoding(frame)).to_ndarray()
    if wide is not None:
        pixels = _narrowed(pixels, wide, curve)
    image = Image.fromarray(pixels)
    if not transparent:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _encoding(frame: Any) -> dict[str, Any]:
    """The frame's YCbCr matrix and range: as stated, else as players guess. Empty for RGB and grey."""
    if frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3:
        return {}
    matrix = MATRICES.get(frame.colorspace)
    if matrix is None:
        if frame.color_primaries == ColorPrimaries.BT2020 or frame.color_trc in HDR:
            matrix = Colorspace.BT2020
        else:
            high = frame.width >= HD_WIDTH or frame.height >= HD_HEIGHT
            matrix = Colorspace.ITU709 if high else Colorspace.ITU601
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return {"src_colorspace": matrix, "src_color_range": ColorRange.JPEG if full else ColorRange.MPEG}


def _display_matrix(frame: Any) -> tuple[float, float, float, float]:
    try:
        stored = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not support all kinds of side data
        angle = math.radians(frame.rotation)  # counterclockwise
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if stored is None or len(bytes(stored)) < 9 * 4:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].astype(float)
    return a, b, c, d


def _narrowed(pixels: np.ndarray, gamut: np.ndarray, curve: str | None) -> np.ndarray:
    """(height, width, 3 or 4), 16-bit, wide gamut, possibly HDR → 8-bit BT.709 in standard range."""
    rows = max(1, BAND // pixels.shape[1])
    bands = [_narrowed_band(pixels[i : i + rows], gamut, curve) for i in range(0, len(pixels), rows)]
    return np.concatenate(bands)


def _narrowed_band(pixels: np.ndarray, gamut: np.ndarray, curve: str | None) -> np.ndarray:
    signal = np.linspace(0, 1, 1 << 16)
    linear = LINEAR[curve](signal).astype(np.float32)
    light = linear[pixels[..., :3]]
    if curve == "HLG":  # the system gamma of a display of PEAK: scene light → display light
        light *= np.power(light @ BT2020_LUMINANCE, 0.2)[..., None] * np.float32(PEAK / WHITE)
    light = (light @ gamut.T).clip(0)
    if curve:
        brightest = light.max(-1, keepdims=True)
        light *= _rolled_off(brightest) / brightest.clip(1e-6)
    colors = (np.power(light.clip(0, 1), 1 / SDR_GAMMA) * 255).round().astype(np.uint8)
    alpha = (pixels[..., 3:] >> 8).astype(np.uint8)
    return np.concatenate([colors, alpha], -1)


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signal in [0, 1] → luminance in units of WHITE."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(signal, 1 / m2)
    return 10000 / WHITE * np.power((root - c1).clip(0) / (c2 - c3 * root), 1 / m1)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """ARIB STD-B67: signal in [0, 1] → scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _sdr_light(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.1886: signal in [0, 1] → luminance of a standard-range display."""
    return signal**SDR_GAMMA


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """Luminance unchanged up to KNEE, then compressed smoothly so that PEAK becomes 1 (a Möbius curve)."""
    peak = PEAK / WHITE
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    scale = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a)
    return np.where(light <= KNEE, light, scale * (light + a) / (light + b).clip(1e-6))


LINEAR = {"PQ": _pq_light, "HLG": _hlg_light, None: _sdr_light}
