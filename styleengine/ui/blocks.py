"""The app's Blocks: every event's inputs pass the door, and every failure ends in a sentence."""

import traceback
from html import escape
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from gradio.block_function import BlockFunction

from styleengine.errors import StyleEngineError
from styleengine.ui.tools import ToolServer
from styleengine.ui.uploads import admitted, sentence

UNEXPECTED = "The request failed with an unexpected error, which is in the server's log."


class AppBlocks(gr.Blocks):
    """Gradio's Blocks for clients that cannot be trusted.

    Files and oversized values are refused before Gradio touches them. What goes wrong is told in a
    sentence; on the page, where Gradio shows it as HTML, it is escaped.
    """

    _tools: ToolServer | None = None

    @property
    def mcp_server_obj(self) -> ToolServer | None:
        return self._tools

    @mcp_server_obj.setter
    def mcp_server_obj(self, server: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._tools = ToolServer(self) if server is not None else None

    async def process_api(self, block_fn: BlockFunction | int, inputs: list[Any], **options: Any) -> dict[str, Any]:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            if options.get("iterator") is None and not options.get("explicit_call"):
                inputs = await run_sync(admitted, function.inputs, inputs)
            return await super().process_api(function, inputs, **options)
        except (StyleEngineError, gr.Error) as error:
            words = sentence(error)
        except Exception:  # noqa: BLE001 - whatever it is, its text may tell about the server's disk
            traceback.print_exc()
            words = UNEXPECTED
        on_page = function.api_visibility != "public"
        raise gr.Error(escape(words, quote=False) if on_page else words, print_exception=False)
