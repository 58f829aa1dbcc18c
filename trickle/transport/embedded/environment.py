"""The LMDB environment of one log, as one process has it open.

What LMDB demands and this keeps:

* A read transaction is short and always closed: one left open makes the file grow for ever.
* The map grows when it is full. No transaction of this process may be open meanwhile: readers
  (in Trio's thread) and growth (in the writer's thread) exclude each other by a lock. Another
  process's growth shows as MapResizedError, and is adopted.
* A write transaction begins, writes and commits in one call, on the writer's thread.
* Never WRITEMAP: a full disk would be a SIGBUS.
* A process that was forked must not touch its parent's environment.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lmdb
import msgspec

from trickle.exceptions import BrokerUnavailable, ConfigurationError, TransportError
from trickle.transport.embedded.damage import explain
from trickle.transport.embedded.format import FORMAT_VERSION, DamagedChunk, Marker
from trickle.transport.embedded.opening import (
    MARKER,
    READERS_MAX,
    adopt_map,
    check_address_space,
    is_made,
    is_no_room,
    lock_for_use,
    no_room,
    open_databases,
    open_lmdb,
)
from trickle.utils.files import close_owned

if TYPE_CHECKING:
    from lmdb import Transaction
    from lmdb import _Database as Database  # pyright: ignore[reportPrivateUsage] - its only name

    from trickle.transport.embedded.opening import Databases

__all__ = ["ENGINE_ERRORS", "Environment", "ReadTxn", "WriteTxn"]

T = TypeVar("T")

ENGINE_ERRORS = (lmdb.Error, DamagedChunk)
"""What comes of the file itself: the environment's to handle, also where a change meets it."""

MAP_BYTES = 256 << 20
"""Address space at first; it is doubled when the data needs more."""


FOLLOW_S = 0.5
"""Seconds to try to map what another process has made larger; Trio's thread waits meanwhile."""


class ReadTxn:
    """A read transaction: what it returns are memoryviews, valid while it is open."""

    __slots__ = ("_txn", "heads", "log", "meta", "offsets")

    def __init__(self, environment: Environment, txn: Transaction[memoryview]) -> None:
        self._txn = txn
        self.meta = environment.meta
        self.heads = environment.heads
        self.log = environment.log
        self.offsets = environment.offsets

    def get(self, db: Database, key: bytes) -> memoryview | None:
        """Return a value, or None."""
        return self._txn.get(key, db=db)

    def cursor(self, db: Database) -> lmdb.Cursor[memoryview]:
        """Return a cursor; it ends with the transaction."""
        return self._txn.cursor(db)


class WriteTxn(ReadTxn):
    """A write transaction: all of it takes effect, or nothing."""

    __slots__ = ()

    def put(self, db: Database, key: bytes, value: bytes) -> None:
        """Write a value."""
        self._txn.put(key, value, db=db)

    def delete(self, db: Database, key: bytes) -> bool:
        """Delete a value; tell whether there was one."""
        return self._txn.delete(key, db=db)


class Environment:
    """One log's environment; made by :meth:`open`, on the writer's thread."""

    def __init__(
        self, directory: Path, env: lmdb.Environment, in_use: int, databases: Databases
    ) -> None:
        self.directory = directory
        self._env = env
        self._in_use = in_use
        self._pid = os.getpid()
        self._no_growth = threading.Lock()
        self.meta, self.heads, self.log, self.offsets = databases
        self._file = (directory / "data.mdb").stat()

    # Opening and closing

    @classmethod
    def open(cls, directory: Path, timeout: float, map_bytes: int = MAP_BYTES) -> Environment:
        """Check the directory and its file, then open it.

        Args:
            timeout: seconds to wait for another process that is checking or making the same log.

        Raises:
            BrokerUnavailable: another process did not end that in time.
            ConfigurationError: the directory cannot be used.
            TransportError: the log is damaged, foreign or of another version.
        """
        if sys.maxsize < 1 << 32:
            raise ConfigurationError("the embedded log needs a 64-bit Python: use kafka:// instead")
        in_use = lock_for_use(directory, timeout)
        try:
            env = open_lmdb(directory, map_bytes)
            try:
                made = is_made(env, directory)
                databases = open_databases(env, directory, timeout, made=made)
                opened = cls(directory, env, in_use, databases)
                opened._check_marker()
            except BaseException:
                env.close()
                raise
        except BaseException as error:
            close_owned(in_use)
            if isinstance(error, OSError) and is_no_room(error):
                raise no_room(directory, error) from error
            raise
        return opened

    def _check_marker(self) -> None:
        """Compare the marker in the log with the one beside it."""
        beside = self.directory / "FORMAT"
        with self.read() as txn:
            stored = bytes(txn.get(self.meta, MARKER) or b"")
        try:
            marker = msgspec.json.decode(stored, type=Marker)
            written = (
                msgspec.json.decode(beside.read_bytes(), type=Marker) if beside.exists() else None
            )
        except msgspec.MsgspecError as error:
            raise explain(self.directory, f"its format marker cannot be read ({error})") from None
        if marker.version != FORMAT_VERSION:
            raise TransportError(
                f"the embedded log in {self.directory} has format version {marker.version}, this "
                f"trickle reads version {FORMAT_VERSION}: use the trickle that wrote it, or name "
                "another directory in broker="
            )
        if written is None:
            draft = self.directory / f"FORMAT.{os.getpid()}"
            with draft.open("wb") as file:
                file.write(stored + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(beside)
        elif written.identity != marker.identity:
            raise explain(self.directory, "data.mdb is another log's than FORMAT says")

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that opened it."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Close it; no transaction may be open."""
        self._env.close()
        close_owned(self._in_use)

    # Reading

    def check_process(self) -> None:
        """Raise where this process is a fork of the one that opened it.

        Raises:
            TransportError: it is.
        """
        if self.forked:
            raise TransportError(
                f"the embedded log in {self.directory} was opened by process {self._pid}, and this "
                f"is its fork {os.getpid()}: open the transport after the fork, or start the "
                "process by spawn"
            )

    def check_directory(self) -> None:
        """Raise where the file on disk is not the one that is open.

        Raises:
            TransportError: the directory was deleted or replaced meanwhile, or the file was cut.
        """
        # Known before looked at: meanwhile the file grows, and the other thread looks as well.
        before = self._file
        try:
            now = os.stat(self.directory / "data.mdb")
        except OSError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise TransportError(
                f"the embedded log in {self.directory} was deleted or replaced while it was open: "
                "what is written from now on would be lost. Stop what uses it, put the directory "
                "back (or let it be gone) and start again"
            )
        if now.st_size < before.st_size:
            raise explain(
                self.directory,
                f"data.mdb was cut from {before.st_size} to {now.st_size} bytes while open",
            )
        self._file = now

    @contextmanager
    def read(self) -> Generator[ReadTxn, None, None]:
        """Open a read transaction: for a short block without an await.

        Raises:
            TransportError: it cannot be read.
        """
        self.check_process()
        with self._no_growth:
            txn = self._begin_read()
            try:
                yield ReadTxn(self, txn)
            except lmdb.Error as error:
                raise self.translate(error) from error
            except DamagedChunk as error:
                raise explain(self.directory, str(error)) from error
            finally:
                txn.abort()

    def _begin_read(self) -> Transaction[memoryview]:
        for _ in range(8):
            try:
                return self._env.begin(buffers=True)
            except lmdb.MapResizedError:
                self._follow()
            except lmdb.ReadersFullError:
                self._env.reader_check()
            except lmdb.Error as error:
                raise self.translate(error) from error
        raise TransportError(
            f"the embedded log in {self.directory} has {READERS_MAX} readers at once: "
            "run fewer processes on it, or use kafka://"
        )

    # Writing: on the writer's thread alone

    def write(self, change: Callable[[WriteTxn], T]) -> T:
        """Run a change as one transaction, synced to disk; again from its start in a larger map.

        Raises:
            TransportError: nothing was written.
        """
        while True:
            try:
                with self._env.begin(write=True, buffers=True) as txn:
                    return change(WriteTxn(self, txn))
            except lmdb.MapFullError:
                self._grow()
            except lmdb.MapResizedError:
                with self._no_growth:
                    self._follow()
            except lmdb.Error as error:
                raise self.translate(error) from error
            except DamagedChunk as error:
                raise explain(self.directory, str(error)) from error

    def _grow(self) -> None:
        with self._no_growth:
            size = self._env.info()["map_size"] * 2
            check_address_space(self.directory, size)
            self._env.set_mapsize(size)

    def _follow(self) -> None:
        """Map what another process has made larger; nobody may be reading.

        The other thread may be about to write: it meets the same, and gives way in a moment.

        Raises:
            BrokerUnavailable: it did not.
        """
        deadline = time.monotonic() + FOLLOW_S
        while True:
            try:
                return adopt_map(self._env, self.directory)
            except lmdb.Error as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"the embedded log in {self.directory} was made larger by another process, "
                        f"and this one could not follow for {FOLLOW_S:g} s ({error})"
                    ) from error
            time.sleep(0.001)

    def reader_check(self) -> None:
        """Free the places of readers that died."""
        self._env.reader_check()

    def translate(self, error: lmdb.Error) -> TransportError:
        """Return the sentence for an error of LMDB's."""
        if is_no_room(error):
            return no_room(self.directory, error)
        return explain(self.directory, str(error))
