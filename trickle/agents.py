"""Agent: the user's function over a source, and what happens when it fails.

The conductor runs :meth:`Agent.work` once for each lane. It calls the user's function with a
stream; when an event fails, the function's locals are gone with it: the policy disposes of the
event, and the function is called anew.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeAlias, cast

import trio
from typing_extensions import TypeVar

from trickle.context import CURRENT
from trickle.exceptions import (
    AgentReturnedError,
    DeadlineExceeded,
    DecodeError,
    DefinitionError,
    EventSettledError,
    RecordRefused,
    TrickleError,
)
from trickle.policies import DeadLetter, Policy, Retry, Skip, Stop
from trickle.sensors import Sensor
from trickle.streams import ConcurrentLane, Lane, Ordering, OrderingArgument, Stream
from trickle.streams.call import FunctionCall
from trickle.streams.deadline import bounded
from trickle.topics import Source, Topic
from trickle.types import Headers, Record
from trickle.untyped import read_key
from trickle.utils.values import is_whole

__all__ = ["Agent", "AgentFunction", "Sink"]

logger = logging.getLogger("trickle.agents")

V = TypeVar("V")
K = TypeVar("K", default=Any)

AgentFunction: TypeAlias = Callable[[Stream[V, K]], Awaitable[None] | AsyncIterator[Any]]

Sink: TypeAlias = "Topic[Any, Any] | Agent[Any, Any] | Callable[[Any], Any]"
"""Where yielded values go: a topic, an agent's topic, or a function called after the commit."""

TRACEBACK_BYTES_MAX = 8 << 10


class Agent(Generic[V, K]):
    """A function decorated with ``@app.agent``: its definition, and its work on a lane.

    Attributes:
        name: unique in the app; part of names on the broker.
        source: what it reads.
        sinks: where the values go that it yields.
        on_error: its error policy.
        deadline: seconds that one event may take; None for no limit.
        concurrency: how many events of a partition may be in hand at once.
        ordering: by what they are kept in order.
        internal: a repartition of trickle's own.
    """

    def __init__(
        self,
        function: AgentFunction[V, K],
        *,
        name: str,
        source: Source[V, K],
        sinks: Sequence[Sink] = (),
        on_error: Policy | None = None,
        deadline: float | None = None,
        dead_letters: Topic[Any, Any] | None = None,
        concurrency: int = 1,
        ordering: OrderingArgument = "key",
        internal: bool = False,
    ) -> None:
        self.function = function
        self.name = name
        self.source = source
        self.sinks = tuple(sinks)
        self.on_error: Policy = on_error or Stop()
        self.deadline = deadline
        self.dead_letters = dead_letters
        self.concurrency = concurrency
        self.internal = internal
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)
        self._codecs = {topic.name: topic.value_codec for topic in source.topics}
        self._keys = {topic.name: topic.key_codec for topic in source.topics}
        self.ordering = Ordering(
            name,
            ordering,
            keys=self._keys,
            values=self._codecs,
            changed=any(kind != "filter" for kind, _ in source.steps),
        )
        _check(name, self.on_error, self.sinks, concurrency)
        if self.sinks and not inspect.isasyncgenfunction(function):
            raise DefinitionError(
                f"agent {name!r} has a sink, but its function yields nothing: "
                "yield the values that are to be sent, or leave out sink="
            )

    def __repr__(self) -> str:
        return f"<Agent {self.name!r}>"

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        """The topics that it reads."""
        return self.source.topics

    @property
    def codecs(self) -> Mapping[str, Any]:
        """The codecs of the values, by topic."""
        return self._codecs

    async def work(self, lane: Lane, sensor: Sensor) -> None:
        """Work on a lane until it is to stop; one with concurrency is told of errors itself.

        Raises:
            Exception: what the function raised, where the policy is to stop.
        """
        if isinstance(lane, ConcurrentLane):
            await lane.run(partial(self.work, sensor=sensor))
            return
        CURRENT.set(lane)
        while not lane.stopping:
            error = await self._call(lane)
            if error is not None:
                lane.undo()
                await self._failed(lane, error, sensor)

    async def refuse(
        self, lane: Lane, record: Record, error: TrickleError, *, sensor: Sensor
    ) -> None:
        """Apply the policy to a record that cannot become an event (see :class:`Lane`)."""
        policy = self._settled_policy()
        sensor.event_failed(self.name, record.partition)
        if isinstance(policy, Stop):
            _locate(error, self.name, [record])
            raise error
        if isinstance(policy, DeadLetter):
            self._bury(lane, record, error)
        self._passed_over(record, error, policy, sensor)

    # One call of the user's function

    async def _call(self, lane: Lane) -> Exception | None:
        """Call the function until it ends; return the error of the event in hand, if it failed.

        Raises:
            Exception: an error that belongs to no event.
        """
        call = lane.call = FunctionCall()
        try:
            with call.scope:
                await self._iterate(lane, call.scope)
        except Exception as error:
            if not lane.hand:
                if lane.stopping and _is_end(error):
                    return None
                if not _is_located(error, self.name):  # a refused record's is
                    error.add_note(f"{_failed(self.name)} between two events")
                raise
            return error
        if call.scope.cancel_called and not call.told:
            return DeadlineExceeded(
                f"agent {self.name!r}: an event took longer than deadline={self.deadline:g} s"
            )
        if lane.hand:
            lane.finish()
        if not lane.stopping:
            raise AgentReturnedError(
                f"agent {self.name!r} returned while its stream was open: "
                "iterate the stream to its end, and leave out return and break"
            )
        return None

    async def _iterate(self, lane: Lane, scope: trio.CancelScope) -> None:
        stream: Stream[Any, Any] = Stream(lane, self._keys)
        if self.deadline is not None:  # below the source's steps: they are part of the event
            stream = bounded(stream, scope, self.deadline)
        for kind, function in self.source.steps:
            stream = getattr(stream, kind)(function)
        result = self.function(stream)
        if not inspect.isasyncgen(result):
            await cast("Awaitable[None]", result)
            return
        async with aclosing(cast("AsyncGenerator[Any, None]", result)) as values:
            async for value in values:
                self._yielded(lane, value)

    def _yielded(self, lane: Lane, value: Any) -> None:
        """Send a yielded value to the sinks, with the source's key.

        Raises:
            EventSettledError: no event is in hand that it could be part of.
        """
        if self.sinks and not lane.hand:
            raise EventSettledError(
                f"agent {self.name!r} yielded a value while it had no event in hand, so nothing "
                "would be sent with it for sure: yield inside the loop over the stream, and inside "
                "`async with event`"
            )
        for sink in self.sinks:
            if isinstance(sink, Topic | Agent):
                topic = cast("Topic[Any, Any] | Agent[Any, Any]", sink).topics[0]
                data = topic.encode_value(value)
                batch, index = lane.in_hand()
                key = self._sink_key(topic, batch.record(index))
                effect = topic.effect_of_bytes(key, data, (), lane.timestamp_ms())
                lane.stage(effect)
            else:
                lane.after.append(partial(sink, value))
                lane.touched = True

    def _sink_key(self, sink: Topic[Any, Any], record: Record) -> bytes | None:
        ours, theirs, key = self._keys[record.topic], sink.key_codec, record.key
        same = (ours.type_name, ours.serializer) == (theirs.type_name, theirs.serializer)
        if key is None or same or theirs.serializer == "raw":
            return key
        return sink.encode_key(read_key(ours, record))

    # Failures

    async def _failed(self, lane: Lane, error: Exception, sensor: Sensor) -> None:
        """Dispose of the failed event in hand, as the policy says."""
        records = lane.records_in_hand()
        first = records[0]
        policy: Policy = self.on_error
        if isinstance(policy, Retry):
            if lane.attempt_of != (first.topic, first.offset):
                lane.attempt, lane.attempt_of = 0, (first.topic, first.offset)
            if lane.attempt < policy.times and not isinstance(error, DecodeError | RecordRefused):
                lane.attempt += 1
                sensor.event_retried(self.name, first.partition)
                pause = policy.pause_s(lane.attempt)
                logger.warning(
                    "agent %s: %s failed, retry %d of %d in %g s: %s",
                    self.name, _where(records), lane.attempt, policy.times, pause, _brief(error),
                )  # fmt: skip
                lane.rewind()
                await lane.rest(pause)
                return
            policy = policy.then
        sensor.event_failed(self.name, first.partition)
        if isinstance(policy, Stop):
            _locate(error, self.name, records)
            raise error
        for record in records:
            if isinstance(policy, DeadLetter):
                self._bury(lane, record, error)
            self._passed_over(record, error, policy, sensor)
        lane.finish()

    def _settled_policy(self) -> Stop | Skip | DeadLetter:
        policy = self.on_error
        return policy.then if isinstance(policy, Retry) else policy

    def _bury(self, lane: Lane, record: Record, error: Exception) -> None:
        if self.dead_letters is None:
            raise DefinitionError(f"agent {self.name!r} has no topic for its dead letters")
        headers = (*record.headers, *_dead_letter_headers(self.name, record, error))
        letter = partial(self.dead_letters.effect_of_bytes, record.key, record.value)
        # It bears the time of now: a broker refuses what is far ahead, and deletes what is old.
        try:
            effect = letter(headers, None)
        except RecordRefused:  # better a letter without its traceback than none
            try:
                effect = letter(headers[:-1], None)
            except RecordRefused as refusal:
                _locate(refusal, self.name, [record])
                raise refusal from error
        lane.stage(effect)

    def _passed_over(
        self, record: Record, error: Exception, policy: Skip | DeadLetter, sensor: Sensor
    ) -> None:
        """Say that an event did not happen: in the log and to the sensors."""
        if isinstance(policy, DeadLetter):
            sensor.event_dead_lettered(self.name, record.partition)
        else:
            sensor.event_skipped(self.name, record.partition)
        to = self.dead_letters.name if self.dead_letters is not None else ""
        logger.warning(
            "agent %s: %s %s: %s",
            self.name,
            _where([record]),
            f"goes to {to}" if isinstance(policy, DeadLetter) else "is skipped",
            _brief(error),
            exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
        )


def _check(name: str, policy: object, sinks: Sequence[object], concurrency: object) -> None:
    if not is_whole(concurrency, at_least=1):
        raise DefinitionError(
            f"agent {name!r}: concurrency={concurrency!r}: it must be a whole number, 1 or more: "
            "how many events of a partition may be in hand at once"
        )
    if not isinstance(policy, Stop | Skip | Retry | DeadLetter):
        raise DefinitionError(
            f"agent {name!r}: on_error= is {policy!r}, which is no policy: use Stop(), Skip(), "
            "Retry(…) or DeadLetter(…)"
        )
    for sink in sinks:
        if not isinstance(sink, Topic | Agent) and not callable(sink):
            raise DefinitionError(
                f"agent {name!r}: sink= has {sink!r}, which is no sink: give topics or functions"
            )


def _dead_letter_headers(agent: str, record: Record, error: Exception) -> Headers:
    text = "".join(traceback.format_exception(error)).encode(errors="replace")
    return (
        ("trickle-agent", agent.encode()),
        ("trickle-topic", record.topic.encode()),
        ("trickle-partition", str(record.partition).encode()),
        ("trickle-offset", str(record.offset).encode()),
        ("trickle-timestamp", str(record.timestamp_ms).encode()),
        ("trickle-error", _brief(error).encode(errors="replace")[:1000]),
        ("trickle-traceback", text[-TRACEBACK_BYTES_MAX:]),
    )


def _brief(error: BaseException) -> str:
    if isinstance(error, TrickleError):
        return str(error)
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return "; ".join(_brief(inner) for inner in group.exceptions)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_end(error: Exception) -> bool:
    """Whether it is what ``await anext(stream)`` raises where the stream has ended."""
    if isinstance(error, RuntimeError):  # what a generator makes of it
        return isinstance(error.__cause__, StopAsyncIteration)
    return isinstance(error, StopAsyncIteration)


def _where(records: Sequence[Record]) -> str:
    first, last = records[0], max(records, key=lambda record: record.offset)
    place = f"{first.topic} [{first.partition}]"
    if len(records) == 1:
        return f"the event of {place} at offset {first.offset}"
    return f"the {len(records)} events of {place} from offset {first.offset} to {last.offset}"


def _locate(error: Exception, agent: str, records: Sequence[Record]) -> None:
    """Say where it happened: notes travel with the error, whatever group it ends up in."""
    error.add_note(f"{_failed(agent)} at {_where(records)}")


def _is_located(error: Exception, agent: str) -> bool:
    if any(note.startswith(_failed(agent)) for note in getattr(error, "__notes__", ())):
        return True
    if not isinstance(error, ExceptionGroup):
        return False
    inner = cast("ExceptionGroup[Exception]", error).exceptions
    return any(_is_located(one, agent) for one in inner)


def _failed(agent: str) -> str:
    return f"agent {agent!r} failed"
