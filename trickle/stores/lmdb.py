"""Tables on disk, in LMDB.

One LMDB environment for each partition count and number, with a named database for each table and
one for what is known of them (``meta``: the format, each table's changelog and position). All
writes, and everything slow, run in one thread for all environments of a store, for LMDB wants a
write transaction begun and ended on one thread. Reads are short transactions in Trio's thread.

The map grows when it is full: by LMDB's rules while no transaction of this process is open, hence
in Trio's thread, which is the only reader, while the writer waits. WRITEMAP is never used: with it
a full disk ends the process by a signal.

A stored value is followed by a CRC of key and value, four bytes. It is compared when a directory
is opened that was not closed in order (see :mod:`.homes`). A key that LMDB cannot take whole
(:func:`~trickle.stores.contract.stored_key`) stands before the value, after its length.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import trio

from trickle.exceptions import StoreError
from trickle.service import Service
from trickle.stores.contract import (
    TableWrite,
)
from trickle.stores.environment import MAP_BYTES, Handle, StoredTable
from trickle.stores.homes import (
    Home,
    examine,
    lock_free,
    lock_home,
    mark_closed,
    mark_open,
    set_aside,
)
from trickle.stores.records import (
    DamagedError,
)
from trickle.utils.bridge import Bridge, open_bridge
from trickle.utils.files import ForeignPathError, private_directory, with_headroom

__all__ = ["LmdbStore"]

logger = logging.getLogger("trickle.stores")

_WRITE_TIMEOUT = 60.0  # a disk that does not answer for so long is not coming back


_open_environments: weakref.WeakSet[_Environment] = weakref.WeakSet()


class _Environment:
    """One partition number of all tables, open and locked."""

    def __init__(self, home: Home, handle: Handle, writer: Bridge, opener: Bridge) -> None:
        self._home = home
        self._handle: Handle | None = handle
        self._writer = writer
        self._opener = opener
        self._tables: Mapping[str, StoredTable] = handle.tables
        self._inode = home.data_file.stat().st_ino
        self._gone: str | None = None
        _open_environments.add(self)

    @property
    def tables(self) -> Mapping[str, StoredTable]:
        return self._tables

    @property
    def wanted(self) -> bool:
        return self._home.lock.asked

    async def write(self, writes: Sequence[TableWrite]) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _WRITE_TIMEOUT):
            while not await self._writer.call(self._write, writes):
                self._grow()
            for write in writes:
                self._tables[write.table].position = write.position
            return
        raise StoreError(
            f"the disk of {self._home.path} did not answer for {_WRITE_TIMEOUT:g} s: a write of "
            "tables is stuck; check the disk, or move data_dir to another one"
        )

    def _write(self, writes: Sequence[TableWrite]) -> bool:
        """Write in the writer's thread; return False where the map is too small."""
        handle = self._here()
        try:
            handle.write(writes)
        except lmdb.MapFullError:
            return False
        except lmdb.Error as error:
            raise StoreError(
                f"the tables in {handle.path} cannot be written ({error}): nothing of this write "
                "has happened; free some space, or move data_dir to a larger disk"
            ) from error
        return True

    def _here(self) -> Handle:
        handle = self._handle
        if self._gone is not None or handle is None:
            raise StoreError(f"the tables in {self._home.path} {self._gone or 'are closed'}")
        try:
            inode = self._home.data_file.stat().st_ino
        except FileNotFoundError:
            inode = -1
        if inode != self._inode:
            raise StoreError(
                f"the tables in {self._home.path} were removed while the worker runs: what it "
                "writes there would be lost; restart it, the tables are rebuilt from the "
                "changelogs"
            )
        return handle

    def _grow(self) -> None:
        handle = self._here()
        if handle.free_readers():
            return  # there is room now in what they kept
        size = handle.env.info()["map_size"] * 2
        try:
            handle.env.set_mapsize(size)
        except (lmdb.Error, MemoryError) as error:
            raise StoreError(
                f"the tables in {handle.path} need a map of {size:,} bytes and cannot have it "
                f"({error}); is the address space limited (ulimit -v)?"
            ) from error
        logger.debug("the tables in %s have a map of %d bytes now", handle.path, size)

    async def close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _WRITE_TIMEOUT):
            await self._opener.call(self._close)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is None or self._gone is not None:
            return
        try:
            # To the disk, so that a machine that stops later finds what the state file promises.
            handle.env.sync(True)
            handle.env.close()
            handle.tables = {}  # else each would know the other, until the collector comes
            if self._home.data_file.exists():
                mark_closed(self._home.path)
        except (lmdb.Error, OSError) as error:
            logger.warning(
                "the tables in %s could not be closed in order (%s): they are examined when they "
                "are opened again", self._home.path, error,
            )  # fmt: skip
        finally:
            self._home.lock.release()

    def forked(self) -> None:
        """This is a child process: the files are the parent's."""
        self._gone = (
            "were opened before this process forked, and belong to its parent; start processes by "
            "spawn, or run the app in the child"
        )
        for table in self._tables.values():
            table._begin = self._refuse  # pyright: ignore[reportPrivateUsage]
        self._home.lock.release()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise StoreError(f"the tables in {self._home.path} {self._gone}")


def _after_fork() -> None:
    for environment in list(_open_environments):
        environment.forked()


os.register_at_fork(after_in_child=_after_fork)


class LmdbStore(Service):
    """A :class:`~trickle.stores.contract.Store` on disk.

    Args:
        directory: ``{data_dir}/{app}/tables``; made where it is missing, for this user alone.
        lock_timeout: seconds to wait for another process to give an environment back.
        map_bytes: of a new environment; it grows by itself.
    """

    name = "store"

    def __init__(
        self, directory: Path, *, lock_timeout: float = 2.0, map_bytes: int = MAP_BYTES
    ) -> None:
        super().__init__()
        self.directory = directory
        self._lock_timeout = lock_timeout
        self._map_bytes = map_bytes
        self._writer: Bridge | None = None
        self._opener: Bridge | None = None

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        # What was not closed in order is examined, which may take minutes: no write waits for that.
        async with (
            open_bridge("trickle-tables") as self._writer,
            open_bridge("trickle-files") as self._opener,
        ):
            self.nursery.start_soon(self._opener.wait_ended)
            task_status.started()
            await self._writer.wait_ended()

    async def open(self, count: int, partition: int, tables: Collection[str]) -> _Environment:
        """Open the environment of a partition number, made where it is missing."""
        environment = await self._open_at(count, partition, tables, wait=True)
        assert environment is not None
        return environment

    async def open_free(
        self, count: int, partition: int, tables: Collection[str]
    ) -> _Environment | None:
        """Open the environment of a partition number, unless somebody holds it."""
        return await self._open_at(count, partition, tables, wait=False)

    async def _open_at(
        self, count: int, partition: int, tables: Collection[str], *, wait: bool
    ) -> _Environment | None:
        writer, opener = self._writer, self._opener
        if writer is None or opener is None:
            raise RuntimeError("the store is not running: start it by its parent")
        try:
            parent = self.directory / str(count)
            for path in (self.directory.parent, self.directory, parent):
                private_directory(path)
            if wait:
                home: Home | None = await lock_home(parent, partition, self._lock_timeout)
            else:
                await trio.lowlevel.checkpoint()
                home = lock_free(parent, partition)
            if home is None:
                return None
            handle: Handle | None = None
            try:
                with trio.CancelScope(shield=True):  # else nobody would own what has been opened
                    handle = await opener.call(self._open, home, tuple(tables))
            except BaseException:
                home.lock.release()
                raise
        except (lmdb.Error, OSError, MemoryError) as error:
            raise StoreError(_cannot_open(self.directory, error)) from error
        assert handle is not None
        return _Environment(home, handle, writer, opener)

    def _open(self, home: Home, names: tuple[str, ...]) -> Handle:
        path = home.path
        home.make()
        verdict = examine(path)
        if verdict.damage is None:
            try:
                return self._open_files(home, names, examine_records=verdict.records)
            except (DamagedError, lmdb.CorruptedError, lmdb.PageNotFoundError,
                    lmdb.InvalidError, lmdb.VersionMismatchError) as error:  # fmt: skip
                damage = str(error)
        else:
            damage = verdict.damage
        logger.warning(
            "the tables in %s cannot be trusted: %s; they were moved to %s and are rebuilt from "
            "the changelogs", path, damage, set_aside(path),
        )  # fmt: skip
        home.make()
        return self._open_files(home, names, examine_records=False)

    def _open_files(self, home: Home, names: tuple[str, ...], *, examine_records: bool) -> Handle:
        mark_open(home.path)
        handle = Handle(home.path, names, map_bytes=with_headroom(home.data_file, self._map_bytes))
        if examine_records:
            try:
                handle.check_records()
            except BaseException:
                handle.env.close()
                raise
        return handle


def _cannot_open(directory: Path, error: BaseException) -> str:
    if isinstance(error, ForeignPathError):
        return (
            f"the tables cannot be kept in {directory}: {error.filename} {error.strerror}; remove "
            "it, or name another data_dir"
        )
    return (
        f"the tables in {directory} cannot be opened ({error}): data_dir must be a directory on a "
        "local disk with free space, that this user may write"
    )
