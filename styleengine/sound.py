"""Transfers a clip's sound into an MP4: copied if MP4 supports its codec, else encoded as AAC.

A dry run decides which, before any frame is redrawn.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from styleengine.containers import open_container, pictures_of

COPIED = {"aac", "mp3", "mp3float", "opus", "flac"}  # codecs that MP4 supports and browsers play
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of samples per second
EPSILON = 1e-6  # seconds
REFUSALS = (av.FFmpegError, ValueError, TypeError, OverflowError, ZeroDivisionError)  # PyAV's, for unsupported data


@dataclass(frozen=True)
class Sound:
    """How the sound of a part of a clip is transferred, and a sentence on any loss."""

    path: Path
    begin: float  # in seconds from the start of the clip
    way: Literal["copied", "encoded", "none"]
    note: str = ""


def choose_sound(path: Path, begin: float, seconds: float) -> Sound:
    """Tries the ways in turn, writing to the null device. Never raises for faulty sound."""
    try:
        with open_container(path) as source:
            streams = source.streams.audio
            if not streams:
                return Sound(path, begin, "none")
            stream = _decodable(source)
            copied = stream is not None and stream.codec_context.name in COPIED
    except REFUSALS:
        return Sound(path, begin, "none", "The clip's sound was left out: it cannot be read.")
    ways: list[Literal["copied", "encoded"]] = ["copied", "encoded"] if copied else ["encoded"]
    for way in ways if stream is not None else []:
        sound = Sound(path, begin, way)
        try:
            with av.open(os.devnull, "w", format="mp4") as nowhere, SoundTrack(nowhere, sound) as track:
                track.mux_until(seconds)
        except REFUSALS:
            continue
        if track.seconds <= 0:
            note = "The clip's sound was left out: it is damaged." if track.damaged else ""
            return Sound(path, begin, "none", note)
        note = f"The clip's sound is damaged after {track.seconds:.1f} s and ends there." if track.damaged else ""
        return Sound(path, begin, way, note)
    return Sound(path, begin, "none", "The clip's sound was left out: its format is not supported.")


class SoundTrack:
    """An audio stream in an output container, and its source; a context manager.

    `seconds` is the length written so far; `damaged` is whether the source ended with an error.
    """

    def __init__(self, container: Any, sound: Sound) -> None:
        self.out, self.seconds, self.damaged = container, 0.0, False
        self.source = open_container(sound.path)
        try:
            stream = _decodable(self.source)
            pictures = pictures_of(self.source, sound.path.name)
            self.begin = sound.begin + float((pictures.start_time or 0) * pictures.time_base)
            if sound.begin > 1:
                self.source.seek(int(self.begin * av.time_base))
            if sound.way == "copied":
                self.target = container.add_stream_from_template(stream)
                self.waiting = self._copied(stream)
            else:
                self.target = container.add_stream("aac", rate=_aac_rate(stream.rate), layout=_aac_layout(stream))
                self.waiting = self._encoded(stream)
        except BaseException:
            self.source.close()
            raise

    def __enter__(self) -> "SoundTrack":
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def mux_until(self, seconds: float) -> None:
        """Writes the sound up to `seconds` of the result."""
        if self.seconds >= seconds:
            return
        for moment, packet in self.waiting:
            self.out.mux(packet)
            self.seconds = max(self.seconds, moment)
            if moment >= seconds:
                break

    def _copied(self, stream: Any) -> Iterator[tuple[float, Any]]:
        shift = int(self.begin / stream.time_base)
        for packet in self._readable(self.source.demux(stream)):
            if packet.pts is None or packet.pts < shift:
                continue
            packet.pts -= shift
            packet.dts = packet.pts
            moment = _end(packet)
            packet.stream = self.target
            yield moment, packet

    def _encoded(self, stream: Any) -> Iterator[tuple[float, Any]]:
        samples: int | None = None
        for frame in self._resampled(stream):
            if samples is None:
                samples = max(0, round((frame.time - self.begin) * self.target.rate))
            frame.pts, frame.time_base = samples, Fraction(1, self.target.rate)
            samples += frame.samples
            yield from ((_end(packet), packet) for packet in self.target.encode(frame))
        if samples is not None:
            yield from ((_end(packet), packet) for packet in self.target.encode())

    def _resampled(self, stream: Any) -> Iterator[Any]:
        """Frames in the target's rate and layout, even if the source's change. The first has its time."""
        resampler, kind = None, None
        for frame in self._readable(self.source.decode(stream)):
            if frame.time is not None and frame.time < self.begin - EPSILON:
                continue
            if resampler is None or kind != (frame.format.name, frame.layout.name, frame.rate):
                if resampler:
                    yield from resampler.resample(None)
                kind = (frame.format.name, frame.layout.name, frame.rate)
                resampler = av.AudioResampler("fltp", self.target.layout.name, self.target.rate)
            yield from resampler.resample(frame)
        if resampler:
            yield from resampler.resample(None)

    def _readable(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items up to the first damage in the file."""
        try:
            yield from items
        except av.FFmpegError:
            self.damaged = True


def mux_quietly(track: SoundTrack, seconds: float) -> None:
    """As `mux_until`. An error that the dry run did not meet ends the sound, not the clip."""
    with contextlib.suppress(*REFUSALS):
        track.mux_until(seconds)


def _end(packet: Any) -> float:
    """The end of the packet's sound, in seconds."""
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _decodable(source: Any) -> Any:
    """The first audio stream that can be decoded, or None."""
    return next((stream for stream in source.streams.audio if stream.codec_context is not None), None)


def _aac_rate(rate: int) -> int:
    """The lowest AAC rate that is at least `rate`, or the highest."""
    return next((known for known in AAC_RATES if known >= rate), AAC_RATES[-1])


def _aac_layout(stream: Any) -> str:
    return "mono" if stream.codec_context.layout.nb_channels == 1 else "stereo"
