"""The web server over a real socket: health, limits, names, ports, and its end."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import httpx
import pytest
import trio

from trickle.exceptions import ConfigurationError
from trickle.service import Service, ServiceStatistics
from trickle.web import Health, Web
from trickle.web.guard import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BODY_BYTES_MAX = 1 << 20
HASTY = Limits(idle_timeout=0.3, body_timeout=0.3, response_timeout=0.3, connections=5)


class View:
    """A Run, as far as pages see it."""

    def __init__(self) -> None:
        self.now = Health(live=True, ready=True, detail="2 partitions")
        self.error: Exception | None = None

    def health(self) -> Health:
        if self.error is not None:
            raise self.error
        return self.now

    def statistics(self) -> ServiceStatistics:
        return Service("Run").statistics()


@asynccontextmanager
async def serving(
    view: View, *, port: int | None = 0, token: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> AsyncGenerator[Web]:
    web = Web(view, port=port, token=token, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(web.run)
        yield web
        nursery.cancel_scope.cancel()


async def talk(web: Web, request: bytes, *, within: float = 10.0) -> bytes:
    """Send raw bytes and return all that comes back until the server closes."""
    assert web.port is not None
    with trio.fail_after(within):
        async with await trio.open_tcp_stream("127.0.0.1", web.port) as stream:
            await stream.send_all(request)
            answer = b""
            while chunk := await stream.receive_some(65536):
                answer += chunk
    return answer


async def test_health_is_two_pages_with_a_reason() -> None:
    view = View()
    async with serving(view) as web, httpx.AsyncClient(base_url=web.url or "") as client:
        live = await client.get("/health/live")
        ready = await client.get("/health/ready")
        assert (live.status_code, live.json()) == (200, {"live": True, "detail": "2 partitions"})
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "detail": "2 partitions"})
        assert ready.headers["content-type"] == "application/json"
        assert ready.headers["cache-control"] == "no-store"
        assert "server" not in ready.headers
        assert "access-control-allow-origin" not in ready.headers

        view.now = Health(live=True, ready=False, detail="recovering 3 shards")
        live = await client.get("/health/live")
        ready = await client.get("/health/ready")
        assert live.status_code == 200
        assert ready.status_code == 503
        assert ready.json() == {"ready": False, "detail": "recovering 3 shards"}

        view.now = Health(live=False, ready=False, detail="the fetcher is stuck")
        assert (await client.get("/health/live")).status_code == 503


async def test_no_traceback_and_no_secret_in_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    view = View()
    view.error = RuntimeError("canary-password")
    async with serving(view) as web, httpx.AsyncClient(base_url=web.url or "") as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.get("/health/live")
    assert answer.status_code == 500
    assert answer.json() == {"error": "the page failed: the server's log says why"}
    assert "canary" not in answer.text
    assert [record.name for record in caplog.records] == ["trickle.web"]


async def test_unknown_pages_and_traversal_are_not_found() -> None:
    async with serving(View()) as web:
        for path in ("/nothing", "/../../etc/passwd", "/static/x", "/%2e%2e/%2e%2e/etc/passwd"):
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nConnection: close\r\n"
            answer = await talk(web, (request + "\r\n").encode())
            assert answer.startswith(b"HTTP/1.1 404"), path
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "not found"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6066", "127.0.0.1", "127.0.0.1:1"])
async def test_a_foreign_host_is_refused(host: str) -> None:
    async with serving(View()) as web:
        request = f"GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = await talk(web, request.encode())
        assert answer.startswith(b"HTTP/1.1 421")
        assert b"live" not in answer


async def test_a_large_body_is_refused_at_its_head() -> None:
    async with serving(View()) as web:
        head = f"POST /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n"
        answer = await talk(web, f"{head}Content-Length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 413")


async def test_a_large_chunked_body_is_refused_once_it_is_too_large() -> None:
    async with serving(View()) as web, httpx.AsyncClient(base_url=web.url or "") as client:

        async def chunks() -> AsyncGenerator[bytes, None]:
            for _ in range(BODY_BYTES_MAX // 65536 + 1):
                yield b"x" * 65536

        answer = await client.post("/health/live", content=chunks())
        assert answer.status_code == 413


async def test_a_stalled_body_ends_in_time() -> None:
    async with serving(View(), limits=HASTY) as web:
        head = f"POST /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n"
        answer = await talk(web, f"{head}Content-Length: 10\r\n\r\nabc".encode())
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.3 s" in answer


async def test_a_half_head_is_closed_in_time() -> None:
    async with serving(View(), limits=HASTY) as web:
        assert await talk(web, b"GET /health/live HTTP/1.1\r\nHost: 1") == b""


async def test_a_head_of_20_kb_and_garbage_are_refused() -> None:
    async with serving(View()) as web:
        large = b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 20_000 + b"\r\n\r\n"
        assert (await talk(web, large)).startswith(b"HTTP/1.1 431")
        assert (await talk(web, b"\x16\x03\x01 garbage\r\n\r\n")).startswith(b"HTTP/1.1 400")


def _http2(*headers: tuple[str, str | bytes]) -> bytes:
    """Return the first bytes of a client that speaks HTTP/2 without asking."""
    config = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.send_headers(1, headers, end_stream=True)
    return connection.data_to_send()


_H2C = (
    b"GET / HTTP/1.1\r\nHost: evil\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n"
)
_NO_PATH = _http2((":method", "CONNECT"), (":authority", "x"))
_NO_TEXT = _http2(
    (":method", "GET"), (":path", b"/\xff\xfe"), (":scheme", "http"), (":authority", "x")
)


@pytest.mark.parametrize("request_bytes", [_H2C, _NO_PATH, _NO_TEXT], ids=["h2c", "path", "text"])
async def test_whatever_a_client_sends_ends_his_connection_and_no_other(
    request_bytes: bytes,
) -> None:
    """The server's own code fails by these; it must not take the Run down."""
    async with serving(View()) as web:
        assert web.port is not None
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", web.port) as other:
                await talk(web, request_bytes)
                request = f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n\r\n"
                await other.send_all(request.encode())
                assert (await other.receive_some(65536)).startswith(b"HTTP/1.1 200")


async def test_a_websocket_is_refused() -> None:
    async with serving(View()) as web:
        request = (
            f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await talk(web, request.encode())).startswith(b"HTTP/1.1 403")


async def test_the_token_is_asked_for_except_by_probes() -> None:
    token = "canary-token"
    async with (
        serving(View(), token=token) as web,
        httpx.AsyncClient(base_url=web.url or "") as client,
    ):
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/other")).status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert (await client.get("/other", headers=wrong)).status_code == 401
        right = {"authorization": f"Bearer {token}"}
        assert (await client.get("/other", headers=right)).status_code == 404


def test_a_wider_bind_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Web(View(), "0.0.0.0")  # noqa: S104 - what is refused
    assert str(caught.value) == (
        "web_host='0.0.0.0' lets other machines reach the web server: set web_token to a secret "
        "that they must send, or leave web_host at 127.0.0.1"
    )


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.RaisesGroup(
            pytest.RaisesExc(ConfigurationError, match=rf"web_port={port} is taken on 127.0.0.1"),
            flatten_subgroups=True,
        ):
            async with serving(View(), port=port):
                pass


async def test_the_next_free_port_is_taken_where_none_was_asked_for() -> None:
    async with serving(View(), port=None) as one, serving(View(), port=None) as two:
        assert one.port is not None
        assert two.port is not None
        assert two.port > one.port >= 6066


async def test_its_end_does_not_wait_for_open_connections() -> None:
    with trio.fail_after(3):
        async with serving(View()) as web:
            idle = await trio.open_tcp_stream("127.0.0.1", web.port or 0)
            stalled = await trio.open_tcp_stream("127.0.0.1", web.port or 0)
            await stalled.send_all(b"POST /health/live HTTP/1.1\r\nHost: 127.0.0.1:")
    await idle.aclose()
    await stalled.aclose()
    assert web.port is None


async def test_only_so_many_connections_are_open_at_a_time() -> None:
    """One more than may be open: it is served once the server has closed an idle one."""
    async with serving(View(), limits=HASTY) as web:
        idle = [await trio.open_tcp_stream("127.0.0.1", web.port or 0) for _ in range(5)]
        began = trio.current_time()
        request = f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n"
        answer = await talk(web, f"{request}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        assert trio.current_time() - began > 0.1
        for stream in idle:
            await stream.aclose()


async def test_a_connection_that_is_kept_open_is_closed_when_idle() -> None:
    async with serving(View(), limits=HASTY) as web:
        request = f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n\r\n"
        answer = await talk(web, (request * 2).encode())
        assert answer.count(b"HTTP/1.1 200") == 2


async def test_a_refused_connection_is_closed() -> None:
    """Refusals come before a page has run; none may leave its connection open."""
    async with serving(View(), token="canary-token") as web:
        for request in ("GET / HTTP/1.1\r\nHost: evil\r\n\r\n", "POST / HTTP/1.1\r\n\r\n"):
            assert b"HTTP/1.1 4" in await talk(web, request.encode(), within=2)


def test_a_port_that_clients_leave_out_of_the_host_is_no_foreign_one() -> None:
    web = Web(View(), "127.0.0.1")
    web.port = 80
    assert "localhost" in (web._hosts() or ())  # pyright: ignore[reportPrivateUsage]
