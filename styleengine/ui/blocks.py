"""The app's Blocks: every event's inputs pass the door, and every failure ends in a sentence."""

import gc
import traceback
from collections import ChainMap
from copy import copy
from html import escape
from typing import Any

import gradio as gr
from anyio.to_thread import current_default_thread_limiter, run_sync
from gradio.block_function import BlockFunction
from gradio.blocks import Block, BlocksConfig
from gradio.state_holder import SessionState

from styleengine.errors import StyleEngineError
from styleengine.ui.tools import ToolServer
from styleengine.ui.uploads import admitted, sentence

UNEXPECTED = "The request failed with an unexpected error, which is in the server's log."
SERVING_THREADS = 20
NO_DESCRIPTION: dict[str, Any] = {}


class SessionConfig(BlocksConfig):
    """A session's blocks, without the description of each that Gradio keeps for its deep links.

    It is never shown here. For the 400 components of this page it took 740 KiB and 20 ms of the event
    loop for every session, and a client is a session each time it connects.
    """

    @staticmethod
    def config_for_block(*_: Any, **__: Any) -> dict[str, Any]:
        return NO_DESCRIPTION


class PageConfig(BlocksConfig):
    """The page's blocks; Gradio copies them for every session."""

    def __copy__(self) -> SessionConfig:
        session = SessionConfig(self.root_block)
        session.blocks = ChainMap({}, self.blocks)  # type: ignore[assignment] - only what changes is the session's
        session.fns, session.fn_id = self.fns, self.fn_id
        return session


class AppBlocks(gr.Blocks):
    """Gradio's Blocks for clients that cannot be trusted.

    Files and oversized values are refused before Gradio touches them. What goes wrong is told in a
    sentence; on the page, where Gradio shows it as HTML, it is escaped.
    """

    _tools: ToolServer | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = PageConfig(self)

    def run_startup_events(self) -> None:
        """Keeps what could hold up the event loop small.

        A collection of all garbage went through every object of torch and of the page, for 0.3 to 0.7 s;
        what is there now stays. With many threads that serve pages the loop waits longer for its turn.
        """
        super().run_startup_events()
        gc.collect()
        gc.freeze()
        current_default_thread_limiter().total_tokens = SERVING_THREADS

    @property
    def mcp_server_obj(self) -> ToolServer | None:
        return self._tools

    @mcp_server_obj.setter
    def mcp_server_obj(self, server: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._tools = ToolServer(self) if server is not None else None

    async def postprocess_data(
        self, block_fn: BlockFunction, predictions: list[Any] | dict[Any, Any], state: SessionState | None
    ) -> list[Any]:
        """Gradio makes a new component of every output that stays as it is; here none is made of those."""
        if not isinstance(predictions, dict) or not any(isinstance(key, Block) for key in predictions):
            return await super().postprocess_data(block_fn, predictions, state)
        changing = copy(block_fn)
        changing.outputs = [output for output in block_fn.outputs if output in predictions]
        values = iter(await super().postprocess_data(changing, predictions, state))
        return [next(values) if output in predictions else gr.skip() for output in block_fn.outputs]

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
