"""The two exceptions that callers of StyleEngine meet."""


class StyleEngineError(ValueError):
    """Something a person can put right. The message says what was wrong and what to do."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Raised inside `on_step` to stop a run; everything is restored and nothing is written."""
