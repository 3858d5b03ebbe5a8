"""Clips made on the spot: numbered greys, or a window panning over a picture."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SOUND_RATE = 44100


def greys(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Frame i is evenly grey, 10·i + 20."""
    return [Image.new("RGB", size, (10 * i + 20,) * 3) for i in range(count)]


def number_of(frame: Image.Image) -> int:
    """Which of the `greys` a decoded frame is."""
    return round((np.asarray(frame).mean() - 20) / 10)


def panned(picture: Image.Image, count: int, size: tuple[int, int], pixels: int = 3) -> list[Image.Image]:
    """A window moving to the right over the picture, by so many pixels per frame."""
    return [picture.crop((i * pixels, 0, i * pixels + size[0], size[1])) for i in range(count)]


def write_raw(
    path: Path,
    frames: Sequence[Image.Image],
    moments: Sequence[Fraction] | None = None,
    *,
    rate: int = 10,
    codec: str = "libx264",
    rotation: int = 0,
    aspect: Fraction | None = None,
    sound: str = "",
) -> Path:
    """A file as other programs write them: any moments, turned, with oblong pixels, with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = {"ffv1": "bgr0", "png": "rgb24"}.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        tone = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            moment = moments[i] if moments else Fraction(i, rate)
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            write_tone(container, tone, len(frames) / rate)
    return path


def write_tone(container, stream, seconds: float) -> None:
    size = 1024
    for start in range(0, int(seconds * SOUND_RATE), size):
        wave = np.sin(np.arange(start, start + size) * 2 * np.pi * 440 / SOUND_RATE) * 0.3
        planar = stream.codec_context.format.is_planar
        kind = "fltp" if planar else "s16"
        samples = wave.astype(np.float32) if planar else (wave * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * 2) if planar else np.repeat(samples, 2)[None], kind)
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
