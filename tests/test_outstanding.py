"""What waits for a generation, and how a commit of unknown outcome is told."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from trickle.calls import Calls
from trickle.context import Effect
from trickle.outcomes import Outcomes
from trickle.outstanding import MARKS_KEPT_S, Outstanding
from trickle.positions import Positions
from trickle.snapshots import Snapshot
from trickle.transport.contract import Mark
from trickle.transport.memory import MemoryBroker
from trickle.transport.memory.transport import MemoryAdmin
from trickle.types import TopicPartition

SOURCE = TopicPartition("source", 0)
PLAN = {SOURCE: Positions(1, committer="id")}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def outcomes(broker: MemoryBroker) -> Outcomes:
    return Outcomes(MemoryAdmin(broker), group="app", transactional_id="id", topic="source")


def effect(number: int) -> Effect:
    return ("ticks", None, None, b"%d" % number, (), None)


def commit(mark: Mark | None) -> Snapshot:
    return Snapshot(PLAN, [], 1, 1, [lambda: None], [effect(1)], None, mark)


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("happened", [True, False])
async def test_what_a_commit_in_doubt_leaves(
    broker: MemoryBroker, outcomes: Outcomes, transactional: bool, happened: bool
) -> None:
    """At least once, others may have committed the same: that proves nothing of our records."""
    calls = Calls()
    outstanding = Outstanding(calls, outcomes, transactional=transactional)
    outstanding.held = True
    outstanding.doubt = commit(None)
    outstanding.ticks = [effect(2)]
    if happened:
        broker.commit_offsets("app", {SOURCE: PLAN[SOURCE].write()})
    assert (outstanding.at_stake, outstanding.owing) == (True, True)
    assert await outstanding.resolve() is happened
    again = [] if happened and transactional else [effect(1)]
    assert outstanding.ticks == [*again, effect(2)]
    assert bool(calls) is happened
    assert (outstanding.doubt, outstanding.at_stake, outstanding.owing) == (None, False, True)
    assert not await outstanding.resolve()


@pytest.mark.parametrize("in_doubt", [True, False])
@pytest.mark.parametrize("there", [True, False])
async def test_ticks_of_a_commit_that_was_acknowledged_and_forgotten_are_sent_again(
    broker: MemoryBroker, outcomes: Outcomes, in_doubt: bool, there: bool
) -> None:
    """A killed broker can lose what it has acknowledged: the mark of the commit is gone, too."""
    await outcomes.learn(allow)
    calls = Calls()
    outstanding = Outstanding(calls, outcomes, transactional=True)
    acknowledged = commit(outcomes.mark())
    if there:
        bear(broker, acknowledged)
    outstanding.answered(acknowledged)
    outstanding.ticks = [effect(3)]
    if in_doubt:
        outstanding.doubt = commit(outcomes.mark())._replace(ticks=[effect(2)])
    assert not await outstanding.resolve()
    again = [] if there else [effect(1)]
    assert outstanding.ticks == [*again, *([effect(2)] if in_doubt else []), effect(3)]
    assert not calls
    outstanding.ticks = []
    assert not await outstanding.resolve()
    assert outstanding.ticks == []


async def test_a_commit_that_happened_proves_those_before_it(
    broker: MemoryBroker, outcomes: Outcomes
) -> None:
    await outcomes.learn(allow)
    outstanding = Outstanding(Calls(), outcomes, transactional=True)
    outstanding.answered(commit(outcomes.mark()))
    outstanding.doubt = commit(outcomes.mark())
    bear(broker, outstanding.doubt)
    assert await outstanding.resolve()
    assert outstanding.ticks == []
    outstanding.answered(commit(outcomes.mark()))
    outstanding.answered(commit(outcomes.mark())._replace(ticks=[]))  # this one's mark says it
    assert not await outstanding.resolve()
    assert outstanding.ticks == []


async def test_a_mark_that_the_broker_no_longer_keeps_says_nothing(
    outcomes: Outcomes, mock_clock: MockClock
) -> None:
    await outcomes.learn(allow)
    outstanding = Outstanding(Calls(), outcomes, transactional=True)
    outstanding.answered(commit(outcomes.mark()))
    mock_clock.jump(MARKS_KEPT_S + 1)
    assert not await outstanding.resolve()
    assert outstanding.ticks == []


async def allow(mark: Mark) -> bool:
    return True


def bear(broker: MemoryBroker, commit: Snapshot) -> None:
    assert commit.mark is not None
    broker.commit_offsets(commit.mark.group, {commit.mark.at: commit.mark.offset})


async def forbid(mark: Mark) -> bool:
    return False


async def test_a_mark_tells_whatever_others_have_committed_since(
    broker: MemoryBroker, outcomes: Outcomes
) -> None:
    await outcomes.learn(allow)
    mark, other = outcomes.mark(), outcomes.mark()
    assert mark is not None
    assert other is not None
    assert (mark.group, mark.at) == ("id", SOURCE)
    broker.commit_offsets("app", {SOURCE: Positions(9, committer="other").write()})
    assert not await outcomes.happened(commit(mark))
    broker.commit_offsets(mark.group, {mark.at: mark.offset})
    assert await outcomes.happened(commit(mark))
    assert not await outcomes.happened(commit(other))


async def test_nothing_is_marked_before_it_is_known_to_be_allowed(
    outcomes: Outcomes, caplog: pytest.LogCaptureFixture
) -> None:
    assert outcomes.mark() is None
    await outcomes.learn(forbid)
    assert outcomes.mark() is None
    assert "allow this user to read group 'id' and topic 'source'" in caplog.text
    await outcomes.learn(allow)  # asked once
    assert outcomes.mark() is None


@pytest.mark.parametrize(("transactional_id", "topic"), [("", "source"), ("id", "")])
async def test_nothing_is_marked_without_a_transactional_id_or_a_topic(
    broker: MemoryBroker, transactional_id: str, topic: str
) -> None:
    outcomes = Outcomes(
        MemoryAdmin(broker), group="app", transactional_id=transactional_id, topic=topic
    )
    await outcomes.learn(allow)
    assert outcomes.mark() is None
