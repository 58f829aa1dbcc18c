"""What every store is: the seam between tables and where their data rest.

Three nouns. A :class:`Store` is a Service, one in a Run. It opens an :class:`Environment` for each
partition number (of topics with one partition count), which holds that partition of all tables,
each as a :class:`TableData`.

The rules, beyond the signatures:

* A store holds what has been committed, never more. It may hold less: the changelog position that
  is written in the same transaction tells what is missing, and the changelog replays it.
* Reads are synchronous, in Trio's thread, and short: nothing stays open between two calls.
* Writes are awaited. One call is one transaction: all of it, positions included, or nothing.
* An environment that is opened belongs to one holder until it is closed. One that is damaged, or
  that a live process holds, is no error: an empty one takes its place, and a warning says so.
* Keys are in the order of :func:`stored_key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import trio

from trickle.service import ServiceStatistics

__all__ = [
    "FORMAT_VERSION",
    "OLD_S",
    "STORED_KEY_BYTES_MAX",
    "Environment",
    "Position",
    "Store",
    "TableData",
    "TableWrite",
    "coalesced",
    "stored_key",
]

FORMAT_VERSION = 1
"""Of the environments' layout and of the changelogs' records: kept beside the data, not in it."""

STORED_KEY_BYTES_MAX = 511
_HASH_BYTES = 32
_PREFIX_BYTES = STORED_KEY_BYTES_MAX - 1 - _HASH_BYTES


def stored_key(key: bytes) -> bytes:
    r"""Return the form of a key that LMDB takes: 1 to 511 bytes, one for each key.

    Up to 510 bytes it is the key and ``\x00``; beyond, its first 478 bytes, its SHA-256 and
    ``\x01``. So keys are in byte order as far as their first 478 bytes tell them apart; longer
    ones that share these are in the order of their hashes.
    """
    if len(key) < STORED_KEY_BYTES_MAX:
        return key + b"\x00"
    return key[:_PREFIX_BYTES] + hashlib.sha256(key).digest() + b"\x01"


class Position(NamedTuple):
    """How far a table's data go: all of the changelog before ``offset`` is in them.

    ``topic_id`` is the changelog's identity: an offset means nothing in another topic.
    ``acknowledged`` says that the record before ``offset`` is the last one of a commit that the
    broker acknowledged, and that nobody has read it back yet.
    ``old`` says that it was written so long ago that the changelog may have forgotten since which
    keys were deleted (:data:`OLD_S`): what follows it does not bring the data up to date.
    """

    topic_id: str
    offset: int
    acknowledged: bool = False
    old: bool = False


OLD_S = 23 * 3600.0
"""Kafka's ``delete.retention.ms``, which is a day by default, less an hour."""


class TableWrite(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of one table, to be written as one with the position that they reach.

    Attributes:
        changes: (key, value) with None for a deletion; each key once, or the last one counts.
        clear: drop what the table holds first.
    """

    table: str
    position: Position
    changes: Sequence[tuple[bytes, bytes | None]] = ()
    clear: bool = False


class TableData(Protocol):
    """One partition of one table, as the store holds it."""

    @property
    def position(self) -> Position | None:
        """How far it goes; None where nothing has been written yet."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """Return a value.

        Raises:
            StoreError: the data cannot be read.
        """
        ...

    def count(self) -> int:
        """Return the number of keys."""
        ...

    def scan(self, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Return the next pairs in key order, in one short read.

        Args:
            after: the key behind which to begin, whether it is there or not; None: the first.
        """
        ...


class Environment(Protocol):
    """One partition number of all tables with one partition count."""

    @property
    def tables(self) -> Mapping[str, TableData]:
        """The tables that it was opened with."""
        ...

    @property
    def wanted(self) -> bool:
        """Whether another process waits for it: a holder who can spare it should close it soon."""
        ...

    async def write(self, writes: Sequence[TableWrite]) -> None:
        """Write the changes of some tables in one transaction.

        A call that is cancelled still runs to its end, within a bound, before Cancelled rises.

        Raises:
            StoreError: nothing was written: the disk is full, or the files are gone.
        """
        ...

    async def close(self) -> None:
        """Close it, and let others have it."""
        ...


class Store(Protocol):
    """Where the tables of a Run rest: a Service, ready before an environment is opened."""

    @property
    def name(self) -> str: ...

    async def run(self, *, task_status: trio.TaskStatus[object] = ...) -> None: ...

    def statistics(self) -> ServiceStatistics: ...

    async def open(self, count: int, partition: int, tables: Collection[str]) -> Environment:
        """Open the environment of a partition number, made where it is missing.

        Raises:
            StoreError: it cannot be made or opened; the message names the directory.
        """
        ...

    async def open_free(
        self, count: int, partition: int, tables: Collection[str]
    ) -> Environment | None:
        """Open an environment as :meth:`open` does; None where somebody holds it, without a wait.

        Raises:
            StoreError: it cannot be made or opened.
        """
        ...


def coalesced(
    changes: Iterable[tuple[bytes, bytes | None]],
) -> list[tuple[bytes, bytes | None]]:
    """Return the last change of each key, in the order of stored keys: as a store likes it."""
    last = {stored_key(key): (key, value) for key, value in changes}
    return [last[order] for order in sorted(last)]
