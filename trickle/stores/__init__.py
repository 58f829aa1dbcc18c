"""Where tables keep their data: memory, LMDB."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from trickle.exceptions import ConfigurationError
from trickle.stores.contract import Store, TableData
from trickle.stores.memory import MemoryDisk, MemoryStore

__all__ = ["MemoryDisk", "open_store", "read_only"]


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


@contextmanager
def read_only(
    directory: Path | None, count: int, partition: int, table: str
) -> Generator[TableData | None]:
    """Open one partition of one table to read, whether a worker holds it or not.

    Yields None where there is nothing that can be read: the changelog has it all.

    Args:
        directory: as for :func:`open_store`; None: the store is in another process's memory.
    """
    if directory is None or not directory.is_dir():
        yield None
        return
    with import_module("trickle.stores.lmdb").read_only(directory, count, partition, table) as data:
        yield data
