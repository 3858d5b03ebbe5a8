"""The type of `TAB`, which every `tab_*.py` file defines."""

from collections.abc import Callable
from dataclasses import dataclass

from styleengine.method import Method
from styleengine.ui.runs import Runner


@dataclass(frozen=True)
class Tab:
    """The tab of a method, labelled with its titles, or one with a `title` of its own for several methods.

    `build` is called inside the tab's Gradio context.
    """

    method: Method | None
    order: int
    build: Callable[[Runner], None]
    title: str = ""

    @property
    def label(self) -> str:
        return self.method.label if self.method else self.title

    @property
    def intro(self) -> str:
        """What the method does, in a sentence, and a link to the paper, as Markdown."""
        if self.method is None:
            return ""
        link = f" [Paper]({self.method.paper})" if self.method.paper else ""
        return f"{self.method.summary}{link}"
