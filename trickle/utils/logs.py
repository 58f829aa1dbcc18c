"""Log lines: for a person on a terminal, plain for a file, JSON for a machine.

Only a process that is trickle's own (``trickle worker``) sets logging up; a library never does.
Three things happen to each record on its way out, whatever its shape:

* **Secrets are blanked.** Known secret values are replaced in the finished line, so that no path
  (a message, an argument, a traceback of some client library) can carry one out.
* **Repeats are limited.** A poison topic can fail a hundred thousand times a second. Of one
  statement (logger, level and message template) only so many records pass in a while; the next
  one that does tells how many did not. Errors are never held back.
* **Tracebacks are for those who ask.** Without ``debug``, text shows an error as one sentence with
  the place that raised it. JSON always carries the traceback: nobody has to scroll past it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias, cast
from urllib.parse import quote

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "LOG_LEVELS",
    "LogFormat",
    "Redactor",
    "RepeatFilter",
    "setup_logging",
    "where_raised",
]

LogFormat: TypeAlias = Literal["text", "json"]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_SECRET_CHARS_MIN = 4  # replacing shorter ones would blank half of every line
_STANDARD_ATTRIBUTES = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "held_back")
)
_TEMPLATES_MAX = 1_000


class Redactor:
    """Replaces secret values in text by asterisks.

    Args:
        secrets: the values; those under four characters are left out, for they would blank
            ordinary words.

    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Know more secrets, in the spellings that a line may have them in."""
        known = set(self._secrets)
        for secret in secrets:
            if len(secret) >= _SECRET_CHARS_MIN:
                known |= {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, "")}
        # Longest first, so that one inside another leaves no rest.
        self._secrets = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without the secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "****")
        return text


class RepeatFilter(logging.Filter):
    """Lets only so many records of one statement pass in a while.

    Args:
        burst: records of one logger, level and template that pass in each ``period``.
        period: seconds.

    """

    def __init__(self, burst: int = 10, period: float = 10.0) -> None:
        super().__init__()
        self.burst = burst
        self.period = period
        self._seen: dict[tuple[str, int, str], list[float]] = {}  # [since, passed, held back]

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record passes; one that ends a silence says how long the silence was."""
        if record.levelno >= logging.ERROR or not record.name.startswith("trickle"):
            return True
        key = (record.name, record.levelno, str(record.msg))
        now = record.created
        seen = self._seen.get(key)
        if seen is None or now - seen[0] >= self.period:
            held_back = int(seen[2]) if seen is not None else 0
            if seen is None and len(self._seen) >= _TEMPLATES_MAX:
                self._seen.clear()
            self._seen[key] = [now, 1, 0]
            if held_back:
                record.held_back = held_back
            return True
        if seen[1] < self.burst:
            seen[1] += 1
            return True
        seen[2] += 1
        return False


def where_raised(error: BaseException) -> str | None:
    """Return ``file:line in function`` of the innermost frame that is not library code.

    The last frame of an error is seldom the one to look at (``json/decoder.py:355``); the last one
    outside installed packages and the standard library is the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    own = [f for f in frames if not _is_library(f.filename)]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def _is_library(filename: str) -> bool:
    return (
        "site-packages" in filename
        or "dist-packages" in filename
        or filename.startswith(("<", _STANDARD_LIBRARY, _OWN_PACKAGE))
    )


_STANDARD_LIBRARY = logging.__file__.rsplit("/logging/", 1)[0]
_OWN_PACKAGE = __file__.rsplit("/utils/", 1)[0]


def _error_line(error: BaseException) -> str:
    where = where_raised(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text} ({where})" if where else text


class _TextFormatter(logging.Formatter):
    """The message, what was held back, and the error in a line or in full."""

    def __init__(self, redact: Redactor, *, debug: bool, plain: bool) -> None:
        super().__init__()
        self._redact = redact
        self._debug = debug
        self._plain = plain

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        held_back = getattr(record, "held_back", 0)
        if held_back:
            text += f" ({held_back:,} more like this were not shown)"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            if self._debug:
                text += "\n" + "".join(traceback.format_exception(error)).rstrip()
            else:
                text += f": {_error_line(error)}"
        if self._plain:
            at = datetime.fromtimestamp(record.created).astimezone()
            stamp = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}{at:%z}"
            text = f"{stamp} {record.levelname:<8} {record.name}: {text}"
        return self._redact(text)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, extra fields, error."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in _STANDARD_ATTRIBUTES and not name.startswith("_")
        }
        held_back = getattr(record, "held_back", 0)
        if held_back:
            line["held_back"] = held_back
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = {
                "type": type(error).__name__,
                "message": str(error),
                "where": where_raised(error),
                "traceback": "".join(traceback.format_exception(error)),
            }
        # Blanked before it is encoded as well: a secret with a quote in it looks different after.
        blank = _redact_tree(line, self._redact)
        return self._redact(json.dumps(blank, ensure_ascii=False, default=repr))


def _redact_tree(value: object, redact: Redactor) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        fields = cast("dict[object, object]", value)
        return {redact(str(name)): _redact_tree(v, redact) for name, v in fields.items()}
    if isinstance(value, list | tuple):
        return [_redact_tree(v, redact) for v in cast("Sequence[object]", value)]
    return value


class _TerminalHandler(RichHandler):
    """Rich's handler with our columns: time, level, logger without its prefix, message."""

    _STYLES = {  # noqa: RUF012 - a constant of the class
        "DEBUG": "dim", "INFO": "green", "WARNING": "yellow", "ERROR": "bold red",
        "CRITICAL": "bold reverse red",
    }  # fmt: skip

    def __init__(self, console: Console) -> None:
        super().__init__(
            console=console, show_path=False, markup=False, rich_tracebacks=False,
            keywords=[], log_time_format=_clock,
        )  # fmt: skip

    def get_level_text(self, record: logging.LogRecord) -> Text:
        style = self._STYLES.get(record.levelname, "")
        return Text(f"{record.levelname.lower():<8}", style=style)

    def render_message(self, record: logging.LogRecord, message: str) -> Text:
        name = record.name.removeprefix("trickle.")
        return Text.assemble((f"{name:<10} ", "cyan dim"), message)

    def emit(self, record: logging.LogRecord) -> None:
        # Our formatter has put the error into the message; Rich would format it once more.
        record = logging.makeLogRecord({**vars(record)})
        message = self.format(record)
        record.exc_info = None
        rendered = self.render(
            record=record,
            traceback=None,
            message_renderable=self.render_message(record, message),
        )
        try:
            self.console.print(rendered)
        except Exception:  # noqa: BLE001 - logging's own way: a broken stream is no reason to die
            self.handleError(record)


def _clock(at: datetime) -> Text:
    return Text(f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}", style="dim")


def setup_logging(
    *,
    level: str = "info",
    format: LogFormat = "text",
    debug: bool = False,
    redact: Redactor | None = None,
    stream: TextIO | None = None,
) -> logging.Handler:
    """Send the log records of the whole process to one place; return the handler.

    What the app's own modules put on the root logger before stays; the lines then go to both.

    Args:
        level: one of :data:`LOG_LEVELS`, for trickle's and the app's loggers.
        format: ``text`` (by Rich where the stream is a terminal), or ``json``, one object a line.
        debug: tracebacks in text, and asyncio-style noise of the libraries too.
        redact: blanks the secrets; share one object with whatever else prints.
        stream: standard error unless given.

    Raises:
        ValueError: no such level.

    """
    if level not in LOG_LEVELS:
        raise ValueError(f"no log level {level!r}: use one of {', '.join(LOG_LEVELS)}")
    redact = redact or Redactor()
    out: TextIO = stream or sys.stderr
    handler: logging.Handler
    if format == "json":
        handler = logging.StreamHandler(out)
        handler.setFormatter(_JsonFormatter(redact))
    elif out.isatty():
        handler = _TerminalHandler(Console(file=out, highlight=False))
        handler.setFormatter(_TextFormatter(redact, debug=debug, plain=False))
    else:
        handler = logging.StreamHandler(out)
        handler.setFormatter(_TextFormatter(redact, debug=debug, plain=True))
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("trickle").setLevel(level.upper())
    # The HTTP server reports each start and each broken connection; trickle reports its own.
    for name in ("hypercorn.error", "hypercorn.access", "quart", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(level.upper() if debug else logging.WARNING)
    logging.captureWarnings(capture=True)
    return handler
