"""One at a time, in the order in which they came."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock that serves threads in the order in which they asked for it, and that they may leave while they wait.

    Who gives it back and asks again at once stands behind all that wait.
    """

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, while_waiting: Callable[[], None] | None = None, pause: float = 0.2) -> Iterator[None]:
        """The context is entered once all that came before have left it.

        `while_waiting` is called at once if there is anything to wait for, then every `pause` seconds; what it
        raises ends the waiting.
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
        """Whether it is `mine`'s turn, now or within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._queue[0] is mine, seconds)
