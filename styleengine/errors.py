"""The exceptions of the public API."""


class StyleEngineError(ValueError):
    """An error that the user can fix. The message states what was wrong and what to do."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Raised inside `on_step` to stop a run; everything is restored and nothing is written."""


class TimeUp(Exception):  # noqa: N818 - nothing went wrong
    """Raised by a run with a time limit that ends before the result is finished; the same call resumes it."""
