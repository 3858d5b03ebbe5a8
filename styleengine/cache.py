"""A cache bounded in bytes, for what is costly to make and may be made again."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Entry = TypeVar("Entry", bound=Sized)


class ByteCache:
    """Keeps the most recently used entries whose `nbytes` together stay within `capacity` bytes.

    Thread-safe. Entries may grow after they were put in; sizes are taken anew at each visit.
    Two threads that miss the same key at once make it once: the second waits for the first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Sized] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get_or_make(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """The entry under `key`, made if missing. An error in `make` leaves the cache as it was."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    return self._entries[key]  # type: ignore[return-value]
            try:
                entry = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._entries[key] = entry
            self.trim()
            return entry

    def trim(self) -> None:
        """Drops the longest unused entries until the rest fits."""
        with self._lock:
            sizes = {key: entry.nbytes for key, entry in self._entries.items()}
            total = sum(sizes.values())
            for key in list(self._entries):
                if total <= self.capacity:
                    break
                total -= sizes[key]
                del self._entries[key]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
