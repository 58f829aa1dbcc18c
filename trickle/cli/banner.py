"""What a worker says of itself: a banner at the start, a line when ready, a line at the end.

The banner goes to standard error, as log lines do. Settings that somebody set come one a line with
their source; those left at their defaults follow in a paragraph, so that all are there and the
ones to look at stand out. With JSON log lines the banner is one of them; with ``--json`` start,
readiness and end are JSON documents on standard output.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import textwrap
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from trickle.cli import errors
from trickle.cli.output import Output, OutputGone, abandon_output
from trickle.cli.progress import show_recovery
from trickle.config import shown
from trickle.exceptions import TrickleError
from trickle.topics import Topic
from trickle.worker import Ending, lane_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trickle.agents import Agent
    from trickle.app import App
    from trickle.config import Resolved
    from trickle.run import Run
    from trickle.utils.logs import Redactor

__all__ = ["Banner"]

logger = logging.getLogger("trickle.worker")

_WIDTH_MAX = 100


class Banner:
    """Tells a worker's start, readiness and end (``trickle.worker.Observer``).

    Args:
        events: where JSON documents go that a program waits for; None for none.
        as_log: the banner is a log record, as where log lines are JSON.
        terminal: what log lines go to, where that is a terminal.
        redact: blanks the secrets.
    """

    def __init__(
        self,
        app: App,
        resolved: Resolved,
        events: Output | None,
        redact: Redactor,
        *,
        as_log: bool,
        terminal: Console | None = None,
    ) -> None:
        self._app = app
        self._as_log = as_log
        self._terminal = terminal
        self._settings = shown(resolved.settings, resolved.sources)
        self._events = events
        self._redact = redact

    def starting(self) -> None:
        """Show what is about to run."""
        facts = {
            "app": self._app.id,
            "version": version("trickle"),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "settings": {
                name: {"value": value, "source": source} for name, value, source in self._settings
            },
            "agents": [agent.name for agent in self._app.agents.values()],
            "tables": list(self._app.tables),
            "topics": list(self._app.topics),
        }
        if self._as_log:
            logger.info("starting", extra=facts)
        elif logger.isEnabledFor(logging.INFO):
            _print(self._lines(), self._redact)
        self._tell("starting", facts)

    async def watch(self, run: Run) -> None:
        """Show on a terminal how far the recovery is; elsewhere, log lines tell."""
        terminal = self._terminal
        if terminal is None or not logger.isEnabledFor(logging.INFO):
            return
        await show_recovery(
            terminal, lambda: run.tables.statistics().recovering if run.tables is not None else ()
        )

    def ready(self, run: Run, seconds: float) -> None:
        """Tell that the Run has joined and recovered."""
        url = run.web.url if run.web is not None else None
        lanes = run.conductor.lanes() if run.conductor is not None else []
        partitions = len({(topic, lane.partition) for lane in lanes for topic in lane.positions})
        where = f", web on {url}" if url is not None else ""
        logger.info(
            "ready after %.2f s: %s%s", seconds, _count(partitions, "partition"), where,
            extra={"seconds": seconds, "partitions": partitions, "web": url},
        )  # fmt: skip
        self._tell("ready", {"seconds": seconds, "partitions": partitions, "web": url})

    def stopping(self, name: str) -> None:
        """Tell that the first signal has come."""
        logger.info("%s: draining; a second signal cancels at once", name)
        self._tell("stopping", {"signal": name})

    def ended(self, run: Run, ending: Ending) -> None:
        """Tell how it ended; the sentences of an error are told by whoever catches it."""
        totals = run.monitor.statistics()
        facts = {
            "signal": ending.signal,
            "drained": ending.drained,
            "undrained": list(ending.undrained),
            "seconds": ending.seconds,
            "uptime": ending.uptime,
            "events": totals.commits.events,
            "commits": totals.commits.succeeded,
            "exit_code": ending.exit_code,
            "errors": [],
        }
        if ending.error is not None:
            facts["exit_code"] = errors.exit_code(ending.error)
            facts["errors"] = [self._redact(text) for text in errors.sentences(ending.error)]
        logger.log(
            logging.INFO if ending.drained else logging.ERROR,
            "%s; %s and %s in %s", self._how(ending), _count(totals.commits.events, "event"),
            _count(totals.commits.succeeded, "commit"), _duration(ending.uptime), extra=facts,
        )  # fmt: skip
        self._tell("ended", facts)

    def _how(self, ending: Ending) -> str:
        if ending.error is not None:
            return "stopped by a failure" if ending.ready else "failed before it was ready"
        if not ending.ready:
            return f"stopped by {ending.signal} before it was ready"
        if ending.drained:
            return f"drained and committed in {ending.seconds:.2f} s"
        if ending.undrained:
            hung = lane_words(self._app, ending.undrained)
            return f"stopped before the drain ended: {hung} did not end"
        return "cancelled by the second signal before the drain ended"

    def _tell(self, event: str, facts: dict[str, Any]) -> None:
        if self._events is None:
            return
        try:
            self._events.line({"event": event, **facts}, "")
            self._events.flush()
        except (OutputGone, TrickleError) as error:
            # Whoever watched has gone, or his disk is full: no reason for the work to end.
            abandon_output()
            self._events = None
            why = str(error) or "nobody reads standard output any more"
            logger.warning("%s: no further JSON documents", why)

    def _lines(self) -> list[Text]:
        app = self._app
        lines = [
            Text.assemble(
                ("trickle ", "bold cyan"), (version("trickle"), "cyan"), "  ", (app.id, "bold"),
                (f"  pid {os.getpid()}, Python {platform.python_version()}", "dim"),
            ),
            Text(),
        ]  # fmt: skip
        public = [agent for agent in app.agents.values() if not agent.internal]
        lines += _section("agents", [(agent.name, _agent_words(agent)) for agent in public])
        lines += _section("tables", [(t.name, _types(t)) for t in app.tables.values()])
        lines += _section(
            "topics", [(t.name, _types(t)) for t in app.topics.values() if not t.internal]
        )
        always = ("broker", "data_dir")
        chosen = [row for row in self._settings if row[0] in always or row[2] != "default"]
        lines += _section("settings", chosen)
        others = [row for row in self._settings if row not in chosen]
        # Words of one setting stay together: a no-break space is not where lines are broken.
        words = (f"{name}={value}".replace(" ", "\xa0") for name, value, _ in others)
        defaults = "\xa0· ".join(words)
        width = min(_WIDTH_MAX, shutil.get_terminal_size().columns) - 11
        for number, line in enumerate(textwrap.wrap(defaults, max(30, width))):
            head = "defaults" if number == 0 else ""
            lines.append(
                Text.assemble((f"{head:<11}", "bold dim"), (line.replace("\xa0", " "), "dim"))
            )
        lines.append(Text())
        return lines


def _section(title: str, rows: Sequence[Sequence[str]]) -> list[Text]:
    """Return aligned rows under a title that stands left of the first."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines: list[Text] = []
    for number, row in enumerate(rows):
        line = Text.assemble((f"{title if number == 0 else '':<11}", "bold dim"))
        line.append(f"{row[0]:<{widths[0]}}", "bold")
        for i, cell in enumerate(row[1:], 1):
            last = i == len(row) - 1
            style = "dim" if last and len(row) > 2 else ""
            line.append(f"   {cell}" if last else f"   {cell:<{min(widths[i], 60)}}", style)
        lines.append(line)
    lines.append(Text())
    return lines


def _agent_words(agent: Agent[Any, Any]) -> str:
    """Return ``source → sinks`` for one agent."""
    read = ", ".join(topic.name for topic in agent.topics)
    sinks = [
        sink.name if isinstance(sink, Topic) else getattr(sink, "name", None) or sink.__name__
        for sink in agent.sinks
    ]
    return f"{read} → {', '.join(sinks)}" if sinks else read


def _types(described: Any) -> str:
    """Return the types of a topic or a table."""
    return f"{described.key_codec.type_name}: {described.value_codec.type_name}"


def _print(lines: Sequence[Text], redact: Redactor) -> None:
    console = Console(stderr=True, highlight=False)
    with suppress(OSError):  # nobody reads it: no reason not to work
        for line in lines:
            text = redact(line.plain)
            if console.is_terminal:
                console.print(line if text == line.plain else text, soft_wrap=True, markup=False)
            else:
                sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
