"""The app's Blocks: checks the inputs of every event and turns every failure into an error message."""

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

UNEXPECTED = "The request failed with an unexpected error. See the server's log."
SERVING_THREADS = 20
NO_DESCRIPTION: dict[str, Any] = {}


class SessionConfig(BlocksConfig):
    """A session's blocks, without the per-component config that Gradio keeps for deep links.

    The app does not use deep links. For the 400 components of this page the config took 740 KiB and 20 ms
    of the event loop per session, and every client connection is a session.
    """

    @staticmethod
    def config_for_block(*_: Any, **__: Any) -> dict[str, Any]:
        return NO_DESCRIPTION


class PageConfig(BlocksConfig):
    """The page's blocks. Gradio copies them for every session."""

    def __copy__(self) -> SessionConfig:
        session = SessionConfig(self.root_block)
        session.blocks = ChainMap({}, self.blocks)  # type: ignore[assignment] - copy on write
        session.fns, session.fn_id = self.fns, self.fn_id
        return session


class AppBlocks(gr.Blocks):
    """Gradio's Blocks for untrusted clients.

    Foreign files and oversized values are rejected before Gradio processes them. Errors are plain
    sentences. Those of the page are escaped, since Gradio renders them as HTML.
    """

    _tools: ToolServer | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = PageConfig(self)

    def run_startup_events(self) -> None:
        """Reduces pauses of the event loop.

        A full garbage collection visited every object of torch and of the page, which took 0.3 to 0.7 s, so
        the objects that exist now are frozen. Fewer serving threads leave the event loop more CPU time.
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
        """Skips unchanged outputs, for which Gradio would construct a new component each."""
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
        except Exception:  # noqa: BLE001 - its text may contain paths on the server
            traceback.print_exc()
            words = UNEXPECTED
        on_page = function.api_visibility != "public"
        raise gr.Error(escape(words, quote=False) if on_page else words, print_exception=False)
