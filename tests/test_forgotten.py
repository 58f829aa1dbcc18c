"""What a broker has lost the end of: found before anything is sent, and aborted once more."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle import TopicPartition
from trickle.exceptions import BrokerUnavailable, ProducerFenced
from trickle.forgotten import OPEN_S, Forgotten
from trickle.positions import Positions
from trickle.transport.contract import TopicInfo, TopicSpec
from trickle.transport.memory import MemoryBroker
from trickle.transport.memory.transport import MemoryAdmin
from trickle.types import Places

OUT = TopicPartition("out", 0)
OTHER = TopicPartition("out", 1)

Fenced: TypeAlias = tuple[str, tuple[str, ...], set[TopicPartition]]


class Admin(MemoryAdmin):
    """Notes who is fenced, and where; may fail once."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.broker = broker
        self.fenced: list[Fenced] = []
        self.fails: list[Exception] = []
        self.fails_for: dict[str, Exception] = {}
        self.deaf = 0  # to so many calls
        self.on_fence: dict[str, Callable[[], None]] = {}

    async def fence(
        self, transactional_id: str, *, groups: Collection[str] = (), places: Places = ()
    ) -> None:
        self.fenced.append((transactional_id, tuple(groups), set(places)))
        if self.fails:
            raise self.fails.pop()
        if transactional_id in self.fails_for:
            raise self.fails_for.pop(transactional_id)
        self.on_fence.get(transactional_id, lambda: None)()
        await trio.lowlevel.checkpoint()
        if self.deaf:
            self.deaf -= 1
            return
        await super().fence(transactional_id, groups=groups, places=places)


@pytest.fixture
def admin() -> Admin:
    """Of a broker with a record in each of two partitions."""
    broker = MemoryBroker()
    broker.declare(TopicSpec(name="out", partitions=2))
    for at in (OUT, OTHER):
        broker.append([broker.stage("out", at.partition, None, b"1", (), None, watch=False)])
    broker.forgotten[OUT] = 0
    return Admin(broker)


@pytest.fixture
def forgotten(admin: Admin) -> Forgotten:
    return Forgotten(
        admin, "app", "own", {"out": TopicInfo(name="out", topic_id="id", partitions=2)}
    )


def fenced(committer: str) -> Fenced:
    return (committer, ("app", committer), {OUT})


async def test_what_an_earlier_process_has_left_is_ended_where_it_is(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    assert await forgotten.end_suspects()
    assert admin.fenced == [fenced("own")]
    assert not admin.broker.forgotten


async def test_nobody_looks_before_there_is_a_reason(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    assert await forgotten.end_suspects()
    admin.broker.forgotten[OUT] = 0
    assert not await forgotten.end_suspects()
    assert admin.fenced == [fenced("own")]
    forgotten.suspect("dead")
    assert not await forgotten.end_suspects()  # our own producer is well
    assert admin.fenced == [fenced("own"), fenced("dead")]


async def test_what_others_decide_soon_is_theirs(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def commit() -> None:
            await trio.sleep(OPEN_S * 0.8)
            admin.broker.forgotten.clear()

        assert not await forgotten.end_suspects()
    assert not admin.fenced


async def test_what_comes_meanwhile_does_not_count(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    """Under load some record is open at each look, but another one each time."""
    admin.broker.forgotten[OUT] = 1
    assert not await forgotten.end_suspects()


async def test_a_broker_that_is_away_meanwhile_is_asked_again(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    admin.fails = [BrokerUnavailable("away")]
    with pytest.raises(BrokerUnavailable):
        await forgotten.end_suspects()
    assert await forgotten.end_suspects()


async def test_that_our_own_is_fenced_is_told_though_the_broker_went_away_then(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    forgotten.suspect("zzz")
    admin.fails_for["zzz"] = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await forgotten.end_suspects()
    assert not admin.broker.forgotten
    assert await forgotten.end_suspects()


async def test_another_worker_that_is_at_it_is_no_failure(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten, caplog: pytest.LogCaptureFixture
) -> None:
    admin.fails = [ProducerFenced("another one is at it")]
    assert await forgotten.end_suspects()
    assert "another one is at it" in caplog.text
    assert OUT in admin.broker.forgotten
    assert await forgotten.end_suspects()  # nobody knows whether he has ended it
    assert not admin.broker.forgotten


async def test_what_the_coordinator_did_not_hear_of_in_time_is_aborted_again(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    admin.deaf = 1
    assert await forgotten.end_suspects()
    assert not admin.broker.forgotten
    assert len(admin.fenced) == 2


async def test_what_is_open_for_long_keeps_nobody_for_good(
    autojump_clock: MockClock, admin: Admin, forgotten: Forgotten
) -> None:
    """Others may commit rarely."""
    admin.deaf = 100
    assert await forgotten.end_suspects()
    assert len(admin.fenced) == 2
    assert not await forgotten.end_suspects()
    assert len(admin.fenced) == 2


async def test_a_topic_that_was_deleted_keeps_nobody_from_going_on(
    autojump_clock: MockClock, admin: Admin
) -> None:
    topics = {
        name: TopicInfo(name=name, topic_id="id", partitions=2) for name in ("out", "deleted")
    }
    forgotten = Forgotten(admin, "app", "own", topics)
    assert await forgotten.end_suspects()  # and the others are looked at
    admin.broker.delete("out")
    forgotten.suspect("own")
    assert not await forgotten.end_suspects()


async def test_all_of_a_group_are_ended_our_own_last(admin: Admin, forgotten: Forgotten) -> None:
    """Our own next commit fails by it, and what asks for this may be cancelled by that."""
    named = Positions(0, committer="zzz").write()
    admin.broker.commit_offsets("app", {OUT: named})
    with trio.CancelScope() as scope:
        admin.on_fence["own"] = scope.cancel
        await forgotten.end_all()
    assert scope.cancelled_caught
    assert [name for name, *_ in admin.fenced] == ["zzz", "own"]
    await forgotten.end_all()  # the others have been ended, and our own is suspected
    assert len(admin.fenced) == 2


async def test_all_are_ended_again_where_the_broker_did_not_answer(
    admin: Admin, forgotten: Forgotten
) -> None:
    admin.broker.commit_offsets("app", {OUT: Positions(0, committer="zzz").write()})
    admin.fails = [BrokerUnavailable("away")]
    await forgotten.end_all()
    await forgotten.end_all()
    await forgotten.end_all()
    assert [name for name, *_ in admin.fenced] == ["zzz", "own"] * 2


async def test_without_transactions_there_is_nothing_to_look_for(admin: Admin) -> None:
    forgotten = Forgotten(
        admin, "app", "", {"out": TopicInfo(name="out", topic_id="id", partitions=2)}
    )
    forgotten.suspect()
    assert not await forgotten.end_suspects()
    assert not admin.fenced


@pytest.mark.parametrize("lanes", [False, True])
async def test_a_worker_goes_on_once_nothing_is_left_open(
    autojump_clock: MockClock, lanes: bool
) -> None:
    """Its commit fails, and what it had sent stays open: that is ended before it sends again."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)
    ticked = 0

    @app.timer(1)
    async def tick() -> None:
        nonlocal ticked
        ticked += 1
        out.send_nowait(-ticked)

    del tick
    if lanes:

        @app.agent(source)
        async def forward(stream: trickle.Stream[int]) -> None:
            async for value in stream:
                out.send_nowait(value)

        del forward
    async with trickle.testing.run(app) as t:
        for number in range(1, 4):
            await t.send(source, number)
            await t.advance(1.5)
            t.broker.forgotten[OUT] = 0
            t.broker.fail_commits("lost")
            await t.advance(5)
            assert not t.broker.forgotten
        sent = [event.value for event in t.sent(out)]
    assert [value for value in sent if value < 0] == [-1 - n for n in range(ticked)]
    assert [value for value in sent if value > 0] == ([1, 2, 3] if lanes else [])
