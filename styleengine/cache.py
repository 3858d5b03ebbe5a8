"""A cache with a byte limit, for results that are expensive to compute and can be recomputed."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from styleengine.disk_cache import DiskCache


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Entry = TypeVar("Entry", bound=Sized)


class ByteCache:
    """Keeps the most recently used entries whose `nbytes` together stay within `capacity` bytes.

    Thread-safe. Entries may grow after insertion; sizes are measured again at each `trim`.
    If two threads miss the same key, the entry is computed once: the second thread waits for the first.
    Storable entries are also kept in `disk`, if there is one, and looked up there if missing. They are written on exit
    of `trimming`.
    """

    def __init__(self, capacity: int, disk: DiskCache | None = None) -> None:
        self.capacity, self.disk = capacity, disk
        self._on_disk: dict[Hashable, int] = {}  # the size of each entry when it was last read or written
        self._entries: OrderedDict[Hashable, Sized] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest entry."""
        with self._lock:
            return max((entry.nbytes for entry in self._entries.values()), default=0)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Sized | None:
        """The entry under `key`, or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def get_or_make(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """The entry under `key`, computed by `make` if missing. An error in `make` leaves the cache unchanged."""
        with self._lock:
            making, waiting = self._making.get(key, (threading.Lock(), 0))
            self._making[key] = (making, waiting + 1)
        try:
            with making:
                with self._lock:
                    if key in self._entries:
                        self._entries.move_to_end(key)
                        return self._entries[key]  # type: ignore[return-value]
                stored = self._loaded(key)
                entry = make() if stored is None else stored
                with self._lock:
                    self._entries[key] = entry
        finally:
            with self._lock:
                making, waiting = self._making.pop(key)
                if waiting > 1:  # the last waiting thread removes the lock
                    self._making[key] = (making, waiting - 1)
        self.trim()
        return entry

    def _loaded(self, key: Hashable) -> Any:
        """The entry on disk, or None."""
        entry = self.disk.load(key) if self.disk else None
        if entry is not None:
            with self._lock:
                self._on_disk[key] = entry.nbytes
        return entry

    def _save(self) -> None:
        """Writes entries to disk that are new or have grown."""
        if self.disk is None:
            return
        with self._lock:
            self._on_disk = {key: size for key, size in self._on_disk.items() if key in self._entries}
            changed = [(key, entry) for key, entry in self._entries.items() if self._on_disk.get(key) != entry.nbytes]
            self._on_disk |= {key: entry.nbytes for key, entry in changed}
        for key, entry in changed:
            self.disk.save(key, entry)

    def trim(self) -> None:
        """Drops entries larger than the capacity, then the least recently used until the rest fits."""
        with self._lock:
            sizes = {key: entry.nbytes for key, entry in self._entries.items()}
            total = sum(sizes.values())
            for key in sorted(sizes, key=lambda key: sizes[key] <= self.capacity):  # stable: oldest first
                if total <= self.capacity:
                    break
                total -= sizes[key]
                del self._entries[key]

    @contextmanager
    def trimming(self) -> Iterator[None]:
        """Saves and trims on exit, also after exceptions, because entries may have grown."""
        try:
            yield
        finally:
            self._save()
            self.trim()

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._on_disk.clear()
