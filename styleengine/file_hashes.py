"""Cached SHA-256 of files: a model of 4 GB is read once, not at each start.

The key is the file's path, size and modification times. Hashes are cached in memory and, if it can be written,
in a small file in the user's cache folder, except those of temporary files. A file changed within the last seconds
is not cached: it may change again within the clock's resolution.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from styleengine.images import write_whole

FRESH = 5.0  # seconds after a change during which a file's hash is not cached
MOST_KNOWN = 2000

_known: dict[str, str] = {}
_lock = threading.Lock()


def store() -> Path:
    """The file that keeps hashes between starts."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "styleengine" / "file-hashes.json"


def file_sha256(file: Path) -> bytes:
    """SHA-256 of a file's content."""
    status = file.stat()
    key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    with _lock:
        if not _known:
            _known.update(_read())
        known = _known.get(key)
    if known:
        return bytes.fromhex(known)
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").digest()
    if time.time() - max(status.st_mtime, status.st_ctime) > FRESH:
        with _lock:
            _known[key] = digest.hex()
            _write()
    return digest


def _read() -> dict[str, str]:
    """The hashes in the file; none if it cannot be read."""
    with suppress(OSError, ValueError, AttributeError, RuntimeError):
        kept = json.loads(store().read_text()).items()
        return {key: value for key, value in kept if _is_sha256(value)}
    return {}


def _write() -> None:
    """Writes the most recent hashes. If that fails, they are cached in memory only."""
    with suppress(OSError, RuntimeError):
        temporary = f"{Path(tempfile.gettempdir()).resolve()}{os.sep}"
        lasting = [(key, value) for key, value in _known.items() if not key.startswith(temporary)]
        if not lasting:
            return
        latest = dict(lasting[-MOST_KNOWN:])
        store().parent.mkdir(parents=True, exist_ok=True)
        write_whole(store(), json.dumps(latest, indent=0).encode())


def _is_sha256(value: object) -> bool:
    if not isinstance(value, str) or len(value) != 64:
        return False
    with suppress(ValueError):
        return len(bytes.fromhex(value)) == 32
    return False
