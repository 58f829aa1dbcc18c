"""Run: one running instance of an App, with all that lives in it.

The tree. Each line is a task in the Run's nursery, in the order of start; it ends in the reverse
order::

    Monitor
    Web               it says that the Run is not ready yet, and that it stops
    Producer          clients that publish
    TableManager      shards, and their store; without agents Views, of what others have committed
    user services     agents may need them
    Committer
    Conductor         scopes and lanes
    Consumer          the membership
    Fetcher
    Standbys          shards of other workers
    timers, tasks

Stopping goes from the outside in. Tasks and timers are cancelled; the conductor drains its lanes,
commits and releases; the fetcher and the consumer leave the group; services, tables and the
producer close. All of it stands in a shielded scope, so that a cancellation from outside (a user's
``move_on_after`` around ``async with app.run()``) is a request to stop like any other: the Run
watches for it and drains. ``Run.cancel()`` ends it at once. A service that fails makes the Run stop
in the same order; all errors are raised in one group at the end (see :mod:`.tree`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from trickle.commit import Committer
from trickle.conductor import Conductor
from trickle.config import Resolved, without_effect
from trickle.consumer import Consumer, LateListener
from trickle.context import OUTLET, binding_children
from trickle.definitions import Definitions
from trickle.fetcher import Fetcher
from trickle.forgotten import Forgotten
from trickle.identity import Identity, claim_identity
from trickle.inboxes import Inboxes
from trickle.inside import inside
from trickle.laneless import Laneless
from trickle.namesakes import program_of
from trickle.outcomes import Outcomes
from trickle.producer import Producer
from trickle.sensors import Monitor, Sensors
from trickle.service import Service, ServiceStatistics
from trickle.stores import open_store
from trickle.streams import Pace
from trickle.tables import HOLDER, CacheLimits, Holder, Standbys, TableManager, Views
from trickle.tasks import TaskService, UserService
from trickle.ticks import TimerService
from trickle.topology import Topology, check_positions, owned_topics, prepare
from trickle.transport import open_transport
from trickle.transport.contract import (
    ConsumerOptions,
    ProducerOptions,
    TopicInfo,
    Transport,
    TransportOptions,
)
from trickle.tree import Tree
from trickle.utils.groups import single_errors
from trickle.web import Health, Web

if TYPE_CHECKING:
    from trickle.stores.contract import Store

__all__ = ["Run", "Surroundings", "open_run"]

logger = logging.getLogger("trickle.run")


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a Run takes from outside instead of making it: how a simulation replaces the world.

    Attributes:
        transport: opens the broker; by the settings' URL otherwise.
        store: makes the tables' store; by the settings otherwise.
        make_pace: makes a lane's pace.
        now: the clock of records that get no timestamp: POSIX seconds.
        name: this instance's name, where several run in one process.
    """

    transport: Callable[[], AbstractAsyncContextManager[Transport]] | None = None
    store: Callable[[], Store] | None = None
    make_pace: Callable[[], Pace] = Pace
    now: Callable[[], float] = time.time
    name: str | None = None


class Run(Service):
    """One running instance of an App.

    Attributes:
        definitions: what it brings to life.
        settings: the effective settings.
        sources: where each setting came from.
        monitor: counts, rates and latencies.
        undrained: lanes that did not finish their event in time when the Run stopped.
    """

    name = "Run"

    def __init__(
        self,
        definitions: Definitions,
        resolved: Resolved,
        surroundings: Surroundings,
        *,
        client: bool,
    ) -> None:
        super().__init__()
        self.definitions = definitions
        self.settings = resolved.settings
        self.sources = resolved.sources
        self.monitor = Monitor(clock=trio.current_time)
        self.tables: TableManager | None = None
        self.views: Views | None = None
        self.standbys: Standbys | None = None
        self.conductor: Conductor | None = None
        self.committer: Committer | None = None
        self.laneless: Laneless | None = None
        self.producer: Producer | None = None
        self.consumer: Consumer | None = None
        self.topology: Topology | None = None
        self.web: Web | None = None
        self._client = client
        self._surroundings = surroundings
        self._sensor = Sensors((self.monitor, *definitions.sensors))
        self._hard = trio.CancelScope(shield=True)
        self._work = trio.CancelScope()
        self._stopping = False
        self._stop_asked = trio.Event()
        self._started_up = False
        self._inner: trio.Nursery | None = None
        self._identity: Identity | None = None
        self._forgotten: Forgotten | None = None
        self._fetcher: Fetcher | None = None
        self._tree = Tree(self.stop, self.settings.drain_timeout + 5)

    # What others see

    @property
    def ready(self) -> bool:
        """Whether it has joined its group and recovered its shards."""
        return self._started_up and not self._stopping

    @property
    def undrained(self) -> tuple[str, ...]:
        """The lanes that did not finish their event in time when the Run stopped."""
        return tuple(self.conductor.undrained) if self.conductor is not None else ()

    @property
    def holder(self) -> Holder | None:
        """Where tables find what is committed."""
        return self.tables if self.tables is not None else self.views

    def health(self) -> Health:
        """Return how it is now."""
        if self._tree.failures:
            return Health(live=False, ready=False, detail="stopping after a failure")
        if self._stopping:
            return Health(live=True, ready=False, detail="stopping: draining and committing")
        if not self._started_up:
            return Health(live=True, ready=False, detail="starting: joining and recovering")
        return Health(live=True, ready=True, detail="running")

    def statistics(self) -> ServiceStatistics:
        """Return the tree of services."""
        own = super().statistics()
        return msgspec.structs.replace(own, children=self._tree.statistics())

    async def wait_stopped(self) -> None:
        """Wait until the Run has been told to stop, or has failed."""
        await self._stop_asked.wait()

    def stop(self) -> None:
        """Drain, commit and end; returns at once."""
        self._stopping = True
        self._stop_asked.set()
        self._work.cancel()
        if self._inner is None:  # the broker is not even reached: there is nothing to drain
            self._hard.cancel()

    def cancel(self) -> None:
        """End at once: what has not been committed has not happened."""
        self._stopping = True
        self._stop_asked.set()
        self._hard.cancel()

    # Its life

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        self.nursery.start_soon(self._watch, name="watch for cancellation")
        try:
            with self._tree.telling(self.definitions.id), self._hard, binding_children():
                async with self._open_transport() as transport, trio.open_nursery() as inner:
                    self._inner = inner
                    with self._work:
                        await self._start_all(transport)
                        self._started_up = True
                        task_status.started(self)
                        await trio.sleep_forever()
                    await self._shut_down()
        finally:
            self._stopping = True
            self.nursery.cancel_scope.cancel()
            if self._identity is not None:
                self._identity.release()

    async def _watch(self) -> None:
        """Take a cancellation from outside as the request to stop."""
        try:
            await trio.sleep_forever()
        finally:
            self.stop()

    async def _start_all(self, transport: Transport) -> None:
        settings = self.settings
        for sentence in without_effect(settings, self.sources):
            logger.warning(sentence)
        topics: dict[str, TopicInfo] = {}
        await self._start(self.monitor)
        if settings.web:
            self.web = Web(
                self, host=settings.web_host, port=settings.web_port, token=settings.web_token
            )
            await self._start(self.web)
        app = self.definitions
        agents = [] if self._client else list(app.agents)
        tables = list(app.tables)
        self.topology = await prepare(
            transport.admin,
            agents=agents,
            topics=app.topics,
            tables=tables if not self._client else (),
            declare=settings.declare_topics,
            partitions=settings.partitions,
            replicas=settings.replicas,
        )
        topics.update(self.topology.topics)
        identity = self._identity = self._identify(agents)
        check_positions(agents, identity.transactional_id)
        committer_id = identity.transactional_id
        self._forgotten = Forgotten(transport.admin, app.id, committer_id, topics)
        await self._start_producer(transport, identity, topics)
        if agents:
            await self._start_tables(transport)
        elif tables:
            await self._start_views(transport)
        if not self._client:
            await self._start_services()
        if agents:
            await self._start_lanes(transport, agents, identity)
        elif self.producer is not None:
            self.committer = self._make_committer(transport, self.producer, None)
            timeout = settings.drain_timeout
            self.laneless = Laneless(self.producer, self.committer, drain_timeout=timeout)
            await self._start(self.committer)
            await self.laneless.open()
        if not self._client:
            await self._start_edge()

    def _identify(self, agents: list[Any]) -> Identity:
        exact = self.settings.processing_guarantee == "exactly_once"
        if not exact or not (agents or self.definitions.timers) or self._client:
            return Identity("", None)
        if self._surroundings.name is not None:
            return Identity(f"{self.definitions.id}-{self._surroundings.name}", None)
        if self.settings.broker.startswith("memory://"):
            return Identity(f"{self.definitions.id}-memory-{id(self):x}", None)
        return claim_identity(self.definitions.id, self.settings.data_dir)

    async def _start_producer(
        self, transport: Transport, identity: Identity, topics: dict[str, TopicInfo]
    ) -> None:
        options = ProducerOptions(
            group=self.definitions.id,
            transactional_id=identity.transactional_id or None,
            transaction_timeout=self.settings.transaction_timeout,
        )
        self.producer = Producer(transport, options, topics, self._sensor)
        OUTLET.set(self.producer)
        await self._start(self.producer)

    async def _start_views(self, transport: Transport) -> None:
        """Show what workers have committed: without agents, no partition is held here."""
        self.views = Views(transport, self.definitions.tables, self.settings)
        HOLDER.set(self.views)
        await self._start(self.views)

    async def _start_tables(self, transport: Transport) -> None:
        settings = self.settings
        make = self._surroundings.store
        directory = settings.data_dir / self.definitions.id / "tables"
        store = make() if make is not None else open_store(settings.store, directory)
        standbys = self.standbys = self._make_standbys(transport, store)
        self.tables = TableManager(
            transport,
            store,
            self.definitions.tables,
            transactional=settings.processing_guarantee == "exactly_once",
            recovery_timeout=settings.recovery_timeout,
            cache=CacheLimits(entries=1 << 40, bytes=settings.cache_bytes),
            sensor=self._sensor,
            standbys=standbys,
        )
        HOLDER.set(self.tables)
        await self._start(self.tables)

    def _make_standbys(self, transport: Transport, store: Store) -> Standbys | None:
        settings, topology = self.settings, self.topology
        if not settings.standby_replicas or topology is None or not self.definitions.tables:
            return None
        return Standbys(
            transport,
            store,
            group=self.definitions.id,
            member_id=lambda: "" if self.consumer is None else self.consumer.client.member_id,
            counts=topology.counts,
            tables=topology.tables,
            replicas=settings.standby_replicas,
            transactional=settings.processing_guarantee == "exactly_once",
        )

    def _make_committer(
        self, transport: Transport, producer: Producer, consumer: Consumer | None
    ) -> Committer:
        settings, topology = self.settings, self.topology
        assert topology is not None
        assert self._identity is not None
        assert self._forgotten is not None
        outcomes = Outcomes(
            transport.admin,
            group=self.definitions.id,
            transactional_id=self._identity.transactional_id,
            topic=min(topology.counts, default=min(topology.topics, default="")),
        )
        return Committer(
            producer,
            consumer,
            self._sensor,
            outcomes,
            self._forgotten,
            transactional=settings.processing_guarantee == "exactly_once",
            interval=settings.commit_interval,
            interval_min=settings.commit_interval_min,
            events_max=settings.commit_max_events,
            bytes_max=settings.commit_max_bytes,
            transaction_timeout=settings.transaction_timeout,
            now=self._surroundings.now,
        )

    async def _start_lanes(
        self, transport: Transport, agents: list[Any], identity: Identity
    ) -> None:
        settings, topology = self.settings, self.topology
        assert topology is not None
        assert self.producer is not None
        assert self.tables is not None
        assert self._forgotten is not None
        options = ConsumerOptions(
            group=self.definitions.id,
            topics=tuple(sorted(topology.counts)),
            session_timeout=settings.session_timeout,
            rebalance_timeout=settings.drain_timeout + settings.broker_timeout + 10,
            instance_id=settings.group_instance_id,
            protocol=settings.group_protocol,
            guarantee=settings.processing_guarantee,
            buffer_bytes=settings.buffer_bytes,
        )
        listener = LateListener()
        consumer = self.consumer = Consumer(
            transport,
            options,
            listener,
            committer_id=identity.transactional_id,
            first_position=settings.first_position,
            out_of_range=settings.out_of_range,
            sensor=self._sensor,
            topics=topology.topics,
            forgotten=self._forgotten,
            program=program_of({a.name: [t.name for t in a.topics] for a in agents}),
            owned=owned_topics(agents),
            changelogs=topology.changelogs,
        )
        self.tables.unblock = self._forgotten.end_all
        self.committer = self._make_committer(transport, self.producer, consumer)
        inboxes = Inboxes(self._sensor)
        conductor = self.conductor = listener.target = Conductor(
            agents=agents,
            counts=topology.counts,
            tables=topology.tables,
            consumer=consumer,
            producer=self.producer,
            committer=self.committer,
            manager=self.tables,
            inboxes=inboxes,
            sensor=self._sensor,
            drain_timeout=settings.drain_timeout,
            session_timeout=settings.session_timeout,
            make_pace=self._surroundings.make_pace,
        )
        await self._start(self.committer)
        await self._start(conductor)
        await self._start(consumer)
        self._fetcher = Fetcher(
            consumer, inboxes, conductor.out_of_range, settings.buffer_bytes // 8
        )
        await self._start(self._fetcher)
        await conductor.ready.wait()
        if self.standbys is not None:
            listener.told = self.standbys.wake
            await self._start(self.standbys)

    async def _start_services(self) -> None:
        for definition in self.definitions.services:
            await self._start(UserService(definition.factory(), definition.restart))

    async def _start_edge(self) -> None:
        committer = self.committer
        assert committer is not None
        for timer in self.definitions.timers:
            now_ms = lambda: round(self._surroundings.now() * 1000)  # noqa: E731
            await self._start(
                TimerService(timer.name, timer.function, timer.interval, committer, now_ms)
            )
        for task in self.definitions.tasks:
            await self._start(TaskService(task))

    def _open_transport(self) -> AbstractAsyncContextManager[Transport]:
        make = self._surroundings.transport
        if make is not None:
            return make()
        settings = self.settings
        options = TransportOptions(client=settings.client, request_timeout=settings.broker_timeout)
        return open_transport(settings.broker, options)

    # Children

    async def _start(self, service: Service) -> None:
        assert self._inner is not None
        await self._tree.start(self._inner, service)

    async def _shut_down(self) -> None:
        """End the children from the outside in; lanes drain before those end that they need."""
        await self._tree.end_after(self._fetcher or self.committer)
        if self.conductor is not None:
            await self._tree.closing(self.conductor.close)
        elif self.laneless is not None:
            await self._tree.closing(self.laneless.close)
        if self.committer is not None:
            await self._make_last_calls(self.committer)
        await self._tree.end_after(None)

    async def _make_last_calls(self, committer: Committer) -> None:
        timeout = self.settings.drain_timeout
        with trio.move_on_after(timeout) as scope:
            await committer.calls.wait_made()
        if scope.cancelled_caught:
            logger.warning(
                "what is called after commits (after_commit, sinks) did not end within "
                "drain_timeout=%g s: cancelled", timeout,
            )  # fmt: skip


@asynccontextmanager
async def open_run(
    definitions: Definitions,
    resolved: Resolved,
    *,
    client: bool = False,
    surroundings: Surroundings | None = None,
) -> AsyncGenerator[Run, None]:
    """Start a Run; entered when it is ready, left when it has drained and committed.

    An error that keeps it from starting is raised as itself, and so is one of the block's own; what
    fails in the Run later comes in a group.
    """
    run = Run(definitions, resolved, surroundings or Surroundings(), client=client)
    with single_errors() as guard:
        async with trio.open_nursery() as nursery:
            await nursery.start(run.run)
            try:
                with inside(definitions.app, run.producer, run.holder), guard.block():
                    yield run
            finally:
                run.stop()
