"""``trickle worker``: the app in a process, until a signal ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import trio
import typer
from rich.logging import RichHandler

from trickle.cli.banner import Banner
from trickle.cli.output import Output
from trickle.cli.state import DebugOption, JsonOption, get_state
from trickle.config import Resolved
from trickle.utils.logs import setup_logging

if TYPE_CHECKING:
    from trickle.app import App

__all__ = ["worker"]

Level = Literal["debug", "info", "warning", "error", "critical"]


def worker(
    context: typer.Context,
    app_path: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:ATTRIBUTE]", show_default=False,
            help="The app, like app:app; by default that of -A or TRICKLE_APP.",
        ),
    ] = None,
    *,
    web_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Of the web server; 6066 or the next free one where left out."
        ),
    ] = None,
    no_web: Annotated[bool, typer.Option("--no-web", help="Do not start the web server.")] = False,
    log_level: Annotated[Level, typer.Option(help="The least that is logged.")] = "info",
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Log lines for a person, or for a machine.")
    ] = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:  # fmt: skip
    """Run the app until SIGTERM or SIGINT: the first drains and commits, the second cancels."""
    del debug
    state = get_state(context)
    app = state.app(app_path)
    resolved = _resolve(app, web_port=web_port, no_web=no_web)
    handler = setup_logging(
        level=log_level, format=log_format, debug=state.debug, redact=state.redact
    )

    from trickle.worker import LINGER_TIMEOUT_S, Worker, thread_words  # noqa: PLC0415 - the whole engine: after bad arguments

    events = Output(as_json=True) if as_json else None
    terminal = handler.console if isinstance(handler, RichHandler) else None
    as_log = log_format == "json"
    banner = Banner(app, resolved, events, state.redact, as_log=as_log, terminal=terminal)
    process = Worker(app, resolved, banner)
    state.leave = lambda code: process.deadline.arm(LINGER_TIMEOUT_S, code, thread_words)
    try:
        trio.run(process.run)
    finally:
        sys.stdout.flush()
    ending = process.ending
    return ending.exit_code if ending is not None else 0


def _resolve(app: App, *, web_port: int | None, no_web: bool) -> Resolved:
    """Return the settings: a worker serves the web unless somebody said that it shall not."""
    options = {"web_port": web_port, "web": False if no_web else None}
    given = {name: value for name, value in options.items() if value is not None}
    settings, sources = app.resolve(**given)
    if settings.web is None:
        settings = msgspec.structs.replace(settings, web=True)
    flags = {"web_port": "--web-port", "web": "--no-web"}
    return Resolved(settings, {**sources, **{name: flags[name] for name in given}})
