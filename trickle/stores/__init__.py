"""Where tables keep their data: memory, LMDB."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from trickle.exceptions import ConfigurationError
from trickle.stores.contract import Store
from trickle.stores.memory import MemoryDisk, MemoryStore

if TYPE_CHECKING:
    from trickle.stores.reading import StoredPartition

__all__ = ["MemoryDisk", "open_store", "stored_partition"]


def open_store(url: str, directory: Path, disk: MemoryDisk | None = None) -> Store:
    """Make the store that a URL names; it opens files when it is run.

    Args:
        url: ``lmdb://`` or ``memory://``.
        directory: ``{data_dir}/{app}/tables``, for ``lmdb://``.
        disk: what ``memory://`` keeps its data on; by default one of its own, empty.

    Raises:
        ConfigurationError: no store for this URL.
    """
    if url == "memory://":
        return MemoryStore(disk)
    if url == "lmdb://":
        # Imported on demand: a program without files needs no LMDB.
        store: Store = import_module("trickle.stores.lmdb").LmdbStore(directory)
        return store
    raise ConfigurationError(
        f"store={url!r} is no store that trickle knows: use lmdb:// or memory://"
    )


def stored_partition(
    directory: Path | None, count: int, partition: int, table: str
) -> StoredPartition | None:
    """Return one partition of one table, to read, whether a worker holds it or not.

    Args:
        directory: as for :func:`open_store`; None: the store is in another process's memory.
        count: the table's partition count.
        partition: its number.
        table: its name.

    Returns:
        None where there is no such directory: the changelog has it all.
    """
    if directory is None or not directory.is_dir():
        return None
    made: StoredPartition = import_module("trickle.stores.reading").StoredPartition(
        directory, count, partition, table
    )
    return made
