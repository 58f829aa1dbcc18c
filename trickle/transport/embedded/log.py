"""What a transaction does to the log: topics, appending, reading, offsets, epochs.

Functions of a transaction and nothing else: no wait, no thread, no clock but the one given.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from trickle.exceptions import TopicError
from trickle.transport.contract import CommittedOffset, TopicSpec
from trickle.transport.embedded.batch import LogBatch
from trickle.transport.embedded.damage import explain
from trickle.transport.embedded.environment import ReadTxn, WriteTxn
from trickle.transport.embedded.format import (
    KEY,
    PARTITION,
    Chunk,
    DamagedChunk,
    Head,
    StoredOffset,
    Topic,
    committed_key,
    seal,
    unpack,
    unseal,
)

__all__ = [
    "Found",
    "Want",
    "append",
    "chunks",
    "committed",
    "create",
    "drop",
    "dropped",
    "epoch",
    "forget",
    "head",
    "new_epoch",
    "read",
    "set_committed",
    "set_head",
    "topic",
    "topics",
]

_TOPIC = b"t"
_EPOCH = b"x"
_DROPPED = b"d"
_NUMBER = b"n"

KEY_BYTES_MAX = 511
"""LMDB's bound; no topic has a name that comes near it."""

_topic_encode = msgspec.msgpack.Encoder().encode
_topic_decode = msgspec.msgpack.Decoder(Topic).decode
_offset_encode = msgspec.msgpack.Encoder().encode
_offset_decode = msgspec.msgpack.Decoder(StoredOffset).decode


# Topics


def topic(txn: ReadTxn, name: str) -> Topic | None:
    """Return a topic, or None."""
    key = _TOPIC + name.encode(errors="replace")
    data = None if len(key) > KEY_BYTES_MAX else txn.get(txn.meta, key)
    return None if data is None else _topic_decode(unseal(data))


def topics(txn: ReadTxn, names: Collection[str] | None = None) -> list[Topic]:
    """Return those of the named topics that exist, or all, by name."""
    if names is not None:
        found = (topic(txn, name) for name in names)
        return [one for one in found if one is not None]
    cursor = txn.cursor(txn.meta)
    everything: list[Topic] = []
    more = cursor.set_range(_TOPIC)
    while more and bytes(cursor.key()[:1]) == _TOPIC:
        everything.append(_topic_decode(unseal(cursor.value())))
        more = cursor.next()
    return everything


def create(txn: WriteTxn, spec: TopicSpec) -> None:
    """Create a topic, unless one of its name exists."""
    if topic(txn, spec.name) is not None:
        return
    data = txn.get(txn.meta, _NUMBER)
    number = 1 if data is None else int.from_bytes(unseal(data), "big")
    txn.put(txn.meta, _NUMBER, seal((number + 1).to_bytes(4, "big")))
    made = _topic_of(spec, number)
    txn.put(txn.meta, _TOPIC + spec.name.encode(), seal(_topic_encode(made)))
    for partition in range(made.partitions):
        set_head(txn, number, partition, Head())


def _topic_of(spec: TopicSpec, number: int) -> Topic:
    def setting(name: str, default: int) -> int:
        text = spec.config.get(name)
        if text is None:
            return default
        try:
            return int(text)
        except ValueError:
            raise TopicError(
                f"topic {spec.name!r}: config {name}={text!r} is no whole number"
            ) from None

    policy = {part.strip() for part in spec.config.get("cleanup.policy", "").split(",")} - {""}
    compacting = spec.compacting if spec.compacting is not None else "compact" in policy
    deleting = spec.deleting
    if deleting is None:
        deleting = "delete" in policy if policy else not compacting
    retention_ms = spec.retention_ms
    return Topic(
        name=spec.name,
        number=number,
        topic_id=secrets.token_hex(16),
        partitions=1 if spec.partitions is None else spec.partitions,
        retention_ms=setting("retention.ms", -1) if retention_ms is None else retention_ms,
        compacting=compacting,
        deleting=deleting,
        record_bytes_max=setting("max.message.bytes", 16 << 20),
        tombstone_ms=setting("delete.retention.ms", 86_400_000),
        config=dict(spec.config),
    )


def drop(txn: WriteTxn, name: str) -> None:
    """Delete a topic: at once for everybody; its records go bit by bit (:mod:`.upkeep`)."""
    gone = topic(txn, name)
    if gone is not None:
        txn.delete(txn.meta, _TOPIC + name.encode())
        txn.put(txn.meta, _DROPPED + gone.number.to_bytes(4, "big"), b"\0")


def dropped(txn: ReadTxn) -> int | None:
    """Return the number of a topic whose records are still to go."""
    cursor = txn.cursor(txn.meta)
    if cursor.set_range(_DROPPED) and bytes(cursor.key()[:1]) == _DROPPED:
        return int.from_bytes(cursor.key()[1:], "big")
    return None


def forget(txn: WriteTxn, number: int) -> None:
    """Note that nothing is left of a dropped topic."""
    txn.delete(txn.meta, _DROPPED + number.to_bytes(4, "big"))


# Heads and records


def head(txn: ReadTxn, number: int, partition: int) -> Head | None:
    """Return a partition's head; None where its topic is gone."""
    data = txn.get(txn.heads, PARTITION.pack(number, partition))
    return None if data is None else Head.decode(data)


def set_head(txn: WriteTxn, number: int, partition: int, value: Head) -> None:
    """Write a partition's head."""
    txn.put(txn.heads, PARTITION.pack(number, partition), value.encode())


def append(
    txn: WriteTxn, number: int, partition: int, chunks: Iterable[tuple[bytes, int]]
) -> int | None:
    """Append packed chunks, each with its number of records; return the first offset.

    Returns:
        None where the topic is gone.
    """
    now = head(txn, number, partition)
    if now is None:
        return None
    offset = now.high
    for data, count in chunks:
        txn.put(txn.log, KEY.pack(number, partition, offset), data)
        offset += count
    set_head(txn, number, partition, now._replace(high=offset))
    return now.high


def chunks(
    txn: ReadTxn, number: int, partition: int, position: int, directory: Path
) -> Iterator[Chunk]:
    """Yield the chunks that reach beyond a position, in order, each checked.

    Raises:
        TransportError: one is damaged.
    """
    cursor = txn.cursor(txn.log)
    wanted = KEY.pack(number, partition, position)
    more = cursor.set_range(wanted)
    if not more or bytes(cursor.key()) != wanted:
        # The position may lie inside the chunk before.
        before = cursor.prev() if more else cursor.last()
        if before:
            at = KEY.unpack(cursor.key())
            if at[:2] == (number, partition):
                chunk = _unpacked(cursor.value(), at, directory)
                if chunk.first + chunk.extent > position:
                    yield chunk
            more = cursor.next()
        else:
            more = cursor.set_range(wanted)
    while more:
        at = KEY.unpack(cursor.key())
        if at[:2] != (number, partition):
            return
        yield _unpacked(cursor.value(), at, directory)
        more = cursor.next()


def _unpacked(data: memoryview, at: tuple[int, int, int], directory: Path) -> Chunk:
    try:
        return unpack(at[2], data)
    except DamagedChunk:
        raise explain(
            directory,
            f"the records from offset {at[2]} of topic number {at[0]}, partition {at[1]} do not "
            "match their checksum",
        ) from None


class Found(NamedTuple):
    """What a read found: a batch or none, and the position behind it."""

    batch: LogBatch | None
    position: int


def read(
    txn: ReadTxn, number: int, name: str, partition: int, position: int, now: Head, want: Want
) -> Found:
    """Read some records from a position on.

    Args:
        now: the partition's head, in this transaction.
    """
    position = max(position, now.low)
    if position >= now.high:
        return Found(None, position)
    batch: LogBatch | None = None
    for chunk in chunks(txn, number, partition, position, want.directory):
        if batch is None:
            batch = LogBatch.of(name, partition, chunk, position)
        else:
            batch.extend(chunk)
        if batch is not None and (
            len(batch) >= want.records_min or batch.size_bytes >= want.bytes_max
        ):
            return Found(batch, batch.next_offset)
    # Behind the last record there may be offsets whose records were compacted away.
    if batch is not None:
        batch.next_offset = now.high
    return Found(batch, now.high)


class Want(NamedTuple):
    """How much is read at once: at least so many records where there are, about so many bytes."""

    directory: Path
    records_min: int = 1000
    bytes_max: int = 512 << 10


# Groups and producers


def committed(txn: ReadTxn, number: int, partition: int, group: str) -> CommittedOffset | None:
    """Return a group's committed offset."""
    data = txn.get(txn.offsets, committed_key(number, partition, group))
    if data is None:
        return None
    stored = _offset_decode(unseal(data))
    return CommittedOffset(stored.offset, stored.metadata)


def set_committed(
    txn: WriteTxn, number: int, partition: int, group: str, value: CommittedOffset
) -> None:
    """Write a group's committed offset."""
    stored = StoredOffset(value.offset, value.metadata)
    txn.put(txn.offsets, committed_key(number, partition, group), seal(_offset_encode(stored)))


def epoch(txn: ReadTxn, transactional_id: str) -> int:
    """Return the epoch of a transactional id: whoever has an older one is fenced."""
    data = txn.get(txn.meta, _EPOCH + transactional_id.encode())
    return 0 if data is None else int.from_bytes(unseal(data), "big")


def new_epoch(txn: WriteTxn, transactional_id: str) -> int:
    """Begin a new epoch of a transactional id and return it."""
    value = epoch(txn, transactional_id) + 1
    txn.put(txn.meta, _EPOCH + transactional_id.encode(), seal(value.to_bytes(8, "big")))
    return value
