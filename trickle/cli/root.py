"""``trickle``: the options before a command, trickle's commands, and the app's own.

The commands of an app (``@app.command()``) are known only once it is imported, so they are looked
up when a name is none of trickle's, or when ``--help`` lists what there is.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from trickle.cli import errors
from trickle.cli.output import abandon_output, printable, writing
from trickle.cli.state import DebugOption, State, get_state
from trickle.utils.ending import announce

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "main"]

# Typer carries its own copy of click since 0.26, and used the real one before: either way the
# root of the errors of parsing is two above BadParameter, which it does export.
_PARSE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt


class _Group(TyperGroup):
    """Trickle's commands in the order of their definition, then those of the app."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self._of_app(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self._of_app(ctx).get(cmd_name)

    def _of_app(self, ctx: Any) -> dict[str, Any]:
        state = get_state(ctx)
        if state.app_path is None:
            return {}
        from trickle.cli.user_commands import user_commands  # noqa: PLC0415 - imports the app

        return user_commands(state.app())


cli = typer.Typer(
    name="trickle",
    cls=_Group,
    help="Stream processing on Trio: every event is a transaction, nothing fails in silence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version  # noqa: PLC0415 - for this option alone

        typer.echo(f"trickle {version('trickle')}")
        raise typer.Exit


def _app(context: typer.Context, value: str | None) -> str | None:
    get_state(context).app_path = value
    return value


@cli.callback()
def _root(
    app: Annotated[
        str | None,
        typer.Option(
            "-A", "--app", envvar="TRICKLE_APP", metavar="MODULE:ATTRIBUTE", callback=_app,
            is_eager=True, help="The app, like app:app for the variable app in app.py.",
        ),
    ] = None,
    debug: DebugOption = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:  # fmt: skip
    del app, debug, version  # their callbacks have put them where they belong


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the process's exit code.

    Args:
        argv: the arguments behind the program's name; those of the process unless given.
    """
    if cast("object", sys.stderr) is None:  # closed by whoever started us: what it is told is lost
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    state = State()
    code = _run(state, list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        announce(code)  # the process is ours
        if state.leave is not None:
            state.leave(code)  # and nothing of the app's may keep it
    return code


def _run(state: State, args: list[str]) -> int:
    command = typer.main.get_command(cli)
    state.own = cast("Any", command).commands.keys()
    try:
        code = command.main(args, prog_name="trickle", standalone_mode=False, obj=state)
        if cast("object", sys.stdout) is not None:
            with writing():
                sys.stdout.flush()
    except _PARSE_ERROR as error:
        return _report_usage(error)
    except typer.Abort:
        sys.stderr.write("trickle: stopped\n")
        return errors.EXIT_STOPPED
    except BaseException as error:
        if errors.is_output_gone(error):
            abandon_output()
            return errors.EXIT_OK
        if isinstance(error, SystemExit):
            raise
        return errors.report(error, debug=state.debug, redact=state.redact)
    if code == _INTERRUPTED:
        return errors.report(KeyboardInterrupt())
    return code if isinstance(code, int) else errors.EXIT_OK


def _report_usage(error: Any) -> int:
    """Tell what is wrong with the arguments, in a sentence, and where to read about them."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "trickle"
    message = str(error.format_message()).strip()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, printed or not
        sys.stderr.write(f"{message}\n" if message else "")
        return errors.EXIT_USAGE
    message = printable(message[:1].lower() + message[1:])
    sys.stderr.write(f"{path}: {message.rstrip('.')} ({path} --help tells more)\n")
    return errors.EXIT_USAGE
