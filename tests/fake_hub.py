"""A hub on this machine, with one model, for the hub's own client. It can be slow, broken, or away."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from huggingface_hub import constants

NAME = "owner/name"
COMMIT = "0123456789abcdef" * 2 + "01234567"
PIECE = 1 << 13  # bytes that are sent at once


class FakeHub:
    """The hub's model is a folder. `sent` has the path of each file that a client has asked for.

    While `open` is cleared, a file of weights comes quickly up to half of its bytes, and then a piece every `pause`
    seconds. With a `status`, files of weights have it instead of their content.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, list[str]()
        self.open, self.status, self.pause = threading.Event(), 200, 0.05
        self.open.set()
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                hub.answer(self, with_content=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_content=False)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def files(self) -> dict[str, int]:
        """Each file's size in bytes, by its path."""
        found = sorted(file for file in self.folder.rglob("*") if file.is_file())
        return {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in found}

    @contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.open.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def answer(self, request: BaseHTTPRequestHandler, with_content: bool) -> None:
        path = urlsplit(request.path).path
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [self._entry(name, size) for name, size in self.files.items()]
            return _send(request, json.dumps(entries).encode())
        if path.startswith(f"/api/models/{NAME}"):
            return _send(request, json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode())
        name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        if name not in self.files:
            return _send(request, b"{}", 404)
        weights = name.endswith(".safetensors")
        if with_content:
            self.sent.append(name)
            if weights and self.status != 200:
                return _send(request, b"{}", self.status)
        content = (self.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return _send(request, content if with_content else b"", 200, headers, len(content), self if weights else None)

    def _entry(self, name: str, size: int) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def _send(
    request: BaseHTTPRequestHandler,
    content: bytes,
    status: int = 200,
    headers: dict[str, str] | None = None,
    length: int | None = None,
    slow: FakeHub | None = None,
) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    try:
        for start in range(0, len(content), PIECE):
            if slow and start >= len(content) // 2:
                slow.open.wait(slow.pause)
            request.wfile.write(content[start : start + PIECE])
    except OSError:  # the client has gone
        request.close_connection = True


@contextmanager
def fake_hub(folder: Path, cache: Path) -> Iterator[FakeHub]:
    """A hub with the model in `folder`, which the hub's client uses with this cache instead of the real one."""
    hub = FakeHub(folder)
    known = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "DOWNLOAD_CHUNK_SIZE": PIECE,
    }
    with hub.serving(), patch.multiple(constants, **known):
        yield hub
