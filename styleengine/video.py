"""Opens and checks clips, reads them at a constant frame rate, and writes H.264 in MP4.

Frames are RGB PIL images, upright and with square pixels. At most a few are in memory at a time.
"""

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from styleengine.containers import decoder_of, open_container, pictures_of
from styleengine.errors import StyleEngineError
from styleengine.frame_colors import color_note, square_size, to_image
from styleengine.image_files import shown_name
from styleengine.images import check_output, check_size
from styleengine.mp4_index import TooMany, check_promises
from styleengine.sound import Sound, SoundTrack, choose_sound, mux_quietly

ClipSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO

MOST_BYTES = 2 << 30
READ_BYTES = 1 << 20  # of an open file at a time
MOST_PACKETS = 2_000_000  # of video and audio: many hours
FASTEST = 240  # frames per second, at most, that a result takes from its clip
SLOWEST = Fraction(1, 1000)
ENCODER = "libx264"
ENCODER_OPTIONS = {"crf": "18", "preset": "medium"}
RECORD_TAG = "comment"
EPSILON = 1e-6  # seconds
UNEVEN = 1.5  # times the median frame interval: above it a clip's rate counts as variable


@dataclass(frozen=True)
class VideoClip:
    """A readable video file, and what is known of it without decoding all of it.

    `times` are the presentation times of its frames in seconds, from 0; `seconds` is its length;
    `poster` its first frame; all frames are resized to its size. `name` is the file's name, if any.
    `notes` are sentences on changes to the stored frames. `holder` keeps a temporary file alive.
    """

    path: Path
    sha256: str
    poster: Image.Image
    times: tuple[float, ...]
    seconds: float
    name: str = ""
    notes: tuple[str, ...] = ()
    holder: Any = field(default=None, repr=False, compare=False)

    @property
    def rate(self) -> Fraction:
        """Its mean number of frames per second, as a simple fraction."""
        return max(SLOWEST, Fraction(len(self.times) / self.seconds).limit_denominator(1001))

    @property
    def variable(self) -> bool:
        """Whether the frame intervals vary."""
        pauses = _pauses(self.times)
        return bool(pauses) and pauses[-1] > UNEVEN * pauses[len(pauses) // 2]

    def select(self, rate: float, begin: float, most: int) -> "Selection":
        """At most `most` frames from second `begin`, at `rate` frames per second (0: the clip's rate, at most 240).

        Raises StyleEngineError if the clip ends before `begin`.
        """
        if begin >= self.seconds:
            raise StyleEngineError(f"The clip is only {self.seconds:.1f} s long: let it begin before {begin:g} s.")
        even = Fraction(rate).limit_denominator(1001) if rate else min(self.rate, Fraction(FASTEST))
        available = max(
            1, math.ceil(Fraction(self.seconds - begin).limit_denominator(10**6) * even - Fraction(1, 1000))
        )
        return Selection(self, even, begin, min(most, available), available)


@dataclass(frozen=True)
class Selection:
    """The part of a clip to process: `count` of the `available` frames from `begin`, at `rate`."""

    clip: VideoClip
    rate: Fraction
    begin: float
    count: int
    available: int

    @property
    def seconds(self) -> float:
        return float(self.count / self.rate)

    def notes(self) -> list[str]:
        """Sentences on the differences from the whole clip."""
        clip, notes = self.clip, list(self.clip.notes)
        if clip.variable:
            notes.append(
                f"The clip's frame rate varies; the result has an even {float(self.rate):.4g} frames per second."
            )
        elif abs(self.rate - clip.rate) > Fraction(1, 100):
            notes.append(f"The clip has {float(clip.rate):.4g} frames per second, the result {float(self.rate):.4g}.")
        if self.begin > 0:
            notes.append(f"The first {self.begin:g} s were left out.")
        if self.count < self.available:
            left = float((self.available - self.count) / self.rate)
            notes.append(
                f"Only {self.count} of {self.available} frames were taken: the last {left:.1f} s were left out."
            )
        return notes

    def sound(self) -> Sound:
        """How the sound of this part can be transferred."""
        return choose_sound(self.clip.path, self.begin, self.seconds)

    def frames(self) -> Iterator[Image.Image]:
        """The selected frames: at each time the one that a player would show.

        Raises StyleEngineError if the clip is damaged.
        """
        number, shown, size = 0, None, self.clip.poster.size
        for moment, frame, stream in _decoded(self.clip, self.begin):
            while shown is not None and number < self.count and self._moment(number) < moment - EPSILON:
                shown = shown if isinstance(shown, Image.Image) else _picture(*shown, size)
                yield shown
                number += 1
            if number == self.count:
                return
            shown = frame, stream  # converted to an image only if it is used
        if shown is None:
            raise StyleEngineError(f"No frame could be decoded after second {self.begin:.1f}: choose another part.")
        last = shown if isinstance(shown, Image.Image) else _picture(*shown, size)
        for _ in range(number, self.count):  # the last frame lasts to the end
            yield last

    def _moment(self, number: int) -> float:
        return self.begin + float(number / self.rate)


def open_clip(source: ClipSource | None, what: str = "clip") -> VideoClip:
    """Checks a video file and decodes its first frame; `what` names it in error messages.

    The source is a path, bytes, or a file open for reading.

    Raises StyleEngineError if it is missing, larger than 2 GiB or 2 million packets, not a video, without a
    video stream, damaged at its start, or of a size that `images.check_size` rejects.
    """
    if isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read"):
        return _from_content(source, what)
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise StyleEngineError(f"No {what} was given. Choose a video file, such as an MP4.")
    path = Path(os.fsdecode(source))
    return _from_file(path, path.name, what)


def check_clip_output(path: str | os.PathLike[str], clip: VideoClip | None = None) -> Path:
    """The path, if an MP4 can be saved there; StyleEngineError if not, or if it is the file of `clip`."""
    path = check_output(path, ".mp4")
    name = shown_name(path.name)
    if path.exists() and not path.is_file():
        raise StyleEngineError(f"{name} exists and is not a file: save under another name.")
    if clip and path.exists() and clip.path.exists() and path.samefile(clip.path):
        raise StyleEngineError(f"{name} is the clip itself: save the result under another name.")
    if not os.access(path.parent, os.W_OK):
        raise StyleEngineError(f"{name} cannot be written into that folder: save elsewhere.")
    return path


def write_clip(
    path: str | os.PathLike[str],
    frames: Iterable[Image.Image],
    rate: Fraction,
    *,
    sound: Selection | None = None,
    record: str = "",
) -> Path:
    """Writes an MP4 that browsers play, atomically.

    H.264, 4:2:0, BT.709; an odd side is padded by one row or column. `sound` is the part of a clip whose
    sound is added, as in `Selection.sound`. `record` becomes the file's comment.

    Raises StyleEngineError if the file cannot be written or is the clip whose sound is added.
    """
    path = check_clip_output(path, sound.clip if sound else None)
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".styleengine-", suffix=".mp4")
        os.close(handle)
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            # Characters of file names that are not UTF-8 become JSON escapes.
            container.metadata[RECORD_TAG] = record.encode("utf-8", "backslashreplace").decode()
            _encode(container, frames, rate, sound.sound() if sound else None)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except (OSError, av.FFmpegError) as error:
        raise _unwritten(path, error) from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def read_comment(path: str | os.PathLike[str]) -> str:
    """The `record` written by `write_clip`; "" if there is none."""
    with open_container(open_clip(path, "result").path) as container:
        return container.metadata.get(RECORD_TAG, "")


def beside(pairs: Iterable[tuple[Image.Image, Image.Image]]) -> Iterator[Image.Image]:
    """Pairs of frames of one size as single frames, left and right."""
    for left, right in pairs:
        both = Image.new("RGB", (left.width + right.width, left.height))
        both.paste(left, (0, 0))
        both.paste(right, (left.width, 0))
        yield both


def _from_content(source: Any, what: str) -> VideoClip:
    """The clip with this content, in a temporary file that is deleted with the clip."""
    name = getattr(source, "name", "")
    name = os.path.basename(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else ""
    holder = tempfile.NamedTemporaryFile(prefix="styleengine-clip-", suffix=".video")  # noqa: SIM115 - see VideoClip
    if not hasattr(source, "read"):
        holder.write(source)
    else:
        try:
            if hasattr(source, "seek"):
                source.seek(0)  # as Pillow does with images
            while chunk := source.read(READ_BYTES):
                holder.write(chunk)
                if holder.tell() > MOST_BYTES:
                    break  # _from_file raises the error
        except (OSError, TypeError, ValueError) as error:
            raise StyleEngineError(f"The {what} cannot be read: give its path, or a file opened as “rb”.") from error
    holder.flush()
    return replace(_from_file(Path(holder.name), name, what), holder=holder)


def _from_file(path: Path, name: str, what: str) -> VideoClip:
    """The clip in a file; `name` is the file's name for the user."""
    shown = _shown(name, what)
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # an invalid file name
        size = None
    if size is None:
        raise StyleEngineError(f"{shown} does not exist or is not a file: check the path.")
    if size > MOST_BYTES:
        raise StyleEngineError(f"{shown} has {size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}. Cut it first.")
    if size == 0:
        raise StyleEngineError(f"{shown} is empty (0 bytes). Choose a video file, such as an MP4.")
    try:
        check_promises(path, MOST_PACKETS)
        with open_container(path) as container:
            stream = pictures_of(container, shown)
            context = stream.codec_context
            if context.width and context.height:  # before memory is allocated
                check_size(square_size((context.width, context.height), stream.sample_aspect_ratio or 1), what)
            times, length = _times(container, stream)
        if not times:
            raise StyleEngineError(f"{shown} holds no frames. Choose another file.")
        clip = VideoClip(path, _file_hash(path), Image.new("RGB", (1, 1)), times, length, name)
        first = next(_decoded(clip, 0), None)
        if first is None:
            raise StyleEngineError(f"{shown} is damaged: no frame of it can be decoded. Save it again as MP4.")
        _, frame, stream = first
        note = color_note(frame)
        return replace(clip, poster=_picture(frame, stream, None, what), notes=(note,) if note else ())
    except TooMany as error:
        raise StyleEngineError(
            f"{shown} has more than {MOST_PACKETS / 1e6:g} million packets. Cut it first."
        ) from error
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, StyleEngineError):
            raise
        raise StyleEngineError(
            f"{shown} is not a video that can be read. Choose an MP4, MOV, WebM, MKV or AVI file."
        ) from error


def _times(container: Any, stream: Any) -> tuple[tuple[float, ...], float]:
    """The frames' presentation times from 0, and the total length; from the packets, without decoding."""
    usual = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    moments, last = list[float](), 0.0
    for number, packet in enumerate(container.demux()):  # of all streams, so that each is limited
        if number >= MOST_PACKETS:
            raise TooMany
        if packet.size and packet.stream.index == stream.index and not packet.is_discard:
            stamp = packet.pts if packet.pts is not None else packet.dts
            moments.append(float(stamp * packet.time_base) if stamp is not None else len(moments) * usual)
            last = float((packet.duration or 0) * packet.time_base)
    moments.sort()
    times = tuple(moment - moments[0] for moment in moments)
    if len(times) > 1 and not times[-1] > 0:  # no timestamps
        times, last = tuple(number * usual for number in range(len(times))), usual
    pauses = _pauses(times)
    return times, (times[-1] + (last or (pauses[len(pauses) // 2] if pauses else 0) or usual) if times else 0.0)


def _pauses(times: Sequence[float]) -> list[float]:
    """The intervals between neighbouring times, shortest first."""
    return sorted(after - before for before, after in pairwise(times))


def _decoded(clip: VideoClip, begin: float) -> Iterator[tuple[float, Any, Any]]:
    """(time, frame, its stream) in order, from the frame shown at `begin` or an earlier one."""
    with open_container(clip.path) as container:
        stream = pictures_of(container, _shown(clip.name))
        offset = None
        if begin > 1:
            origin = (stream.start_time or 0) * stream.time_base
            container.seek(int((begin + origin) / stream.time_base), stream=stream)
            offset = float(origin)
        decoder, held, number = decoder_of(stream), None, 0
        try:
            for frame in chain.from_iterable(map(decoder.decode, container.demux(stream))):
                stamp = float(frame.pts * stream.time_base) if frame.pts is not None else number / float(clip.rate)
                offset = stamp if offset is None else offset
                number += 1
                if stamp - offset <= begin + EPSILON:
                    held = (stamp - offset, frame, stream)  # the next frame may replace it
                    continue
                if held is not None:
                    yield held
                    held = None
                yield stamp - offset, frame, stream
        except av.FFmpegError as error:
            raise StyleEngineError(
                f"{_shown(clip.name)} is damaged after frame {number}: take fewer frames, or save it again."
            ) from error
        if held is not None:
            yield held


def _picture(frame: Any, stream: Any, size: tuple[int, int] | None, what: str = "clip") -> Image.Image:
    """The frame as an image, resized to `size` if the size changes within a clip."""
    aspect = stream.sample_aspect_ratio or 1
    check_size(square_size((frame.width, frame.height), aspect), what)
    picture = to_image(frame, aspect)
    return picture if size in (None, picture.size) else picture.resize(size, Image.Resampling.BICUBIC)


def _shown(name: str, what: str = "clip") -> str:
    """The subject of a message about a clip."""
    return f"The {what} {shown_name(name)}".rstrip()


def _encode(container: Any, frames: Iterable[Image.Image], rate: Fraction, sound: Sound | None) -> None:
    stream = container.add_stream(ENCODER, rate=rate, options=ENCODER_OPTIONS)
    with contextlib.ExitStack() as stack:
        track = stack.enter_context(SoundTrack(container, sound)) if sound and sound.way != "none" else None
        for number, image in enumerate(frames):
            even = (image.width + image.width % 2, image.height + image.height % 2)
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = *even, "yuv420p"
                context = stream.codec_context
                context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
                context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            frame = av.VideoFrame.from_image(_padded(image, even))
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
            if track:
                mux_quietly(track, float((number + 1) / rate))
        container.mux(stream.encode())


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image with its last row and column repeated to fill `size`."""
    if image.size == size:
        return image
    padded = image.resize(size, Image.Resampling.NEAREST)
    padded.paste(image, (0, 0))
    return padded


def _unwritten(path: Path, error: Exception) -> StyleEngineError:
    return StyleEngineError(
        f"{shown_name(path.name)} could not be written ({getattr(error, 'strerror', error)}): save elsewhere."
    )


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
