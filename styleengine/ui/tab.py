"""What a `tab_*.py` file declares, as its `TAB`."""

from collections.abc import Callable
from dataclasses import dataclass

from styleengine.ui.runs import Runner


@dataclass(frozen=True)
class Tab:
    """A tab of the app: `build` fills it, called inside the tab's own Gradio context. `method` is the one it is for."""

    title: str
    order: int
    build: Callable[[Runner], None]
    method: str = ""
