"""Reading and writing clips: rates, rotation and pixel shape, sound, and damaged files."""

import io
import json
import os
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from clips import greys, number_of, panned, write_raw, ycbcr
from PIL import Image

from styleengine import StyleEngineError, video
from styleengine.frame_colors import KNEE, PEAK, WHITE, turn_of
from styleengine.mp4_index import TooMany, check_promises
from styleengine.sound import choose_sound
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


def test_a_part_begins_at_the_given_time_and_has_no_more_than_the_given_frames(ten: Path) -> None:
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


ONE = 1 << 16
F_IMAGE = Image.new("L", (64, 32))  # a letter F: none of its turns and mirrorings looks like another
F_IMAGE.paste(255, (0, 0, 64, 8))
F_IMAGE.paste(255, (0, 0, 8, 32))
F_IMAGE.paste(255, (0, 16, 32, 20))


@pytest.mark.parametrize(
    "signs",
    [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)],
)
def test_each_of_the_eight_display_matrices_is_followed(tmp_path: Path, signs: tuple[int, int, int, int]) -> None:
    a, b, c, d = (ONE * sign for sign in signs)
    path = write_raw(tmp_path / "turned.mp4", [F_IMAGE.convert("RGB")] * 2, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    stored = np.asarray(F_IMAGE)
    columns, rows = np.meshgrid(np.arange(64), np.arange(32))  # pixel (x, y) goes to (a·x + c·y, b·x + d·y)
    x, y = signs[0] * columns + signs[2] * rows, signs[1] * columns + signs[3] * rows
    expected = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), np.int16)
    expected[y - y.min(), x - x.min()] = stored
    shown = np.asarray(open_clip(path).poster.convert("L"), np.int16)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 4


@pytest.mark.parametrize("matrix", [(1, 1, -1, 1), (0, 0, 0, 0), (1, 0, 1, 0), (1, 0.5, -0.5, 1)])
def test_a_display_matrix_that_is_no_turn_is_ignored(matrix: tuple[float, float, float, float]) -> None:
    assert turn_of(matrix) is None


def test_the_scale_of_a_display_matrix_is_ignored() -> None:
    assert turn_of((0, 3.0, -3.0, 0)) == Image.Transpose.ROTATE_270
    assert turn_of((-2.0, 0.01, -0.01, 2.0)) == Image.Transpose.FLIP_LEFT_RIGHT


def test_oblong_pixels_are_made_square(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "wide.mp4", greys(2), aspect=Fraction(3, 2))
    assert open_clip(path).poster.size == (48, 32)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".webm"])
def test_the_usual_containers_are_read(tmp_path: Path, suffix: str) -> None:
    codec = {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(suffix, "libx264")
    assert numbers(write_raw(tmp_path / f"clip{suffix}", greys(6), codec=codec)) == list(range(6))


def test_a_clip_of_one_frame_is_a_clip(tmp_path: Path) -> None:
    assert numbers(write_raw(tmp_path / "one.mp4", greys(1))) == [0]


def test_omitted_frames_are_noted(ten: Path) -> None:
    part = open_clip(ten).select(5, 0.2, 2)
    assert (part.count, part.available) == (2, 4)
    assert part.notes() == [
        "The clip has 10 frames per second, the result 5.",
        "The first 0.2 s were left out.",
        "Only 2 of 4 frames were taken: the last 0.4 s were left out.",
    ]
    assert open_clip(ten).select(0, 0, 10).notes() == []


# Colours

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and of blue
RED, GREEN, PAPER = (220, 38, 28), (40, 180, 60), (240, 240, 240)


def shown(path: Path) -> np.ndarray:
    """The mean colour of the middle of a clip's first frame."""
    poster = np.asarray(open_clip(path).poster, np.float64)
    height, width, _ = poster.shape
    return poster[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4].mean((0, 1))


@pytest.mark.parametrize("color", [RED, GREEN, PAPER])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_the_stated_matrix_and_range_are_taken(
    tmp_path: Path, matrix: int, full: bool, color: tuple[int, int, int]
) -> None:
    frame = ycbcr(tuple(x / 255 for x in color), (32, 32), WEIGHTS[matrix], full)
    tags = {"colorspace": matrix, "color_range": ColorRange.JPEG if full else ColorRange.MPEG}
    path = write_raw(tmp_path / "tagged.mkv", [frame], codec="ffv1", kind="yuv444p", tags=tags)
    np.testing.assert_allclose(shown(path), color, atol=2.5)


@pytest.mark.parametrize(
    ("size", "matrix"), [((64, 32), 5), ((720, 576), 5), ((1280, 160), 1), ((160, 720), 1), ((1280, 720), 1)]
)
def test_where_no_matrix_is_stated_hd_is_bt709_and_sd_bt601(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    frame = ycbcr(tuple(x / 255 for x in RED), size, WEIGHTS[matrix], False)
    path = write_raw(tmp_path / "plain.mkv", [frame], codec="ffv1", kind="yuv444p")
    np.testing.assert_allclose(shown(path), RED, atol=2.5)


def hdr(path: Path, light: tuple[float, float, float], curve: ColorTrc) -> Path:
    """One frame of so many cd/m² of red, green and blue (BT.2020), written out from the standards, in 10 bits."""
    shine = np.array(light)
    if curve == ColorTrc.SMPTE2084:
        power = (shine / 10000) ** (2610 / 16384)
        signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        luminance = shine @ [0.2627, 0.6780, 0.0593] / 1000
        scene = shine / 1000 * luminance ** (1 / 1.2 - 1)
        logarithmic = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithmic)
    kr, kb = WEIGHTS[9]
    red, green, blue = signal
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    levels = [876 * luma + 64, 896 * (blue - luma) / (2 - 2 * kb) + 512, 896 * (red - luma) / (2 - 2 * kr) + 512]
    planes = np.stack([np.full((32, 32), round(level * 64), np.uint16) for level in levels], -1)
    frame = av.VideoFrame.from_ndarray(planes, "yuv444p16le").reformat(
        format="yuv422p10le", dst_colorspace="BT2020", src_colorspace="BT2020"
    )
    tags = {"colorspace": 9, "color_primaries": ColorPrimaries.BT2020, "color_trc": curve, "color_range": 1}
    return write_raw(path, [frame], codec="ffv1", kind="yuv422p10le", tags=tags)


@pytest.mark.parametrize("curve", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
@pytest.mark.parametrize(("nits", "expected"), [(203, 244), (203 * 0.5**2.4, 127.5), (1000, 255), (0.1, 11)])
def test_greys_of_hdr_come_out_as_in_an_sdr_version(
    tmp_path: Path, curve: ColorTrc, nits: float, expected: float
) -> None:
    path = hdr(tmp_path / "hdr.mkv", (nits, nits, nits), curve)
    np.testing.assert_allclose(shown(path), [expected] * 3, atol=2)
    (note,) = open_clip(path).notes
    assert "HDR" in note
    assert note in open_clip(path).select(0, 0, 1).notes()


@pytest.mark.parametrize("curve", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_colours_of_hdr_are_kept(tmp_path: Path, curve: ColorTrc) -> None:
    linear = (np.array(RED) / 255) ** 2.4 * 203
    wide = np.array([[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]])
    np.testing.assert_allclose(shown(hdr(tmp_path / "red.mkv", tuple(wide @ linear), curve)), RED, atol=4)


def test_light_up_to_the_knee_is_kept_and_the_peak_is_white() -> None:
    from styleengine.frame_colors import _rolled_off

    light = np.linspace(0, PEAK / WHITE, 1000)
    out = _rolled_off(light)
    assert np.array_equal(out[light <= KNEE], light[light <= KNEE])
    assert np.all(np.diff(out) > 0)
    assert out[-1] == pytest.approx(1)


def test_hdr_in_full_frames_is_worked_on_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hdr(tmp_path / "hdr.mkv", (90, 60, 30), ColorTrc.SMPTE2084)
    whole = open_clip(path).poster
    monkeypatch.setattr("styleengine.frame_colors.BAND", 32 * 5)
    assert np.array_equal(np.asarray(open_clip(path).poster), np.asarray(whole))


def half_transparent(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """The left half is transparent black, the right half red."""
    image = Image.new("RGBA", size, (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    return image


@pytest.mark.parametrize(
    ("suffix", "codec", "kind"),
    [
        (".webm", "libvpx-vp9", "yuva420p"),
        (".mov", "prores_ks", "yuva444p10le"),
        (".mov", "png", "rgba"),
        (".mov", "qtrle", "argb"),
        (".apng", "apng", "rgba"),
        (".mkv", "ffv1", "bgra"),
    ],
)
def test_transparency_is_composited_on_white(tmp_path: Path, suffix: str, codec: str, kind: str) -> None:
    frames = [av.VideoFrame.from_ndarray(np.asarray(half_transparent()), "rgba") for _ in range(3)]
    clip = open_clip(write_raw(tmp_path / f"clear{suffix}", frames, codec=codec, kind=kind))
    for picture in clip.select(0, 0, 3).frames():
        np.testing.assert_allclose(picture.getpixel((8, 24)), (255, 255, 255), atol=2)
        np.testing.assert_allclose(picture.getpixel((56, 24)), RED, atol=8)


def test_a_transparent_gif_is_composited_on_white(tmp_path: Path) -> None:
    frames = [half_transparent(), half_transparent()]
    frames[0].save(tmp_path / "clear.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    clip = open_clip(tmp_path / "clear.gif")
    assert clip.poster.getpixel((8, 24)) == (255, 255, 255)
    np.testing.assert_allclose(clip.poster.getpixel((56, 24)), RED, atol=8)


# Damaged and hostile files


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


def test_a_clip_damaged_midway_gives_the_intact_frames_and_then_an_error(tmp_path: Path) -> None:
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


def test_pixels_of_an_absurd_shape_are_refused_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raw(tmp_path / "wide.mp4", greys(2, (512, 512)), aspect=Fraction(2))
    stated, absurd = (b"pasp" + (aspect).to_bytes(4, "big") + (1).to_bytes(4, "big") for aspect in (2, 6000))
    assert stated in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(stated, absurd))
    monkeypatch.setattr(video, "_decoded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(StyleEngineError, match="more than 50 megapixels"):
        open_clip(path)


@pytest.mark.parametrize(("side", "sentence"), [(9000, "megapixels"), (30000, "is not a video|is damaged")])
def test_frames_larger_than_their_container_says_are_refused(tmp_path: Path, side: int, sentence: str) -> None:
    path = write_raw(tmp_path / "small.mov", greys(2), codec="png", kind="gray")
    content, header = path.read_bytes(), b"IHDR" + (32).to_bytes(4, "big") * 2
    path.write_bytes(content.replace(header, b"IHDR" + side.to_bytes(4, "big") * 2))
    with pytest.raises(StyleEngineError, match=sentence):
        open_clip(path)


def test_frames_whose_size_changes_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    one = write_raw(tmp_path / "one.h264", greys(3, (64, 48))).read_bytes()
    other = write_raw(tmp_path / "other.h264", greys(6, (96, 80))[3:]).read_bytes()
    (tmp_path / "both.h264").write_bytes(one + other)
    frames = list(open_clip(tmp_path / "both.h264").select(0, 0, 10).frames())
    assert {frame.size for frame in frames} == {(64, 48)}
    assert [number_of(frame) for frame in frames] == list(range(6))


def test_more_packets_than_can_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path / "loud.mp4", greys(3), sound="aac")
    monkeypatch.setattr(video, "MOST_PACKETS", 10)  # fewer than there are of sound
    with pytest.raises(StyleEngineError, match="more than 1e-05 million packets"):
        open_clip(path)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("ticks", [1, 2])
def test_a_header_that_states_billions_of_packets_is_refused_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: bool, ticks: int
) -> None:
    path = write_raw(tmp_path / "bomb.mov", greys(1), sound="pcm_s16le")
    content, count = bytearray(path.read_bytes()), 3_000_000_000
    promises = {b"stsz": (4, 1, count), b"stsc": (12, count), b"stts": (4, 1, count, ticks)}
    for name, (offset, *values) in promises.items():
        start = (content.rindex if sound else content.index)(name) + 4 + offset
        content[start : start + 4 * len(values)] = b"".join(value.to_bytes(4, "big") for value in values)
    path.write_bytes(content)
    monkeypatch.setattr(video, "open_container", lambda *_: pytest.fail("opened"))
    with pytest.raises(StyleEngineError, match="more than 2 million packets"):
        open_clip(path)


def test_a_fragment_that_states_billions_of_packets_is_refused(tmp_path: Path) -> None:
    def box(name: bytes, content: bytes) -> bytes:
        return (len(content) + 8).to_bytes(4, "big") + name + content

    run = box(b"trun", bytes(4) + (3_000_000_000).to_bytes(4, "big"))
    path = write_raw(tmp_path / "bomb.mp4", greys(1))
    path.write_bytes(path.read_bytes() + box(b"moof", box(b"traf", run)))
    with pytest.raises(StyleEngineError, match="more than 2 million packets"):
        open_clip(path)


def test_hours_of_raw_sound_are_no_bomb(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "loud.mov", greys(10), sound="pcm_s16le")
    check_promises(path, 200)  # packets, where there are 44100 samples
    with pytest.raises(TooMany):
        check_promises(path, 20)


def test_a_clip_without_times_is_taken_at_its_usual_rate(tmp_path: Path) -> None:
    clip = open_clip(write_raw(tmp_path / "at-once.mkv", greys(3), [Fraction(0)] * 3, codec="ffv1"))
    assert (clip.rate, clip.times) == (10, pytest.approx((0, 0.1, 0.2)))


def test_an_absurd_rate_is_limited(tmp_path: Path) -> None:
    moments = [Fraction(i, 1000) for i in range(40)]
    part = open_clip(write_raw(tmp_path / "fast.mkv", greys(20) * 2, moments, rate=1000, codec="ffv1")).select(0, 0, 99)
    assert part.rate == 240
    assert part.notes() == ["The clip has 1000 frames per second, the result 240."]
    assert write_clip(tmp_path / "out.mp4", part.frames(), part.rate).exists()


def test_an_absurd_length_is_worked_on_all_the_same(tmp_path: Path) -> None:
    clip = open_clip(write_raw(tmp_path / "slow.mkv", greys(2), [Fraction(0), Fraction(10**7)], codec="ffv1"))
    part = clip.select(0, 0, 2)
    assert open_clip(write_clip(tmp_path / "out.mp4", part.frames(), part.rate)).seconds == pytest.approx(2000)


def test_texts_in_a_file_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "old.mkv", greys(3), metadata={"title": "Z\xfcrich"}, encoding="latin-1")
    assert numbers(path) == [0, 1, 2]


def test_an_unknown_codec_gives_a_sentence(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "new.mp4", greys(2))
    content = path.read_bytes()
    start = content.index(b"avc1", content.index(b"stsd"))
    path.write_bytes(content[:start] + b"zzzz" + content[start + 4 :])
    with pytest.raises(StyleEngineError, match="cannot be decoded"):
        open_clip(path)


def test_pipes_folders_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for source in (tmp_path / "pipe.mp4", tmp_path, "/dev/zero", "x" * 5000, "a\0b"):
        with pytest.raises(StyleEngineError, match="does not exist or is not a file"):
            open_clip(source)


def test_sentences_name_files_without_their_folders(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"text")
    for source in (tmp_path / "text.mp4", tmp_path / "none.mp4", tmp_path):
        with pytest.raises(StyleEngineError) as caught:
            open_clip(source)
        assert str(tmp_path.parent) not in str(caught.value)


@pytest.mark.parametrize("given", [bytes, io.BytesIO, lambda content: memoryview(content)])
def test_a_clip_may_be_given_as_bytes(ten: Path, given: Callable[[bytes], object]) -> None:
    clip = open_clip(given(ten.read_bytes()))
    assert [number_of(frame) for frame in clip.select(5, 0, 9).frames()] == [0, 2, 4, 6, 8]
    assert (clip.name, clip.sha256) == ("", open_clip(ten).sha256)
    place = clip.path
    del clip
    assert not place.exists()


def test_an_open_file_is_read_from_its_beginning_and_has_its_name(ten: Path) -> None:
    with open(ten, "rb") as file:
        file.read(100)
        assert open_clip(file).name == "ten.mp4"
    with open(ten, encoding="latin-1") as file, pytest.raises(StyleEngineError, match="“rb”"):
        open_clip(file)
    with pytest.raises(StyleEngineError, match="is empty"):
        open_clip(b"")


@pytest.mark.parametrize("name", [b"na\xffme.mp4", b"a:b%d.mp4", b"-.mp4"])
def test_any_name_a_file_can_have_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    write_raw(tmp_path / path, greys(3), sound="aac")
    clip = open_clip(path)
    part = clip.select(0, 0, 3)
    record = f'{{"clip": "{clip.name}"}}'
    copy = write_clip(Path(f"copy-{path}"), part.frames(), part.rate, sound=part, record=record)
    assert json.loads(read_comment(copy)) == json.loads(record)


@pytest.mark.parametrize(("source", "sentence"), [(None, "No clip was given"), ("nowhere.mp4", "does not exist")])
def test_a_missing_file_gives_a_sentence(source: str | None, sentence: str) -> None:
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
def test_the_sound_of_the_part_is_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = open_clip(write_raw(tmp_path / f"loud{suffix}", greys(20), sound=codec))
    part = clip.select(5, 0.5, 4)
    path = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert stream.codec_context.name == "aac"
        decoded = [frame.to_ndarray() for frame in container.decode(stream)]
    samples = np.concatenate(decoded, 1)
    assert samples.shape[1] / 44100 == pytest.approx(0.8, abs=0.15)
    assert samples.std() > 0.1
    assert open_clip(path).seconds == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("codec", "suffix", "rate", "layout"),
    [
        ("pcm_s16le", ".mov", 192000, "stereo"),
        ("pcm_s24le", ".mov", 96000, "mono"),
        ("pcm_u8", ".avi", 11025, "mono"),
        ("pcm_f32le", ".mkv", 37800, "stereo"),
        ("pcm_s16le", ".mkv", 48000, "7.1"),
        ("pcm_s16le", ".mkv", 48000, "hexagonal"),
        ("pcm_s16le", ".mkv", 1000, "mono"),
        ("pcm_mulaw", ".mov", 8000, "mono"),
        ("libmp3lame", ".avi", 8000, "mono"),
        ("flac", ".mkv", 96000, "5.1"),
        ("libopus", ".webm", 48000, "stereo"),
        ("aac", ".ts", 48000, "stereo"),
    ],
)
def test_sound_of_any_kind_is_kept(tmp_path: Path, codec: str, suffix: str, rate: int, layout: str) -> None:
    picture = "libvpx-vp9" if suffix == ".webm" else "libx264"
    path = write_raw(tmp_path / f"loud{suffix}", greys(10), codec=picture, sound=codec, sound_rate=rate, layout=layout)
    part = open_clip(path).select(0, 0, 10)
    assert part.sound().note == ""
    written = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(written)) as container:
        (stream,) = container.streams.audio
        frames = list(container.decode(stream))
    assert sum(frame.samples for frame in frames) / stream.rate == pytest.approx(1, abs=0.2)
    samples = np.concatenate([frame.to_ndarray().ravel().astype(np.float64) for frame in frames])
    assert samples.std() > 0.05 * np.abs(samples).max() > 0


def with_damaged_sound(path: Path, start: float, end: float) -> Path:
    """The file with a part of its sound's packets overwritten."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(container.streams.audio[0]) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[int(start * len(packets)) : int(end * len(packets))]:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("start", "note"), [(0.0, "The clip's sound was left out: it is damaged."), (0.5, "damaged after 0.5 s and ends")]
)
def test_damaged_sound_ends_early_with_a_note(tmp_path: Path, start: float, note: str) -> None:
    path = write_raw(tmp_path / "loud.mov", greys(10), sound="ac3", sound_rate=48000)
    part = open_clip(with_damaged_sound(path, start, 1)).select(0, 0, 10)
    assert note in part.sound().note
    written = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    assert len(open_clip(written).times) == 10


def test_sound_that_cannot_be_taken_over_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_clip(write_raw(tmp_path / "loud.mov", greys(4), sound="pcm_s16le")).select(0, 0, 4)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such layout")

    monkeypatch.setattr(av, "AudioResampler", refuse)
    assert "left out" in part.sound().note
    written = write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part)
    with av.open(str(written)) as container:
        assert not container.streams.audio


def test_sound_whose_codec_is_not_known_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "loud.mp4", greys(4), sound="aac")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"mp4a", b"zzzz").replace(b"esds", b"free"))
    part = open_clip(path).select(0, 0, 4)
    assert "left out" in part.sound().note
    assert write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part).exists()


def test_sound_that_begins_late_stays_late(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with (
        av.open(str(write_raw(tmp_path / "loud.mkv", greys(20), sound="pcm_s16le"))) as source,
        av.open(str(path), "w") as late,
    ):
        streams = {stream.index: late.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                is_sound = packet.stream.type == "audio"
                packet.stream = streams[packet.stream.index]
                if not is_sound or packet.pts * packet.time_base > 1:
                    late.mux(packet)
    part = open_clip(path).select(0, 0, 20)
    with av.open(str(write_clip(tmp_path / "out.mp4", part.frames(), part.rate, sound=part))) as container:
        first = next(container.decode(audio=0))
    assert first.time == pytest.approx(1, abs=0.1)


def test_a_clip_without_sound_gets_no_note_about_it(ten: Path) -> None:
    sound = choose_sound(ten, 0, 1)
    assert (sound.way, sound.note) == ("none", "")


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
def test_a_path_that_cannot_be_written_gives_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        write_clip(tmp_path / name, greys(1), Fraction(5))


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_the_clip_itself_is_not_overwritten(tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    path = write_raw(tmp_path / "clip.mp4", greys(3))
    before = path.read_bytes()
    part = open_clip(path).select(0, 0, 3)
    output = tmp_path / "out.mp4" if link else path
    if link:
        link(path, output)
    with pytest.raises(StyleEngineError, match="is the clip itself"):
        write_clip(output, part.frames(), part.rate, sound=part)
    assert path.read_bytes() == before


def test_a_folder_in_the_place_of_the_result_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(StyleEngineError, match="is not a file"):
        write_clip(tmp_path / "out.mp4", iter(pytest.fail, None), Fraction(5))


def test_beside_puts_frames_left_and_right() -> None:
    (both,) = beside([(Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue"))])
    assert both.size == (8, 3)
    assert both.getpixel((0, 0)) == (255, 0, 0)
    assert both.getpixel((7, 2)) == (0, 0, 255)
