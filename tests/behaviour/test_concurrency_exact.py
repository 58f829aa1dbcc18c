"""Concurrency within a partition, exact: whatever fails, and whenever, each event counts once.

Each example is a script: records with keys and durations, attempts that fail, and crashes,
rebalances and failed commits at moments of their own. What comes out is compared with an oracle
that knows nothing of order but that of each key.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal, NamedTuple, get_args

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.positions import read_positions
from trickle.testing.simulation import Simulation

Fault = Literal["crash", "rebalance", "more", "fewer", "aborted", "lost", "applied", "redeliver"]
FAULTS = get_args(Fault)


class Script(NamedTuple):
    """One example.

    Attributes:
        records: the key and the duration of each.
        failing: how many attempts of a record fail, by its number.
        refused: the record whose output the broker refuses.
        faults: what happens, so many seconds after the fault before.
    """

    seed: int
    concurrency: int
    take: int
    records: list[tuple[str | None, float]]
    failing: dict[int, int]
    refused: int | None
    faults: list[tuple[float, Fault]]


scripts = st.builds(
    Script,
    seed=st.integers(0, 1 << 32),
    concurrency=st.integers(2, 7),
    take=st.sampled_from([0, 0, 1, 3]),
    records=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "d", "e", None]),
            st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.5, 2.0, 7.0]),
        ),
        min_size=1,
        max_size=60,
    ),
    failing=st.dictionaries(st.integers(0, 59), st.integers(1, 4), max_size=6),
    refused=st.none() | st.integers(0, 59),
    faults=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.005, 0.05, 0.3, 1.0, 3.0]),
            st.sampled_from(FAULTS),
        ),
        max_size=6,
    ),
)


class Checked:
    """An app under test, and what its agent has seen."""

    def __init__(self, script: Script) -> None:
        self.script = script
        app = self.app = trickle.App("app")
        self.source = source = app.topic("source", key=str | None, value=int, partitions=2)
        self.out = app.topic("out", key=str | None, value=list[int], partitions=2)
        self.counts = app.table("counts", key=str, value=int, default=int)
        self.lists = app.table("lists", key=str, value=list[int], default=list)
        self.attempts: defaultdict[int, int] = defaultdict(int)
        self.in_hand: defaultdict[str, int] = defaultdict(int)

        async def handle(events: list[trickle.Event[int, str | None]]) -> None:
            for key in {event.key for event in events if event.key is not None}:
                assert not self.in_hand[key], f"two events of {key} in hand"
                self.in_hand[key] += 1
            try:
                for event in events:
                    await self.handle_one(event)
            finally:
                for key in {event.key for event in events if event.key is not None}:
                    self.in_hand[key] -= 1

        self.others = app.topic("others", value=int, partitions=1)

        @app.agent(source, concurrency=script.concurrency, ordering="none")
        async def other(stream: trickle.Stream[int]) -> None:
            async for number in stream:
                self.others.send_nowait(number)
                await trio.sleep(script.records[number][1] / 3)

        policy = trickle.Retry(times=2, backoff=0.2, then=trickle.Skip())

        @app.agent(source, concurrency=script.concurrency, on_error=policy)
        async def work(stream: trickle.Stream[int, str | None]) -> None:
            events = stream.events()
            if script.take:
                async for group in events.take(script.take, within=0.5):
                    await handle(group)
            else:
                async for event in events:
                    await handle([event])

        del work, other

    async def handle_one(self, event: trickle.Event[int, str | None]) -> None:
        number = event.value
        self.attempts[number] += 1
        if event.key is not None:
            self.counts[event.key] += 1
            self.lists[event.key].append(number)
            count = self.counts[event.key]
        else:
            count = 0
        self.out.send_nowait([number, count], key=event.key)
        await trio.sleep(self.script.records[number][1])
        if self.attempts[number] <= self.script.failing.get(number, 0):
            raise ValueError(f"attempt {self.attempts[number]} of {number}")

    def check(self, t: Simulation) -> None:
        """Compare what has come of it with the oracle."""
        pairs = [(event.key, *event.value) for event in t.sent(self.out)]
        happened = {number for _, number, _ in pairs}
        assert len(pairs) == len(happened), "an event counted twice"
        missing = set(range(len(self.script.records))) - happened
        missing.discard(-1 if self.script.refused is None else self.script.refused)
        if self.script.take <= 1:
            # A crash takes an attempt away, so one that fails thrice may pass.
            assert all(self.script.failing.get(number, 0) >= 3 for number in missing)
        else:
            assert len(missing) <= self.script.take * (1 + len(self.script.failing))
        others = [event.value for event in t.sent(self.others)]
        assert sorted(others) == list(range(len(self.script.records)))
        by_key: defaultdict[str, list[int]] = defaultdict(list)
        for number, (key, _) in enumerate(self.script.records):
            if key is not None and number in happened:
                by_key[key].append(number)
        for key, numbers in by_key.items():
            mine = [(number, count) for k, number, count in pairs if k == key]
            assert mine == [(number, at + 1) for at, number in enumerate(numbers)]
            assert self.counts[key] == len(numbers)
            assert self.lists[key] == numbers
        assert dict(self.counts.items()) == {key: len(n) for key, n in by_key.items()}
        for at, committed in t.broker.group("app").offsets.items():
            assert committed.offset == t.broker.log(at).high
            assert not read_positions(committed).beyond


async def break_it(t: Simulation, fault: Fault) -> None:
    match fault:
        case "crash":
            await t.crash(t.random.randrange(len(t.workers)))
        case "rebalance":
            await t.rebalance()
        case "more":
            await t.rebalance(workers=2)
        case "fewer":
            while t.broker.take_fault():  # a worker's last commit shall succeed
                pass
            await t.rebalance(workers=1)
        case "redeliver":
            t.broker.redeliver(trickle.TopicPartition("source", t.random.randrange(2)), 5)
        case _:
            t.broker.fail_commits(fault)


async def play(script: Script) -> None:
    checked = Checked(script)
    async with trickle.testing.run(
        checked.app, seed=script.seed, drain_timeout=1, commit_interval=0.1
    ) as t:
        refused = b"[%d," % script.refused if script.refused is not None else b"?"
        t.broker.refuses = lambda topic, _, value: topic == "out" and refused in (value or b"")
        for number, (key, _) in enumerate(script.records):
            await t.send(checked.source, number, key=key)
        for pause, fault in script.faults:
            await t.advance(pause)
            await break_it(t, fault)
        for committed in t.broker.group("app").offsets.values():
            assert len(committed.metadata) <= 4_000
        await t.advance(60 * len(script.records))
        await t.settled()
        while t.broker.take_fault():
            pass
        checked.check(t)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts)
def test_each_event_counts_once(script: Script) -> None:
    trio.run(play, script, clock=MockClock(autojump_threshold=math.inf))
