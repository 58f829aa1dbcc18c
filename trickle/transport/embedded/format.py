"""How the embedded log looks in LMDB: keys, record batches, topics and heads.

One environment holds four named databases:

* ``meta``: the marker of the format, topics by name, transactional ids with their epochs, and
  topics that are being deleted.
* ``heads``: for each partition its watermarks and how far it has been compacted.
* ``log``: *chunks*, each some hundred records as one value under (topic, partition, first offset).
  Reading in order is a walk over neighbouring keys.
* ``offsets``: for each (topic, partition, group) the committed offset and its metadata.

A topic is known inside by a *number* that is never used twice, so that nothing of a deleted topic
can be taken for one of the same name.

A chunk is a header, then msgpack of columns (values, keys, timestamps, …): decoding a column of a
thousand values is one call, and costs 0.05 µs a record where a value per record costs a µs. The
header carries a CRC-32 over all the rest (0.03 µs a record): LMDB has no checksums, and a log that
hands out flipped bytes as records would not be one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from trickle.types import Headers

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_RECORDS",
    "FORMAT_VERSION",
    "HEADER",
    "KEY",
    "PARTITION",
    "Chunk",
    "Columns",
    "DamagedChunk",
    "Head",
    "Marker",
    "StoredOffset",
    "Topic",
    "committed_key",
    "pack",
    "seal",
    "unpack",
    "unpack_header",
    "unseal",
]

FORMAT_VERSION = 1

CHUNK_BYTES = 128 << 10
"""A chunk is closed when its keys and values reach this: large enough to amortise the B-tree and
the call, small enough that a reader decodes little more than it wants."""

CHUNK_RECORDS = 2048
"""… or this many records, however small."""

PARTITION = struct.Struct(">II")
"""The key of a head, and the prefix of a chunk's key: topic number, partition."""

KEY = struct.Struct(">IIQ")
"""A chunk's key: topic number, partition, first offset. Big-endian, so that it sorts."""

HEADER = struct.Struct("<IIIq")
"""A chunk's header: CRC-32 of what follows, number of records, extent (offsets that the chunk
covers from its first on), and when it was written (POSIX ms)."""

_HEAD = struct.Struct(">QQQQ")
_CRC_BYTES = 4


class Columns(msgspec.Struct, array_like=True, gc=False):
    """The records of a chunk.

    Attributes:
        headers: None where no record has any.
        deltas: offsets relative to the chunk's first; None where there are no gaps.
    """

    values: list[bytes | None]
    keys: list[bytes | None]
    stamps: list[int]
    headers: list[Headers] | None = None
    deltas: list[int] | None = None


class Chunk(NamedTuple):
    """A chunk that was read."""

    first: int
    extent: int
    written_ms: int
    columns: Columns
    size: int


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is stored."""

    name: str
    number: int
    topic_id: str
    partitions: int
    retention_ms: int = -1
    compacting: bool = False
    deleting: bool = True
    record_bytes_max: int = 16 << 20
    tombstone_ms: int = 86_400_000
    config: Mapping[str, str] = {}


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """What says that a file is ours: kept in LMDB, and as ``FORMAT`` beside it."""

    kind: str = "trickle embedded log"
    version: int = FORMAT_VERSION
    identity: str


class StoredOffset(msgspec.Struct, frozen=True, array_like=True):
    """A committed offset."""

    offset: int
    metadata: str = ""


class Head(NamedTuple):
    """What is known of a partition: watermarks, and the end and size of its compacted part."""

    low: int = 0
    high: int = 0
    clean: int = 0
    clean_records: int = 0

    def encode(self) -> bytes:
        """Return the stored form."""
        return seal(_HEAD.pack(*self))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Head:
        """Return the head of its stored form.

        Raises:
            DamagedChunk: it does not match its checksum.
        """
        return cls(*_HEAD.unpack(unseal(data)))


class DamagedChunk(Exception):
    """A chunk, or another stored value, whose checksum or shape is wrong."""


def seal(data: bytes) -> bytes:
    """Return a small value with its checksum before it."""
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little") + data


def unseal(data: bytes | memoryview) -> bytes | memoryview:
    """Return what was sealed.

    Raises:
        DamagedChunk: it does not match its checksum.
    """
    inner = data[_CRC_BYTES:]
    if zlib.crc32(inner).to_bytes(_CRC_BYTES, "little") != data[:_CRC_BYTES]:
        raise DamagedChunk("a stored value does not match its checksum")
    return inner


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Columns).decode


def pack(columns: Columns, extent: int, written_ms: int) -> bytes:
    """Return the stored form of a chunk.

    Args:
        extent: offsets covered, gaps included.
        written_ms: POSIX milliseconds.
    """
    payload = _encode(columns)
    head = HEADER.pack(0, len(columns.values), extent, written_ms)[4:]
    crc = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((crc.to_bytes(4, "little"), head, payload))


def unpack_header(data: memoryview | bytes) -> tuple[int, int, int]:
    """Return number of records, extent and time of writing, without looking at the rest.

    Raises:
        DamagedChunk: it is too short to be one.
    """
    if len(data) < HEADER.size:
        raise DamagedChunk
    _, count, extent, written_ms = HEADER.unpack_from(data)
    return count, extent, written_ms


def unpack(first: int, data: memoryview | bytes) -> Chunk:
    """Check and decode a chunk that starts at an offset.

    Raises:
        DamagedChunk: its checksum or shape is wrong.
    """
    if len(data) < HEADER.size:
        raise DamagedChunk
    crc, count, extent, written_ms = HEADER.unpack_from(data)
    if zlib.crc32(data[4:]) != crc:
        raise DamagedChunk
    try:
        columns = _decode(data[HEADER.size :])
    except msgspec.MsgspecError as error:
        raise DamagedChunk from error
    if len(columns.values) != count:
        raise DamagedChunk
    return Chunk(first, extent, written_ms, columns, len(data))


def committed_key(number: int, partition: int, group: str) -> bytes:
    """Return the key of a committed offset."""
    return PARTITION.pack(number, partition) + group.encode()
