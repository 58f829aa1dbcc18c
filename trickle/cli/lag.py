"""``trickle lag``: how far each agent is behind, for each partition that it reads.

The offsets between a position and the end are not all records: on Kafka each transaction leaves a
marker behind it, so a partition that is read to its end would seem one behind for ever. Where few
offsets are left, the records among them are counted; where many are, a marker more or less is no
matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import trio
import typer

from trickle.app import App
from trickle.cli.broker import open_broker
from trickle.cli.output import Output
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.positions import read_positions
from trickle.transport.contract import Transport
from trickle.types import TopicPartition

__all__ = ["lag"]

_COUNTED_MAX = 1_000  # offsets of one partition
_COUNT_TIMEOUT_S = 3.0


def lag(context: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show each agent's committed position, the partition's end, and the records between."""
    del debug
    run(partial(_lag, get_state(context).app(), Output(as_json=as_json)))


async def _lag(app: App, output: Output) -> None:
    async with open_broker(app.resolve().settings) as transport:
        rows = await _rows(app, transport)
    if output.as_json:
        output.document(rows)
        return
    output.table(
        ["AGENT", "TOPIC", "PARTITION>", "POSITION>", "END>", "LAG>"],
        [tuple(row.values()) for row in rows],
    )
    if rows:
        output.text(f"{sum(row['lag'] for row in rows):,} behind in all")
    else:
        output.text("no agent's topic exists yet")


async def _rows(app: App, transport: Transport) -> list[dict[str, Any]]:
    """Return a row for each agent and partition.

    A group without a committed position starts at ``first_position``: by default at the oldest
    record, so that all of them are its lag.
    """
    first = app.resolve().settings.first_position
    names = {topic.name for agent in app.agents.values() for topic in agent.topics}
    existing = await transport.admin.topics(sorted(names))
    partitions = [
        TopicPartition(info.name, number)
        for info in existing.values()
        for number in range(info.partitions)
    ]
    marks = await transport.admin.watermarks(partitions)
    committed = await transport.admin.committed(app.id, partitions, stable=False)
    high = {at: mark.high for at, mark in marks.items()}
    rows: list[dict[str, Any]] = []
    starts: list[tuple[dict[str, Any], TopicPartition, int]] = []
    for agent in app.agents.values():
        topics = {topic.name for topic in agent.topics}
        for at in partitions:
            if at.topic not in topics:
                continue
            found = committed.get(at)
            position = read_positions(found).of(agent.name) if found is not None else None
            mark = marks[at]
            if position is None:
                start = mark.low if first == "earliest" else mark.high
            else:
                start = max(position, mark.low)
            behind = max(0, mark.high - start)
            row: dict[str, Any] = {
                "agent": agent.name,
                "topic": at.topic,
                "partition": at.partition,
                "position": position,
                "end": mark.high,
                "lag": behind,
            }
            rows.append(row)
            if 0 < behind <= _COUNTED_MAX:
                starts.append((row, at, start))
    if starts:
        lowest = {at: min(s for _, other, s in starts if other == at) for _, at, _ in starts}
        gaps = await _no_records(transport, lowest, high)
        for row, at, start in starts:
            row["lag"] -= sum(offset >= start for offset in gaps[at])
    return rows


async def _no_records(
    transport: Transport, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, set[int]]:
    """Return the offsets from starts to ends that hold no committed record.

    What is not stable in time, behind an open transaction, counts as records.
    """
    records: dict[TopicPartition, set[int]] = {at: set() for at in starts}
    async with transport.reader(starts) as reader:
        with trio.move_on_after(_COUNT_TIMEOUT_S):
            while any(position < ends[at] for at, position in reader.positions().items()):
                for batch in await reader.fetch():
                    found = records[TopicPartition(batch.topic, batch.partition)]
                    found.update(map(batch.offset, range(len(batch))))
        reached = reader.positions()
    return {
        at: set(range(start, min(reached[at], ends[at]))) - records[at]
        for at, start in starts.items()
    }
