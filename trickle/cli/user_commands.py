"""The commands of an app: ``@app.command()`` functions as ``trickle -A app:app NAME``.

A function runs in a Run without agents or membership: it sends, asks, and reads committed values.
Its parameters are typer's arguments and options.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from trickle.cli.state import DebugOption, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from trickle.app import App

__all__ = ["user_commands"]


def user_commands(app: App) -> dict[str, Any]:
    """Return the parsers of an app's commands by name."""
    found: dict[str, Any] = {}
    for definition in app.commands:
        name, function = definition.name, definition.function
        typed = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        typed.command(name, help=inspect.getdoc(function))(_mounted(app, function))
        found[name] = typer.main.get_command(typed)
    return found


def _mounted(app: App, function: Callable[..., Any]) -> Callable[..., None]:
    signature = inspect.signature(function)
    own = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    taken = "debug" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds
    options = [] if taken else [own.replace(annotation=DebugOption)]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        if options:
            del kwargs["debug"]  # its callback has put it where it belongs

        async def main() -> None:
            async with app.client():
                result = function(*args, **kwargs)
                if inspect.isawaitable(result):
                    await result

        run(main)

    hints = get_type_hints(function, include_extras=True)
    known = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    command.__signature__ = signature.replace(parameters=[*known, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, **({"debug": DebugOption} if options else {})}
    return command
