"""Topics that are sent to alone: one that may not be looked at ends nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from trio.testing import MockClock

from trickle.drift import Drift
from trickle.exceptions import TopicError, TransportError
from trickle.transport.contract import TopicInfo, TopicSpec
from trickle.transport.memory import MemoryBroker
from trickle.transport.memory.transport import MemoryAdmin


class Admin(MemoryAdmin):
    """Refuses to tell of one topic."""

    hidden = ""

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicInfo]:
        if names is not None and self.hidden in names:
            raise TransportError(f"looking at {self.hidden} failed: not allowed")
        return await super().topics(names)


async def test_what_is_gone_is_known_until_it_is_back_or_may_not_be_looked_at(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    for name in ("in", "out", "other"):
        broker.declare(TopicSpec(name=name, partitions=1))
    admin = Admin(broker)
    missing: set[str] = set()
    drift = Drift(admin, await admin.topics(), ["in"], [], missing)
    await drift.look()
    assert not missing
    broker.delete("out")
    await drift.look()
    assert missing == {"out"}
    broker.declare(TopicSpec(name="out", partitions=1))
    await drift.look()
    assert not missing
    broker.delete("out")
    await drift.look()
    admin.hidden = "other"
    await drift.look()
    assert not missing
    admin.hidden = "in"
    with pytest.raises(TransportError, match="not allowed"):
        await drift.look()
    admin.hidden = ""
    broker.delete("in")
    with pytest.raises(TopicError, match="'in' was deleted while it was read"):
        await drift.look()
