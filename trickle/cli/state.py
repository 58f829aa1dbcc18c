"""What the options before a command say, and how a command runs asynchronous code."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import trio
import typer

from trickle.cli import errors
from trickle.cli.output import abandon_output
from trickle.exceptions import UsageError
from trickle.utils.logs import Redactor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from types import FrameType

    from trickle.app import App

__all__ = ["DebugOption", "JsonOption", "State", "get_state", "run"]

T = TypeVar("T")


@dataclass
class State:
    """The options before the command; one for each call of ``main``.

    Attributes:
        app_path: from ``-A`` or ``TRICKLE_APP``.
        debug: tracebacks are shown.
        redact: knows the app's secrets as soon as the app is loaded.
        leave: bounds the rest of the process's life, given its exit code; a worker sets it.
        own: the names of trickle's commands, which no command of the app's may have.
    """

    app_path: str | None = None
    debug: bool = False
    redact: Redactor = field(default_factory=Redactor)
    leave: Callable[[int], None] | None = None
    own: Collection[str] = ()
    _app: App | None = None

    def app(self, path: str | None = None) -> App:
        """Return the app, imported at the first call.

        Args:
            path: the command's own argument, before ``-A`` and ``TRICKLE_APP``.

        Raises:
            UsageError: no app was named, or it cannot be found.
            ConfigurationError: its module fails, or defines a command of a name that is taken.
        """
        path = self.app_path if path is None else path
        if path is None:
            raise UsageError(
                "which app? write -A MODULE:ATTRIBUTE before the command, or set TRICKLE_APP; "
                "for example: trickle -A app:app topics"
            )
        if self._app is None:
            from trickle.cli.loading import (  # noqa: PLC0415 - trickle --help stays quick
                check_commands,
                load_app,
            )

            self._app = load_app(path)
            check_commands(self._app, self.own)
            from trickle.config import secret_values  # noqa: PLC0415

            self.redact.add(secret_values(self._app.resolve().settings))
        return self._app


def get_state(context: typer.Context) -> State:
    """Return the state of the call that a command belongs to."""
    return cast("State", context.find_root().obj)


def _debug(context: typer.Context, value: bool) -> bool:
    if value:
        get_state(context).debug = True
    return value


DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_debug, help="Show tracebacks of errors.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a command's asynchronous part.

    Three ends of every command are settled here, as they come out of nurseries in groups:

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, and nothing else went wrong.
        typer.Exit: the reader of our output has gone: no error.
    """
    try:
        return trio.run(_until_sigterm, main)
    except BaseException as error:
        if errors.is_output_gone(error):
            abandon_output()
            raise typer.Exit(errors.EXIT_OK) from None
        if errors.is_interrupt(error):
            raise KeyboardInterrupt from None
        raise


async def _until_sigterm(main: Callable[[], Awaitable[T]]) -> T:
    """Cancel at SIGTERM, so that what has been opened is closed; a second one does not wait."""
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        token.run_sync_soon(scope.cancel)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with scope:
            return await main()
    finally:
        signal.signal(signal.SIGTERM, before)
    raise KeyboardInterrupt
