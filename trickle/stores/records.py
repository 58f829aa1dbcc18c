"""How a table's records, and what is known of it, are written in LMDB: with their checksums."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, cast

import msgspec

from trickle.stores.contract import STORED_KEY_BYTES_MAX, Position, stored_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "DamagedError",
    "is_whole",
    "pack",
    "pack_position",
    "portions",
    "read_position",
    "unpack",
]

_LENGTH = struct.Struct("<I")
_PORTION = 2_000  # sorted in a millisecond, in which no other thread gets the interpreter's lock


class DamagedError(Exception):
    """What is in the files is not what was written; never leaves this package."""


def pack(key: bytes, stored: bytes, value: bytes) -> bytes:
    """Return what is written for a pair whose key is stored so."""
    body = value if len(key) < STORED_KEY_BYTES_MAX else _LENGTH.pack(len(key)) + key + value
    return body + _LENGTH.pack(zlib.crc32(body, zlib.crc32(stored)))


def unpack(stored: bytes, raw: bytes) -> tuple[bytes, bytes]:
    """Return key and value of a stored pair."""
    if stored[-1] == 0:
        return stored[:-1], raw[:-4]
    end = 4 + cast("int", _LENGTH.unpack_from(raw)[0])
    return raw[4:end], raw[end:-4]


def is_whole(stored: bytes, raw: bytes) -> bool:
    """Tell whether a stored pair is what was written."""
    return len(raw) >= 4 and raw[-4:] == _LENGTH.pack(zlib.crc32(raw[:-4], zlib.crc32(stored)))


def portions(
    changes: Sequence[tuple[bytes, bytes | None]],
) -> Iterator[tuple[list[tuple[bytes, bytes]], list[bytes]]]:
    """Yield what is to be written of (key, value) pairs, and which keys are to be deleted.

    Of a key's changes the last one counts. Keys come in order, as neighbours share a page.
    """
    for start in range(0, len(changes), _PORTION):
        raw: dict[bytes, bytes | None] = {}
        for key, value in changes[start : start + _PORTION]:
            stored = stored_key(key)
            raw[stored] = None if value is None else pack(key, stored, value)
        yield (
            sorted((stored, data) for stored, data in raw.items() if data is not None),
            [stored for stored, data in raw.items() if data is None],
        )


class _Meta(msgspec.Struct):
    """What the meta database says of one table."""

    topic_id: str
    offset: int
    acknowledged: bool = False
    old: bool = False
    crc: int = 0

    def checksum(self) -> int:
        text = f"{self.topic_id} {self.offset} {self.acknowledged}{' old' if self.old else ''}"
        return zlib.crc32(text.encode())


def pack_position(position: Position) -> bytes:
    """Return what is written of a table's position."""
    meta = _Meta(*position)
    meta.crc = meta.checksum()
    return msgspec.json.encode(meta)


def read_position(raw: bytes) -> Position:
    """Return the position that was written.

    Raises:
        DamagedError: these are not the bytes that were written.
    """
    try:
        meta = msgspec.json.decode(raw, type=_Meta)
    except msgspec.MsgspecError as error:
        raise DamagedError(f"a table's position cannot be read: {error}") from error
    if meta.crc != meta.checksum():
        raise DamagedError("a table's position is not what was written")
    return Position(meta.topic_id, meta.offset, meta.acknowledged, meta.old)
