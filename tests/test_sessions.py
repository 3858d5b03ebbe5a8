"""The cost of a client that only connects: its session is made on the event loop, so all others wait for it."""

import asyncio
import tracemalloc

import gradio as gr
from gradio.state_holder import SessionState

from styleengine.ui.blocks import AppBlocks


def page(count: int) -> AppBlocks:
    with AppBlocks() as demo:
        for number in range(count):
            gr.Slider(label=f"Slider {number}")
    return demo


def test_a_session_keeps_no_description_of_the_page() -> None:
    demo = page(200)
    SessionState(demo)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sessions = [SessionState(demo) for _ in range(20)]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(sessions)
    finally:
        tracemalloc.stop()
    assert each < 25 * 1024, f"{each / 1024:.0f} KiB a session"


def test_sessions_do_not_share_what_changes() -> None:
    demo = page(3)
    slider = next(block for block in demo.blocks.values() if isinstance(block, gr.Slider))
    one, other = SessionState(demo), SessionState(demo)
    one[slider._id] = gr.Slider(label="changed", render=False)
    assert one[slider._id].label == "changed"
    assert other[slider._id].label == slider.label


def test_outputs_that_are_not_named_stay_as_they_are() -> None:
    """No component is made for them, which would cost as much as for a changed one."""
    with AppBlocks() as demo:
        outputs = [gr.Textbox(label=name) for name in "abc"]
        gr.Button().click(lambda: {outputs[1]: "new"}, None, outputs)
    function, state = next(iter(demo.fns.values())), SessionState(demo)
    values = asyncio.run(demo.postprocess_data(function, {outputs[1]: "new"}, state))
    assert values == [gr.skip(), "new", gr.skip()]
    assert state[outputs[0]._id] is outputs[0]
    update = asyncio.run(demo.postprocess_data(function, {outputs[2]: gr.Textbox(label="d", render=False)}, state))
    assert update[2]["label"] == "d"
    assert update[:2] == [gr.skip(), gr.skip()]
