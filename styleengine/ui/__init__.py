"""The app: one file per tab (`tab_*.py`, found by name), and what the tabs share."""

import importlib
import pkgutil

import gradio as gr

from styleengine.engine import StyleEngine
from styleengine.methods import METHODS
from styleengine.ui.blocks import AppBlocks
from styleengine.ui.form import plain_tab
from styleengine.ui.page import footer, header, launch_options
from styleengine.ui.runs import Runner
from styleengine.ui.tab import Tab

__all__ = ["build", "build_apology", "launch_options", "tabs"]

TITLE = "StyleEngine"
CACHE_SWEEP, CACHE_AGE = 3600, 24 * 3600  # seconds: uploads and results are deleted after a day
LAST = 100  # the order of tabs that have no file
MOST_QUEUED = 200  # runs that wait


def tabs() -> list[Tab]:
    """What the `tab_*.py` files of this package declare, in their order, then the methods without such a file."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("tab_")]
    own: list[Tab] = [importlib.import_module(f"{__name__}.{name}").TAB for name in names]
    others = [method for method in METHODS.values() if method.name not in {tab.method for tab in own}]
    plain = [Tab(method.title, LAST, plain_tab(method), method.name) for method in others]
    return sorted([*own, *plain], key=lambda tab: tab.order)


def build(engine: StyleEngine) -> gr.Blocks:
    """The whole page on one engine; `launch` it with `launch_options()`."""
    runner = Runner(engine)
    with AppBlocks(title=TITLE, fill_width=True, delete_cache=(CACHE_SWEEP, CACHE_AGE)) as demo:
        header(TITLE)
        for tab in tabs():
            with gr.Tab(tab.title):
                tab.build(runner)
        footer(engine.backbone)
    return demo.queue(max_size=MOST_QUEUED, api_open=False)


def build_apology(sentence: str) -> gr.Blocks:
    """The page for when no model could be loaded: it says why."""
    with gr.Blocks(title=TITLE, fill_width=True) as demo:
        header(TITLE)
        gr.Markdown(f"**The app cannot start.** {sentence}", elem_classes="apology")
    return demo
