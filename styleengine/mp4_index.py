"""Counts the packets that an MP4 or MOV file declares, before FFmpeg builds an index of them.

A header of a few hundred bytes can declare a billion packets, each of which would take memory. In other formats
each packet has its own header. Names are those of ISO 14496-12.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Boxes that contain boxes, as in FFmpeg.
NESTED = {
    "moov",
    "trak",
    "mdia",
    "minf",
    "stbl",
    "moof",
    "traf",
    "mvex",
    "edts",
    "dinf",
    "udta",
    "wave",
    "rmra",
    "rmda",
}
DEEPEST = 16
PICTURES, SOUND = int.from_bytes(b"vide", "big"), int.from_bytes(b"soun", "big")
AT_LEAST = 512  # samples of raw audio in each of FFmpeg's packets, except the last of a chunk


class TooMany(Exception):  # noqa: N818 - the caller raises the error for users
    """The file declares more packets than allowed."""


@dataclass
class _Track:
    samples: int = 0
    edits: int = 1
    sound: bool = False
    ticking: bool = False  # one sample per tick: raw audio, packed by chunks
    chunks: int = 0
    in_chunks: np.ndarray | None = None  # (entries, 3): first chunk, samples per chunk, description

    def packets(self) -> int:
        """An upper bound; each edit may repeat all samples."""
        count = self.samples
        if self.sound and self.ticking and self.in_chunks is not None:
            first = np.append(self.in_chunks[:, 0], self.chunks + 1).astype(float)
            count = int((np.diff(first).clip(0) * np.ceil(self.in_chunks[:, 1] / AT_LEAST)).sum())
        return count * max(1, self.edits)


def check_promises(path: Path, most: int) -> None:
    """Raises TooMany if the file declares more than `most` packets or boxes. Ignores other formats."""
    with open(path, "rb") as file:
        _Walk(file, most).through(0, os.fstat(file.fileno()).st_size, _Track(), 0)


class _Walk:
    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most, self.boxes, self.packets = file, most, 0, 0

    def through(self, start: int, end: int, track: _Track, depth: int) -> None:
        while start + 8 <= end:
            self.boxes += 1
            self.file.seek(start)
            size, name = struct.unpack(">I4s", self.file.read(8))
            head = 8
            if size == 1:
                size, head = int.from_bytes(self.file.read(8), "big"), 16
            stop = min(start + size, end) if size else end
            if stop < start + head:
                return
            kind = name.decode("latin-1")
            if kind == "trak":
                inner = _Track()
                self.through(start + head, stop, inner, depth + 1)
                self.packets += inner.packets()
            elif kind in NESTED and depth < DEEPEST:
                self.through(start + head, stop, track, depth + 1)
            else:
                self.note(kind, track, stop - start - head)
            if self.packets > self.most or self.boxes > self.most:
                raise TooMany
            start = stop

    def note(self, kind: str, track: _Track, size: int) -> None:
        """Updates the counts from a box. The file is positioned at the box's content."""
        if kind == "cmov":  # a compressed header, which cannot be counted
            raise TooMany
        if kind not in ("hdlr", "stsz", "stz2", "stts", "stco", "co64", "elst", "trun", "stsc"):
            return
        content = self.file.read(min(size, 16))
        fields = [int.from_bytes(content[i : i + 4], "big") for i in range(0, 16, 4)]
        if kind == "hdlr":
            track.sound = fields[2] == SOUND or (track.sound and fields[2] != PICTURES)
        elif kind in ("stsz", "stz2"):
            track.samples = max(track.samples, fields[2])
        elif kind == "stts":
            track.ticking = fields[1] == 1 and fields[3] == 1
        elif kind in ("stco", "co64"):
            track.chunks = max(track.chunks, min(fields[1], size // 4))
        elif kind == "elst":
            track.edits = max(track.edits, min(fields[1], size // 12))
        elif kind == "trun":
            self.packets += fields[1]
        elif kind == "stsc":
            rows = min(fields[1], max(0, size - 8) // 12)
            self.file.seek(8 - len(content), os.SEEK_CUR)
            track.in_chunks = np.frombuffer(self.file.read(rows * 12), ">u4").reshape(rows, 3)
