"""What every request passes before a page sees it.

The server is for people and probes on the same machine, yet a browser on that machine can be told
by any site to call it. So a request is refused unless

* its ``Host`` is one of the server's own names (a name that an attacker points at 127.0.0.1 is
  not: "DNS rebinding"). Hypercorn's own check, ``server_names``, leaves the refused connection
  open without any time-out, so the check is here;
* it carries the bearer token where the server has one, except for the health probes;
* its head is at most 8 KiB; its body is at most 1 MiB, and arrives whole within a few seconds.

The body is read here, before the page runs, so that no page can forget a limit. Nothing that goes
wrong in a page reaches the client but its status: the error is in the log.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec
import trio

__all__ = ["ASGI", "DEFAULT_LIMITS", "Guard", "Limits"]

logger = logging.getLogger("trickle.web")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may ask of the server; seconds and bytes.

    Attributes:
        head_bytes: of a request's line and headers.
        body_bytes: of its body.
        connections: open at a time; more wait in the kernel's backlog.
        idle_timeout: for a request's head to come, and between two requests.
        body_timeout: from the request's head to the end of its body.
        response_timeout: that a page may take.
        send_timeout: that a client may take to read what it is sent.
        quiet_timeout: without a byte in either direction.
    """

    head_bytes: int = 8 << 10
    body_bytes: int = 1 << 20
    connections: int = 100
    idle_timeout: float = 5.0
    body_timeout: float = 5.0
    response_timeout: float = 30.0
    send_timeout: float = 10.0
    quiet_timeout: float = 60.0


DEFAULT_LIMITS = Limits()

Message: TypeAlias = MutableMapping[str, Any]  # ASGI's own shape: the values are of many types
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGI: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN_PATHS = ("/health/live", "/health/ready")


class Guard:
    """An ASGI application around another one.

    Args:
        app: the pages.
        hosts: the values of ``Host`` that are answered, port included; None answers any.
        token: the bearer token that a request must carry; None asks for none.
        limits: of head, body and time.

    """

    def __init__(
        self,
        app: ASGI,
        *,
        hosts: frozenset[str] | None = None,
        token: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._token = token.encode() if token is not None else None
        self._limits = limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page speaks websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        limits = self._limits
        # h11 bounds only a head that comes in pieces: one that is there at once passes it.
        head_bytes = len(scope["raw_path"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if head_bytes > limits.head_bytes:
            await _refuse(send, 431, f"the request's head is larger than {limits.head_bytes} bytes")
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and host not in self._hosts:
            await _refuse(send, 421, "this server does not answer to that Host")
            return
        if not self._allowed(scope["path"], headers):
            await _refuse(send, 401, "this server asks for its bearer token (setting web_token)")
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.body_bytes:
            await _refuse(send, 413, f"the body is larger than {limits.body_bytes} bytes")
            return
        body: bytes | None = None
        with trio.move_on_after(limits.body_timeout) as reading:
            body = await _read_body(receive, limits.body_bytes)
        if reading.cancelled_caught:
            await _refuse(send, 408, f"the body did not arrive within {limits.body_timeout:g} s")
        elif body is None:
            await _refuse(send, 413, f"the body is larger than {limits.body_bytes} bytes")
        else:
            await self._pass_on(scope, _replay(body, receive), send)

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in _OPEN_PATHS:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            # hypercorn closes the connection, or starts its idle time-out, inside the last send,
            # after it has told the page that the client is done; Quart cancels the page for that,
            # and unshielded the connection would stay open for ever. The send itself is bounded.
            with trio.CancelScope(shield=True):
                await send(message)

        with trio.move_on_after(self._limits.response_timeout) as answering:
            try:
                await self._app(scope, receive, watched)
            except Exception:
                logger.exception("the page %s failed", scope["path"])
                if not begun:
                    await _refuse(send, 500, "the page failed: the server's log says why")
        if answering.cancelled_caught and not begun:
            await _refuse(
                send, 503, f"the page took longer than {self._limits.response_timeout:g} s"
            )


async def _read_body(receive: Receive, size_max: int) -> bytes | None:
    """Return the whole body, None where it grew too large."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the client has gone; the page finds that out by its own receive
        body += message.get("body", b"")
        if len(body) > size_max:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out the body once, then what else the client does."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
