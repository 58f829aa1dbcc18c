"""How a commit wakes those who wait for records, in this process and in others.

Each process binds a datagram socket in a short directory of the user's own (the path of a socket
ends at about 108 bytes, and a log's directory may be deep), and leaves a note with the socket's
path in the log's ``wake`` directory. Who has committed reads the notes and sends an empty datagram
to each. Nothing depends on it: where no socket can be had or a datagram is lost, a bounded poll
finds the records :data:`POLL` seconds later. So a note that is not what :class:`Wake` writes is
left alone, and no trouble with one reaches whoever has committed.

Inside, there is no task that listens. Of those who wait one is the *leader*, and waits for the
socket; the others wait for an event. Whoever leaves, for whatever reason, wakes the others, and
one of them leads on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import stat
import tempfile
import time
from pathlib import Path

import trio

from trickle.utils.files import private_directory

__all__ = ["POLL", "Wake"]

logger = logging.getLogger("trickle.transport.embedded")

POLL = 0.25
"""Seconds after which whoever waits looks by himself."""

_PATH_BYTES_MAX = 100

_RACY_S = 0.05
"""A directory's time stamp is coarse: a list younger than this may lack who came since."""


class Wake:
    """This process's socket for one log, and who waits for it; all in Trio's thread but notify."""

    def __init__(self, directory: Path) -> None:
        self._notes = directory / "wake"
        self._note: Path | None = None
        self._socket: socket.socket | None = None
        self._path: str | None = None
        self._runtime: Path | None = None
        self._others: tuple[str, ...] = ()
        self._listed = -1
        self._changed = trio.Event()
        self._leader: trio.CancelScope | None = None
        self.version = 0

    def open(self) -> None:
        """Bind the socket and leave the note; without one, the poll serves."""
        try:
            private_directory(self._notes)
            self._runtime = runtime = _runtime_directory()
            name = f"{os.getpid()}-{secrets.token_hex(4)}"
            path = str(runtime / name)
            if len(os.fsencode(path)) > _PATH_BYTES_MAX:
                raise OSError(f"{path} is too long for a socket")
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            bound.setblocking(False)
            bound.bind(path)
            self._socket, self._path = bound, path
            self._note = self._notes / name
            self._note.write_bytes(os.fsencode(path))
        except OSError as error:
            logger.warning(
                "other processes cannot wake this one (%s): it looks for records every %g s; "
                "XDG_RUNTIME_DIR or TMPDIR may name a short directory of this user's own",
                error, POLL,
            )  # fmt: skip

    def close(self) -> None:
        """Take the note and the socket away."""
        for path in (self._note, self._path):
            if path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def notify(self) -> None:
        """Wake the other processes; from any thread, without a wait and without an error."""
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - what is committed is committed
            logger.warning("other processes were not woken, and find records later: %s", error)

    def _send(self) -> None:
        bound = self._socket
        if bound is None:
            return
        for path in self._listed_sockets():
            try:
                bound.sendto(b"", path)
            except (ConnectionRefusedError, FileNotFoundError):
                self._forget(path)
            except OSError:
                continue  # its buffer is full of wake-ups already, most likely

    def _listed_sockets(self) -> tuple[str, ...]:
        try:
            stamp = os.stat(self._notes).st_mtime_ns
            if stamp == self._listed:
                return self._others
            young = time.time() - stamp / 1e9 < _RACY_S
            paths: list[str] = []
            for name in os.listdir(self._notes):
                path = _noted(self._notes / name)
                if path is not None and path != self._path:
                    paths.append(path)
        except OSError:
            return ()
        self._others = tuple(paths)
        self._listed = -1 if young else stamp
        return self._others

    def _forget(self, path: str) -> None:
        """Remove what a process left that died: its note, and its socket where they all are."""
        socket_path = Path(path)
        with contextlib.suppress(OSError):
            os.unlink(self._notes / socket_path.name)  # a note has its socket's name: see _noted
        with contextlib.suppress(OSError):
            if socket_path.parent == self._runtime and stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)

    def bump(self) -> None:
        """Wake who waits in this process; in Trio's thread."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()
        if self._leader is not None:
            self._leader.cancel()

    async def wait(self, version: int, timeout: float = POLL) -> None:
        """Wait until something happened since a version was read, or the time is over."""
        with trio.move_on_after(timeout):
            while self.version == version:
                if self._leader is not None:
                    await self._changed.wait()
                else:
                    await self._lead()

    async def _lead(self) -> None:
        if self._socket is None:
            await self._changed.wait()
            return
        woken = False
        try:
            with trio.CancelScope() as self._leader:
                await trio.lowlevel.wait_readable(self._socket)
                woken = True
        finally:
            self._leader = None
            if woken:
                self._drain()
                self.version += 1
            self._changed.set()
            self._changed = trio.Event()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket is not None:
                self._socket.recv(1)


def _noted(note: Path) -> str | None:
    """Return the path that a note holds; None where it is none of ours, or not whole.

    A pipe, a device or a large file must not be waited for.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(note, flags)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            path = os.fsdecode(os.read(file, _PATH_BYTES_MAX + 1))
        finally:
            os.close(file)
    except OSError:
        return None
    whole = len(os.fsencode(path)) <= _PATH_BYTES_MAX and "\0" not in path
    return path if whole and os.path.isabs(path) and os.path.basename(path) == note.name else None


def _runtime_directory() -> Path:
    """Return a short directory that only this user can enter.

    Raises:
        OSError: there is none.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    candidates = [Path(given) / "trickle"] if given else []
    candidates.append(Path(tempfile.gettempdir()) / f"trickle-{os.getuid()}")
    problem: OSError | None = None
    for candidate in candidates:
        try:
            private_directory(candidate)
            found = candidate.stat()
            if found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise OSError(f"{candidate} is not this user's own")
        except OSError as error:
            problem = error
        else:
            return candidate
    raise problem or OSError("no directory")
