"""What a committed offset's metadata says: pure, so that it can be tested without a broker.

Several agents may read one topic, each at its own pace. The offset committed for a partition is
the lowest of their positions; the metadata carries the others', so that none repeats an event
after a restart. It also names the committer's transactional id, until a clean revocation marks
the partition as released: whoever is assigned an unreleased partition fences that id first.

It names the topic's identity as well, for a topic that was deleted and created again has other
records at the same offsets; and how many partitions it had when this one was begun, for one that
the topic has grown by since must not be begun at its end.

The metadata is compact JSON: ``{"c": committer, "r": released, "t": topic id, "p": program, "n":
partitions, "a": {agent: position}, "l": {agent: ranges}}``, with only those agents in it whose
position lies above the committed offset. An agent that is not named is at the committed offset; so
is a new one. One that this program does not know is carried on while its position lies above the
offset, and holds nothing back. The ranges are those that an agent with concurrency has settled
beyond its position, as :mod:`trickle.ledger` writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from trickle.exceptions import DefinitionError
from trickle.ledger import Ledger, Ranges, read_ranges, write_ranges
from trickle.transport.contract import CommittedOffset

__all__ = [
    "METADATA_BYTES_MAX",
    "UNTOLD",
    "Positions",
    "check_names",
    "is_end",
    "read_end",
    "read_positions",
    "write_end",
]

METADATA_BYTES_MAX = 4000
"""What trickle fills; ranges give way where it would be more."""

_KAFKA_BYTES_MAX = 4095
"""Kafka's ``offset.metadata.max.bytes`` is 4,096 by default, and 4,095 pass (as measured)."""


class _Wire(msgspec.Struct, omit_defaults=True):
    c: str = ""
    r: int = 0
    t: str = ""
    p: str = ""
    n: int = 0
    a: dict[str, int] = {}
    l: dict[str, str] = {}  # noqa: E741 - each byte counts


_decode = msgspec.json.Decoder(_Wire).decode
_encode = msgspec.json.Encoder().encode


class Positions(msgspec.Struct, frozen=True):
    """The positions of all agents on one partition, and who committed them.

    Attributes:
        offset: the lowest position.
        agents: the positions that lie above it, by agent.
        committer: the transactional id of the last commit; empty where there was none.
        released: the partition was given back cleanly.
        topic_id: the identity of the topic that the offsets mean; empty where it is not known.
        program: what committed them, see :mod:`trickle.namesakes`.
        partitions: how many the topic had when this one was begun; 0 where it is not known.
        beyond: what agents have settled beyond their positions.
    """

    offset: int
    agents: Mapping[str, int] = {}
    committer: str = ""
    released: bool = False
    topic_id: str = ""
    program: str = ""
    beyond: Mapping[str, Ranges] = {}
    partitions: int = 0

    def of(self, agent: str) -> int:
        """Return the position of one agent."""
        return self.agents.get(agent, self.offset)

    def ledger(self, agent: str) -> Ledger:
        """Return what one agent has settled."""
        return Ledger(self.of(agent), self.beyond.get(agent, ()))

    def moved(
        self,
        settled: Mapping[str, int],
        committer: str,
        *,
        released: bool,
        beyond: Mapping[str, Ranges] | None = None,
    ) -> Positions:
        """Return the positions after some agents have moved.

        Args:
            settled: the position of each agent of this program that reads the partition.
            beyond: what they have settled beyond it.
        """
        lowest = min(settled.values(), default=self.offset)
        agents = {**self.agents, **settled}
        ranges = dict(beyond or {})
        for name in self.beyond.keys() - settled.keys():  # unknown here: carried on
            ledger = self.ledger(name)
            ledger.skip(lowest)
            agents[name] = ledger.position
            if ledger.ranges:
                ranges[name] = ledger.ranges
        agents = {name: position for name, position in agents.items() if position > lowest}
        return Positions(
            lowest, agents, committer, released, self.topic_id, self.program, ranges,
            self.partitions,
        )  # fmt: skip

    def room(self, agents: Iterable[str], sharing: Collection[str], committer: str) -> int:
        """Return how many characters one agent's ranges may have in the metadata.

        Args:
            agents: of this program, that read the partition.
            sharing: those of them that may have ranges.
            committer: will have committed it.
        """
        carried = {name: self.beyond[name] for name in self.beyond.keys() - set(agents)}
        texts = {name: write_ranges(self.of(name), ranges) for name, ranges in carried.items()}
        texts.update(dict.fromkeys(sharing, ""))
        ends = dict.fromkeys({*agents, *self.agents, *carried}, _OFFSET_MAX)
        full = Positions(
            0, ends, committer, True, self.topic_id, self.program, partitions=self.partitions
        )
        return max(0, METADATA_BYTES_MAX - len(_encode(full._wire(texts)))) // len(sharing)

    def _wire(self, texts: dict[str, str]) -> _Wire:
        """Return the metadata as it is to be encoded."""
        released = int(self.released)
        return _Wire(
            self.committer, released, self.topic_id, self.program, self.partitions,
            dict(self.agents), texts,
        )  # fmt: skip

    def write(self) -> CommittedOffset:
        """Return what is committed.

        Raises:
            DefinitionError: there are too many agents, with too long names.
        """
        texts = {name: write_ranges(self.of(name), ranges) for name, ranges in self.beyond.items()}
        metadata = _encode(self._wire(texts))
        if len(metadata) > _KAFKA_BYTES_MAX:
            names = sorted(self.agents.keys() | texts.keys())
            raise DefinitionError(
                f"{len(names)} agents read one topic ({', '.join(names)[:100]}, …): their "
                f"positions take {len(metadata):,} bytes of a committed offset's metadata, and "
                f"Kafka allows {_KAFKA_BYTES_MAX:,}; give them shorter names, or let one agent do "
                "the work of several"
            )
        return CommittedOffset(self.offset, metadata.decode())


_OFFSET_MAX = (1 << 63) - 1


def check_names(agents: Iterable[str], committer: str) -> None:
    """See that the positions of some agents, that read one topic, can be committed.

    Raises:
        DefinitionError: they are too many, with too long names.
    """
    ends = dict.fromkeys(agents, _OFFSET_MAX)
    Positions(0, ends, committer, True, "t" * 32, "p" * 8, partitions=999_999).write()


def read_positions(committed: CommittedOffset) -> Positions:
    """Read what was committed; metadata of another program's making counts as none."""
    offset = committed.offset
    try:
        wire = _decode(committed.metadata) if committed.metadata else _Wire()
        agents = {name: at for name, at in wire.a.items() if at > offset}
        beyond = {
            name: read_ranges(agents.get(name, offset), text) for name, text in wire.l.items()
        }
    except (msgspec.DecodeError, ValueError):
        return Positions(offset)
    return Positions(offset, agents, wire.c, bool(wire.r), wire.t, wire.p, beyond, wire.n)


# Of changelogs, which nobody reads: up to where their records count

_END = "changelog "

UNTOLD = CommittedOffset(0, _END)
"""Of a changelog whose records all count."""


def write_end(offset: int, topic_id: str) -> CommittedOffset:
    """Return what is committed for a changelog whose records count up to an offset."""
    return CommittedOffset(offset, f"{_END}{topic_id}")


def read_end(committed: CommittedOffset | None, topic_id: str) -> int | None:
    """Return up to where a changelog's records count; None: nothing tells, so that all do."""
    if committed is None or committed.metadata != f"{_END}{topic_id}":
        return None
    return committed.offset


def is_end(committed: CommittedOffset) -> bool:
    """Tell whether this is a changelog's end, and no agent's position."""
    return committed.metadata.startswith(_END)
