"""Which partition a key belongs to: murmur2, exactly as Java's Kafka clients have it.

Programs in other languages write to the same topics, so the same key must reach the same
partition from all of them. Java's ``DefaultPartitioner`` takes the 32-bit murmur2 of the key with
Kafka's own seed, clears the sign bit (*toPositive*, not the absolute value), and takes the
remainder by the partition count. librdkafka calls it ``murmur2_random``: a record without a key
goes anywhere.

The source is ``org.apache.kafka.common.utils.Utils.murmur2``.
"""

from __future__ import annotations

from functools import lru_cache
from random import random
from struct import Struct

__all__ = ["murmur2", "partition_of"]

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_SIGN = 0x80000000

_CACHED_KEY_BYTES_MAX = 64
_CACHED_KEYS_MAX = 1 << 14  # some 3 MB when full; keys come back, or a cache is of no use

_WORDS = tuple(Struct(f"<{words}I").unpack_from for words in range(17))


def murmur2(data: bytes) -> int:
    """Return the hash of the bytes as Java does: an ``int`` of 32 bits, with its sign."""
    unsigned = _hash(data)
    return unsigned - (1 << 32) if unsigned & _SIGN else unsigned


def partition_of(key: bytes | None, count: int) -> int:
    """Return the partition of a key, of so many partitions; any one where there is no key."""
    if key is None:
        return int(random() * count)  # noqa: S311 - it spreads load, and guards nothing
    if len(key) <= _CACHED_KEY_BYTES_MAX:
        return _positive(key) % count
    return (_hash(key) & 0x7FFFFFFF) % count


def _hash(data: bytes) -> int:
    """Return the hash without its sign.

    The words are mixed with one mask each: products may grow beyond 32 bits in between, for only
    their low bits reach the result. Where a shift to the right follows, they are cut before it.
    """
    length = len(data)
    words = length >> 2
    unpack = _WORDS[words] if words < len(_WORDS) else Struct(f"<{words}I").unpack_from
    h = _SEED ^ length
    for k in unpack(data):
        k = k * _M & _MASK  # noqa: PLW2901 - the algorithm's own name
        h = (h * _M ^ (k ^ k >> 24) * _M) & _MASK
    if rest := length & 3:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(_CACHED_KEYS_MAX)
def _positive(key: bytes) -> int:
    return _hash(key) & 0x7FFFFFFF
