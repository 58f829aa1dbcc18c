"""What goes between the thread that owns a consumer and Trio's: positions, records, calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from trickle.exceptions import TransportError
    from trickle.transport.kafka.batch import KafkaBatch
    from trickle.types import TopicPartition

__all__ = ["Entry", "Epoch", "KafkaMember", "Kind", "Notice"]


class KafkaMember:
    """The group's metadata of one moment: what a transaction's offsets are sent with."""

    __slots__ = ("metadata",)

    def __init__(self, metadata: object) -> None:
        self.metadata = metadata


class Epoch:
    """One choice of positions, and how much fetched from there was handed over and taken.

    The owner's thread writes ``handed``, Trio's ``taken``, so neither needs a lock.
    """

    __slots__ = ("handed_bytes", "handed_records", "taken_bytes", "taken_records", "waiting")

    def __init__(self) -> None:
        self.handed_bytes = 0
        self.handed_records = 0
        self.taken_bytes = 0
        self.taken_records = 0
        self.waiting = False  # the owner waits until half was taken

    def is_below(self, size_bytes: int, records: int) -> bool:
        """Tell whether less than this waits to be taken."""
        return (
            self.handed_bytes - self.taken_bytes < size_bytes
            and self.handed_records - self.taken_records < records
        )


class Entry(NamedTuple):
    """What the owner hands over: batches with their size, or an error of the assignment."""

    epoch: Epoch
    batches: list[KafkaBatch]
    size_bytes: int
    records: int
    error: TransportError | None = None


Kind: TypeAlias = Literal["assigned", "revoked", "lost"]


class Notice:
    """One call of the listener that the owner waits for."""

    __slots__ = ("done", "generation", "kind", "partitions")

    def __init__(self, kind: Kind, generation: int, partitions: frozenset[TopicPartition]) -> None:
        self.kind: Kind = kind
        self.generation = generation
        self.partitions = partitions
        self.done = False
