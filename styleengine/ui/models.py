"""Choosing the model that a tab runs on."""

from typing import Any

import gradio as gr

from styleengine.backbone import named_backbones
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.ui.page import model_title


def model_choice(engine: StyleEngine) -> gr.Dropdown:
    """All models that have a name, and the one that the app started with, which is chosen at first."""
    names = list(dict.fromkeys([engine.backbone.name, *named_backbones()]))
    return gr.Dropdown(
        [(model_title(name), name) for name in names],
        value=engine.backbone.name,
        label="Model",
        info="One that is not on this machine yet is downloaded when it is first run.",
        interactive=True,
    )


def chosen_model(choice: gr.Dropdown, value: Any) -> str:
    """The value, if it is one of those offered: what comes over the API may not load whatever it names."""
    offered = [name for _, name in choice.choices]
    if value not in offered:
        known = ", ".join(f"“{name}”" for name in offered)
        raise StyleEngineError(f"There is no model “{value}” here. Choose one of {known}.")
    return value
