"""Console output that never aborts a run, whatever the console's encoding and also after a closed pipe."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from styleengine.errors import StyleEngineError
from styleengine.settings import shortened
from styleengine.stylization import LearningEvent, OnStep, StepEvent


class Console:
    """A text stream whose `write` never raises.

    Characters outside the stream's encoding are replaced. After a write error (a closed pipe, a full disk) further
    output is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
                self._stream.flush()
            except (OSError, ValueError):
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` flushes."""

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """Sends buffered output to the null device, so that the interpreter's final flush succeeds."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = None


@contextlib.contextmanager
def lenient_console() -> Iterator[None]:
    """Within the context, standard output and standard error are `Console`s."""
    out: Any = Console(sys.stdout)
    errors: Any = Console(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield


def silence_libraries() -> None:
    """Hides the progress bars and deprecation warnings of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", module="diffusers|transformers")
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def output_folder(path: str) -> Path:
    """A folder for several results, created if it does not exist; StyleEngineError if that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=folder).close()
    except OSError as error:
        raise StyleEngineError(
            f"{shortened(str(folder))} cannot be used as a folder ({error.strerror}): name another one with -o."
        ) from error
    return folder


@contextlib.contextmanager
def progress_bar() -> Iterator[OnStep]:
    with tqdm(unit="step", bar_format="{desc:<24} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]") as bar:

        def on_step(event: StepEvent) -> None:
            bar.total = event.total
            shown = (
                f"{event.phase}, loss {event.validations[-1][1]:.4f}"
                if isinstance(event, LearningEvent)
                else event.phase
            )
            bar.set_description_str(shown, refresh=False)
            bar.update(event.step - bar.n)

        yield on_step
