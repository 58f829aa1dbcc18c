"""A TCP proxy before the broker: cuts, delays, holds back; drops or detains what ends transactions.

It knows one thing of Kafka's protocol: each request is its length in four bytes, then the number
of its kind in two, a version in two, and a correlation id in four; each answer is its length and
that id. So it can tell which answer belongs to an EndTxn. One that is detained goes to the broker
seconds later, by a connection of the proxy's own: its producer has long given it up by then. Before
that its connection is cut, at a time when a producer must have given it up as well: one that still
waits sends it again, and the first one comes in the middle of what it has begun since.

Each connection has a thread a direction; faults are looked at for each piece that passes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Literal

__all__ = ["EndTxnFate", "Proxy"]

_END_TXN = 26
_HEAD = struct.Struct(">ihhi")
_PIECE = 1 << 16
_DETAINED = 11.0  # seconds: more than the app under test waits for a commit
_CUT_AFTER = 9.0  # seconds: likewise

EndTxnFate = Literal["", "swallow", "cut", "late"]


class Proxy:
    """Listens on a port of loopback, and passes all on to another."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        self._delay = 0.0
        self._closed = False
        self._open = threading.Event()
        self._open.set()
        self._end_txn: EndTxnFate = ""
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._detained: set[bytes] = set()  # what is the same in an EndTxn that is sent again
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def close(self) -> None:
        """End it, with all connections."""
        self._closed = True
        self._open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def heal(self) -> None:
        """End all faults."""
        self._delay = 0.0
        self._end_txn = ""
        self._open.set()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.lost = True
            connection.reset()

    def delay(self, seconds: float) -> None:
        """Let all that passes be late by so much, each piece."""
        self._delay = seconds

    def hold(self) -> None:
        """Let nothing pass, without closing anything."""
        self._open.clear()

    def drop_end_txn(self, how: EndTxnFate) -> None:
        """Drop the answers to EndTxn, or cut their connection, or detain the request itself."""
        self._end_txn = how

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            connection = _Connection(self, client, broker)
            with self._lock:
                self._connections.add(connection)
            connection.start()

    # What connections ask

    def pass_on(self) -> bool:
        """Wait as the faults demand; tell whether to go on."""
        if self._delay:
            time.sleep(self._delay)
        self._open.wait()
        return not self._closed

    @property
    def fate_of_end_txn(self) -> EndTxnFate:
        """What becomes of an EndTxn now."""
        return self._end_txn

    def detain(self, request: bytes, connection: _Connection) -> bool:
        """Send a request some seconds later, after its connection was cut; False: not again.

        A cut before that, by another fault, takes it along.
        """
        body = request[_HEAD.size :]
        with self._lock:
            if body in self._detained:
                return False
            self._detained.add(body)
        for seconds, call, what in (
            (_CUT_AFTER, connection.reset, ()),
            (_DETAINED, self._send_late, (request, connection)),
        ):
            timer = threading.Timer(seconds, call, what)
            timer.daemon = True
            timer.start()
        return True

    def _send_late(self, request: bytes, connection: _Connection) -> None:
        with self._lock:
            self._detained.discard(request[_HEAD.size :])
        if connection.lost:
            return
        with (
            contextlib.suppress(OSError, EOFError),
            socket.create_connection(("127.0.0.1", self.target), timeout=5) as broker,
        ):
            broker.sendall(request)
            _frame(broker)

    def forget(self, connection: _Connection) -> None:
        """The connection has ended."""
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    """One connection of a client, and ours to the broker for it.

    Attributes:
        lost: cut by a fault of its own, with all that was on its way.
    """

    def __init__(self, proxy: Proxy, client: socket.socket, broker: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = broker
        self.lost = False
        self._ending: set[int] = set()  # correlation ids of EndTxn requests on their way
        for one in (client, broker):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        for forward in (self._requests, self._answers):
            threading.Thread(target=self._run, args=(forward,), daemon=True).start()

    def reset(self) -> None:
        """End both sides at once, as a reset rather than an orderly end."""
        for one in (self._client, self._broker):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._proxy.forget(self)

    def _run(self, forward: object) -> None:
        assert callable(forward)
        with contextlib.suppress(OSError, EOFError):
            forward()
        self.reset()

    def _requests(self) -> None:
        while True:
            frame = _frame(self._client)
            _, kind, _, correlation = _HEAD.unpack_from(frame)
            late = kind == _END_TXN and self._proxy.fate_of_end_txn == "late"
            if late and self._proxy.detain(frame, self):
                continue
            if kind == _END_TXN:
                self._ending.add(correlation)
            if not self._proxy.pass_on():
                return
            self._broker.sendall(frame)

    def _answers(self) -> None:
        while True:
            frame = _frame(self._broker)
            (correlation,) = struct.unpack_from(">i", frame, 4)
            if correlation in self._ending:
                self._ending.discard(correlation)
                fate = self._proxy.fate_of_end_txn
                if fate == "swallow":
                    continue
                if fate == "cut":
                    return
            if not self._proxy.pass_on():
                return
            self._client.sendall(frame)


def _frame(source: socket.socket) -> bytes:
    """Receive one request or answer, its length included."""
    head = _exactly(source, 4)
    (size,) = struct.unpack(">i", head)
    return head + _exactly(source, size)


def _exactly(source: socket.socket, size: int) -> bytes:
    pieces: list[bytes] = []
    while size:
        piece = source.recv(min(size, _PIECE))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
