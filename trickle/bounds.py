"""Bounds: what a topic takes, checked as a record is made."""

from __future__ import annotations

from trickle.exceptions import RecordRefused, UsageError
from trickle.types import Headers, Partitioner
from trickle.utils.values import is_whole

__all__ = ["SMALL", "check_partition", "check_size", "choose_partition"]

SMALL = 450
"""Bytes of a key, and of a value, that nobody compares with a limit: a kilobyte together.

Should a topic take still less, the broker refuses the record, and its commit tells which it was.
"""

# A batch header of 61 bytes, and lengths, offset and timestamp as varints
# (Kafka's record format v2): the broker compares the whole batch with max.message.bytes.
_OVERHEAD = 100
_HEADER_OVERHEAD = 10
_PARTITION_MAX = (1 << 31) - 1


def check_size(
    topic: str, limit: int, key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    """Compare a record with the largest one that the topic takes.

    Raises:
        RecordRefused: it is larger.
    """
    size = (len(key) if key else 0) + (len(value) if value else 0)
    if headers:
        size += sum(len(name) + len(data or b"") + _HEADER_OVERHEAD for name, data in headers)
    if size + _OVERHEAD > limit:
        raise RecordRefused(
            f"a record of {size:,} bytes is larger than topic {topic!r} takes: raise the topic's "
            f"max.message.bytes ({limit:,}), or send less",
            topic=topic,
        )


def check_partition(topic: str, partition: int, count: int | None) -> None:
    """See whether the topic has the partition.

    Args:
        count: how many it has, where that is known.

    Raises:
        UsageError: it has not.
    """
    if not is_whole(partition, at_least=0) or partition > _PARTITION_MAX:
        raise UsageError(
            f"topic {topic!r}: partition={partition!r} is not a whole number, 0 or more"
        )
    if count is not None and partition >= count:
        raise UsageError(
            f"topic {topic!r} has the partitions 0 to {count - 1}: "
            f"partition={partition} does not exist"
        )


def choose_partition(topic: str, partitioner: Partitioner, key: bytes | None, count: int) -> int:
    """Return what a partitioner of the user's makes of a key.

    Raises:
        UsageError: it is no partition.
    """
    try:
        partition = partitioner(key, count)
    except Exception as error:
        raise UsageError(
            f"topic {topic!r}: its partitioner failed for the key {key!r}: {error!r}"
        ) from error
    if not is_whole(partition, at_least=0) or partition >= count:
        raise UsageError(
            f"topic {topic!r}: its partitioner returned {partition!r} for the key {key!r}: "
            f"it must return a whole number from 0 to {count - 1}"
        )
    return partition
