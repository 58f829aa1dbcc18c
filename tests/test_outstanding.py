"""What waits for a generation: pure."""

from __future__ import annotations

import pytest

from trickle.calls import Calls
from trickle.context import Effect
from trickle.outstanding import Outstanding
from trickle.positions import Positions
from trickle.snapshots import Snapshot
from trickle.types import TopicPartition


def effect(number: int) -> Effect:
    return ("ticks", None, None, b"%d" % number, (), None)


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("happened", [True, False])
def test_what_a_commit_in_doubt_leaves(transactional: bool, happened: bool) -> None:
    """At least once, others may have committed the same: that proves nothing of our records."""
    calls = Calls()
    outstanding = Outstanding(calls, transactional=transactional)
    plan = {TopicPartition("source", 0): Positions(1)}
    outstanding.held = True
    outstanding.doubt = Snapshot(plan, [], 1, 1, [lambda: None], [effect(1)], None)
    outstanding.ticks = [effect(2)]
    assert (outstanding.plan, outstanding.at_stake, outstanding.owing) == (plan, True, True)
    outstanding.resolve(happened=happened)
    again = [] if happened and transactional else [effect(1)]
    assert outstanding.ticks == [*again, effect(2)]
    assert bool(calls) is happened
    assert (outstanding.plan, outstanding.at_stake, outstanding.owing) == (None, False, True)
