"""The command line: one module a family of commands, put together here."""

from __future__ import annotations

from trickle.cli.get import get
from trickle.cli.lag import lag
from trickle.cli.root import cli, main
from trickle.cli.send import send
from trickle.cli.tail import tail
from trickle.cli.topics import topics
from trickle.cli.worker import worker

__all__ = ["main"]

for _command in (worker, send, tail, get, topics, lag):
    cli.command()(_command)
