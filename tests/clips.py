"""Generates clips: numbered greys, or a window panning over a picture."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SOUND_RATE = 44100


def greys(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Frame i has the grey value 10·i + 20 everywhere."""
    return [Image.new("RGB", size, (10 * i + 20,) * 3) for i in range(count)]


def number_of(frame: Image.Image) -> int:
    """The index in `greys` of a decoded frame."""
    return round((np.asarray(frame).mean() - 20) / 10)


def panned(picture: Image.Image, count: int, size: tuple[int, int], pixels: int = 3) -> list[Image.Image]:
    """A window moving to the right over the picture, by so many pixels per frame."""
    return [picture.crop((i * pixels, 0, i * pixels + size[0], size[1])) for i in range(count)]


def write_raw(
    path: Path,
    frames: Sequence[Image.Image | av.VideoFrame],
    moments: Sequence[Fraction] | None = None,
    *,
    rate: int = 10,
    codec: str = "libx264",
    kind: str = "",
    rotation: int = 0,
    matrix: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    sound: str = "",
    sound_rate: int = SOUND_RATE,
    layout: str = "stereo",
    tags: dict[str, int] | None = None,
    metadata: dict[str, str] | None = None,
    encoding: str = "utf-8",
) -> Path:
    """A file as other programs write it: any timestamps, rotation, pixel aspect ratio and tags, with a tone.

    `kind` is the pixel format, `matrix` the display matrix, `tags` are attributes of the encoder.
    """
    with av.open(str(path), "w", metadata_encoding=encoding) as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = kind or {"ffv1": "bgr0", "png": "rgb24"}.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        tone: Any = container.add_stream(sound, rate=sound_rate, layout=layout) if sound else None
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image) if isinstance(image, Image.Image) else image
            moment = moments[i] if moments else Fraction(i, rate)
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            write_tone(container, tone, len(frames) / rate)
    return path


def write_tone(container: Any, stream: Any, seconds: float) -> None:
    """440 Hz in all channels."""
    context, size = stream.codec_context, 1024
    rate, channels = context.sample_rate, context.layout.nb_channels
    for start in range(0, int(seconds * rate), size):
        wave = np.sin(np.arange(start, start + size) * 2 * np.pi * 440 / rate) * 0.3
        samples = np.repeat(wave.astype(np.float32), channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, "flt", context.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def ycbcr(color: tuple[float, float, float], size: tuple[int, int], weights: tuple[float, float], full: bool) -> Any:
    """A yuv444p frame of one RGB colour in [0, 1]; `weights` are the matrix's weights of red and blue."""
    red, green, blue = color
    kr, kb = weights
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scaled = [luma * (255 if full else 219) + (0 if full else 16)]
    scaled += [part * (255 if full else 224) + 128 for part in chroma]
    planes = np.stack([np.full((size[1], size[0]), round(value), np.uint8) for value in scaled])
    return av.VideoFrame.from_ndarray(planes, "yuv444p")
