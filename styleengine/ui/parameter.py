"""Inputs of the API: the page's controls without their initial values."""

from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.ui.uploads import FILE_COMPONENTS


class Parameter(gr.JSON):
    """Replaces a control at an endpoint. It has the control's API description but no initial value.

    For an omitted parameter Gradio sends the component's initial value. With None as that value, the endpoint
    can distinguish omitted parameters from given ones.
    """

    data_model = None  # the endpoint gets the values as sent and checks them itself

    def __init__(self, control: Component) -> None:
        self.control = control
        super().__init__(label=getattr(control, "label", None), visible=False)

    def get_block_name(self) -> str:
        return "json"

    def get_block_class(self) -> str:
        return "json"

    def get_config(self, cls: type | None = None) -> dict[str, Any]:
        return super().get_config(cls or gr.JSON)

    def api_info(self) -> dict[str, Any]:
        """The control's description. A list without choices (styles before the model is loaded) allows all values."""
        return {name: value for name, value in self.control.api_info().items() if (name, value) != ("enum", [])}

    def api_info_as_input(self) -> dict[str, Any]:
        return self.control.api_info_as_input()

    def example_payload(self) -> Any:
        return self.control.example_payload()

    def example_value(self) -> Any:
        return self.control.example_value()


def parameter(control: Component) -> Component:
    """The endpoint's replacement for a control. File components have no initial value and are used as they are."""
    return control if isinstance(control, FILE_COMPONENTS) else Parameter(control)
