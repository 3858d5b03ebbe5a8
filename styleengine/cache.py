"""A cache with a byte limit, for results that are expensive to compute and can be recomputed."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Entry = TypeVar("Entry", bound=Sized)


class ByteCache:
    """Keeps the most recently used entries whose `nbytes` together stay within `capacity` bytes.

    Thread-safe. Entries may grow after insertion; sizes are measured again at each `trim`.
    If two threads miss the same key, the entry is computed once: the second thread waits for the first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Sized] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

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
                entry = make()
                with self._lock:
                    self._entries[key] = entry
        finally:
            with self._lock:
                making, waiting = self._making.pop(key)
                if waiting > 1:  # the last waiting thread removes the lock
                    self._making[key] = (making, waiting - 1)
        self.trim()
        return entry

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
        """Trims on exit, also after exceptions, because entries may have grown."""
        try:
            yield
        finally:
            self.trim()

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
