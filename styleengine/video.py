"""Clips in and out: opened, checked and read at an even frame rate; written as H.264 in MP4.

Frames are RGB PIL images, upright and with square pixels. Nothing here holds more than a few at a time.
"""

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from styleengine.errors import StyleEngineError
from styleengine.images import check_output, check_size

MOST_BYTES = 2 << 30
# Demuxers that read one file of sound and pictures. Playlists and the like, which make a reader open
# other files and addresses, stay out: clips come from strangers.
FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,mjpeg,apng,h264,hevc,mp3,wav,aac,flac"
READ_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
COPIED_SOUND = {"aac", "mp3", "mp3float", "opus", "flac"}  # what MP4 may hold and browsers play
ENCODER = "libx264"
ENCODER_OPTIONS = {"crf": "18", "preset": "medium"}
RECORD_TAG = "comment"
EPSILON = 1e-6  # seconds
UNEVEN = 1.5  # times the usual pause between two frames: beyond it a clip's rate counts as variable


@dataclass(frozen=True)
class Clip:
    """A video file that can be read, and what is known of it without decoding it all.

    `times` are the moments in seconds, from 0, at which its frames appear; `seconds` is its length;
    `poster` its first frame.
    """

    path: Path
    sha256: str
    poster: Image.Image
    times: tuple[float, ...]
    seconds: float

    @property
    def rate(self) -> Fraction:
        """Its mean number of frames per second, as a handy fraction."""
        return max(Fraction(1, 1000), Fraction(len(self.times) / self.seconds).limit_denominator(1001))

    @property
    def variable(self) -> bool:
        """Whether the frames come at uneven pauses."""
        pauses = _pauses(self.times)
        return bool(pauses) and pauses[-1] > UNEVEN * pauses[len(pauses) // 2]

    def select(self, rate: float, begin: float, most: int) -> "Selection":
        """At most `most` frames from second `begin` on, `rate` of them per second (0: the clip's own).

        Raises StyleEngineError where the clip has ended by then.
        """
        if begin >= self.seconds:
            raise StyleEngineError(f"The clip is only {self.seconds:.1f} s long: let it begin before {begin:g} s.")
        even = Fraction(rate).limit_denominator(1001) if rate else self.rate
        available = max(
            1, math.ceil(Fraction(self.seconds - begin).limit_denominator(10**6) * even - Fraction(1, 1000))
        )
        return Selection(self, even, begin, min(most, available), available)


@dataclass(frozen=True)
class Selection:
    """The part of a clip that is worked on: `count` of the `available` frames from `begin`, at `rate`."""

    clip: Clip
    rate: Fraction
    begin: float
    count: int
    available: int

    @property
    def seconds(self) -> float:
        return float(self.count / self.rate)

    def notes(self) -> list[str]:
        """What differs from the whole clip as it was, in sentences."""
        clip, notes = self.clip, list[str]()
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

    def frames(self) -> Iterator[Image.Image]:
        """The selected frames: at each moment the one that a player would show.

        Raises StyleEngineError where the clip turns out to be damaged.
        """
        number, shown = 0, None
        for moment, frame in _decoded(self.clip, self.begin):
            while shown is not None and number < self.count and self._moment(number) < moment - EPSILON:
                yield shown
                number += 1
            if number == self.count:
                return
            shown = frame
        if shown is None:
            raise StyleEngineError(f"No frame could be decoded after second {self.begin:.1f}: choose another part.")
        for _ in range(number, self.count):  # the last one stays to the end
            yield shown

    def _moment(self, number: int) -> float:
        return self.begin + float(number / self.rate)


def open_clip(source: str | os.PathLike[str] | None, what: str = "clip") -> Clip:
    """Checks a video file and decodes its first frame; `what` names it in error messages.

    Raises StyleEngineError for what is missing, larger than 2 GiB, no video, without a video stream,
    damaged at its start, or of a size that `images.check_size` refuses.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise StyleEngineError(f"No {what} was given. Choose a video file, such as an MP4.")
    path = Path(source)
    if not path.is_file():
        raise StyleEngineError(f"The {what} {path.name} does not exist or is not a file: check the path {path}.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise StyleEngineError(
            f"The {what} {path.name} has {size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}. Cut it first."
        )
    try:
        with av.open(str(path), options=READ_OPTIONS) as container:
            stream = _pictures(container, f"The {what} {path.name}")
            times, length = _times(container, stream)
        if not times:
            raise StyleEngineError(f"The {what} {path.name} holds no frames. Choose another file.")
        clip = Clip(path, _file_hash(path), Image.new("RGB", (1, 1)), times, length)
        poster = next((frame for _, frame in _decoded(clip, 0)), None)
    except (av.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, StyleEngineError):
            raise
        raise StyleEngineError(
            f"The {what} {path.name} is not a video that can be read. Choose an MP4, MOV, WebM, MKV or AVI file."
        ) from error
    if poster is None:
        raise StyleEngineError(
            f"No frame of the {what} {path.name} can be decoded: it is damaged. Save it again as MP4."
        )
    check_size(poster.size, what)
    return Clip(path, clip.sha256, poster, times, length)


def write_clip(
    path: str | os.PathLike[str],
    frames: Iterable[Image.Image],
    rate: Fraction,
    *,
    sound: Selection | None = None,
    record: str = "",
) -> Path:
    """Writes an MP4 that browsers play; the file appears whole or not at all.

    H.264, 4:2:0, BT.709; an odd side gets one more row or column. `sound` names the part of a clip
    whose sound comes along: as it is where MP4 can hold it, else as AAC; sound that cannot be
    decoded ends early. `record` is kept as the file's comment.
    """
    path = check_output(path, ".mp4")
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".mp4")
    os.close(handle)
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata[RECORD_TAG] = record
            _encode(container, frames, rate, sound)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise StyleEngineError(f"{path} could not be written ({error.strerror}): save elsewhere.") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def read_comment(path: str | os.PathLike[str]) -> str:
    """What `write_clip` kept as `record`; "" where there is none."""
    open_clip(path, "result")
    with av.open(str(path), options=READ_OPTIONS) as container:
        return container.metadata.get(RECORD_TAG, "")


def beside(pairs: Iterable[tuple[Image.Image, Image.Image]]) -> Iterator[Image.Image]:
    """Pairs of frames of one size as single frames, left and right."""
    for left, right in pairs:
        both = Image.new("RGB", (left.width + right.width, left.height))
        both.paste(left, (0, 0))
        both.paste(right, (left.width, 0))
        yield both


def _pictures(container: Any, name: str) -> Any:
    """The video stream; the cover picture of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise StyleEngineError(f"{name} has no video stream, only sound. Choose a video file, such as an MP4.")


def _times(container: Any, stream: Any) -> tuple[tuple[float, ...], float]:
    """When the frames appear, from 0, and how long all last: from the packets, without decoding."""
    usual = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    moments, last = list[float](), 0.0
    for number, packet in enumerate(container.demux(stream)):
        if packet.size:
            stamp = packet.pts if packet.pts is not None else packet.dts
            moments.append(float(stamp * packet.time_base) if stamp is not None else number * usual)
            last = float((packet.duration or 0) * packet.time_base)
    moments.sort()
    times = tuple(moment - moments[0] for moment in moments)
    pauses = _pauses(times)
    return times, (times[-1] + (last or (pauses[len(pauses) // 2] if pauses else usual)) if times else 0.0)


def _pauses(times: Sequence[float]) -> list[float]:
    """What lies between neighbouring moments, shortest first."""
    return sorted(after - before for before, after in pairwise(times))


def _decoded(clip: Clip, begin: float) -> Iterator[tuple[float, Image.Image]]:
    """(moment, upright frame) in order, from the frame that is seen at `begin`, or some before it."""
    with av.open(str(clip.path), options=READ_OPTIONS) as container:
        stream = _pictures(container, clip.path.name)
        stream.thread_type = "AUTO"
        offset = None
        if begin > 1:
            origin = (stream.start_time or 0) * stream.time_base
            container.seek(int((begin + origin) / stream.time_base), stream=stream)
            offset = float(origin)
        held, number = None, 0
        try:
            for frame in container.decode(stream):
                stamp = frame.time if frame.time is not None else number / float(clip.rate)
                offset = stamp if offset is None else offset
                number += 1
                if stamp - offset <= begin + EPSILON:
                    held = (stamp - offset, frame)  # not turned into a picture: it may well be passed over
                    continue
                if held is not None:
                    yield held[0], _upright(held[1], stream)
                    held = None
                yield stamp - offset, _upright(frame, stream)
        except av.FFmpegError as error:
            raise StyleEngineError(
                f"The clip {clip.path.name} is damaged after frame {number}: take fewer frames, or save it anew."
            ) from error
        if held is not None:
            yield held[0], _upright(held[1], stream)


def _upright(frame: Any, stream: Any) -> Image.Image:
    """The frame as it is meant to be seen: RGB, square pixels, turned as a phone was held."""
    image = frame.to_image()
    aspect = stream.sample_aspect_ratio or 1
    if aspect != 1:
        image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _encode(container: Any, frames: Iterable[Image.Image], rate: Fraction, sound: Selection | None) -> None:
    stream = container.add_stream(ENCODER, rate=rate, options=ENCODER_OPTIONS)
    with contextlib.ExitStack() as stack:
        packets = stack.enter_context(contextlib.closing(_Sound(container, sound))) if sound else None
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
            if packets:
                packets.mux_until(float((number + 1) / rate))
        container.mux(stream.encode())


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image with its last row and column repeated to fill `size`."""
    if image.size == size:
        return image
    padded = image.resize(size, Image.Resampling.NEAREST)
    padded.paste(image, (0, 0))
    return padded


class _Sound:
    """The sound of a part of a clip on its way into a container, alongside the frames."""

    def __init__(self, container: Any, part: Selection) -> None:
        self.out = container
        self.source: Any = av.open(str(part.clip.path), options=READ_OPTIONS)
        self.waiting: Iterator[Any] = iter(())
        stream = next(iter(self.source.streams.audio), None)
        if stream is None:
            return
        pictures = _pictures(self.source, part.clip.path.name)
        self.begin = part.begin + float((pictures.start_time or 0) * pictures.time_base)
        if part.begin > 1:
            self.source.seek(int(self.begin * av.time_base))
        if stream.codec_context.name in COPIED_SOUND:
            self.target = container.add_stream_from_template(stream)
            self.waiting = self._copied(stream)
        else:
            self.target = container.add_stream("aac", rate=stream.codec_context.sample_rate)
            self.waiting = self._encoded(stream)

    def mux_until(self, seconds: float) -> None:
        """Passes on what sounds before `seconds` of the result."""
        for moment, packet in self.waiting:
            self.out.mux(packet)
            if moment >= seconds:
                break

    def close(self) -> None:
        self.source.close()

    def _copied(self, stream: Any) -> Iterator[tuple[float, Any]]:
        shift = int(self.begin / stream.time_base)
        for packet in _readable(self.source.demux(stream)):
            if packet.pts is None or packet.pts < shift:
                continue
            packet.pts -= shift
            packet.dts = packet.pts
            moment = float(packet.pts * packet.time_base)
            packet.stream = self.target
            yield moment, packet

    def _encoded(self, stream: Any) -> Iterator[tuple[float, Any]]:
        resampler = av.AudioResampler("fltp", self.target.layout.name, self.target.rate)
        samples = 0
        for frame in _readable(self.source.decode(stream)):
            if frame.time is not None and frame.time < self.begin - EPSILON:
                continue
            for resampled in resampler.resample(frame):
                resampled.pts, resampled.time_base = samples, Fraction(1, self.target.rate)
                samples += resampled.samples
                for packet in self.target.encode(resampled):
                    yield samples / self.target.rate, packet
        for packet in self.target.encode():
            yield samples / self.target.rate, packet


def _readable(items: Iterator[Any]) -> Iterator[Any]:
    """The items up to where the file is damaged."""
    try:
        yield from items
    except av.FFmpegError:
        return


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
