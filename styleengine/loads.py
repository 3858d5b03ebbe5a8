"""Loading models, each once for all threads that need it."""

import atexit
import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from PIL import Image

from styleengine.errors import Cancelled, StyleEngineError
from styleengine.phases import WAITING, loading
from styleengine.stylization import OnStep, StepEvent
from styleengine.turns import Turns

PAUSE = 0.2  # seconds between two reports to those who wait
UNEXPECTED = "The model could not be loaded because of an unexpected error. See the server's log."
NOTHING = Image.new("RGB", (1, 1), "white")  # the preview before a run


class Load:
    """The loading of one model by `make(load)`, which `run` calls once.

    `make` passes `on_bytes` to the download, and enters `turn` to read the weights. Both raise Cancelled when nobody
    waits for the model any more.
    """

    def __init__(self, title: str, make: "Make") -> None:
        self.title, self.error = title, None
        self.users = 1  # threads that wait for the result; Loads counts them
        self.closed = False
        self._bytes, self._waits = (0, 1), False
        self._result: Any = None
        self._ended = threading.Event()
        self._make: Make | None = make

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def event(self) -> StepEvent:
        """The phase “waiting” before its turn; else “loading”, with the bytes that are here and those of all files.

        Without a download these are 0 and 1.
        """
        if self._waits:
            return StepEvent(WAITING, 0, 1, lambda: NOTHING)
        done, total = self._bytes
        return StepEvent(loading(self.title), done, total, lambda: NOTHING)

    def on_bytes(self, done: int, total: int) -> None:
        self._bytes = done, max(1, total)
        self._check()

    @contextlib.contextmanager
    def turn(self, turns: Turns) -> Iterator[None]:
        """The context of one of `turns`, in which no run is going on."""
        with turns.one(self._on_waiting):
            self._waits = False
            yield

    def wait(self, on_step: OnStep | None) -> Any:
        """The loaded model. Until it is there, `on_step` gets events, and can raise Cancelled."""
        while not self._ended.wait(PAUSE):
            if on_step:
                on_step(self.event)
        if self.error:
            raise self.error
        return self._result

    def run(self) -> None:
        make, self._make = self._make, None
        assert make
        try:
            self._result = make(self)
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self.error = error
        self._ended.set()

    def _on_waiting(self) -> None:
        self._waits = True
        self._check()

    def _check(self) -> None:
        if self.closed or not self.users:
            raise Cancelled


Make = Callable[[Load], Any]


class Loads:
    """The loads that are going on, by their keys, and why others have failed."""

    def __init__(self) -> None:
        self._going: dict[Hashable, Load] = {}
        self._problems: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def close_at_exit(self) -> None:
        """Ends what is being loaded when the program ends, which would wait for the threads of a download."""
        register = getattr(threading, "_register_atexit", atexit.register)  # the latter's functions are called too late
        register(self._close)

    def _close(self) -> None:
        with self._lock:
            for load in self._going.values():
                load.closed = True

    def state(self, key: Hashable) -> tuple[StepEvent | None, str]:
        """The event of a load that is going on, or None; why the last one failed, or an empty string."""
        with self._lock:
            load = self._going.get(key)
            return load.event if load else None, self._problems.get(key, "")

    def result(self, key: Hashable, title: str, make: Make, on_step: OnStep | None) -> Any:
        """What `make` loads, by a load that is going on or by a new one. It ends when all who wait for it have left.

        With `on_step`, a new load has a thread of its own, so that this one can leave. Otherwise it runs here: ZeroGPU
        places models on the device only in the thread that starts the app.

        Raises the error of `make`, or what `on_step` raises.
        """
        load, new = self._joined(key, title, make)
        try:
            if new and on_step:
                threading.Thread(target=load.run, name="styleengine-loading", daemon=True).start()
            elif new:
                load.run()
            return load.wait(on_step)
        finally:
            self._leave(key, load)

    def _joined(self, key: Hashable, title: str, make: Make) -> tuple[Load, bool]:
        """The load, and whether it is new and is to be run by the caller."""
        with self._lock:
            load = self._going.get(key)
            if load and not load.ended:
                load.users += 1
                return load, False
            self._problems.pop(key, None)
            self._going[key] = load = Load(title, make)
            return load, True

    def _leave(self, key: Hashable, load: Load) -> None:
        with self._lock:
            load.users -= 1
            if self._going.get(key) is not load or (load.users and not load.ended):
                return
            del self._going[key]
            if load.error:
                known = isinstance(load.error, StyleEngineError)
                self._problems[key] = str(load.error) if known else UNEXPECTED
