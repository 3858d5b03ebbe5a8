"""The app: one file per tab (`tab_*.py`, discovered by name) and the shared parts."""

import importlib
import pkgutil
import threading
import time
from collections.abc import Callable, Sequence

import gradio as gr

from styleengine.engine import StyleEngine
from styleengine.methods import METHODS
from styleengine.ui import gpu
from styleengine.ui.banner import Banner
from styleengine.ui.blocks import AppBlocks
from styleengine.ui.form import plain_tab
from styleengine.ui.kept_clips import KeptClips
from styleengine.ui.page import footer, header, launch_options
from styleengine.ui.runs import Runner
from styleengine.ui.tab import Tab

__all__ = ["build", "build_error_page", "gpu", "launch_options", "tabs"]

TITLE = "StyleEngine"
CACHE_SWEEP, CACHE_AGE = 3600, 24 * 3600  # seconds: uploads and results are deleted after a day
LAST = 100  # order of tabs without a file of their own
MOST_QUEUED = 200  # queued runs


def tabs() -> list[Tab]:
    """The tabs of the `tab_*.py` files, in their order, then plain tabs for the remaining methods."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("tab_")]
    own: list[Tab] = [importlib.import_module(f"{__name__}.{name}").TAB for name in names]
    others = [method for method in METHODS.values() if method not in [tab.method for tab in own]]
    plain = [Tab(method, LAST, plain_tab(method)) for method in others]
    return sorted([*own, *plain], key=lambda tab: tab.order)


def build(engine: StyleEngine) -> gr.Blocks:
    """The whole app on one engine. Start it with `launch(**launch_options())`.

    A lazy engine loads its model meanwhile. The page shows how far it is, and runs wait for it.
    """
    gpu.prepare(engine)
    sweeps = [engine.cache.disk.sweep] if engine.cache.disk else []
    sweeps += [KeptClips.usual().sweep] if gpu.ZERO else []
    if sweeps:
        threading.Thread(target=_keep_swept, args=(sweeps,), daemon=True).start()
    runner = Runner(engine)
    with AppBlocks(title=TITLE, fill_width=True, delete_cache=(CACHE_SWEEP, CACHE_AGE)) as demo:
        header(TITLE, engine)
        banner = None if engine.loaded else Banner(engine)
        for tab in tabs():
            with gr.Tab(tab.label):
                if tab.intro:
                    gr.Markdown(tab.intro)
                tab.build(runner)
        footer()
        if banner:
            banner.connect(runner.following)
            engine.preload()
    return demo.queue(max_size=MOST_QUEUED, api_open=False)


def _keep_swept(sweeps: Sequence[Callable[[], None]]) -> None:
    """Deletes what is too old on disk, also while no run does."""
    while True:
        for sweep in sweeps:
            sweep()
        time.sleep(CACHE_SWEEP)


def build_error_page(sentence: str) -> gr.Blocks:
    """The page shown when no model could be loaded, with the reason."""
    with gr.Blocks(title=TITLE, fill_width=True) as demo:
        header(TITLE)
        gr.Markdown(f"**The app cannot start.** {sentence}", elem_classes="apology")
    return demo
