"""From an error to what a person reads: one clear sentence on standard error, and an exit code.

Errors come out of a tree of nurseries, so they come in groups, in groups. What matters are the
leaves: each is told once. Trickle's own errors are sentences already. Another error is the user's
(or a bug of ours): it is told by its type, its message and the line that raised it, and by the
note that the agent left on it, whichever group of the tree carries that note.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, cast

import trio

from trickle.cli.output import OutputGone, printable, reader_has_gone
from trickle.exceptions import ConfigurationError, TrickleError
from trickle.utils.logs import Redactor, where_raised

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EXIT_ERROR",
    "EXIT_OK",
    "EXIT_STOPPED",
    "EXIT_USAGE",
    "Stopped",
    "exit_code",
    "is_interrupt",
    "is_output_gone",
    "report",
    "sentences",
]

EXIT_OK = 0  # done; or drained and committed after SIGTERM or SIGINT
EXIT_ERROR = 1
EXIT_USAGE = 2  # usage or configuration
EXIT_STOPPED = 3  # stopped before the drain ended

_SENTENCES_MAX = 10
_WHO = ("agent ", "timer ", "task ", "service ", "a call after ")


class Stopped(TrickleError):
    """The process was told to stop before its work was done."""


def _leaves(
    error: BaseException, notes: tuple[str, ...] = ()
) -> Iterator[tuple[BaseException, tuple[str, ...]]]:
    """Yield the errors that are no groups, each with the notes on its way down to it."""
    notes = (*notes, *(str(note) for note in getattr(error, "__notes__", ())))
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner, notes)
    elif not isinstance(error, trio.Cancelled):
        yield error, notes


def sentences(error: BaseException) -> list[str]:
    """Return what there is to say of an error, one sentence for each distinct cause."""
    told = [_sentence(leaf, notes) for leaf, notes in _leaves(error)]
    return list(dict.fromkeys(told))


def _sentence(error: BaseException, notes: Sequence[str]) -> str:
    # The innermost note of who failed is the one that was nearest to the failure.
    where = next((note for note in reversed(notes) if note.startswith(_WHO)), None)
    if isinstance(error, TrickleError):
        text = str(error)
        return f"{where}: {text}" if where is not None and where.split()[1] not in text else text
    if isinstance(error, KeyboardInterrupt):
        return "stopped by a signal"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    raised = where_raised(error)
    if raised is not None:
        text += f" ({_shorten(raised)})"
    return f"{where}: {text}" if where is not None else text


def _shorten(place: str) -> str:
    """Show a path below the current directory relative to it."""
    here = os.getcwd() + os.sep
    return place.removeprefix(here)


def exit_code(error: BaseException) -> int:
    """Return the process's exit code for an error."""
    kinds = [leaf for leaf, _ in _leaves(error)]
    if any(isinstance(kind, Stopped | KeyboardInterrupt) for kind in kinds):
        return EXIT_STOPPED
    if kinds and all(isinstance(kind, ConfigurationError) for kind in kinds):
        return EXIT_USAGE
    return EXIT_ERROR


def _unexpected(error: BaseException) -> bool:
    return any(not isinstance(leaf, TrickleError | KeyboardInterrupt) for leaf, _ in _leaves(error))


def is_output_gone(error: BaseException) -> bool:
    """Tell whether all that happened is that the reader of our output has gone."""
    found = [leaf for leaf, _ in _leaves(error)]
    if all(isinstance(leaf, OutputGone) for leaf in found):
        return bool(found)
    # What the app itself prints, or an agent's own broken pipe, which is an error.
    return all(isinstance(leaf, BrokenPipeError) for leaf in found) and reader_has_gone()


def is_interrupt(error: BaseException) -> bool:
    """Tell whether all that happened is Ctrl-C."""
    found = [leaf for leaf, _ in _leaves(error)]
    return bool(found) and all(isinstance(leaf, KeyboardInterrupt) for leaf in found)


def report(
    error: BaseException,
    *,
    debug: bool = False,
    redact: Redactor | None = None,
    stream: TextIO | None = None,
) -> int:
    """Write an error for a person and return the exit code.

    Args:
        debug: the traceback too.
        redact: blanks secrets.
        stream: standard error unless given.
    """
    with suppress(OSError):  # who reads standard error may have gone: the exit code tells him
        _write_report(error, debug=debug, redact=redact or Redactor(), out=stream or sys.stderr)
    return exit_code(error)


def _write_report(error: BaseException, *, debug: bool, redact: Redactor, out: TextIO) -> None:
    told = sentences(error) or [f"{type(error).__name__}: {error}"]
    if debug:
        text = redact("".join(traceback.format_exception(error)))
        out.write(text.encode("utf-8", "backslashreplace").decode())
    for sentence in told[:_SENTENCES_MAX]:
        out.write(f"trickle: {printable(redact(sentence))}\n")
    if len(told) > _SENTENCES_MAX:
        out.write(f"trickle: and {len(told) - _SENTENCES_MAX} more errors\n")
    if _unexpected(error) and not debug:
        out.write("trickle: --debug shows the traceback\n")
    out.flush()
