"""App: definitions only. What lives while it runs is a :class:`~trickle.run.Run`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, cast, overload

from typing_extensions import TypeForm, TypeVar, Unpack

from trickle.agents import Agent, Sink
from trickle.config import Resolved, SettingArguments, check_arguments, resolve
from trickle.decorators import AgentDecorator, Season, explained, named
from trickle.definitions import Command, Definitions, ServiceDefinition, Timer
from trickle.exceptions import DefinitionError
from trickle.policies import DeadLetter, Policy, Retry, Stop
from trickle.run import Run, open_run
from trickle.sensors import Sensor, checked_sensors
from trickle.service import Restart, Service
from trickle.sources import (
    check_letters,
    check_round,
    join_sources,
    no_source,
    repartition_function,
)
from trickle.tables import Table
from trickle.topics import Repartition, Source, Topic
from trickle.types import Codec, Duration, Partitioner, TopicOptions
from trickle.utils.durations import seconds
from trickle.utils.functions import check_async
from trickle.utils.names import check_name

__all__ = ["App"]

V = TypeVar("V", default=Any)
K = TypeVar("K", default=Any)
VT = TypeVar("VT")
KT = TypeVar("KT")
S = TypeVar("S", bound=Service)
F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", bound=Callable[[], Awaitable[None]])


class App:
    """A stream processing application: its topics, agents, tables, timers and settings.

    Args:
        id: names the consumer group, and begins the names of topics and directories.
        sensors: told of what happens, beside the Monitor.
        settings: each by its name, see :class:`~trickle.config.Settings`.

    Raises:
        ConfigurationError: the id, or a setting's name or value, is wrong.
    """

    def __init__(
        self,
        id: str,
        *,
        sensors: Sequence[Sensor] = (),
        **settings: Unpack[SettingArguments],
    ) -> None:
        self.id = id
        self.module_file = _callers_file()
        self.sensors = checked_sensors(sensors)
        self._arguments: dict[str, Any] = dict(settings)
        check_arguments(id, self._arguments)  # a wrong argument is told where it stands
        self._topics: dict[str, Topic[Any, Any]] = {}
        self._agents: dict[str, Agent[Any, Any]] = {}
        self._tables: dict[str, Table[Any, Any]] = {}
        self._repartitions: dict[str, Repartition] = {}
        self._letters: set[str] = set()  # topics that nobody has described
        self.season = Season(id)
        self.timers: list[Timer] = []
        self.tasks: list[Callable[[], Awaitable[None]]] = []
        self.commands: list[Command] = []
        self.services: list[ServiceDefinition] = []

    def __repr__(self) -> str:
        return f"<App {self.id!r}>"

    # What is defined

    @property
    def agents(self) -> Mapping[str, Agent[Any, Any]]:
        """The agents by name, internal ones included, upstream first."""
        return dict(self._agents)

    @property
    def tables(self) -> Mapping[str, Table[Any, Any]]:
        """The tables by name."""
        return dict(self._tables)

    @property
    def topics(self) -> Mapping[str, Topic[Any, Any]]:
        """The topics by name: the user's, repartition topics, those of dead letters."""
        return dict(self._topics)

    def resolve(self, **overrides: Any) -> Resolved:
        """Return the effective settings: arguments, then environment, then pyproject.toml."""
        return resolve(self.id, {**self._arguments, **overrides}, self.module_file)

    # Definitions

    @overload
    def topic(
        self, name: str, *, key: TypeForm[K], value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V, K]: ...
    @overload
    def topic(
        self, name: str, *, value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V, bytes]: ...
    @overload
    def topic(
        self, name: str, *, key: TypeForm[K], **options: Unpack[TopicOptions]
    ) -> Topic[bytes | None, K]: ...
    @overload
    def topic(self, name: str, **options: Unpack[TopicOptions]) -> Topic[bytes | None, bytes]: ...
    def topic(
        self,
        name: str,
        *,
        key: TypeForm[Any] | None = None,
        value: TypeForm[Any] | None = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
        partitions: int | None = None,
        replicas: int | None = None,
        retention: Duration | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        config: Mapping[str, str] | None = None,
        partitioner: Partitioner | None = None,
    ) -> Topic[Any, Any]:
        """Describe a topic.

        One that is described while the app runs may be sent to, where it is on the broker already:
        a Run declares those that it knows at its start.

        Args:
            name: on the broker.
            key: the type of its keys; bytes where it is left out. A key may always be None.
            value: the type of its values; bytes or None where it is left out.
            key_serializer: ``json``, ``msgpack``, ``raw``, ``str``, ``yaml``, or a codec; by the
                type where it is left out.
            value_serializer: likewise.
            partitions: declared with so many where it is missing; the broker's default otherwise.
            replicas: likewise.
            retention: seconds that records are kept at least; negative keeps them for ever.
            compacting: the newest record of each key is kept.
            deleting: old records are deleted by retention.
            config: further settings of the topic by Kafka's names.
            partitioner: from the key's bytes and the partition count to a partition; Java's
                murmur2 otherwise.

        Raises:
            ConfigurationError: the name, a type or a number is wrong.
        """
        topic: Topic[Any, Any] = Topic(
            name,
            app_id=self.id,
            app=self,
            key=key,
            value=value,
            key_serializer=key_serializer,
            value_serializer=value_serializer,
            partitions=partitions,
            replicas=replicas,
            retention=retention,
            compacting=compacting,
            deleting=deleting,
            config=config,
            partitioner=partitioner,
        )
        self._add_topic(topic)
        return topic

    def table(
        self,
        name: str,
        *,
        key: TypeForm[KT],
        value: TypeForm[VT],
        default: Callable[[], VT] | None = None,
        source: Source[Any, Any] | None = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
    ) -> Table[KT, VT]:
        """Define a table: durable state, sharded as its source is, with a changelog.

        Args:
            name: unique in the app; its changelog is ``{app}-{name}-changelog``.
            key: the type of its keys.
            value: the type of its values; with ``| None``, setting None removes the key, as None is
                Kafka's null, in changelogs too.
            default: makes the value of a key that is missing, as defaultdict's does.
            source: whose partitions shard it; needed where the agents' sources have different
                partition counts.
            key_serializer: as for topics.
            value_serializer: likewise.

        Raises:
            DefinitionError: a second table of this name.
        """
        self.season.check(f"table {name!r}")
        if name in self._tables:
            raise DefinitionError(f"there are two tables named {name!r}: give each its own name")
        table: Table[KT, VT] = Table(
            name,
            app_id=self.id,
            app=self,
            key=key,
            value=value,
            default=default,
            source=source,
            key_serializer=key_serializer,
            value_serializer=value_serializer,
        )
        self._tables[name] = table
        return table

    @explained("@app.agent() does not say what the agent reads: write @app.agent(topic)")
    def agent(
        self,
        source: Source[V, K] | Sequence[Source[V, K]],
        *,
        name: str | None = None,
        sink: Sink | Sequence[Sink] | None = None,
        on_error: Policy | None = None,
        deadline: Duration | None = None,
        concurrency: int = 1,
        ordering: Literal["key", "none"] | Callable[[V], object] = "key",
    ) -> AgentDecorator[V, K]:
        """Define an agent: an async function over a source.

        Args:
            source: a topic, several topics, or what ``group_by`` and the like make of one.
            name: the function's name where it is left out.
            sink: where the values go that the function yields.
            on_error: Stop() by default.
            deadline: seconds that one event may take.
            concurrency: how many events of a partition may be in hand at once: for agents that
                wait, for an HTTP server as an example. So many calls of the function run in each
                partition, each with a stream of its own; ``take`` gathers in each of them.
            ordering: what stays in order with concurrency above 1. ``"key"``: events of one key
                (those without a key wait for nobody). A function of the value: events for which
                it gives the same; None gives no order. An event may touch only the key that
                orders it, in the tables that its agent writes. ``"none"``: nothing stays in
                order, and tables can only be read.

        Raises:
            DefinitionError: a second agent of this name, sources that do not go together, or the
                app runs already.
        """
        if not isinstance(source, Source | list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_source(source, name)
        limit = None if deadline is None else seconds(deadline, what="agent(deadline=…)")
        if limit == 0:
            raise DefinitionError(f"agent(deadline={deadline!r}): an event needs some time")
        sinks = cast("Sequence[Sink]", sink if isinstance(sink, list | tuple) else [sink])

        def decorate(function: Any) -> Agent[Any, Any]:
            agent_name = named(function, name, decorator="@app.agent(…, name=)")
            check_name(agent_name, what="an agent's name")
            self.season.check(f"agent {agent_name!r}")
            check_async(function, what=f"agent {agent_name!r}", parameters="stream")
            joined = join_sources(source, agent_name)
            letters = self._dead_letters(agent_name, on_error)
            if letters is not None:
                check_letters(agent_name, joined, letters)
            for repartition in joined.repartitions:
                self._add_repartition(repartition, on_error or Stop(), letters)
            agent: Agent[Any, Any] = Agent(
                function,
                name=agent_name,
                source=joined,
                sinks=() if sink is None else sinks,
                on_error=on_error,
                deadline=limit,
                dead_letters=letters,
                concurrency=concurrency,
                ordering=ordering,
            )
            self._add_agent(agent)
            return agent

        return AgentDecorator(decorate)

    @explained("@app.timer() does not say how often: write @app.timer(30.0), in seconds")
    def timer(self, interval: Duration, *, name: str | None = None) -> Callable[[N], N]:
        """Call a function every so many seconds, on each worker.

        What it sends takes effect when it returns, or not at all; an error stops the worker.
        """
        if callable(interval):
            raise DefinitionError("@app.timer takes seconds: write @app.timer(30.0), as an example")
        every = seconds(interval, what="timer(interval)")
        if every <= 0:
            raise DefinitionError(f"timer({interval!r}): the interval must be positive")

        def decorate(function: N) -> N:
            label = named(function, name, decorator="@app.timer(…, name=)", otherwise="timer")
            check_async(function, what=f"timer {label!r}")
            self.season.check(f"timer {label!r}")
            self.timers.append(Timer(label, function, every))
            return function

        return decorate

    @explained("@app.task takes no parentheses: write @app.task")
    def task(self, function: N) -> N:
        """Run a function once, when the worker is ready; it may end, or go on until it stops."""
        what = f"task {getattr(function, '__name__', 'task')!r}"
        check_async(function, what=what)
        self.season.check(what)
        self.tasks.append(function)
        return function

    def command(self, name: str | None = None) -> Callable[[F], F]:
        """Offer an async function on the command line: ``trickle -A app:app NAME``.

        It runs in a Run without agents or membership.
        """
        if callable(name):
            raise DefinitionError("@app.command takes parentheses: write @app.command()")
        if name is not None:
            check_name(name, what="command(name)")

        def decorate(function: F) -> F:
            label = name or named(function, None, decorator="@app.command(name)").replace("_", "-")
            if any(label == command.name for command in self.commands):
                raise DefinitionError(
                    f"there are two commands named {label!r}: give one another name, by "
                    "@app.command(name)"
                )
            self.commands.append(Command(label, function))
            return function

        return decorate

    @overload
    def service(self, factory: type[S], /) -> type[S]: ...
    @overload
    def service(self, /, *, restart: Restart | None = ...) -> Callable[[type[S]], type[S]]: ...
    def service(
        self, factory: type[S] | None = None, /, *, restart: Restart | None = None
    ) -> type[S] | Callable[[type[S]], type[S]]:
        """Run a service of the user's own as long as the worker runs.

        Args:
            factory: a subclass of Service that needs no arguments.
            restart: how often a failed one is started again; never by default.
        """

        def decorate(made: type[S]) -> type[S]:
            if not inspect.isclass(made) or not issubclass(made, Service):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DefinitionError(
                    f"service: {made!r} is no subclass of trickle.Service: write one with "
                    "`async def main(self, task_status)`, or use @app.task for a function"
                )
            try:
                inspect.signature(made).bind()
            except TypeError as error:
                raise DefinitionError(
                    f"service {made.__name__!r}: it must be made without arguments ({error})"
                ) from None
            self.season.check(f"service {made.__name__!r}")
            self.services.append(ServiceDefinition(made, restart))
            return made

        return decorate if factory is None else decorate(factory)

    # Running

    def run(self) -> AbstractAsyncContextManager[Run]:
        """Run the app inside a Trio program.

        Entered when it has joined its group and recovered its shards; drained and committed when
        it is left. What the app consists of is defined before.

        Raises:
            ConfigurationError: a setting or a definition is wrong.
            TransportError: the broker is away, or a topic is not as it must be.
            ExceptionGroup: what stopped it while it ran.
        """
        return self._running(open_run(self.definitions(), self.resolve()))

    @asynccontextmanager
    async def _running(self, opened: AbstractAsyncContextManager[Run]) -> AsyncGenerator[Run, None]:
        with self.season.closed():
            async with opened as run:
                yield run

    def client(self) -> AbstractAsyncContextManager[Run]:
        """Run without agents, timers or membership: to send, and to read committed values."""
        return open_run(self.definitions(), self.resolve(), client=True)

    def definitions(self) -> Definitions:
        """Return all that is defined so far, as a Run takes it."""
        return Definitions(
            id=self.id,
            app=self,
            topics=tuple(self._topics.values()),
            agents=tuple(self._agents.values()),
            tables=tuple(self._tables.values()),
            timers=tuple(self.timers),
            tasks=tuple(self.tasks),
            services=tuple(self.services),
            sensors=self.sensors,
        )

    # Registries

    def _add_topic(self, topic: Topic[Any, Any]) -> None:
        known = self._topics.get(topic.name)
        if topic.name in self._letters and not topic.internal:  # one may say more of dead letters
            self._letters.remove(topic.name)
            _kept_for_ever(topic)
        elif known is not None and known is not topic:
            raise DefinitionError(
                f"topic {topic.name!r} is described twice: describe it once, and use that"
            )
        self._topics[topic.name] = topic

    def _add_agent(self, agent: Agent[Any, Any]) -> None:
        if agent.name in self._agents:
            raise DefinitionError(
                f"there are two agents named {agent.name!r}: give one another name, by "
                "@app.agent(…, name=)"
            )
        self._agents[agent.name] = agent

    def _add_repartition(
        self, repartition: Repartition, policy: Policy, letters: Topic[Any, Any] | None
    ) -> None:
        """Add the internal agent that feeds a source of an agent's.

        A record that it cannot regroup never reaches the agent, so the agent's policy holds here
        as well: that of the first that reads the source, but Stop where any of them would stop.
        """
        known = self._repartitions.get(repartition.name)
        if known is repartition:
            if isinstance(policy, Stop):
                self._agents[repartition.name].on_error = policy
            return
        if known is not None:
            raise DefinitionError(
                f"there are two internal agents {repartition.name!r}: give one group_by or through "
                "another name=, or make it once and let both agents read it"
            )
        check_round(self._repartitions.values(), repartition)
        self._repartitions[repartition.name] = repartition
        if repartition.target.internal:
            self._add_topic(repartition.target)
        self._add_agent(
            Agent(
                repartition_function(repartition),
                name=repartition.name,
                source=repartition.source,
                on_error=policy,
                dead_letters=letters,
                internal=True,
            )
        )

    def _dead_letters(self, agent: str, policy: Policy | None) -> Topic[Any, Any] | None:
        if isinstance(policy, Retry):
            policy = policy.then
        if not isinstance(policy, DeadLetter):
            return None
        if isinstance(policy.topic, Topic):
            return policy.topic
        name = policy.topic if policy.topic is not None else f"{self.id}-{agent}-dead-letters"
        if name in self._topics:
            return _kept_for_ever(self._topics[name])
        letters: Topic[Any, Any] = Topic(
            name, app_id=self.id, app=self, key=bytes | None, value=bytes | None
        )
        self._add_topic(_kept_for_ever(letters))
        self._letters.add(name)
        return letters


def _kept_for_ever(letters: Topic[Any, Any]) -> Topic[Any, Any]:
    """Keep dead letters, unless told otherwise: their timestamps are their records', years old."""
    if letters.retention is None:
        letters.retention = -1
    return letters


def _callers_file() -> str | None:
    """Return the file of the module that calls ``App(…)``."""
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    found: str | None = caller.f_globals.get("__file__") if caller is not None else None
    return found
