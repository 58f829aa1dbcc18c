"""Limits: how much of a shard may be in memory, and what a key of it weighs there."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ENTRY_BYTES", "CacheLimits", "cell_bytes"]

ENTRY_BYTES = 150  # a dict's slot, two small objects


class CacheLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a shard may be in memory: whichever bound is met first.

    Attributes:
        entries: keys.
        bytes: of keys and values, roughly.
    """

    entries: int = 100_000
    bytes: int = 64 << 20


def cell_bytes(mark: Any, cell: Any) -> int:
    """Return what a key and its cell weigh, about."""
    size = len(mark) if isinstance(mark, (bytes, str)) else 0
    if isinstance(cell, (bytes, str)):
        size += len(cell)
    return size + ENTRY_BYTES
