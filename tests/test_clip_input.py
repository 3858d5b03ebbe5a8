"""Clips are opened as players show them: rotation, pixel shape, transparency, colour spaces, and any sound."""

import itertools
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from clips import greys, write_raw
from PIL import Image

from styleengine import StyleEngine, ZStarVideoSettings
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.stylization import StepEvent
from styleengine.video import open_clip, read_comment, write_clip
from styleengine.workfolder import WorkFolder

BT2020_NCL = 9  # of ffmpeg's colour spaces
CORNERS = {(0, 0): (220, 40, 40), (1, 0): (40, 200, 60), (0, 1): (50, 60, 220), (1, 1): (230, 220, 60)}
MATRICES = [
    m for m in itertools.product((-1, 0, 1), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1 and m.count(0) == 2
]


def quartered(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A colour in each quarter."""
    image = Image.new("RGB", size)
    for (column, row), color in CORNERS.items():
        image.paste(
            color, (column * size[0] // 2, row * size[1] // 2, (column + 1) * size[0] // 2, (row + 1) * size[1] // 2)
        )
    return image


def with_matrix(clip: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The MP4 with another display matrix (a, b, c, d) in its track header: (x, y) is shown at (ax + cy, bx + dy)."""
    content = bytearray(clip.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(content)
    return clip


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_clip_is_turned_and_mirrored_as_its_display_matrix_says(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    a, b, c, d = matrix
    shown = open_clip(with_matrix(write_raw(tmp_path / "clip.mp4", [quartered()] * 2), matrix)).poster
    assert shown.size == ((64, 48) if a else (48, 64))
    for (column, row), color in CORNERS.items():
        x, y = 2 * column - 1, 2 * row - 1  # about the middle
        across, down = a * x + c * y, b * x + d * y
        pixel = shown.getpixel((shown.width * (2 + across) // 4, shown.height * (2 + down) // 4))
        assert np.abs(np.subtract(pixel, color)).max() < 40, (matrix, column, row)


def colored(
    path: Path, size: tuple[int, int], rgb: tuple[int, int, int], space: int | None, encoded: int, full: bool = False
) -> Path:
    """A clip of one colour, encoded in the colour space `encoded`, tagged as `space`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        reach = ColorRange.JPEG if full else ColorRange.MPEG
        if space is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = space, reach
        frame = av.VideoFrame.from_image(Image.new("RGB", size, rgb))
        frame = frame.reformat(format="yuv420p", dst_colorspace=encoded, dst_color_range=reach)
        for number in range(2):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("size", "space", "encoded"),
    [
        ((1280, 720), None, Colorspace.ITU709),
        ((320, 240), None, Colorspace.ITU601),
        ((320, 240), Colorspace.ITU709, Colorspace.ITU709),
        ((1280, 720), Colorspace.ITU601, Colorspace.ITU601),
    ],
)
def test_colours_are_taken_in_the_space_of_the_tag_or_the_size(
    size: tuple[int, int], space: int | None, encoded: int, tmp_path: Path
) -> None:
    color = (200, 60, 40)
    pixel = open_clip(colored(tmp_path / "clip.mp4", size, color, space, encoded)).poster.getpixel((40, 40))
    assert np.abs(np.subtract(pixel, color)).max() <= 4


def test_full_range_is_not_stretched_again(tmp_path: Path) -> None:
    clip = colored(tmp_path / "clip.mp4", (64, 48), (20, 128, 236), Colorspace.ITU709, Colorspace.ITU709, full=True)
    assert np.abs(np.subtract(open_clip(clip).poster.getpixel((20, 20)), (20, 128, 236))).max() <= 5


@pytest.mark.parametrize(("curve", "level"), [(ColorTrc.ARIB_STD_B67, 0.75), (ColorTrc.SMPTE2084, 0.58)])
def test_hdr_white_is_near_white_and_a_note_says_what_was_done(curve: int, level: float, tmp_path: Path) -> None:
    """Reference white: 75 % of HLG's signal, 58 % of PQ's (203 nits)."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc = ColorPrimaries.BT2020, curve
        context.colorspace, context.color_range = (
            Colorspace.BT2020_NCL if hasattr(Colorspace, "BT2020_NCL") else 9,
            ColorRange.MPEG,
        )
        frame = av.VideoFrame(64, 64, "yuv420p10le")
        for plane, value in zip(frame.planes, (round(64 + level * 876), 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = open_clip(path)
    assert min(clip.poster.getpixel((32, 32))) > 215
    assert any("HDR" in note or "SDR" in note for note in clip.select(0, 0, 1).notes())


def test_transparency_is_composited_on_white_as_for_pictures(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    picture = Image.new("RGBA", (64, 48), (200, 30, 30, 255))
    picture.paste((0, 0, 0, 0), (32, 0, 64, 48))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), "rgba")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = open_clip(path).poster
    assert np.abs(np.subtract(shown.getpixel((10, 20)), (200, 30, 30))).max() <= 2
    assert shown.getpixel((50, 20)) == (255, 255, 255)


@pytest.mark.parametrize(("rate", "layout"), [(192000, "stereo"), (96000, "mono"), (48000, "7.1"), (11000, "stereo")])
def test_sound_of_any_rate_and_layout_is_kept(rate: int, layout: str, tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    with av.open(str(source), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        tone = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        for number, image in enumerate(greys(4)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        count = rate * 2 // 5
        samples = (np.sin(np.arange(count) * 0.1) * 9000).astype(np.int16)
        channels = len(av.AudioLayout(layout).channels)
        sound = av.AudioFrame.from_ndarray(np.repeat(samples, channels)[None], "s16", layout)
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        container.mux(tone.encode(sound))
        container.mux(tone.encode())
    part = open_clip(source).select(0, 0, 4)
    out = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
        assert sum(frame.samples for frame in container.decode(audio=0)) / container.streams.audio[0].rate > 0.25


def test_a_size_is_checked_with_the_pixel_shape_before_memory_is_allocated(tmp_path: Path) -> None:
    clip = write_raw(tmp_path / "clip.mp4", greys(2, (512, 512)), aspect=Fraction(250, 1))
    with pytest.raises(StyleEngineError, match="128000×512 pixels"):
        open_clip(clip)


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_a_clip_is_never_overwritten_by_its_result(link, engine: StyleEngine, cat: Image.Image, tmp_path: Path) -> None:
    clip = write_raw(tmp_path / "clip.mp4", greys(2, (64, 64)))
    output, before = clip, clip.read_bytes()
    if link:
        output = tmp_path / "other.mp4"
        link(clip, output)
    with pytest.raises(StyleEngineError, match=r"clip"):
        engine.zstar_video(clip, [cat], ZStarVideoSettings(size=64, steps=2, frames=2), output=output)
    assert clip.read_bytes() == before


def test_a_clip_whose_name_is_not_utf8_is_redrawn(engine: StyleEngine, cat: Image.Image, tmp_path: Path) -> None:
    clip = write_raw(tmp_path / "clip.mp4", greys(2, (64, 64))).rename(tmp_path / "\udcff.mp4")
    result = engine.zstar_video(
        clip, [cat], ZStarVideoSettings(size=64, steps=2, frames=2, rate=0), output=tmp_path / "out.mp4"
    )
    assert result.frames == 2
    assert read_comment(tmp_path / "out.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(StyleEngineError, match=r"pipe\.mp4") as raised:
        open_clip(tmp_path / "pipe.mp4")
    assert str(tmp_path) not in str(raised.value)


def test_frames_of_another_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    one, two = (write_raw(tmp_path / f"{n}.ts", [Image.new("RGB", (n, 64), (90, 90, 90))] * 3) for n in (64, 96))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    sizes = {frame.size for frame in open_clip(joined).select(0, 0, 6).frames()}
    assert sizes == {(64, 64)}


def test_a_resumed_run_reads_the_last_finished_frame_alone(
    engine: StyleEngine, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, settings = write_raw(tmp_path / "clip.mp4", greys(12, (64, 64))), ZStarVideoSettings(size=64, steps=2, rate=0)
    work, output = tmp_path / "work", tmp_path / "out.mp4"

    def stop(event: StepEvent) -> None:
        if "frame 11 of" in event.phase:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.zstar_video(clip, [cat], settings, output=output, work=work, on_step=stop)
    opened, read = Image.open, list[str]()

    def noted(file: Any, *given: Any, **named: Any) -> Image.Image:
        read.append(Path(file).name if isinstance(file, (str, Path)) else "")
        return opened(file, *given, **named)

    def first_step(event: StepEvent) -> None:
        if "stylizing" in event.phase:
            raise Cancelled

    monkeypatch.setattr(Image, "open", noted)
    with pytest.raises(Cancelled):
        engine.zstar_video(clip, [cat], settings, output=output, work=work, on_step=first_step)
    assert len([name for name in read if name.endswith(".png")]) <= 1


def test_a_run_that_cannot_be_resumed_saves_no_state(
    engine: StyleEngine, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(WorkFolder, "save_tensors", lambda self, name, *_: kept.append(name))
    clip = write_raw(tmp_path / "clip.mp4", greys(3, (64, 64)))
    settings = ZStarVideoSettings(size=64, steps=2, frames=3, rate=0)
    engine.zstar_video(clip, [cat], settings, output=tmp_path / "out.mp4")
    assert kept == []
    engine.zstar_video(clip, [cat], settings, output=tmp_path / "out.mp4", work=tmp_path / "work")
    assert kept
