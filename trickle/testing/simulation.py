"""The simulation: workers of one app on one memory broker, in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any, cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from typing_extensions import TypeVar

from trickle.app import App
from trickle.context import Effect
from trickle.exceptions import ConfigurationError, UsageError
from trickle.inside import inside
from trickle.metadata import pack_headers, timestamp_to_ms
from trickle.run import Run, Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.streams import Event
from trickle.tables import Shard, Table
from trickle.testing.scheduling import SeededPace, seeded_order
from trickle.testing.standstill import Standstill
from trickle.topics import Topic
from trickle.transport.contract import ProducerClient, ProducerOptions
from trickle.transport.memory import MemoryBroker, MemoryTransport
from trickle.transport.shared import RecordBatch
from trickle.types import HeadersInput, RecordMetadata, TopicPartition
from trickle.utils import durations
from trickle.utils.groups import single_errors
from trickle.utils.values import is_whole

__all__ = ["Simulation", "run"]

V = TypeVar("V")
K = TypeVar("K", default=Any)

ROUNDS_MAX = 100_000


class SimulatedWorker:
    """One simulated worker: its run, and its disk, which outlives it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.disk = MemoryDisk()
        self.run: Run | None = None
        self.started = trio.Event()
        self.ended = trio.Event()


class Simulation:
    """What ``trickle.testing.run`` gives: the way to send, to look, to move time, to break things.

    Attributes:
        app: the app under test.
        broker: the memory broker, with further faults to inject.
        seed: of the order of tasks.
        random: what the seed decides.
        workers: the simulated workers.
        producer: what :meth:`send` sends by.
    """

    def __init__(
        self, app: App, clock: MockClock, seed: int, nursery: trio.Nursery, settings: dict[str, Any]
    ) -> None:
        self.app = app
        self.seed = seed
        self._clock = clock
        self.random = random.Random(seed)  # noqa: S311 - to be repeatable
        self.broker = MemoryBroker(seed=seed, now_ms=lambda: round(self._now() * 1000))
        self._nursery = nursery
        self._standstill = Standstill(nursery)
        self._settings = settings
        self.workers: list[SimulatedWorker] = []
        self.producer: ProducerClient | None = None

    def _now(self) -> float:
        return trio.current_time()

    @asynccontextmanager
    async def transport(self) -> AsyncGenerator[MemoryTransport, None]:
        """Open the simulation's broker."""
        await trio.lowlevel.checkpoint()
        yield MemoryTransport(self.broker)

    # Workers

    async def _start(self, worker: SimulatedWorker) -> None:
        worker.started, worker.ended = trio.Event(), trio.Event()
        self._nursery.start_soon(self._work, worker, name=f"worker {worker.number}")
        await self._until(worker.started)

    async def stop_worker(self, worker: SimulatedWorker) -> None:
        """Let a worker drain, commit and leave."""
        if worker.run is not None:
            worker.run.stop()
        await self._until(worker.ended)

    async def _work(self, worker: SimulatedWorker) -> None:
        resolved = self.app.resolve(
            broker="memory://testing", store="memory://", web=False, **self._settings
        )
        surroundings = Surroundings(
            transport=self.transport,
            store=lambda: MemoryStore(worker.disk),
            make_pace=lambda: SeededPace(self.random),
            now=self._now,
            name=f"worker-{worker.number}",
        )
        try:
            async with open_run(
                self.app.definitions(), resolved, surroundings=surroundings
            ) as live:
                worker.run = live
                worker.started.set()
                await live.wait_stopped()
        finally:
            worker.run = None
            worker.ended.set()

    def runs(self) -> list[Run]:
        """Return the Runs that are alive, by worker."""
        return [worker.run for worker in self.workers if worker.run is not None]

    # Sending and looking

    async def send(
        self,
        topic: Topic[V, K],
        value: V | bytes,
        *,
        key: K | None = None,
        headers: HeadersInput | None = None,
        timestamp: float | datetime | None = None,
        partition: int | None = None,
        raw: bool = False,
    ) -> RecordMetadata:
        """Send a record from outside, as another program would.

        Args:
            topic: of the app.
            value: of the topic's type, or bytes with ``raw``.
            key: of the topic's key type.
            headers: as for :meth:`Topic.send`.
            timestamp: POSIX seconds; the clock's time where it is left out.
            partition: instead of the one that the key chooses.
            raw: the value's bytes as they are, whatever the topic's type.
        """
        if self.producer is None:
            raise UsageError("the simulation has ended: send inside `async with testing.run(…)`")
        stamp = timestamp if timestamp is not None else self._now()
        _check_topic("send", topic)
        if raw:
            if not isinstance(value, bytes | None):
                raise UsageError(f"send(…, raw=True) takes bytes, not {type(value).__name__}")
            wire_key = None if key is None else topic.key_codec.encode(key)
            effect = topic.effect_of_bytes(
                wire_key, value, pack_headers(headers or ()), timestamp_to_ms(stamp), partition
            )
        else:
            effect = topic.effect(cast("V", value), key, headers, stamp, partition)
        return await self.producer.send(*effect)

    def sent(self, topic: Topic[V, K]) -> list[Event[V, K]]:
        """Return all committed records of a topic as events, in offset order per partition.

        The value of a null is None, whatever the topic's type.
        """
        _check_topic("sent", topic)
        events: list[Event[V, K]] = []
        for record in self.broker.records(topic.name):
            value: Any = None
            if record.value is not None:
                value = topic.value_codec.decode(record.value)
            events.append(Event(value, topic.key_codec, None, RecordBatch([record]), 0, 0))
        return events

    # Time

    async def settled(self) -> None:
        """Wait until all that was sent has been handled and committed; no time passes.

        Threads and sockets that agents wait for are given real time, a few seconds at most.

        Raises:
            UsageError: only time, or somebody else, could go on: names the lane.
        """
        before: object = None
        for _ in range(ROUNDS_MAX):
            await wait_all_tasks_blocked()
            waiting = self._waiting()
            if not waiting:
                return
            state = self._state()
            if state == before:
                waited = await self._standstill.outside(lambda: self._state() == state)  # noqa: B023
                if waited is not None:
                    raise self._not_settled(waiting, waited)
            before = state
            for live in self.runs():
                if live.committer is not None:
                    live.committer.hurry()
        raise UsageError("not settled after very many rounds: does an agent feed itself?")

    def _not_settled(self, waiting: Sequence[str], waited: float) -> UsageError:
        """Return the error of what has not settled, after so many seconds of real time."""
        patience = self._standstill.patience
        outside = f", with {patience:g} s of real time for threads and sockets"
        return UsageError(
            f"not settled, and nothing goes on by itself{outside if waited >= patience else ''}: "
            f"{'; '.join(waiting)}. Move the time by advance(), or end what the agent waits for"
        )

    def _waiting(self) -> list[str]:
        """Say what has not been handled and committed."""
        waiting: list[str] = []
        held: set[TopicPartition] = set()
        if not self.runs():
            waiting += [
                f"topic {at.topic} [{at.partition}] has records to take, and no worker runs"
                for at in sorted(self._unread())
            ]
        for live in self.runs():
            if live.conductor is None or live.consumer is None or live.committer is None:
                continue
            committed = live.consumer.positions()
            for lane in live.conductor.lanes():
                for topic, position in lane.settled_positions().items():
                    at = TopicPartition(topic, lane.partition or 0)
                    held.add(at)
                    end = self.broker.log(at).high
                    name = f"agent {lane.agent!r}, {topic} [{lane.partition}]"
                    if position < end:
                        state = "has an event in hand" if lane.hand else "has records to take"
                        waiting.append(f"{name}, at offset {position} of {end}, {state}")
                    elif committed[at].of(lane.agent) < position:
                        waiting.append(f"{name} has not committed")
            if live.committer.calls:
                waiting.append(str(live.committer.calls))
            elif live.committer.pending:
                waiting.append("a commit is due")
            waiting += [
                f"topic {topic} [{number}] is not assigned"
                for topic, count in _counts(live).items()
                for number in range(count)
                if TopicPartition(topic, number) not in held and len(self.runs()) == 1
            ]
        return waiting

    def _unread(self) -> Iterator[TopicPartition]:
        """Yield where the app has records to take."""
        committed = self.broker.group(self.app.id).offsets
        names = {topic.name for agent in self.app.definitions().agents for topic in agent.topics}
        for name in names & self.broker.topics().keys():
            for number in range(len(self.broker.topic(name).logs)):
                at = TopicPartition(name, number)
                found = committed.get(at)
                if self.broker.log(at).count_from(0 if found is None else found.offset):
                    yield at

    def _state(self) -> object:
        lanes = [
            (lane.agent, lane.partition, lane.number, tuple(lane.settled_positions().items()))
            for live in self.runs()
            if live.conductor is not None
            for lane in live.conductor.lanes()
        ]
        commits = [live.committer.count for live in self.runs() if live.committer is not None]
        ends = [log.high for topic in self.broker.topics().values() for log in topic.logs]
        return (lanes, commits, ends)

    async def advance(self, seconds: float | timedelta) -> None:
        """Move the clock, from deadline to deadline, so that all that falls due happens in order.

        It stands while a thread works that a worker waits for, a few real seconds at most.

        Args:
            seconds: by how much.
        """
        try:
            span = durations.seconds(seconds, what="advance(seconds)")  # time does not go back
        except ConfigurationError as error:
            raise UsageError(str(error)) from None
        end = trio.current_time() + span
        await self._standstill.reached()
        while trio.current_time() < end:
            await self._jump(end - trio.current_time())

    async def _jump(self, most: float) -> None:
        """Move the clock to the next deadline, and let all happen that falls due."""
        due = trio.lowlevel.current_statistics().seconds_to_next_deadline
        now = trio.current_time()
        # A deadline that is nearer than the clock's resolution: one tick further reaches it.
        self._clock.jump(min(most, due if now + due > now else 2 * math.ulp(now)))
        await self._standstill.reached()

    async def _until(self, event: trio.Event) -> None:
        """Wait for an event, moving the clock only where nothing else goes on."""
        while not event.is_set():
            await self._standstill.reached()
            if not event.is_set():
                if trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf:
                    raise UsageError(
                        f"nothing goes on, and no time is waited for (seed={self.seed})"
                    )
                await self._jump(math.inf)

    # Faults

    async def crash(self, worker: int = 0) -> None:
        """Kill a worker where it stands and start it again; its committed state is what remains.

        Time passes only where the others must finish an event before it can join.

        Args:
            worker: which one, where there are several.
        """
        if not is_whole(worker, at_least=0) or worker >= len(self.workers):
            numbers = ", ".join(str(one.number) for one in self.workers) or "none"
            raise UsageError(f"crash({worker!r}): there is no such worker, only: {numbers}")
        victim = self.workers[worker]
        if victim.run is not None:
            victim.run.cancel()
        await self._until(victim.ended)
        victim.disk.crash()
        await self._start(victim)

    async def rebalance(self, workers: int | None = None) -> None:
        """Rebalance the group: all partitions are revoked and assigned anew.

        Args:
            workers: how many workers there are from now on; as many as before where left out.
        """
        if workers is not None and not is_whole(workers, at_least=0):
            raise UsageError(f"rebalance(workers={workers!r}): give a whole number, 0 or more")
        if workers is None or workers == len(self.workers):
            self.broker.rebalance(self.app.id)
        while workers is not None and workers > len(self.workers):
            worker = SimulatedWorker(len(self.workers))
            self.workers.append(worker)
            await self._start(worker)
        while workers is not None and workers < len(self.workers):
            await self.stop_worker(self.workers.pop())
        await self._standstill.reached()

    # What agents' tables and topics find outside of events

    def shards_of(self, table: Table[Any, Any]) -> Sequence[Shard[Any, Any]]:
        """Return the shards of a table that the workers hold."""
        return [
            shard
            for live in self.runs()
            if live.tables is not None
            for shard in live.tables.shards_of(table)
        ]


class _Outlet:
    """What is sent outside an event in a test: by whichever Run is alive."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def _client(self) -> Any:
        for live in self._simulation.runs():
            if live.producer is not None:
                return live.producer
        raise UsageError("no simulated worker is running")

    async def send(self, effect: Effect) -> RecordMetadata:
        metadata: RecordMetadata = await self._client().send(effect)
        return metadata

    def send_nowait(self, effect: Effect) -> None:
        self._client().send_nowait(effect)

    async def send_all(self, effects: Iterable[Effect]) -> int:
        count: int = await self._client().send_all(effects)
        return count

    def bounds(self, topic: str) -> tuple[int | None, int | None]:
        found = self._simulation.broker.topics().get(topic)
        return (None, None) if found is None else (len(found.logs), found.policy.record_bytes_max)


@contextmanager
def _seed_noted(seed: int) -> Generator[None, None, None]:
    """Let each error say how to see it again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"trickle.testing.run(…, seed={seed})")
        raise


def _check_topic(method: str, topic: object) -> None:
    if not isinstance(topic, Topic):
        raise UsageError(f"t.{method}({topic!r}): that is no topic: give one of app.topic(…)")


def _counts(live: Run) -> Mapping[str, int]:
    return live.topology.counts if live.topology is not None else {}


@asynccontextmanager
async def run(
    app: App, *, seed: int = 0, workers: int = 1, **settings: Any
) -> AsyncGenerator[Simulation, None]:
    """Run an app on a memory broker of its own, in virtual time.

    Args:
        app: as it is; its broker and its store are replaced.
        seed: decides the order of tasks.
        workers: how many workers share the app's partitions.
        settings: to replace some of the app's.

    Raises:
        UsageError: the Trio run has no virtual clock, or an argument is wrong.
    """
    if not isinstance(app, App):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"testing.run({app!r}): that is no app: give a trickle.App")
    if not is_whole(workers, at_least=1):
        raise UsageError(f"testing.run(workers={workers!r}): give a whole number, 1 or more")
    for name in ("broker", "store", "web"):
        if name in settings:
            raise UsageError(
                f"testing.run({name}=): a test has a broker and stores of its own, in memory, and "
                "no web server: leave it out"
            )
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock):
        raise UsageError(
            "trickle.testing.run needs a virtual clock: let the test itself ask for pytest-trio's "
            "mock_clock or autojump_clock (for a fixture alone pytest-trio does not look), or use "
            "trio.run(main, clock=trio.testing.MockClock())"
        )
    with _seed_noted(seed), single_errors() as guard, app.season.closed():
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            simulation = Simulation(app, clock, seed, nursery, settings)
            stack.enter_context(seeded_order(simulation.random))
            transport = await stack.enter_async_context(simulation.transport())
            simulation.producer = await stack.enter_async_context(
                transport.producer(ProducerOptions())
            )
            stack.enter_context(inside(app, _Outlet(simulation), simulation))
            try:
                await simulation.rebalance(workers=workers)
                with guard.block():
                    yield simulation
                for worker in reversed(simulation.workers):
                    await simulation.stop_worker(worker)
            except BaseException:
                # Nobody moves the clock any more, which a drain might need.
                for live in simulation.runs():
                    live.cancel()
                raise
