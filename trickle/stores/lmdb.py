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

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lmdb
import trio

from trickle.exceptions import StoreError
from trickle.service import Service
from trickle.stores.contract import (
    FORMAT_VERSION,
    Position,
    TableData,
    TableWrite,
    stored_key,
)
from trickle.stores.homes import (
    DATA_FILE,
    Home,
    examine,
    generations,
    is_old,
    lock_free,
    lock_home,
    mark_closed,
    mark_open,
    set_aside,
)
from trickle.stores.records import (
    DamagedError,
    is_whole,
    pack_position,
    portions,
    read_position,
    unpack,
)
from trickle.utils.bridge import Bridge, open_bridge
from trickle.utils.files import ForeignPathError, private_directory, reserve_readers, with_headroom

if TYPE_CHECKING:
    from lmdb import _Database  # pyright: ignore[reportPrivateUsage]

__all__ = ["LmdbStore", "read_only"]

logger = logging.getLogger("trickle.stores")

MAP_BYTES = 64 << 20
_TABLES_MAX = 512
_READERS_MAX = 126
_META = b"meta"
_WRITE_TIMEOUT = 60.0  # a disk that does not answer for so long is not coming back


class _Table:
    """One named database."""

    def __init__(self, name: str, environment: _Handle, db: _Database) -> None:
        self.name = name
        self.db = db
        self.position: Position | None = None
        self._environment = environment
        self._begin = environment.begin

    def get(self, key: bytes) -> bytes | None:
        stored = stored_key(key)
        try:
            # Dropped, the transaction is kept for the next one, and keeps the interpreter's lock;
            # aborted, it would be made anew, and give the lock away once more.
            raw = self._begin(self.db).get(stored)
        except lmdb.Error as error:
            raise self._environment.unreadable(error) from error
        if raw is None:
            return None
        return raw[:-4] if stored[-1] == 0 else unpack(stored, raw)[1]

    def count(self) -> int:
        try:
            with self._begin(self.db) as txn:
                return txn.stat(self.db)["entries"]
        except lmdb.Error as error:
            raise self._environment.unreadable(error) from error

    def scan(self, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]:
        pairs: list[tuple[bytes, bytes]] = []
        try:
            with self._begin(self.db) as txn, txn.cursor() as cursor:
                start = b"" if after is None else stored_key(after)
                there = cursor.set_range(start) if start else cursor.first()
                if there and start and cursor.key() == start:
                    there = cursor.next()
                while there and len(pairs) < limit:
                    pairs.append(unpack(*cursor.item()))
                    there = cursor.next()
        except lmdb.Error as error:
            raise self._environment.unreadable(error) from error
        return pairs


class _Handle:
    """An open LMDB environment with its databases."""

    def __init__(
        self, path: Path, names: Collection[str], *, map_bytes: int, read_only: bool = False
    ) -> None:
        self.path = path
        old = is_old(path / DATA_FILE)
        if not read_only:
            reserve_readers(path / "lock.mdb", _READERS_MAX)
        self.env = lmdb.open(
            str(path), map_size=map_bytes, max_dbs=_TABLES_MAX, max_spare_txns=2, mode=0o600,
            max_readers=_READERS_MAX,
            sync=False, metasync=False, readonly=read_only, create=not read_only, writemap=False,
        )  # fmt: skip
        self.begin = self._begin_following if read_only else self.env.begin
        self.tables: dict[str, _Table] = {}
        self._last_page = 0
        try:
            info, page_bytes = self.env.info(), self.env.stat()["psize"]
            if (info["last_pgno"] + 1) * page_bytes > (path / DATA_FILE).stat().st_size:
                # To read a page that the file has lost would end the process by a signal.
                raise DamagedError("its data file was cut short")
            self._open_tables(names, read_only=read_only, old=old)
        except BaseException:
            self.env.close()
            raise

    def _open_tables(self, names: Collection[str], *, read_only: bool, old: bool) -> None:
        self.meta = self.env.open_db(_META, create=not read_only)
        for name in names:
            try:
                db = self.env.open_db(f"table:{name}".encode(), create=not read_only)
            except lmdb.NotFoundError:  # read-only: no worker has opened this table yet
                continue
            self.tables[name] = _Table(name, self, db)
        with self.begin(self.meta, write=not read_only) as txn:
            if not read_only:
                txn.put(b"format", str(FORMAT_VERSION).encode())
            for name, table in self.tables.items():
                raw = txn.get(f"table:{name}".encode())
                if raw is not None:
                    position = read_position(raw)
                    table.position = position._replace(old=old or position.old)
                    if old and not read_only:  # from now on the file is new, and the table is not
                        txn.put(f"table:{name}".encode(), pack_position(table.position))

    def _begin_following(self, *args: Any, **options: Any) -> Any:
        """Begin to read; a worker may have made the map larger meanwhile."""
        begin: Callable[..., Any] = self.env.begin
        try:
            return begin(*args, **options)
        except lmdb.MapResizedError:
            self.env.set_mapsize(0)
            return begin(*args, **options)

    def unreadable(self, error: lmdb.Error) -> StoreError:
        return StoreError(
            f"the tables in {self.path} cannot be read ({error}); stop the worker and remove that "
            "directory: it is rebuilt from the changelogs"
        )

    def check_records(self) -> None:
        """Compare every record with its checksum.

        Raises:
            DamagedError: one is not what was written.
        """
        for table in self.tables.values():
            with self.begin(table.db) as txn, txn.cursor() as cursor:
                for stored, raw in cast("Iterator[tuple[bytes, bytes]]", cursor):
                    if not is_whole(stored, raw):
                        raise DamagedError(
                            f"a record of table {table.name!r} is not what was written"
                        )

    def free_readers(self) -> bool:
        """Free the places of readers that were killed, and with them the pages that they keep.

        Returns:
            Whether there were any.
        """
        return self.env.reader_check() > 0

    def write(self, writes: Sequence[TableWrite]) -> None:
        """Write in one transaction."""
        if (last_page := self.env.info()["last_pgno"]) > self._last_page:  # by a dead reader?
            self._last_page = last_page
            self.free_readers()
        with self.begin(write=True) as txn:
            for write in writes:
                db = self.tables[write.table].db
                if write.clear:
                    txn.drop(db, delete=False)
                for puts, deletions in portions(write.changes):
                    # One call: to get the interpreter's lock back takes longer than a write.
                    with txn.cursor(db) as cursor:
                        cursor.putmulti(puts)
                    for stored in deletions:
                        txn.delete(stored, db=db)
                meta = pack_position(write.position)
                txn.put(f"table:{write.table}".encode(), meta, db=self.meta)


_open_environments: weakref.WeakSet[_Environment] = weakref.WeakSet()


class _Environment:
    """One partition number of all tables, open and locked."""

    def __init__(self, home: Home, handle: _Handle, writer: Bridge, opener: Bridge) -> None:
        self._home = home
        self._handle: _Handle | None = handle
        self._writer = writer
        self._opener = opener
        self._tables: Mapping[str, _Table] = handle.tables
        self._inode = home.data_file.stat().st_ino
        self._gone: str | None = None
        _open_environments.add(self)

    @property
    def tables(self) -> Mapping[str, _Table]:
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

    def _here(self) -> _Handle:
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
            handle: _Handle | None = None
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

    def _open(self, home: Home, names: tuple[str, ...]) -> _Handle:
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

    def _open_files(self, home: Home, names: tuple[str, ...], *, examine_records: bool) -> _Handle:
        mark_open(home.path)
        handle = _Handle(home.path, names, map_bytes=with_headroom(home.data_file, self._map_bytes))
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


@contextlib.contextmanager
def read_only(
    directory: Path, count: int, partition: int, table: str
) -> Generator[TableData | None]:
    """Open one partition of one table to read, whether a worker holds it or not.

    Yields None where there is nothing that can be read: the changelog has it all.
    """
    parent = directory / str(count)
    home = next(iter(generations(parent, partition)), None) if parent.is_dir() else None
    if home is None or not home.data_file.exists():
        yield None
        return
    ours = home.lock.acquire()  # else a worker has it, and has examined it
    handle: _Handle | None = None
    try:
        try:
            verdict = examine(home.path) if ours else None
            if verdict is None or verdict.damage is None:
                room = with_headroom(home.data_file, MAP_BYTES)
                handle = _Handle(home.path, [table], map_bytes=room, read_only=True)
                if verdict is not None and verdict.records:
                    handle.check_records()
        except (lmdb.Error, DamagedError):
            logger.debug("the tables in %s cannot be read", home.path, exc_info=True)
            if handle is not None:
                handle.env.close()
                handle = None
        finally:
            if ours:  # a worker that starts meanwhile must not take us for its owner
                home.lock.release()
        yield None if handle is None else handle.tables.get(table)
    finally:
        if handle is not None:
            handle.env.close()
