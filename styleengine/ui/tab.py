"""The type of `TAB`, which every `tab_*.py` file defines."""

from collections.abc import Callable
from dataclasses import dataclass

from styleengine.ui.runs import Runner


@dataclass(frozen=True)
class Tab:
    """A tab of the app. `build` is called inside the tab's Gradio context; `method` is the tab's method."""

    title: str
    order: int
    build: Callable[[Runner], None]
    method: str = ""
