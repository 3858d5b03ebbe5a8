"""The page is rendered once for many clients, and a response to one client is never cached for others."""

import asyncio
from typing import Any

import pytest

from styleengine.ui.page_cache import MOST_KEPT, PageCache


class Site:
    """An ASGI app that counts its requests."""

    def __init__(self, status: int = 200) -> None:
        self.status, self.asked = status, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": f"{scope['path']} {self.asked}".encode()})


async def get(app: PageCache, path: str = "/", query: bytes = b"", method: str = "GET", **headers: str) -> bytes:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": named}
    await app(scope, None, send)  # type: ignore[arg-type]
    return sent[-1]["body"]


def test_simultaneous_requests_share_one_response() -> None:
    site = Site()
    app = PageCache(site)

    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(get(app, host="a") for _ in range(50)))

    assert set(asyncio.run(all_at_once())) == {b"/ 1"}
    assert site.asked == 1


@pytest.mark.parametrize("other", [{"host": "b"}, {"x_forwarded_host": "b"}, {"x_forwarded_proto": "https"}])
def test_responses_are_cached_by_the_requested_address(other: dict[str, str]) -> None:
    app = PageCache(Site())
    assert asyncio.run(get(app, **{"host": "a"})) != asyncio.run(get(app, **{"host": "a", **other}))


@pytest.mark.parametrize(
    "request_",
    [
        {"query": b"deep_link=x"}, {"cookie": "session=1"}, {"authorization": "Bearer x"}, {"method": "HEAD"},
        {"path": "/gradio_api/file=x"}, {"path": "/gradio_api/heartbeat/x"},
    ],
)  # fmt: skip
def test_responses_that_may_depend_on_the_client_are_never_cached(request_: dict[str, Any]) -> None:
    site = Site()
    app = PageCache(site)
    assert asyncio.run(get(app, **request_)) != asyncio.run(get(app, **request_))
    assert site.asked == 2


def test_errors_are_not_cached() -> None:
    site = Site(500)
    app = PageCache(site)
    asyncio.run(get(app))
    asyncio.run(get(app))
    assert site.asked == 2


def test_it_stays_small_whatever_hosts_are_named() -> None:
    app = PageCache(Site())
    for number in range(3 * MOST_KEPT):
        asyncio.run(get(app, host=f"host-{number}"))
    assert len(app._answers) <= MOST_KEPT
