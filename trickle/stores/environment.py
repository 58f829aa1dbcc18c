"""An open LMDB environment, and the tables in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lmdb

from trickle.exceptions import StoreError
from trickle.stores.contract import FORMAT_VERSION, Position, TableWrite, stored_key
from trickle.stores.homes import DATA_FILE, is_old
from trickle.stores.records import (
    DamagedError,
    is_whole,
    pack_position,
    portions,
    read_position,
    unpack,
)
from trickle.utils.files import reserve_readers

if TYPE_CHECKING:
    from lmdb import _Database  # pyright: ignore[reportPrivateUsage]

__all__ = ["MAP_BYTES", "Handle", "StoredTable"]

MAP_BYTES = 64 << 20
_TABLES_MAX = 512
_READERS_MAX = 126
_META = b"meta"


class StoredTable:
    """One named database."""

    def __init__(self, name: str, environment: Handle, db: _Database) -> None:
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


class Handle:
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
        self.tables: dict[str, StoredTable] = {}
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
            self.tables[name] = StoredTable(name, self, db)
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
