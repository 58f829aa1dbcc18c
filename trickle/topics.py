"""Descriptions of topics, and of what is consumed from them.

A :class:`Topic` is a definition: a name, the types of its keys and values, how it is to be
declared. A :class:`Source` is what an agent reads: topics, and steps before the agent sees the
events. What changes the topology (``group_by``, ``through``) is declared on sources, so that the
whole topology is known before anything runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, NoReturn, cast, overload

import msgspec
from typing_extensions import TypeForm, TypeVar

from trickle.bounds import SMALL, check_partition, check_size, choose_partition
from trickle.context import OUTLET, Effect, Outlet, Outlets, Turn, current_turn
from trickle.exceptions import DefinitionError, EncodeError, UsageError
from trickle.metadata import pack_headers, timestamp_to_ms
from trickle.serializers import BoundCodec, codec_for
from trickle.transport.contract import TopicSpec
from trickle.types import (
    Codec,
    Duration,
    Headers,
    HeadersInput,
    Many,
    Partitioner,
    RecordMetadata,
)
from trickle.untyped import UntypedKey, UntypedValue, field_getter, field_type, returned_type
from trickle.utils.durations import seconds
from trickle.utils.names import check_name
from trickle.utils.values import is_whole

__all__ = ["Repartition", "Source", "Step", "Topic"]

V = TypeVar("V")
K = TypeVar("K", default=Any)
# A source only gives events, so that topics of A and of B together are a source of A | B.
V_co = TypeVar("V_co", covariant=True)
K_co = TypeVar("K_co", covariant=True, default=Any)
V2 = TypeVar("V2")
K2 = TypeVar("K2", default=Any)

Step = tuple[Literal["filter", "map", "flat_map"], Callable[[Any], Any]]
"""One step of a source: the name of a stream's operator, and its function."""


class Repartition(msgspec.Struct, frozen=True, eq=False):
    """An internal agent: it reads a source and writes its events to a topic, by a new key.

    Attributes:
        name: of the internal agent.
        key: from an event's value to its new key; None keeps the old key (``through``).
        owned: the topic is trickle's own, declared with the source's partition count.
    """

    name: str
    source: Source[Any, Any]
    target: Topic[Any, Any]
    key: Callable[[Any], Any] | None
    owned: bool


class Source(Generic[V_co, K_co]):
    """What an agent reads: one or more topics, and the steps that their events go through.

    Attributes:
        topics: what is consumed.
        steps: what happens to each event before the agent sees it, in order.
        repartitions: the internal agents that feed the topics, upstream first.
    """

    def __init__(
        self,
        topics: Sequence[Topic[Any, Any]],
        steps: tuple[Step, ...] = (),
        repartitions: tuple[Repartition, ...] = (),
        *,
        value_type: object = None,
    ) -> None:
        self.topics: tuple[Topic[Any, Any], ...] = tuple(topics)
        self.steps = steps
        self.repartitions = repartitions
        self._value_type = value_type

    def __aiter__(self) -> NoReturn:
        """Say that a source is what an agent reads, and cannot be iterated."""
        raise UsageError(
            f"{self!r} is a definition and cannot be iterated: write @app.agent(source) over a "
            "function, and iterate the stream that it is given"
        )

    def filter(self, predicate: Callable[[V_co], object]) -> Source[V_co, K_co]:
        """Pass on only the events whose value the predicate holds for."""
        return self._with(("filter", predicate), self._value_type)

    def map(
        self, function: Callable[[V_co], Awaitable[V2]] | Callable[[V_co], V2]
    ) -> Source[V2, K_co]:
        """Pass on each event with another value; the function may be async."""
        return cast("Source[V2, K_co]", self._with(("map", function), returned_type(function)))

    def flat_map(self, function: Callable[[V_co], Many[V2]]) -> Source[V2, K_co]:
        """Pass on any number of values for each event, which settle together; it may be async."""
        return cast("Source[V2, K_co]", self._with(("flat_map", function), None))

    @overload
    def group_by(
        self, key: Callable[[V_co], K2], *, name: str, value_type: TypeForm[Any] | None = ...
    ) -> Source[V_co, K2]: ...
    @overload
    def group_by(
        self, key: str, *, name: str, value_type: TypeForm[Any] | None = ...
    ) -> Source[V_co, Any]: ...
    @overload
    def group_by(
        self,
        key: Callable[[V_co], object] | str,
        *,
        name: str,
        key_type: TypeForm[K2],
        value_type: TypeForm[Any] | None = ...,
    ) -> Source[V_co, K2]: ...
    def group_by(
        self,
        key: Callable[[V_co], Any] | str,
        *,
        name: str,
        key_type: TypeForm[Any] | None = None,
        value_type: TypeForm[Any] | None = None,
    ) -> Source[V_co, Any]:
        """Regroup by another key: the events travel through a repartition topic of trickle's own.

        Args:
            key: a function of the value, or the name of one of its fields.
            name: the repartition topic is ``{app}-{name}-repartition``.
            key_type: of the new keys, where neither the field nor the function's annotation
                tells it; without it such keys are text, bytes, numbers and tuples of them.
            value_type: of the events, where steps before change it and their annotations do not
                tell; without it such values are what JSON gives back unchanged.

        Raises:
            DefinitionError: the name is not one for a topic, or the values have no such field.
        """
        first = self.topics[0]
        check_name(name, what="group_by(name=…)")
        if not isinstance(key, str) and not callable(key):
            raise DefinitionError(
                f"group_by({key!r}, name={name!r}): give a function of the value, or a field's name"
            )
        value = value_type or self._known_value_type()
        if isinstance(key, str):
            found = key_type or field_type(value, key, name)
            function = field_getter(key)
        else:
            found = key_type or returned_type(key)
            function = key
        kept = None if self._retyped else first.value_serializer
        target: Topic[Any, Any] = Topic(
            f"{first.app_id}-{name}-repartition",
            app_id=first.app_id,
            app=first.app,
            key=cast("TypeForm[Any]", found or Any),
            key_serializer=None if found else UntypedKey(),
            value=cast("TypeForm[Any]", value or Any),
            value_serializer=kept if value else UntypedValue(),
            deleting=True,
            retention=-1,
            internal=True,
        )
        agent = f"{name}-repartition"  # a name that no function can have
        step = Repartition(agent, cast("Source[Any, Any]", self), target, function, owned=True)
        return Source((target,), (), (*self.repartitions, step), value_type=value)

    def through(self, topic: Topic[V2, K2], *, name: str | None = None) -> Source[V2, K2]:
        """Send the events to a topic of the user's, by their keys, and go on from there."""
        if not isinstance(topic, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"through({topic!r}): that is no topic: give one of app.topic(…)")
        if name is not None:
            check_name(name, what="through(name=…)")
        name = f"{topic.name if name is None else name}-through"
        step = Repartition(name, cast("Source[Any, Any]", self), topic, None, owned=False)
        return Source((topic,), (), (*self.repartitions, step), value_type=topic.value_type)

    @property
    def _retyped(self) -> bool:
        return any(kind != "filter" for kind, _ in self.steps)

    def _with(self, step: Step, value_type: object) -> Source[V_co, K_co]:
        if not callable(step[1]):
            raise DefinitionError(f"{step[0]}({step[1]!r}): that is no function of the value")
        return Source(self.topics, (*self.steps, step), self.repartitions, value_type=value_type)

    def _known_value_type(self) -> object:
        """Return the type of the values, None behind a map that does not tell its result's."""
        if self._value_type is not None or self._retyped:
            return self._value_type
        return self.topics[0].value_type


class Topic(Source[V, K], Generic[V, K]):
    """A topic: its name, its types, and how it is declared where it is missing.

    Made by :meth:`App.topic`, whose docstring tells the arguments.
    """

    def __init__(
        self,
        name: str,
        *,
        app_id: str,
        app: object = None,
        key: TypeForm[K] | None = None,
        value: TypeForm[V] | None = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
        partitions: int | None = None,
        replicas: int | None = None,
        retention: Duration | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        config: Mapping[str, str] | None = None,
        partitioner: Partitioner | None = None,
        internal: bool = False,
    ) -> None:
        check_name(name, what="a topic's name")
        for argument, count in (("partitions", partitions), ("replicas", replicas)):
            if count is not None and not is_whole(count, at_least=1):
                raise DefinitionError(
                    f"topic {name!r}: {argument}={count!r} is not a whole number, 1 or more"
                )
        if not isinstance(config, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"topic {name!r}: config={config!r} is no mapping of str to str")
        if partitioner is not None and not callable(partitioner):
            raise DefinitionError(
                f"topic {name!r}: partitioner={partitioner!r} is no function: give one of a key's "
                "bytes and the number of partitions"
            )
        for setting, to in (config or {}).items():
            if not isinstance(setting, str) or not isinstance(to, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DefinitionError(
                    f"topic {name!r}: config has {setting!r}: {to!r}, but it maps str to str"
                )
        self.name = name
        self.app_id = app_id
        self.app = app
        self.key_type: object = bytes if key is None else key
        self.value_type: object = bytes | None if value is None else value
        self.value_serializer = value_serializer
        self.key_codec: BoundCodec = codec_for(
            self.key_type, key_serializer, what=f"the keys of topic {name!r}", key=True
        )
        self.value_codec: BoundCodec = codec_for(
            self.value_type, value_serializer, what=f"the values of topic {name!r}"
        )
        self.partitions = partitions
        self.replicas = replicas
        if retention is not None:
            seconds(retention, what=f"topic {name!r}: retention", minimum=-1)
        self.retention = retention
        self.compacting = compacting
        self.deleting = deleting
        self.config = dict(config or {})
        self.partitioner = partitioner
        self.internal = internal
        super().__init__((), value_type=self.value_type)
        self.topics = (self,)

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    def spec(self, *, partitions: int | None = None, replicas: int | None = None) -> TopicSpec:
        """Return the topic as it is to be declared; its own settings go before those given."""
        retention_ms: int | None = None
        if self.retention is not None:
            kept = seconds(self.retention, what=f"topic {self.name!r}: retention", minimum=-1)
            retention_ms = -1 if kept < 0 else int(kept * 1000)
        return TopicSpec(
            name=self.name,
            partitions=self.partitions or partitions,
            replicas=self.replicas or replicas,
            retention_ms=retention_ms,
            compacting=self.compacting,
            deleting=self.deleting,
            config=self.config,
        )

    async def send(
        self,
        value: V,
        *,
        key: K | None = None,
        headers: HeadersInput | None = None,
        timestamp: float | datetime | None = None,
        partition: int | None = None,
    ) -> RecordMetadata:
        """Send a record.

        Inside an event it joins the event's effects, at once and without an offset: it becomes
        visible with the event's commit, or never. Outside it is delivered when this returns.

        Args:
            value: of the topic's value type; None is Kafka's null.
            key: of the topic's key type; its bytes choose the partition.
            headers: pairs or a mapping; text is UTF-8.
            timestamp: POSIX seconds or an aware datetime; inside an event the event's by default,
                outside the clock's.
            partition: instead of the one that the key chooses.

        Raises:
            EncodeError: the key or the value is not of its type.
            RecordRefused: the record is larger than its topic takes.
            BrokerUnavailable: outside an event: no answer in time.
        """
        turn = current_turn()
        effect = self.effect(value, key, headers, timestamp, partition, turn)
        if turn is None:
            return await _outlet(self).send(effect)
        turn.effects.append(effect)
        turn.touched = True
        stamp = effect[5]
        return RecordMetadata(self.name, effect[1], None, -1.0 if stamp is None else stamp / 1000)

    def send_nowait(
        self,
        value: V,
        *,
        key: K | None = None,
        headers: HeadersInput | None = None,
        timestamp: float | datetime | None = None,
        partition: int | None = None,
    ) -> None:
        """Send a record as :meth:`send` does, without a wait.

        Outside an event it is delivered some time after, at the latest when the Run is left; a
        failure to deliver is then the Run's.

        Raises:
            trio.WouldBlock: outside an event: the client's queue is full.
        """
        turn = current_turn()
        effect = self.effect(value, key, headers, timestamp, partition, turn)
        if turn is None:
            _outlet(self).send_nowait(effect)
        else:
            turn.effects.append(effect)
            turn.touched = True

    def send_encoded(self, value: bytes | None, *, key: K | None, headers: Headers) -> None:
        """Stage a record whose value is wire bytes already: what a repartition does."""
        turn = current_turn()
        if turn is None:
            raise UsageError(f"topic {self.name!r}: send_encoded belongs inside an event")
        data = self.encode_key(key)
        turn.stage(self.effect_of_bytes(data, value, headers, turn.timestamp_ms()))

    async def send_all(
        self, items: Iterable[tuple[K | None, V] | tuple[K | None, V, float]]
    ) -> int:
        """Deliver many records outside an event, in order, and return how many.

        Args:
            items: (key, value) or (key, value, timestamp in POSIX seconds).

        Raises:
            UsageError: one of them is neither; those before it may have been sent.
        """
        if current_turn() is not None:
            raise UsageError(
                f"topic {self.name!r}: send_all belongs outside an event; inside one, call "
                "send_nowait for each record, so that they join the event's effects"
            )
        if not isinstance(items, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"topic {self.name!r}: send_all takes pairs, not {items!r}")
        effects = (self._effect_of(item, number) for number, item in enumerate(items))
        return await _outlet(self).send_all(effects)

    def _effect_of(self, item: Sequence[Any], number: int) -> Effect:
        if not isinstance(item, tuple | list) or not 2 <= len(item) <= 3:
            raise UsageError(
                f"topic {self.name!r}: send_all takes (key, value) or (key, value, timestamp), but "
                f"item {number} is {item!r}"
            )
        return self.effect(item[1], item[0], None, item[2] if len(item) > 2 else None, None)

    def effect(
        self,
        value: V,
        key: K | None,
        headers: HeadersInput | None,
        timestamp: float | datetime | None,
        partition: int | None,
        turn: Turn | None = None,
    ) -> Effect:
        """Encode a record; what :meth:`send` then stages or delivers.

        Args:
            turn: whose event gives the record its timestamp, unless it is given one.
        """
        stamp: int | None = None
        if timestamp is not None:
            stamp = timestamp_to_ms(timestamp)
        elif turn is not None:
            stamp = turn.timestamp_ms()
        what = "key"
        try:  # not by encode_key and encode_value: two frames less for each record
            key_bytes = self.key_codec.encode(key)
            what = "value"
            data = self.value_codec.encode(value)
        except EncodeError as error:
            raise self._misfit(what, error) from error.__cause__
        if (
            headers
            or partition is not None
            or self.partitioner is not None
            or (data is not None and len(data) > SMALL)
            or (key_bytes is not None and len(key_bytes) > SMALL)
        ):
            packed = pack_headers(headers) if headers else ()
            return self.effect_of_bytes(key_bytes, data, packed, stamp, partition)
        return (self.name, None, key_bytes, data, (), stamp)  # every topic takes it

    def effect_of_bytes(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
    ) -> Effect:
        """Make an effect of wire bytes, checked against what the topic takes."""
        outlet = _outlet_of(self)
        if outlet is not None:
            count, limit = outlet.bounds(self.name)
            if limit is not None:
                check_size(self.name, limit, key, value, headers)
            if partition is not None:
                check_partition(self.name, partition, count)
            elif self.partitioner is not None and count is not None:
                partition = self.partition_for(key, count)
        return (self.name, partition, key, value, headers, timestamp_ms)

    def partition_for(self, key: bytes | None, count: int) -> int | None:
        """Return what the topic's own partitioner makes of a key; None where it has none.

        Raises:
            UsageError: it is no partition.
        """
        own = self.partitioner
        return None if own is None else choose_partition(self.name, own, key, count)

    def encode_value(self, value: V) -> bytes | None:
        """Return a value's wire bytes.

        Raises:
            EncodeError: it is not of the topic's value type.
        """
        try:
            return self.value_codec.encode(value)
        except EncodeError as error:
            raise self._misfit("value", error) from error.__cause__

    def encode_key(self, key: K | None) -> bytes | None:
        """Return a key's wire bytes.

        Raises:
            EncodeError: it is not of the topic's key type.
        """
        try:
            return self.key_codec.encode(key)
        except EncodeError as error:
            raise self._misfit("key", error) from error.__cause__

    def _misfit(self, what: str, error: EncodeError) -> EncodeError:
        return EncodeError(f"topic {self.name!r}, {what}: {error}")


def _outlet_of(topic: Topic[Any, Any]) -> Outlet | None:
    found = OUTLET.get()
    return found.of(topic.app) if isinstance(found, Outlets) else found


def _outlet(topic: Topic[Any, Any]) -> Outlet:
    outlet = _outlet_of(topic)
    if outlet is None:
        raise UsageError(
            f"topic {topic.name!r} cannot be sent to: no app is running here; "
            "send inside `async with app.run():` or `async with app.client():`"
        )
    return outlet
