"""``trickle topics``: the topics that the app defines, and what exists."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import typer

from trickle.app import App
from trickle.cli.broker import open_broker
from trickle.cli.output import Output
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.transport.contract import TopicInfo

__all__ = ["topics"]


def topics(context: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the app's topics, and the others on the broker."""
    del debug
    run(partial(_topics, get_state(context).app(), Output(as_json=as_json)))


async def _topics(app: App, output: Output) -> None:
    async with open_broker(app.resolve().settings) as transport:
        existing = await transport.admin.topics()
    rows = _rows(app, existing)
    if output.as_json:
        output.document(rows)
        return
    output.table(
        ["TOPIC", "PARTITIONS>", "KEY", "VALUE", "ROLE", "READ BY"],
        [
            (
                row["topic"],
                row["partitions"] if row["exists"] else "missing",
                row["key"],
                row["value"],
                row["role"],
                ", ".join(row["agents"]) or None,
            )
            for row in rows
        ],
    )


def _rows(app: App, existing: Mapping[str, TopicInfo]) -> list[dict[str, Any]]:
    """Return a row for each topic: the app's in the order of their definition, then the others."""
    rows: list[dict[str, Any]] = []

    def add(name: str, role: str | None, key: str | None, value: str | None) -> None:
        info = existing.get(name)
        agents = app.agents.values()
        rows.append(
            {
                "topic": name,
                "exists": info is not None,
                "partitions": info.partitions if info is not None else None,
                "role": role,
                "key": key,
                "value": value,
                "agents": [a.name for a in agents if any(t.name == name for t in a.topics)],
            }
        )

    letters = {agent.dead_letters.name for agent in app.agents.values() if agent.dead_letters}
    for topic in app.topics.values():
        role = "repartition" if topic.internal else "topic"
        if topic.name in letters:
            role = "dead letters"
        add(topic.name, role, topic.key_codec.type_name, topic.value_codec.type_name)
    for table in app.tables.values():
        keys, values = table.key_codec, table.value_codec
        add(table.changelog, "changelog", keys.type_name, values.type_name)
    defined = {row["topic"] for row in rows}
    for name in sorted(existing.keys() - defined):
        add(name, None, None, None)
    return rows
