"""The MCP server: Gradio's, with complete results and with cancellation when the client disconnects."""

import asyncio
import base64
import json
import mimetypes
from typing import Any
from urllib.parse import unquote_to_bytes

from gradio.mcp import GradioMCPServer
from gradio.utils import get_upload_folder
from gradio_client import handle_file

from styleengine.errors import StyleEngineError
from styleengine.ui.result import place
from styleengine.ui.uploads import FILE_ADDRESS, REFUSED

GRADIO_FILE_WORDS = "Gradio File Input - a http or https url to a file"
FILE_WORDS = f"URL of a file uploaded to this server (…{FILE_ADDRESS}…), or a data: URL with its content"


class ToolServer(GradioMCPServer):
    """Serves the documented endpoints as tools.

    Calls without a progress token return all outputs, as the others do. If the client disconnects, its call
    and the queued job are cancelled.
    """

    async def _execute_tool_without_progress(self, job: Any) -> list[Any]:
        with _CancelOnExit(job):
            result = await asyncio.wrap_future(job.future)
        return list(result) if isinstance(result, tuple) else [result]

    async def _execute_tool_with_progress(self, job: Any, progress_token: str | int) -> Any:
        with _CancelOnExit(job):
            return await super()._execute_tool_with_progress(job, progress_token)

    def get_input_schema(self, tool_name: str, parameters: dict[str, str] | None = None) -> Any:
        schema, positions = super().get_input_schema(tool_name, parameters)
        for name, *within in positions:
            if within == ["items"]:  # several files: Gradio leaves a reference to a definition that is not at the root
                schema["properties"][name].pop("$defs", None)
                schema["properties"][name]["items"].pop("$ref", None)
        return json.loads(json.dumps(schema).replace(json.dumps(GRADIO_FILE_WORDS), json.dumps(FILE_WORDS))), positions

    def convert_strings_to_filedata(self, value: Any, filedata_positions: list[list[str | int]]) -> Any:
        """Arguments with files in the form of Gradio's endpoints; StyleEngineError for what is no file."""

        def converted(name: str, given: Any) -> Any:
            if [name, "items"] in filedata_positions:  # several files
                return [_file(one) for one in given] if isinstance(given, list) else given
            return _file(given) if [name] in filedata_positions else given

        return {name: converted(name, given) for name, given in value.items()}

    def postprocess_output_data(self, data: Any, root_url: str) -> list[Any]:
        """As in Gradio, with records as JSON."""
        return super().postprocess_output_data([_as_json(output) for output in data], root_url)


class _CancelOnExit:
    """Cancels a job that is unfinished at exit, in a thread: cancelling is a request to this same server."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if not self.job.done():
            asyncio.get_running_loop().run_in_executor(None, self.job.cancel)


def _file(given: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, str) and given.startswith("data:"):
        head, _, data = given.partition(",")
        try:
            content = base64.b64decode(data) if head.endswith(";base64") else unquote_to_bytes(data)
        except ValueError as error:
            raise StyleEngineError("The data: URL could not be decoded. Send the file as base64.") from error
        path = place(get_upload_folder(), f"file{mimetypes.guess_extension(head[5:].partition(';')[0]) or ''}")
        path.write_bytes(content)
        return handle_file(path)
    if isinstance(given, str) and given.startswith(("http://", "https://")) and FILE_ADDRESS in given:
        return handle_file(given)
    raise StyleEngineError(REFUSED)


def _as_json(output: Any) -> Any:
    record = isinstance(output, dict) and "path" not in output
    return json.dumps(output, ensure_ascii=False) if record else output
