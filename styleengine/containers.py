"""Opens untrusted video and audio files, with limits."""

import os
from typing import Any

import av
from av.stream import Disposition

from styleengine.errors import StyleEngineError
from styleengine.images import MOST_PIXELS

# Demuxers that read a single file. Playlists and similar formats, which open other files and addresses, are excluded.
FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,mjpeg,apng,h264,hevc,mp3,wav,aac,flac"
DECODED_PIXELS = str(2 * MOST_PIXELS)  # decoders pad sizes; files that are too large are rejected by their header
READ_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": DECODED_PIXELS}
MOST_THREADS = 4  # each decodes a separate frame in separate memory
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's native decoders drop transparency


def open_container(path: str | os.PathLike[str]) -> Any:
    """Opens the file, under any name. Metadata that is not UTF-8 gets replacement characters."""
    return av.open(os.path.abspath(path), options=READ_OPTIONS, metadata_errors="replace")


def pictures_of(container: Any, name: str) -> Any:
    """The video stream (cover images of songs do not count). Raises StyleEngineError if none can be decoded."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise StyleEngineError(f"{name} has no video stream, only sound. Choose a video file, such as an MP4.")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise StyleEngineError(f"{name} is coded in a way that cannot be decoded. Save it again as H.264 in MP4.")
    return decodable[0]


def decoder_of(stream: Any) -> Any:
    """A decoder for the video stream, with transparency if the stream has it."""
    own = stream.codec_context
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if own.name in ALPHA_DECODERS and tags.get("alpha_mode") == "1":
        own = av.CodecContext.create(ALPHA_DECODERS[own.name], "r")
    else:
        own.thread_type = "AUTO"
    own.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
    own.options = {"max_pixels": DECODED_PIXELS}
    return own
