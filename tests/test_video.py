"""Clips in and out: rates, turned and oblong pictures, sound, and everything that a file can have wrong."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import greys, number_of, panned, write_raw
from PIL import Image

from styleengine import StyleEngineError, video
from styleengine.video import beside, open_clip, read_comment, write_clip


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten greys in one second."""
    return write_raw(tmp_path_factory.mktemp("clips") / "ten.mp4", greys(10))


def numbers(path: Path, rate: float = 0, begin: float = 0, most: int = 100) -> list[int]:
    return [number_of(frame) for frame in open_clip(path).select(rate, begin, most).frames()]


# Reading


def test_a_clip_knows_its_rate_length_and_first_frame(ten: Path) -> None:
    clip = open_clip(ten)
    assert clip.rate == 10
    assert clip.seconds == pytest.approx(1)
    assert len(clip.times) == 10
    assert number_of(clip.poster) == 0
    assert not clip.variable


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0, list(range(10))),
        (10, list(range(10))),
        (5, [0, 2, 4, 6, 8]),
        (20, [i // 2 for i in range(20)]),
        (4, [0, 2, 5, 7]),
    ],
)
def test_resampling_takes_the_frame_that_a_player_shows_at_each_moment(
    ten: Path, rate: float, expected: list[int]
) -> None:
    assert numbers(ten, rate) == expected


def test_a_part_begins_where_it_is_told_and_has_no_more_frames_than_asked_for(ten: Path) -> None:
    assert numbers(ten, begin=0.4) == [4, 5, 6, 7, 8, 9]
    assert numbers(ten, begin=0.45, most=2) == [4, 5]


def test_a_late_part_is_sought_and_found(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (i * 2,) * 3) for i in range(100)]
    path = write_raw(tmp_path / "long.mp4", frames)
    part = open_clip(path).select(0, 7.0, 3)
    assert [round(np.asarray(frame).mean() / 2) for frame in part.frames()] == [70, 71, 72]


def test_uneven_frames_are_shown_when_they_are_due(tmp_path: Path) -> None:
    moments = [Fraction(x, 10) for x in (0, 1, 2, 7, 8)]
    clip = open_clip(write_raw(tmp_path / "uneven.mkv", greys(5), moments))
    assert clip.variable
    part = clip.select(10, 0, 100)
    assert [number_of(frame) for frame in part.frames()] == [0, 1, 2, 2, 2, 2, 2, 3, 4]
    assert any("frame rate varies" in note for note in part.notes())


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_clip_held_sideways_is_turned_upright(tmp_path: Path, rotation: int) -> None:
    upright = Image.new("RGB", (32, 64))
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # a white top
    stored = upright.rotate(-rotation, expand=True)
    poster = open_clip(write_raw(tmp_path / "turned.mp4", [stored] * 2, rotation=rotation)).poster
    assert poster.size == upright.size
    assert np.abs(np.asarray(poster, np.int16) - np.asarray(upright)).mean() < 4


def test_oblong_pixels_are_made_square(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "wide.mp4", greys(2), aspect=Fraction(3, 2))
    assert open_clip(path).poster.size == (48, 32)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".webm"])
def test_the_usual_containers_are_read(tmp_path: Path, suffix: str) -> None:
    codec = {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(suffix, "libx264")
    assert numbers(write_raw(tmp_path / f"clip{suffix}", greys(6), codec=codec)) == list(range(6))


def test_a_clip_of_one_frame_is_a_clip(tmp_path: Path) -> None:
    assert numbers(write_raw(tmp_path / "one.mp4", greys(1))) == [0]


def test_what_is_left_out_is_said(ten: Path) -> None:
    part = open_clip(ten).select(5, 0.2, 2)
    assert (part.count, part.available) == (2, 4)
    assert part.notes() == [
        "The clip has 10 frames per second, the result 5.",
        "The first 0.2 s were left out.",
        "Only 2 of 4 frames were taken: the last 0.4 s were left out.",
    ]
    assert open_clip(ten).select(0, 0, 10).notes() == []


# What can be wrong


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    whole = good.read_bytes()
    contents = {
        "empty": b"",
        "text": b"not a video at all" * 100,
        "cut": whole[: len(whole) // 3],
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n".encode(),
        "list": f"ffconcat version 1.0\nfile '{good}'\n".encode(),
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    return {name: folder / f"{name}.mp4" for name in contents}


@pytest.mark.parametrize("name", ["empty", "text", "cut", "playlist", "list"])
def test_a_file_that_is_no_video_is_refused(name: str, ten: Path, tmp_path: Path) -> None:
    sentence = "is empty" if name == "empty" else "is not a video that can be read"
    with pytest.raises(StyleEngineError, match=f"{name}.mp4 {sentence}"):
        open_clip(broken_files(tmp_path, ten)[name])


def test_a_sound_alone_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with pytest.raises(StyleEngineError, match="no video stream, only sound"):
        open_clip(tmp_path / "tone.wav")


def test_a_clip_damaged_midway_gives_what_is_sound_and_then_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    frames = [Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(12)]
    path = write_raw(tmp_path / "damaged.mov", frames, codec="png")
    content = bytearray(path.read_bytes())
    middle, quarter = len(content) // 2, len(content) // 4
    content[middle : middle + quarter] = bytes(quarter)
    path.write_bytes(content)
    clip = open_clip(path)
    shown = []
    with pytest.raises(StyleEngineError, match="damaged after frame"):
        shown.extend(clip.select(0, 0, 12).frames())
    assert np.array_equal(np.asarray(shown[0]), np.asarray(frames[0]))


def test_a_part_after_the_end_is_refused(ten: Path) -> None:
    with pytest.raises(StyleEngineError, match=r"only 1\.0 s long"):
        open_clip(ten).select(0, 1.0, 5)


def test_a_huge_file_is_refused_unread(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MOST_BYTES", 500)
    with pytest.raises(StyleEngineError, match="Cut it first"):
        open_clip(ten)


@pytest.mark.parametrize(("size", "sentence"), [((8, 8), "at least 16"), ((400, 32), "8 times as long as wide")])
def test_frames_of_an_impossible_size_are_refused(tmp_path: Path, size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        open_clip(write_raw(tmp_path / "odd.mp4", greys(1, size)))


@pytest.mark.parametrize(("source", "sentence"), [(None, "No clip was given"), ("nowhere.mp4", "does not exist")])
def test_no_file_is_said_so(source: str | None, sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        open_clip(source)


# Writing


def test_what_is_written_comes_back_with_its_rate_colours_and_record(tmp_path: Path, coffee: Image.Image) -> None:
    frames = panned(coffee.resize((300, 200)), 5, (128, 96))
    rate = Fraction(30000, 1001)
    path = write_clip(tmp_path / "out.mp4", frames, rate, record='{"Zürich": "λ"}')
    clip = open_clip(path)
    assert clip.rate == rate
    back = list(clip.select(0, 0, 100).frames())
    assert len(back) == 5
    for one, other in zip(frames, back, strict=True):
        difference = np.asarray(one, np.int16) - np.asarray(other)
        assert np.abs(difference).mean() < 4
        assert np.abs(difference.mean((0, 1))).max() < 2.5  # colours do not drift
    assert read_comment(path) == '{"Zürich": "λ"}'


def test_the_file_is_h264_in_an_mp4_that_starts_at_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "out.mp4", greys(3), Fraction(10))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == av.video.reformatter.Colorspace.ITU709


@pytest.mark.parametrize("size", [(33, 32), (32, 35), (41, 27)])
def test_odd_sides_get_one_more_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    poster = open_clip(write_clip(tmp_path / "odd.mp4", greys(2, size), Fraction(5))).poster
    assert poster.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(np.asarray(poster, np.int16) - 20).max() <= 2


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("pcm_s16le", ".mov")])
def test_the_sound_of_the_part_comes_along(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = open_clip(write_raw(tmp_path / f"loud{suffix}", greys(20), sound=codec))
    part = clip.select(5, 0.5, 4)
    path = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert stream.codec_context.name == "aac"
        heard = [frame.to_ndarray() for frame in container.decode(stream)]
    samples = np.concatenate(heard, 1)
    assert samples.shape[1] / 44100 == pytest.approx(0.8, abs=0.15)
    assert samples.std() > 0.1
    assert open_clip(path).seconds == pytest.approx(0.8)


def test_copied_sound_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "loud.mp4", greys(10), sound="aac")
    part = open_clip(source).select(0, 0, 10)
    path = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)

    def packets(file: Path) -> list[bytes]:
        with av.open(str(file)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]

    kept = packets(path)
    assert len(kept) > 30
    assert set(kept) <= set(packets(source))


def test_a_clip_without_sound_gives_one_without(ten: Path, tmp_path: Path) -> None:
    part = open_clip(ten).select(0, 0, 3)
    path = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(path)) as container:
        assert not container.streams.audio


def test_a_failure_leaves_no_file_behind(tmp_path: Path) -> None:
    def frames():
        yield from greys(3)
        raise StyleEngineError("no more")

    with pytest.raises(StyleEngineError, match="no more"):
        write_clip(tmp_path / "out.mp4", frames(), Fraction(5))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "sentence"), [("out.avi", "saved as MP4"), ("nowhere/out.mp4", "no folder")])
def test_where_nothing_can_be_saved_is_said(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        write_clip(tmp_path / name, greys(1), Fraction(5))


def test_beside_lays_frames_left_and_right() -> None:
    (both,) = beside([(Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue"))])
    assert both.size == (8, 3)
    assert both.getpixel((0, 0)) == (255, 0, 0)
    assert both.getpixel((7, 2)) == (0, 0, 255)
