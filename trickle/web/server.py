"""Web: the HTTP server as a Service, quart-trio on hypercorn.

What hypercorn leaves weak is mended here and in :mod:`.guard`: names that it answers to, the size
of a request's head, stalled connections, and how many of them there may be.

::

    CappedListener        at most so many connections; more wait in the kernel's backlog
      └─ hypercorn's TCPServer     HTTP, head limits, idle time-outs, Host
           └─ Guard                token, body limits, time-outs, no traceback
                └─ QuartTrio       the pages

The port: 6066, or the next free one where none was asked for; one that was asked for and is taken
is an error. The server binds to loopback; a wider bind needs a token.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Any, cast

import trio

from trickle.exceptions import ConfigurationError
from trickle.service import Service
from trickle.web.guard import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.typing import ASGIFramework

    from trickle.web.view import WebView

__all__ = ["DEFAULT_PORT", "Web", "is_loopback", "open_socket"]

logger = logging.getLogger("trickle.web")

DEFAULT_PORT = 6066
_HTTP_PORT = 80
_PORTS_TRIED = 100
_BACKLOG = 100


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host that is bound to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int | None) -> socket.socket:
    """Return a listening socket.

    Args:
        host: an address or name.
        port: None takes 6066 or the next one that is free; 0 takes any.

    Raises:
        ConfigurationError: the port, or the host, cannot be had.

    """
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in ports:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host.strip("[]"), candidate))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise _no_socket(host, candidate, error) from error
        return sock
    raise ConfigurationError(
        f"the web server found no free port on {host} from {DEFAULT_PORT} to "
        f"{DEFAULT_PORT + _PORTS_TRIED - 1}: set web_port, or web=False to run without it"
    )


def _no_socket(host: str, port: int, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"web_port={port} is taken on {host} by another program: choose another port, leave "
            "web_port out (the next free one is taken then), or set web=False"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"web_port={port} may not be bound by this user: choose a port above 1023"
        )
    return ConfigurationError(
        f"the web server cannot listen on {host}:{port} ({error.strerror or error}): "
        "set web_host to an address of this machine"
    )


class Web(Service):
    """The local web server of a Run.

    Args:
        view: what it shows.
        host: an address of this machine; other than loopback only with a token.
        port: None takes the default or the next one that is free.
        token: what requests, except health probes, must carry as ``Authorization: Bearer …``.
        limits: what one client may ask of it.

    Raises:
        ConfigurationError: a wider bind without a token.

    """

    name = "Web"

    def __init__(
        self,
        view: WebView,
        host: str = "127.0.0.1",
        port: int | None = None,
        token: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__()
        if not is_loopback(host) and not token:
            raise ConfigurationError(
                f"web_host={host!r} lets other machines reach the web server: set web_token to a "
                "secret that they must send, or leave web_host at 127.0.0.1"
            )
        self._view = view
        self._host = host
        self._asked_port = port
        self._token = token or None
        self._limits = limits
        self.port: int | None = None

    @property
    def url(self) -> str | None:
        """Where it listens; None while it does not."""
        if self.port is None:
            return None
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        """Bind, serve, and be ready once requests are accepted."""
        # Quart and hypercorn take a quarter of a second to import: only who serves pays.
        from trickle.web.pages import make_app  # noqa: PLC0415

        sock = open_socket(self._host, self._asked_port)
        try:
            self.port = int(sock.getsockname()[1])
            app = make_app(self._view, self._hosts(), self._token, self._limits)
            listener = CappedListener(
                trio.SocketListener(trio.socket.from_stdlib_socket(sock)), self._limits
            )
            await _serve(app, self._config(), listener, task_status)
        finally:
            self.port = None
            sock.close()

    def _config(self) -> Config:
        from hypercorn.config import Config  # noqa: PLC0415

        config = Config()
        config.errorlog = logging.getLogger("hypercorn.error")
        config.include_server_header = False
        config.h11_max_incomplete_size = self._limits.head_bytes
        config.h2_max_header_list_size = self._limits.head_bytes
        config.h2_max_concurrent_streams = 10
        config.keep_alive_timeout = self._limits.idle_timeout
        return config

    def _hosts(self) -> frozenset[str] | None:
        if not is_loopback(self._host):
            return None  # the names are not known here, and the token protects instead
        names = {"127.0.0.1", "localhost", "[::1]", self._host.lower()}
        bare = names if self.port == _HTTP_PORT else ()  # which clients leave out
        return frozenset(f"{name}:{self.port}" for name in names).union(bare)


class Connection(trio.abc.Stream):
    """A connection that ends: a client that stops reading, or where nothing moves, is cut off.

    Hypercorn shields its sends from cancellation, so without a limit here a client that stops
    reading would hold its place for ever, and the server's end with it. Its own idle time-out does
    not run while a request is in hand.
    """

    def __init__(self, stream: trio.SocketStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._moved_at = trio.current_time()
        self.socket = stream.socket  # hypercorn asks it for the addresses

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, within the limit.

        Raises:
            trio.BrokenResourceError: the client does not take it.

        """
        with trio.move_on_after(self._limits.send_timeout):
            await self._stream.send_all(data)
            self._moved_at = trio.current_time()
            return
        self.cut()
        raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what there is.

        Raises:
            trio.BrokenResourceError: nothing has moved for too long, in either direction.

        """
        quiet_max = self._limits.quiet_timeout
        while trio.current_time() < self._moved_at + quiet_max:
            with trio.move_on_at(self._moved_at + quiet_max):
                data = await self._stream.receive_some(max_bytes)
                self._moved_at = trio.current_time()
                return data
        raise trio.BrokenResourceError("nothing has moved for too long")

    async def send_eof(self) -> None:
        """Tell the client that nothing more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    def cut(self) -> None:
        """Close it without a wait; whoever waits for it is woken."""
        self.socket.close()


class CappedListener(trio.abc.Listener[Connection]):
    """Accepts while fewer than so many connections are open; the others wait in the backlog."""

    def __init__(self, listener: trio.SocketListener, limits: Limits) -> None:
        self._listener = listener
        self._limits = limits
        self._slots = trio.Semaphore(limits.connections)

    async def accept(self) -> Connection:
        """Wait for a free place, then for a connection."""
        await self._slots.acquire()
        try:
            return Connection(await self._listener.accept(), self._limits)
        except BaseException:
            self._slots.release()
            raise

    def release(self) -> None:
        """Give the place of a connection back that has ended."""
        self._slots.release()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()


async def _serve(
    app: ASGIFramework,
    config: Config,
    listener: CappedListener,
    task_status: trio.TaskStatus[Any],
) -> None:
    """Serve until cancelled.

    ``hypercorn.trio.serve`` makes its listeners itself, so that nothing can cap them. This is the
    same nesting, without what we do not use (TLS, QUIC, request counts, lifespan hooks).
    """
    from hypercorn.app_wrappers import ASGIWrapper  # noqa: PLC0415
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415
    from hypercorn.trio.worker_context import WorkerContext  # noqa: PLC0415
    from hypercorn.typing import ConnectionState  # noqa: PLC0415

    context = WorkerContext(None)
    wrapped = ASGIWrapper(app)
    open_connections: set[Connection] = set()

    async def handle(connection: Connection) -> None:
        open_connections.add(connection)
        try:
            # Its annotation asks for an SSL stream; it takes any that has a socket.
            stream = cast("trio.SSLStream[trio.SocketStream]", connection)
            await TCPServer(wrapped, config, context, ConnectionState({}), stream)
        except Exception as error:  # whatever a client sends ends his connection
            logger.debug("a connection of the web server has failed", exc_info=error)
        finally:
            open_connections.discard(connection)
            listener.release()

    async with trio.open_nursery() as nursery:
        try:
            await trio.serve_listeners(
                handle, [listener], handler_nursery=nursery, task_status=task_status
            )
        finally:
            for connection in open_connections:
                connection.cut()
