"""``trickle get``: what a table holds, as committed, whether a worker runs or not."""

from __future__ import annotations

import json
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

import msgspec
import typer

from trickle.app import App
from trickle.cli import errors
from trickle.cli.broker import open_broker
from trickle.cli.output import Output, printable, text_of
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.cli.wire import Wire
from trickle.exceptions import UsageError
from trickle.tables import Table
from trickle.tables.lookup import Found, find_key, find_keys
from trickle.utils.suggest import did_you_mean

__all__ = ["get"]

_ALIGNED_ROWS = 200  # the first keys tell how wide the column is; the rest streams


def get(
    context: typer.Context,
    table: Annotated[str, typer.Argument(show_default=False)],
    key: Annotated[
        str | None,
        typer.Argument(show_default=False, help="Text, or JSON by the key's type; all without."),
    ] = None,
    *,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show a table's committed values: of one key, or of all. Exit code 1: there is no such key."""
    del debug
    app = get_state(context).app()
    found = app.tables.get(table)
    if found is None:
        known = ", ".join(sorted(app.tables)) or "none"
        raise UsageError(
            f"app {app.id!r} has no table {table!r}{did_you_mean(table, app.tables)}: its tables "
            f"are {known}"
        )
    output = Output(as_json=as_json)
    if key is None:
        run(partial(_get_all, app, found, output))
        return errors.EXIT_OK
    value = Wire(found.key_type, found.key_codec).value(key, "KEY")
    if value is None:
        raise UsageError(f"KEY is null: the keys of table {table!r} are never null")
    if run(partial(_get_one, app, found, value, output)):
        return errors.EXIT_OK
    typer.echo(printable(f"trickle: table {table!r} has no key {key!r}"), err=True)
    return errors.EXIT_ERROR


async def _get_one(app: App, table: Table[Any, Any], key: Any, output: Output) -> bool:
    settings = app.resolve().settings
    async with open_broker(settings) as transport:
        found = await find_key(
            transport, table, key, _directory(app), timeout=settings.broker_timeout
        )
    if found is not None:
        output.line(_document(table, found), _text(found.value))
    return found is not None


async def _get_all(app: App, table: Table[Any, Any], output: Output) -> None:
    settings = app.resolve().settings
    first: list[tuple[str, Found]] = []
    width: int | None = 0 if output.as_json else None
    async with open_broker(settings) as transport:
        rows = find_keys(transport, table, _directory(app), timeout=settings.broker_timeout)
        async with aclosing(rows):
            async for found in rows:
                key = "" if output.as_json else _text(found.key)
                if width is None and len(first) < _ALIGNED_ROWS:
                    first.append((key, found))
                    continue
                if width is None:
                    width = _show(table, first, output)
                output.line(_document(table, found), f"{key:<{width}}   {_text(found.value)}")
    if width is None:
        _show(table, first, output)


def _show(table: Table[Any, Any], rows: list[tuple[str, Found]], output: Output) -> int:
    """Print the first rows, and return the width that their keys have."""
    width = max((len(key) for key, _ in rows), default=0)
    for key, found in rows:
        output.line(_document(table, found), f"{key:<{width}}   {_text(found.value)}")
    return width


def _directory(app: App) -> Any:
    settings = app.resolve().settings
    return settings.data_dir / app.id / "tables" if settings.store == "lmdb://" else None


def _document(table: Table[Any, Any], found: Found) -> dict[str, Any]:
    return {
        "table": table.name,
        "partition": found.partition,
        "key": _plain(found.key),
        "value": _plain(found.value),
    }


def _plain(value: Any) -> Any:
    """Return what JSON can show: bytes as text, as everywhere, and what it lacks as Python does."""
    if isinstance(value, bytes):
        return text_of(value)
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except (TypeError, RecursionError):
        return repr(value)


def _text(value: Any) -> str:
    shown = _plain(value)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
