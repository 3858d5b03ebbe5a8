"""Inputs of the API: those of the page, without the values that the page starts with."""

from typing import Any

import gradio as gr
from gradio.components import Component

from styleengine.ui.uploads import FILE_COMPONENTS


class Parameter(gr.JSON):
    """Stands in for a control of the page at an endpoint. It is described like it but starts empty.

    For a parameter that is left out Gradio sends what its component starts with. So only None says
    that a client left it out, whatever the page shows.
    """

    data_model = None  # values reach the endpoint as they were sent, and it says what is wrong with them

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
        return self.control.api_info()

    def api_info_as_input(self) -> dict[str, Any]:
        return self.control.api_info_as_input()

    def example_payload(self) -> Any:
        return self.control.example_payload()

    def example_value(self) -> Any:
        return self.control.example_value()


def parameter(control: Component) -> Component:
    """What takes a control's place at an endpoint; files have no value to start with."""
    return control if isinstance(control, FILE_COMPONENTS) else Parameter(control)
