"""``trickle tail``: committed records of a topic, as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import msgspec
import trio
import typer

from trickle.app import App
from trickle.cli.broker import check_partition, find_topic, open_broker, require_topic, wires
from trickle.cli.output import Output, text_of
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.cli.wire import Wire
from trickle.topics import Topic
from trickle.transport.batches import Batch
from trickle.transport.contract import Reader
from trickle.types import Record, TopicPartition

__all__ = ["tail"]

_NO_TIME = -1  # milliseconds of a record without a timestamp; others before 1970 are times

# An open transaction holds the committed end back; its time-out is 10 s by default.
_STANDSTILL_MAX = 15.0


def tail(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(show_default=False)],
    *,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="From the oldest record that is kept.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Go on with new records, or end.")
    ] = True,
    partition: Annotated[int | None, typer.Option(min=0, help="Of one partition alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many records.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show committed records of a topic."""
    del debug
    app = get_state(context).app()
    known = find_topic(app, topic)
    reading = _Reading(topic, from_beginning, follow, partition, limit)
    try:
        run(partial(_tail, app, known, reading, Output(as_json=as_json)))
    except KeyboardInterrupt:
        if not follow:
            raise
        # The way to end it: not an error.


class _Reading(msgspec.Struct, frozen=True):
    topic: str
    from_beginning: bool
    follow: bool
    partition: int | None
    limit: int | None


async def _tail(app: App, known: Topic[Any, Any] | None, reading: _Reading, output: Output) -> None:
    async with open_broker(app.resolve().settings) as transport:
        info = await require_topic(transport.admin, reading.topic, app)
        check_partition(info.name, info.partitions, reading.partition)
        numbers = range(info.partitions) if reading.partition is None else (reading.partition,)
        partitions = [TopicPartition(reading.topic, number) for number in numbers]
        marks = await transport.admin.watermarks(partitions)
        highs = {at: mark.high for at, mark in marks.items()}
        starts = {at: mark.low for at, mark in marks.items()} if reading.from_beginning else highs
        shown = _Shown(known, None if reading.follow else highs, reading.limit, output)
        if shown.complete(starts):
            return
        async with transport.reader(starts) as reader:
            while not shown.complete(reader.positions()):
                batches = await _fetch(reader, forever=reading.follow)
                if batches is None:
                    return
                for batch in batches:
                    shown.show(batch)
                output.flush()


async def _fetch(reader: Reader, *, forever: bool) -> Sequence[Batch] | None:
    """Return the next batches, None where an end that is known does not come."""
    with trio.move_on_after(math.inf if forever else _STANDSTILL_MAX):
        return await reader.fetch()
    return None


class _Shown:
    """What is printed, and whether there is more to come.

    Args:
        ends: print nothing from these offsets on; None goes on for ever.
        limit: records in all; None for no limit.
    """

    def __init__(
        self,
        known: Topic[Any, Any] | None,
        ends: Mapping[TopicPartition, int] | None,
        limit: int | None,
        output: Output,
    ) -> None:
        self._keys, self._values = wires(known)
        self._ends = ends
        self._left = math.inf if limit is None else limit
        self._output = output

    def complete(self, positions: Mapping[TopicPartition, int]) -> bool:
        """Tell whether nothing more is to be printed, at these positions."""
        if self._left <= 0:
            return True
        return self._ends is not None and all(positions[at] >= e for at, e in self._ends.items())

    def show(self, batch: Batch) -> None:
        """Print the records of a batch."""
        end = math.inf
        if self._ends is not None:
            end = self._ends[TopicPartition(batch.topic, batch.partition)]
        for record in map(batch.record, range(len(batch))):
            if self._left <= 0 or record.offset >= end:
                return
            self._left -= 1
            document = _document(record, self._keys, self._values)
            self._output.line(document, _line(record, self._keys, self._values))


def _document(record: Record, keys: Wire, values: Wire) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp_ms / 1000 if record.timestamp_ms != _NO_TIME else None,
        "key": keys.readable(record.key),
        "value": values.readable(record.value),
        "headers": [[name, text_of(data)] for name, data in record.headers],
    }


def _line(record: Record, keys: Wire, values: Wire) -> str:
    """Return a record for a person: where, when, key, value, headers."""
    at = _clock(record.timestamp_ms) if record.timestamp_ms != _NO_TIME else "-"
    key = "-" if record.key is None else keys.shown(record.key)
    value = "null" if record.value is None else values.shown(record.value)
    text = f"{record.partition}:{record.offset}  {at}  {key}  {value}"
    if record.headers:
        text += "  " + " ".join(f"{name}={text_of(data) or ''}" for name, data in record.headers)
    return text


def _clock(timestamp_ms: int) -> str:
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000).astimezone()
    except (OverflowError, ValueError, OSError):  # a producer may write any 64 bits
        return str(timestamp_ms)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"
