"""The three parts of a tab: its inputs and examples, the result beside them, the settings below the inputs.

On a narrow screen they follow one another in this order, so that Run and the result come before the settings.
"""

import gradio as gr


def columns() -> gr.Row:
    """Holds the three parts, which are created inside it in their order."""
    return gr.Row(equal_height=False, elem_classes="columns")


def inputs_part() -> gr.Column:
    return gr.Column(min_width=280, elem_classes="inputs-part")


def result_part() -> gr.Column:
    """Stays in view on a wide screen while the settings are scrolled."""
    return gr.Column(min_width=280, elem_classes="result-part")


def settings_part() -> gr.Column:
    return gr.Column(min_width=280, elem_classes="settings-part")
