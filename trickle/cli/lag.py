"""``trickle lag``: how far each agent is behind, for each partition that it reads."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from trickle.app import App
from trickle.cli.broker import open_broker
from trickle.cli.output import Output
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.positions import read_positions
from trickle.transport.contract import Transport
from trickle.types import TopicPartition

__all__ = ["lag"]


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

    A group without a committed position starts at the oldest record: all of them are its lag.
    """
    names = {topic.name for agent in app.agents.values() for topic in agent.topics}
    existing = await transport.admin.topics(sorted(names))
    partitions = [
        TopicPartition(info.name, number)
        for info in existing.values()
        for number in range(info.partitions)
    ]
    marks = await transport.admin.watermarks(partitions)
    committed = await transport.admin.committed(app.id, partitions, stable=False)
    rows: list[dict[str, Any]] = []
    for agent in app.agents.values():
        topics = {topic.name for topic in agent.topics}
        for at in partitions:
            if at.topic not in topics:
                continue
            found = committed.get(at)
            position = read_positions(found).of(agent.name) if found is not None else None
            mark = marks[at]
            start = mark.low if position is None else max(position, mark.low)
            rows.append(
                {
                    "agent": agent.name,
                    "topic": at.topic,
                    "partition": at.partition,
                    "position": position,
                    "end": mark.high,
                    "lag": max(0, mark.high - start),
                }
            )
    return rows
