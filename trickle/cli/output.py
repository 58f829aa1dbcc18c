"""What commands print: for a person, tables and short lines; for a machine, JSON.

Results go to standard output, everything else to standard error. With ``--json`` a command prints
one JSON document, or one a line where its results are a stream. What comes out of records is not
trusted with a terminal: control characters are shown, not sent.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec
from rich.console import Console
from rich.table import Table

from trickle.exceptions import TrickleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Output",
    "OutputGone",
    "abandon_output",
    "printable",
    "reader_has_gone",
    "text_of",
    "writing",
]

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey, and that every stream can encode."""
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()


def text_of(data: bytes | None) -> str | None:
    r"""Return wire bytes as text; what is no UTF-8 is shown as ``\xff``."""
    return data.decode("utf-8", "backslashreplace") if data is not None else None


class OutputGone(BrokenPipeError):
    """Nobody reads our standard output any more: no error, and not an agent's broken pipe."""


def reader_has_gone() -> bool:
    """Tell whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # closed, or no real file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def writing() -> Generator[None]:
    """Tell in a sentence that standard output takes nothing; a reader that has gone is no error.

    Raises:
        OutputGone: nobody reads it any more.
        TrickleError: it is closed, or its disk is full.
    """
    if cast("object", sys.stdout) is None:
        raise TrickleError("standard output is closed: nothing can be printed")
    try:
        yield
    except BrokenPipeError as error:
        raise OutputGone from error
    except OSError as error:
        abandon_output()
        raise TrickleError(f"standard output cannot be written: {error.strerror}") from error


class Output:
    """Standard output, in the form that was asked for.

    Args:
        as_json: for a machine.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)

    def document(self, value: object) -> None:
        """Print one JSON document."""
        self._write(_dumps(value))

    def line(self, value: object, text: str) -> None:
        """Print one result of a stream: a JSON document, or a line for a person."""
        self._write(_dumps(value) if self.as_json else printable(text))

    def flush(self) -> None:
        """Let the reader see what was printed."""
        with writing():
            sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print a line for a person."""
        self._write(printable(text))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table for a person; columns whose name ends in ``>`` are aligned right."""
        if not self._console.is_terminal:
            self._plain_table(columns, list(rows))
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for name in columns:
            right = name.endswith(">")
            table.add_column(
                name.rstrip(">"), justify="right" if right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(printable(_cell(cell)) for cell in row))
        with writing():
            self._console.print(table, markup=False)

    def _plain_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print aligned columns, however wide: a pipe has no width."""
        right = [name.endswith(">") for name in columns]
        lines = [[name.rstrip(">") for name in columns]]
        lines += [[printable(_cell(cell)) for cell in row] for row in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            cells = [
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(line, widths, right, strict=True)
            ]
            self._write("   ".join(cells).rstrip())

    def _write(self, line: str) -> None:
        with writing():
            sys.stdout.write(line + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _dumps(value: object) -> str:
    builtins: Any = msgspec.to_builtins(value, str_keys=True)
    try:
        text = json.dumps(builtins, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    except ValueError:  # JSON knows no NaN and no infinities
        return _dumps(_without_nan(builtins))
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates, as JSON spells them


def _without_nan(value: Any) -> Any:
    """Return builtins with null for each number that JSON lacks, as msgspec writes them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def abandon_output() -> None:
    """Send what is left to nowhere: the reader has gone, and the exit's flush must not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # no real file: nothing to flush
    finally:
        os.close(nowhere)
