"""All that one process shares for one log: found by device and inode, counted, closed by the last.

LMDB refuses to open an environment twice in a process (its locks belong to the process), yet an app
in tests, several Runs, or a web page beside a worker open the same broker again. They share a
:class:`Hub`: the environment, the writer's thread, and the socket that wakes readers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from trickle.exceptions import ConfigurationError, TopicError, UsageError
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import MAP_BYTES, Environment
from trickle.transport.embedded.format import Topic
from trickle.transport.embedded.upkeep import Upkeep
from trickle.transport.embedded.wake import Wake
from trickle.transport.embedded.writer import Writer
from trickle.utils.bridge import Bridge
from trickle.utils.files import private_directory

__all__ = ["Hub", "open_hub"]

logger = logging.getLogger("trickle.transport.embedded")

CLOSE_TIMEOUT = 10.0
"""Seconds that the writer's thread may take to finish what it is at."""


class Hub:
    """The environment, the writer and the wake-up of one log, in one process and one Trio run."""

    def __init__(self, directory: Path, bridge: Bridge, environment: Environment) -> None:
        self.directory = directory
        self.environment = environment
        self._bridge = bridge
        self.wake = Wake(directory)
        self.upkeep = Upkeep(environment)
        self.writer = Writer(bridge, environment, self._committed, self.upkeep.run)

    @classmethod
    async def open(cls, directory: Path, timeout: float, map_bytes: int) -> Hub:
        """Start the thread and open the environment on it."""
        bridge = Bridge(f"trickle-log-{directory.name}", None)
        bridge.start()
        try:
            # Shielded (it is bounded): an environment that is opened and dropped stays open.
            with trio.CancelScope(shield=True):
                environment = await bridge.call(Environment.open, directory, timeout, map_bytes)
                hub = cls(directory, bridge, environment)
                hub.wake.open()
                hub.writer.keep_up()
                return hub
        except BaseException:
            await bridge.close(CLOSE_TIMEOUT)
            raise
        raise RuntimeError("a scope that nobody cancels was cancelled")

    async def close(self) -> None:
        """End the thread, then close the environment; bounded."""
        if self.environment.forked:
            return  # it is all the parent's
        self.writer.close()
        ended = await self._bridge.close(CLOSE_TIMEOUT)
        self.wake.close()
        if ended:
            self.upkeep.close()
            self.environment.close()
        else:
            # To close it under the thread's feet would crash the process.
            logger.warning(
                "the embedded log in %s is still being written after %g s: left open",
                self.directory, CLOSE_TIMEOUT,
            )  # fmt: skip

    def _committed(self) -> None:
        """After a commit, on the thread."""
        self.wake.notify()
        self._bridge.to_trio(self.wake.bump)

    def announce(self) -> None:
        """Wake everybody without a commit (a group has changed); in Trio's thread."""
        self.wake.bump()
        self._bridge.post(self.wake.notify)

    def topic(self, name: str) -> Topic:
        """Return a topic.

        Raises:
            TopicError: it does not exist.
        """
        with self.environment.read() as txn:
            found = log.topic(txn, name)
        if found is None:
            raise TopicError(
                f"topic {name!r} does not exist in the embedded log in {self.directory}: declare "
                f"it (trickle send and trickle worker declare an app's own), or correct its name"
            )
        return found


class _Entry:
    """A hub's place in the process: who opens it and how many use it."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.lock = trio.Lock()
        self.users = 0
        self.hub: Hub | None = None

    def abandoned(self) -> bool:
        """Whether the Trio run that opened it has ended without closing it."""
        try:
            self.token.run_sync_soon(_nothing)
        except trio.RunFinishedError:
            return True
        return False


def _nothing() -> None:
    pass


_entries: dict[tuple[int, int], _Entry] = {}
_entries_lock = threading.Lock()


def _entry(directory: Path) -> _Entry:
    found = directory.stat()
    key = (found.st_dev, found.st_ino)
    with _entries_lock:
        entry = _entries.get(key)
        if entry is not None and entry.token is not trio.lowlevel.current_trio_token():
            if not entry.abandoned():
                raise UsageError(
                    f"the embedded log in {directory} is open in another Trio run of this "
                    "process: open it in one of them, or use a process each"
                )
            if entry.hub is not None:
                entry.hub.environment.close()
            entry = None
        if entry is None:
            entry = _entries[key] = _Entry()
        entry.users += 1
        return entry


def _release(entry: _Entry) -> None:
    with _entries_lock:
        if not entry.users:
            for key in [key for key, value in _entries.items() if value is entry]:
                del _entries[key]


@asynccontextmanager
async def open_hub(
    directory: Path, timeout: float, map_bytes: int = MAP_BYTES
) -> AsyncGenerator[Hub, None]:
    """Open a log's hub, or join the one that is open.

    Args:
        timeout: seconds to wait for another process that checks the file.

    Raises:
        ConfigurationError: the directory cannot be used.
        TransportError: the log is damaged, foreign or of another version.
    """
    try:
        private_directory(directory)
        entry = _entry(directory)
    except OSError as error:
        raise ConfigurationError(
            f"broker='lmdb://{directory}' cannot be used ({error.strerror}): name a directory "
            "that this user may write, by broker=, or by data_dir= where broker= is left out"
        ) from error
    try:
        async with entry.lock:
            if entry.hub is None:
                entry.hub = await Hub.open(directory, timeout, map_bytes)
        yield entry.hub
    finally:
        entry.users -= 1
        with trio.CancelScope(shield=True):
            async with entry.lock:
                if not entry.users and entry.hub is not None:
                    hub, entry.hub = entry.hub, None
                    await hub.close()
        _release(entry)
