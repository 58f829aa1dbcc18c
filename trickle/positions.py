"""What a committed offset's metadata says: pure, so that it can be tested without a broker.

Several agents may read one topic, each at its own pace. The offset committed for a partition is
the lowest of their positions; the metadata carries the others', so that none repeats an event
after a restart. It also names the committer's transactional id, until a clean revocation marks
the partition as released: whoever is assigned an unreleased partition fences that id first.

It names the topic's identity as well, for a topic that was deleted and created again has other
records at the same offsets.

The metadata is compact JSON: ``{"c": committer, "r": released, "t": topic id, "a": {agent:
position}}``, with only those agents in it whose position lies above the committed offset. An
agent that is not named is at the committed offset; so is a new one. One that this program does not
know is carried on while its position lies above the offset, and holds nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trickle.transport.contract import CommittedOffset

__all__ = ["METADATA_BYTES_MAX", "Positions", "read_positions"]

METADATA_BYTES_MAX = 4000
"""Kafka's ``offset.metadata.max.bytes`` is 4,096 by default, and 4,095 pass (as measured)."""


class _Wire(msgspec.Struct, omit_defaults=True):
    c: str = ""
    r: int = 0
    t: str = ""
    a: dict[str, int] = {}


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
    """

    offset: int
    agents: Mapping[str, int] = {}
    committer: str = ""
    released: bool = False
    topic_id: str = ""

    def of(self, agent: str) -> int:
        """Return the position of one agent."""
        return self.agents.get(agent, self.offset)

    def moved(self, settled: Mapping[str, int], committer: str, *, released: bool) -> Positions:
        """Return the positions after some agents have moved.

        Args:
            settled: the position of each agent of this program that reads the partition.
        """
        lowest = min(settled.values(), default=self.offset)
        agents = {
            name: position
            for name, position in {**self.agents, **settled}.items()
            if position > lowest
        }
        return Positions(lowest, agents, committer, released, self.topic_id)

    def write(self) -> CommittedOffset:
        """Return what is committed."""
        wire = _Wire(self.committer, int(self.released), self.topic_id, dict(self.agents))
        return CommittedOffset(self.offset, _encode(wire).decode())


def read_positions(committed: CommittedOffset) -> Positions:
    """Read what was committed; metadata of another program's making counts as none."""
    try:
        wire = _decode(committed.metadata) if committed.metadata else _Wire()
    except msgspec.DecodeError:
        wire = _Wire()
    agents = {name: at for name, at in wire.a.items() if at > committed.offset}
    return Positions(committed.offset, agents, wire.c, bool(wire.r), wire.t)
