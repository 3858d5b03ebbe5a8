"""A folder of cached tensors that outlives the process, bounded in bytes and in age.

It may contain latents of users' images, from which the images can be decoded. So only its owner can open the folder,
and entries are deleted a while after their last use.
"""

import hashlib
import json
import math
import os
import re
import stat
import time
import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from styleengine.images import write_whole
from styleengine.version import __version__

VARIABLE = "STYLEENGINE_DISK_CACHE"
MOST_BYTES = 8 << 30
MOST_SECONDS = 24 * 3600.0
FORMAT = 1  # to be raised when the same key no longer means the same tensors
SUFFIX = ".safetensors"
ENTRY = re.compile(r"[0-9a-f]{64}" + re.escape(SUFFIX))
PARTIAL = re.compile(r"\.[0-9a-f]{64}" + re.escape(SUFFIX) + r"\..+")
PARTIAL_SECONDS = 600.0  # after which a partial file counts as left behind by a process that was killed
HEADER = 8  # bytes: the length of a safetensors file's header

Tensors = Mapping[str, torch.Tensor]


class Storable(Protocol):
    """An entry that consists of named tensors. `of` raises KeyError or ValueError for tensors of something else."""

    @property
    def nbytes(self) -> int: ...

    def tensors(self) -> dict[str, torch.Tensor]: ...

    @classmethod
    def of(cls, named: Tensors) -> Self: ...


StorableClass = TypeVar("StorableClass", bound=type[Storable])
_kinds: dict[str, type[Storable]] = {}


def storable(kind: StorableClass) -> StorableClass:
    """Decorates a class whose entries are kept on disk."""
    _kinds[kind.__name__] = kind
    return kind


@dataclass
class DiskCache:
    """Entries as safetensors files of a private folder, together at most `capacity` bytes.

    Entries are deleted `seconds` after their last use, and before that the least recently used ones first. Their
    tensors are loaded to `device`. Any number of processes may use the folder at once, without locks: files are
    replaced atomically. While several processes write, the files may exceed the capacity by those being written.

    Files that are damaged, or not of this format, version and machine, count as missing. No method raises an error for
    a full disk or a folder that cannot be used: nothing is kept then.
    """

    folder: Path
    capacity: int
    seconds: float
    device: torch.device

    def load(self, key: Hashable) -> Any:
        """The entry under `key`, or None."""
        path = self._path(key)
        with suppress(OSError, MemoryError):
            check_private(self.folder)
            try:
                return self._read(path)
            except torch.OutOfMemoryError:
                raise
            except (ValueError, TypeError, AttributeError, KeyError, RecursionError, RuntimeError, SafetensorError):
                path.unlink(missing_ok=True)
        return None

    def save(self, key: Hashable, entry: Any) -> None:
        """Keeps the entry, if its class is storable and it fits. A smaller one does not replace it."""
        if type(entry).__name__ not in _kinds or entry.nbytes > self.capacity:
            return
        path = self._path(key)
        with suppress(OSError, MemoryError, RuntimeError, SafetensorError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(self.folder)
            if path.is_file() and path.lstat().st_size > entry.nbytes:  # another process knows more of it
                return
            named = {name: _alone(x) for name, x in entry.tensors().items()}
            told = {"kind": type(entry).__name__, "name": path.name}
            content = save(named, {**told, "checksum": _checksum(named, told)})
            if len(content) <= self.capacity:
                self.sweep(room=len(content))
                write_whole(path, content)

    def sweep(self, room: int = 0) -> None:
        """Deletes old entries and abandoned partial files, then the least recently used until `room` more bytes fit."""
        with suppress(OSError):
            check_private(self.folder)
            now, total = time.time(), room
            for path, status in sorted(self._files(), key=lambda file: file[1].st_mtime, reverse=True):
                partial = PARTIAL.fullmatch(path.name) is not None
                old = now - status.st_mtime > (PARTIAL_SECONDS if partial else self.seconds)
                total += 0 if old else status.st_size
                if old or (total > self.capacity and not partial):
                    path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Any:
        """The entry in a file; OSError if there is none, another exception if it is something else."""
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > self.capacity:
                raise ValueError
            if time.time() - status.st_mtime > self.seconds:
                raise ValueError
            content = file.read()
        told = json.loads(content[HEADER : HEADER + int.from_bytes(content[:HEADER], "little")])["__metadata__"]
        checksum, named = told.pop("checksum"), load(content)
        if told.get("name") != path.name or checksum != _checksum(named, told):
            raise ValueError
        entry = _kinds[told["kind"]].of({name: x.to(self.device) for name, x in named.items()})
        with suppress(OSError):
            os.utime(path)
        return entry

    def _path(self, key: Hashable) -> Path:
        asked = (FORMAT, __version__, torch.__version__, machine(self.device), key)
        return self.folder / f"{hashlib.sha256(repr(asked).encode()).hexdigest()}{SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """This cache's files, which other processes may delete meanwhile."""
        for path in self.folder.iterdir():
            if ENTRY.fullmatch(path.name) or PARTIAL.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    yield path, path.lstat()


def check_private(folder: Path) -> None:
    """OSError unless the folder is a real one that only this user can open, which it is made if possible."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError
    if hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            raise PermissionError
        if status.st_mode & 0o077:
            folder.chmod(0o700)


def machine(device: torch.device) -> str:
    """What decides, beside the software, whether results are equal bit for bit."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _alone(x: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU in memory of its own, as safetensors needs it."""
    return x.detach().cpu().clone(memory_format=torch.contiguous_format)


def _checksum(named: Tensors, told: Mapping[str, str]) -> str:
    """CRC-32 of names, shapes, types and values. safetensors has none, and notices only missing bytes."""
    value = zlib.crc32(json.dumps([sorted(told.items())]).encode())
    for name in sorted(named):
        x = named[name].contiguous()
        value = zlib.crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), value)
        if math.prod(x.shape):
            value = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def disk_cache(device: torch.device, folder: str | os.PathLike[str] | None = None) -> DiskCache | None:
    """The cache in $STYLEENGINE_DISK_CACHE, else in `folder`; None without either, or if the variable is “off”."""
    chosen = chosen_folder(folder)
    return chosen and DiskCache(chosen / "styleengine-inversions", MOST_BYTES, MOST_SECONDS, device)


def chosen_folder(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder in $STYLEENGINE_DISK_CACHE, else `folder`; None without either, or if the variable is “off”."""
    chosen = os.environ.get(VARIABLE) or folder
    return None if not chosen or chosen == "off" else Path(chosen)
