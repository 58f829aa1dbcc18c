"""Where Java's partitioner puts a key: Kafka's murmur2, written down once more from its source.

The app's own implementation is under judgement, so it is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["murmur2", "partitions_of"]

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Return ``org.apache.kafka.common.utils.Utils.murmur2``, as an unsigned number."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partitions_of(keys: Iterable[bytes], count: int) -> dict[bytes, int]:
    """Return the partition of each key among so many."""
    return {key: (murmur2(key) & 0x7FFFFFFF) % count for key in keys}
