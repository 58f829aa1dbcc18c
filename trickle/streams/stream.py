"""Stream: what an agent iterates.

Taking the next value settles the event before it. The hot path is :meth:`Stream.__anext__`, and it
is all of it: settle what the event in hand has touched, take the next decoded value.
Everything else is in :meth:`trickle.streams.lane.Lane.advance`, once a chunk.

Operators wrap the stream that they are called on. Each has one method, ``pull``: the next item,
either following the event in hand (``keep=False``) or joining it (``keep=True``, how ``take``
gathers a group that settles as one).
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, Generic, cast

import trio
from typing_extensions import TypeVar

from trickle.exceptions import UsageError
from trickle.serializers import BoundCodec
from trickle.streams.concurrent import Strand
from trickle.streams.event import Event
from trickle.streams.lane import Lane
from trickle.streams.settlement import OutOfPatience
from trickle.types import Duration, Many
from trickle.untyped import read_key
from trickle.utils.durations import seconds
from trickle.utils.values import is_whole

__all__ = ["Operator", "Stream"]

V = TypeVar("V")
K = TypeVar("K", default=Any)
V2 = TypeVar("V2")


class Stream(Generic[V, K]):
    """The events of one partition number for one agent, in offset order.

    Iterate it: ``async for value in stream``. It ends when the partition is taken away or the
    worker stops, after the event in hand has settled.
    """

    __slots__ = ("_keys", "_lane")

    def __init__(self, lane: Lane, keys: Mapping[str, BoundCodec]) -> None:
        self._lane = lane
        self._keys = keys

    def __aiter__(self) -> Stream[V, K]:
        return self

    async def __anext__(self) -> V:
        lane = self._lane
        if lane.touched:
            lane.settle()
        for value in lane.values:
            return value
        return await lane.advance()

    async def pull(self, *, keep: bool) -> V:
        """Take the next item; ``keep`` joins it to the event in hand instead of settling that."""
        if keep:
            return await self._lane.advance(keep=True)
        return await self.__anext__()

    @property
    def unfinished(self) -> bool:
        """Whether the event in hand has values that are still to come."""
        return False

    @property
    def grouped(self) -> bool:
        """Whether a step gathers events that settle as one."""
        return False

    def restart(self) -> None:
        """Forget what was made of the event in hand: it will be taken again."""

    def events(self) -> Stream[Event[V, K], K]:
        """Iterate events instead of values: with key, headers, timestamp and where from."""
        return _Events(self)

    def items(self) -> Stream[tuple[K, V], K]:
        """Iterate (key, value) pairs."""
        return _Items(self)

    def filter(self, predicate: Callable[[V], object]) -> Stream[V, K]:
        """Pass over the events for which the predicate, sync or async, does not hold."""
        return _Filter(self, predicate)

    def map(self, function: Callable[[V], Awaitable[V2]] | Callable[[V], V2]) -> Stream[V2, K]:
        """Replace each value by what the function, sync or async, makes of it."""
        return _Map[V, V2, K](self, function)

    def flat_map(self, function: Callable[[V], Many[V2]]) -> Stream[V2, K]:
        """Pass on any number of values for each event; the event settles after its last one.

        Args:
            function: returns them; it may be async, or an async generator.
        """
        return _FlatMap(self, function)

    def enumerate(self, start: int = 0) -> Stream[tuple[int, V], K]:
        """Iterate (number, value) pairs, numbered since the lane's function was called.

        Raises:
            UsageError: with ``concurrency`` above 1, for each of its calls would number its own.
        """
        if isinstance(self._lane, Strand):
            raise UsageError(
                f"agent {self._lane.agent!r}: stream.enumerate() numbers what one call of the "
                "function is given, and with concurrency= above 1 there are several: each number "
                "would come more than once; leave out concurrency=, or use event.offset"
            )
        return _Enumerate(self, start)

    def take(self, n: int, within: Duration | None = None) -> Stream[list[V], K]:
        """Iterate lists of up to ``n`` values, each of them one event: it settles as a whole.

        Where ``flat_map`` makes the values, lists settle when they end with an event's last value.

        Args:
            n: how many values make a list.
            within: seconds after the first value at which a shorter list is given; None waits
                for all ``n``.

        Raises:
            UsageError: the stream gathers already.
        """
        if not is_whole(n, at_least=1):
            raise UsageError(f"take(n={n!r}): n must be a whole number, 1 or more")
        return _Take(self, n, None if within is None else seconds(within, what="take(within=…)"))

    def batches(self) -> Stream[list[V], K]:
        """Iterate lists of the values that are there already, each of them one event.

        For work on columns: a list holds what has been decoded together, up to some hundred
        values of one partition in offset order, and never waits for more. It settles as a whole.
        """
        return _Batches(self)


A = TypeVar("A")
B = TypeVar("B")


class Operator(Stream[B, K], Generic[A, B, K]):
    """A stream made from another one."""

    __slots__ = ("_parent",)

    def __init__(self, parent: Stream[A, K]) -> None:
        super().__init__(parent._lane, parent._keys)
        self._parent = parent

    async def __anext__(self) -> B:
        try:
            return await self.pull(keep=False)
        except trio.Cancelled:
            self._put_back()
            raise

    def _put_back(self) -> None:
        """What a cancellation of the agent's own has kept from being given is given next time."""
        lane = self._lane
        if lane.call.scope.cancel_called or lane.scope.cancel_called:
            return  # trickle's: the event in hand fails, or has not happened
        if lane.hand or lane.pinned is not None:
            lane.undo()
            lane.rewind()
            self.restart()

    def restart(self) -> None:
        self._parent.restart()

    @property
    def unfinished(self) -> bool:
        return self._parent.unfinished

    @property
    def grouped(self) -> bool:
        return self._parent.grouped

    async def pull(self, *, keep: bool) -> B:
        raise NotImplementedError


def _no_end(step: str) -> RuntimeError:
    """Return what becomes of an end that is not the stream's, as in a generator (PEP 479)."""
    return RuntimeError(f"the function of stream.{step}() raised StopAsyncIteration")


class _Events(Operator[V, Event[V, K], K]):
    __slots__ = ()

    async def pull(self, *, keep: bool) -> Event[V, K]:
        value = await self._parent.pull(keep=keep)
        lane = self._lane
        batch, index = lane.in_hand()
        return Event(value, self._keys[batch.topic], lane, batch, index, lane.number)


class _Items(Operator[V, tuple[K, V], K]):
    __slots__ = ()

    async def pull(self, *, keep: bool) -> tuple[K, V]:
        value = await self._parent.pull(keep=keep)
        batch, index = self._lane.in_hand()
        return read_key(self._keys[batch.topic], batch.record(index)), value


class _Filter(Operator[V, V, K]):
    __slots__ = ("_predicate",)

    def __init__(self, parent: Stream[V, K], predicate: Callable[[V], object]) -> None:
        super().__init__(parent)
        self._predicate = predicate

    async def pull(self, *, keep: bool) -> V:
        while True:
            value = await self._parent.pull(keep=keep)
            try:
                holds = self._predicate(value)
                if inspect.isawaitable(holds):
                    holds = await holds
            except StopAsyncIteration as error:
                raise _no_end("filter") from error
            if holds:
                return value
            if keep and not self.unfinished:
                self._lane.pass_over()


class _Map(Operator[V, V2, K], Generic[V, V2, K]):
    __slots__ = ("_function",)

    def __init__(
        self, parent: Stream[V, K], function: Callable[[V], Awaitable[V2]] | Callable[[V], V2]
    ) -> None:
        super().__init__(parent)
        self._function = function

    async def pull(self, *, keep: bool) -> V2:
        value = await self._parent.pull(keep=keep)
        try:
            result = self._function(value)
            return cast("V2", await result) if inspect.isawaitable(result) else result
        except StopAsyncIteration as error:
            raise _no_end("map") from error


class _FlatMap(Operator[V, V2, K]):
    __slots__ = ("_function", "_pending")

    def __init__(self, parent: Stream[V, K], function: Callable[[V], Many[V2]]) -> None:
        super().__init__(parent)
        self._function = function
        self._pending: deque[V2] = deque()

    def restart(self) -> None:
        self._pending.clear()
        self._lane.partial = False
        super().restart()

    @property
    def unfinished(self) -> bool:
        return bool(self._pending) or self._parent.unfinished

    async def pull(self, *, keep: bool) -> V2:
        while True:
            if self._pending:
                value = self._pending.popleft()
                self._lane.partial = self.unfinished
                return value
            value_in = await self._parent.pull(keep=keep)
            try:
                found = self._function(value_in)
                if isinstance(found, AsyncIterable):
                    async for value in found:
                        self._pending.append(value)
                else:
                    self._pending.extend(await found if isinstance(found, Awaitable) else found)
            except StopAsyncIteration as error:
                raise _no_end("flat_map") from error
            if keep and not self.unfinished:
                self._lane.pass_over()


class _Enumerate(Operator[V, tuple[int, V], K]):
    __slots__ = ("_number",)

    def __init__(self, parent: Stream[V, K], start: int) -> None:
        super().__init__(parent)
        self._number = start

    async def pull(self, *, keep: bool) -> tuple[int, V]:
        value = await self._parent.pull(keep=keep)
        number = self._number
        self._number += 1
        return number, value


class _Group(Operator[V, list[V], K]):
    """Lists of values, each of which settles as one event."""

    __slots__ = ()

    def __init__(self, parent: Stream[V, K]) -> None:
        super().__init__(parent)
        if parent.grouped:
            raise UsageError(
                f"agent {self._lane.agent!r}: stream.take() and batches() gather what settles as "
                "one event, so one of them is all that a stream can have: take more at once, or "
                "divide the lists by flat_map()"
            )

    @property
    def grouped(self) -> bool:
        return True

    async def pull(self, *, keep: bool) -> list[V]:
        lane = self._lane
        if not (keep or self.unfinished):  # else the list before settles with this one
            lane.finish()
            lane.pin()
        group: list[V] = []
        try:
            group.append(await self._parent.pull(keep=True))
            lane.members.append(lane.in_hand())
            await self._gather(group)
        except OutOfPatience:
            pass
        except StopAsyncIteration:  # taken away before it was whole: it has not happened
            lane.undo()
            lane.rewind()
            raise
        except BaseException:
            lane.blame()
            raise
        finally:
            lane.patience = math.inf
        return group

    async def _gather(self, group: list[V]) -> None:
        """Add to a list that has its first value."""
        raise NotImplementedError


class _Take(_Group[V, K]):
    __slots__ = ("_n", "_within")

    def __init__(self, parent: Stream[V, K], n: int, within: float | None) -> None:
        super().__init__(parent)
        self._n = n
        self._within = within

    async def _gather(self, group: list[V]) -> None:
        lane = self._lane
        if self._within is not None:
            lane.patience = trio.current_time() + self._within
        while len(group) < self._n:
            group.append(await self._parent.pull(keep=True))
            lane.members.append(lane.in_hand())


class _Batches(_Group[V, K]):
    __slots__ = ()

    async def _gather(self, group: list[V]) -> None:
        lane = self._lane
        if type(self._parent) is Stream:
            group += lane.take_rest()
        while self.unfinished or lane.has_more:
            group.append(await self._parent.pull(keep=True))
            lane.members.append(lane.in_hand())
