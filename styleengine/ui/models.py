"""The model dropdown of a tab."""

from typing import Any

import gradio as gr

from styleengine.backbones import named_backbones
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.stylization import model_name
from styleengine.ui.page import licence_of, model_title

MOST_SHOWN = 100  # characters of a name in an error


def model_choice(engine: StyleEngine, start: str | None = None) -> gr.Dropdown:
    """All named models and the app's own. `start` is selected initially, or the app's own."""
    names = list(dict.fromkeys([engine.model, *named_backbones()]))
    return gr.Dropdown(
        [(model_title(name), model_name(name)) for name in names],
        value=start or model_name(engine.model),
        label="Model",
        info=model_info(start or engine.model),
        interactive=True,
    )


def model_info(model: str) -> str:
    """The licence of a model's weights, and that others are downloaded, as Markdown."""
    words, licence, address = licence_of(model)
    return f"{words} [{licence}]({address}). Others are downloaded on first use." if address else words


def chosen_model(engine: StyleEngine, choice: gr.Dropdown, value: Any) -> str:
    """The model of that name. Clients may load only the models that the dropdown offers.

    None selects the app's own model. Raises StyleEngineError for any other name.
    """
    offered = [str(name) for _, name in choice.choices]
    if value is None or value == model_name(engine.model):
        return engine.model
    if value not in offered:
        known = ", ".join(f"“{name}”" for name in offered)
        named = f"“{value[:MOST_SHOWN]}”" if isinstance(value, str) else "of that name"
        raise StyleEngineError(f"There is no model {named} here. Choose one of {known}.")
    return value
