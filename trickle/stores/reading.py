"""A store that is only read: by a process that is no worker, or holds no partition of it."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from trickle.stores.contract import TableData
from trickle.stores.environment import MAP_BYTES, Handle
from trickle.stores.homes import Home, examine, generations
from trickle.stores.records import DamagedError
from trickle.utils.files import with_headroom

__all__ = ["StoredPartition"]

logger = logging.getLogger("trickle.stores")


class StoredPartition:
    """One partition of one table, to read, whether a worker holds it or not.

    Args:
        directory: of the store.
        count: the table's partition count.
        partition: its number.
        table: its name.
    """

    def __init__(self, directory: Path, count: int, partition: int, table: str) -> None:
        self._parent = directory / str(count)
        self._partition = partition
        self._table = table
        self._sound: object = None  # what the data file was like as it was found sound

    @contextmanager
    def open(self) -> Generator[TableData | None]:
        """Open it for the time of a block.

        Yields None where there is nothing that can be read: the changelog has it all.
        """
        found = generations(self._parent, self._partition) if self._parent.is_dir() else ()
        home = next(iter(found), None)
        state = None if home is None else _state(home)
        if home is None or state is None:
            yield None
            return
        handle = self._open(home, state)
        try:
            yield None if handle is None else handle.tables.get(self._table)
        finally:
            if handle is not None:
                handle.env.close()

    def _open(self, home: Home, state: object) -> Handle | None:
        """Open what is sound: examined here, once, unless a worker has it, and has done so."""
        ours = state != self._sound and home.lock.acquire()
        handle: Handle | None = None
        try:
            verdict = examine(home.path) if ours else None
            if verdict is not None and verdict.damage is not None:
                return None
            room = with_headroom(home.data_file, MAP_BYTES)
            handle = Handle(home.path, [self._table], map_bytes=room, read_only=True)
            if verdict is not None and verdict.records:
                handle.check_records()
            if ours:
                self._sound = state
        except (lmdb.Error, DamagedError):
            logger.debug("the tables in %s cannot be read", home.path, exc_info=True)
            if handle is not None:
                handle.env.close()
            return None
        finally:
            if ours:  # a worker that starts meanwhile must not take us for its owner
                home.lock.release()
        return handle


def _state(home: Home) -> object:
    """Return what changes with the data file; None where it is not there, as it is set aside."""
    try:
        stat = home.data_file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
