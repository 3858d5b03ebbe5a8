"""A lock that serves threads in the order of their requests."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A first-in-first-out lock; waiting for it can be cancelled.

    A thread that releases it and requests it again is queued last.
    """

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, while_waiting: Callable[[], None] | None = None, pause: float = 0.2) -> Iterator[None]:
        """Enters the context after all earlier requests have left it.

        `while_waiting` is called at once if there is anything to wait for, then every `pause` seconds. An
        exception from it ends the waiting.
        """
        mine = object()
        with self._changed:
            self._queue.append(mine)
        try:
            while not self._has_come(mine, 0):
                if while_waiting:
                    while_waiting()
                self._has_come(mine, pause)
            yield
        finally:
            with self._changed:
                self._queue.remove(mine)
                self._changed.notify_all()

    def _has_come(self, mine: object, seconds: float) -> bool:
        """Whether it is `mine`'s turn, now or within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._queue[0] is mine, seconds)
