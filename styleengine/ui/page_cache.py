"""A cache of the page, its config and its API description, which Gradio builds anew per request."""

import asyncio
import time
from typing import Any, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT = ("/", "/config", "/gradio_api/info")
BY = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server", b"accept-encoding")
NEVER_BY = (b"cookie", b"authorization", b"range")
KEPT_SECONDS = 60
MOST_KEPT = 16

Key: TypeAlias = tuple[Any, ...]


class PageCache:
    """ASGI middleware that caches responses which are the same for all clients: the page, its config, its API.

    Building the page blocks Gradio's event loop for 70 ms: after fifty simultaneous clients the next one
    waited for over a second. Requests with a query, a cookie or credentials are not cached.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._answers: dict[Key, list[Message]] = {}
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope)
        if key is None:
            return await self.app(scope, receive, send)
        async with self._making:
            answer = self._answers.get(key) or await self._made(key, scope, receive)
        for message in answer:
            await send(message)

    async def _made(self, key: Key, scope: Scope, receive: Receive) -> list[Message]:
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self.app(scope, receive, keep)
        if answer and answer[0].get("status") == 200:
            if len(self._answers) >= MOST_KEPT:
                self._answers.clear()
            self._answers[key] = answer
        return answer


def _key(scope: Scope) -> Key | None:
    """The cache key of a request; None if its response must not be cached."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in KEPT or scope["query_string"]:
        return None
    headers = dict(scope["headers"])
    if any(name in headers for name in NEVER_BY):
        return None
    shown_by = tuple(headers.get(name) for name in BY)
    return scope["path"], scope.get("root_path"), shown_by, int(time.monotonic() // KEPT_SECONDS)
