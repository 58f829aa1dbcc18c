"""Bugs planted one at a time: ``python -m tests.faults.planted [name …]``.

Each is a few changed lines in a copy of the package, and a plan of faults that aims at it. The
checker must find it; a checker that finds nothing in the real code proves nothing otherwise. A
change of the real code that moves these lines moves them here as well: a quick test, without any
broker, tells.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.faults.__main__ import check

__all__ = ["BUGS", "Bug", "main", "plant"]

_ROOT = Path(__file__).parents[2]
_SMALL = ["--workers", "2", "--partitions", "4", "--keys", "500", "--rate", "300", "--settle", "40"]


class Bug(NamedTuple):
    """A bug, and how to meet it.

    Attributes:
        module: the file that is changed, below the package.
        changes: what stands there, and what takes its place.
        arguments: of the checker.
    """

    module: str
    changes: list[tuple[str, str]]
    arguments: list[str]


BUGS = {
    "commit-before-flush": Bug(
        "commit.py",
        [
            (
                """\
        ends = await self._producer.commit(changelog, {}, None, None)
        told = taken.ends(ends, consumer.topics if consumer is not None else ())
        if consumer is not None and (offsets or told):
            beside = consumer.beside({at.partition for at in told})
            await consumer.client.commit(beside | offsets | told)
        return {at: shard.end for at, shard, _ in taken.dirty}
""",
                """\
        if consumer is not None and offsets:
            await consumer.client.commit(offsets)
        return await self._producer.commit(changelog, {}, None, None)
""",
            )
        ],
        [
            *("--seed", "1", "--seconds", "42", "--every", "6", "--guarantee", "at_least_once"),
            *("--faults", "failpoint", "--points", "commit-produced"),
        ],
    ),
    "store-before-transaction": Bug(
        "commit.py",
        [
            (
                """\
        fail_point("commit-snapshot")
""",
                """\
        for _, shard, changes in taken.dirty:
            before = 0 if shard.position is None else shard.position.offset
            shard.committed(before + len(changes))
        fail_point("commit-snapshot")
""",
            )
        ],
        ["--seed", "2", "--seconds", "40", "--every", "5", "--faults", "endtxn,cut,kill"],
    ),
    "undo-left-out": Bug(
        "tables/shard.py",
        [
            (
                """\
        self._forget(self.event)
        if self.turn is not None:
""",
                """\
        self.dirty |= self.event
        if self.turn is not None:
""",
            )
        ],
        ["--seed", "3", "--seconds", "15", "--faults", ""],
    ),
    "position-off-by-one": Bug(
        "streams/lane.py",
        [
            (
                "            index = self._next_index() - self.hand\n",
                "            index = self._next_index()\n",
            )
        ],
        ["--seed", "4", "--seconds", "60", "--every", "4", "--faults", "kill,failpoint"],
    ),
    "metadata-ignored": Bug(
        "positions.py",
        [
            (
                "        agents = {name: at for name, at in wire.a.items() if at > offset}\n",
                "        agents: dict[str, int] = {}\n",
            )
        ],
        ["--seed", "5", "--seconds", "30", "--every", "4", "--faults", "kill,term"],
    ),
    "begin-after-a-timed-out-commit": Bug(
        "transport/kafka/transaction.py",
        [
            (
                """\
            self._caller.call(deadline, client.commit_transaction)
""",
                """\
            while True:
                try:
                    self._caller.call(deadline, client.commit_transaction)
                    break
                except KafkaException as raised:
                    if error_of(raised).code() != KafkaError._TIMED_OUT:
                        raise
                    deadline = time.monotonic() + self._config.request_timeout
""",
            )
        ],
        [
            *("--seed", "6", "--seconds", "60", "--every", "14"),
            *("--faults", "endtxn", "--fates", "late"),
        ],
    ),
    "restore-reads-uncommitted": Bug(
        "tables/recovery.py",
        [
            (
                "self._transport.reader(starts) as reader:",
                "self._transport.reader(starts, committed_only=False) as reader:",
            )
        ],
        [
            *("--seed", "7", "--seconds", "60", "--every", "3"),
            *("--faults", "endtxn,kill", "--fates", "swallow"),
        ],
    ),
    "ends-left-out": Bug(
        "commit.py",
        [
            (
                "beside | offsets | told)",
                "beside | offsets)",
            )
        ],
        [
            *("--seed", "5", "--seconds", "120", "--every", "4", "--guarantee", "at_least_once"),
            *("--faults", "stop,kill,term"),
        ],
    ),
}
"""By name: six that the checker was built against, one that a peer's was blind to, one it found."""


def plant(bug: Bug, tree: Path) -> None:
    """Copy the package into a directory, with the bug in it.

    Raises:
        ValueError: the lines that it changes are not there once.
    """
    package = tree / "trickle"
    shutil.copytree(_ROOT / "trickle", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / bug.module
    text = file.read_text(encoding="utf-8")
    for before, after in bug.changes:
        if text.count(before) != 1:
            raise ValueError(f"{bug.module} has these lines {text.count(before)} times:\n{before}")
        text = text.replace(before, after)
    file.write_text(text, encoding="utf-8")


def main(names: list[str] | None = None) -> int:
    """Plant the bugs of these names, or all; return 1 if one is not found."""
    rows: list[tuple[str, str, str]] = []
    missed = False
    for name in names or BUGS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="trickle-planted-") as directory:
            tree = Path(directory)
            plant(BUGS[name], tree)
            findings = check([*_SMALL, *BUGS[name].arguments, "--tree", str(tree)])
        found = Counter(finding.check for finding in findings)
        missed = missed or not found
        text = ", ".join(f"{check} {count}" for check, count in found.most_common())
        rows.append((name, text or "NOT FOUND", f"{time.monotonic() - began:.0f} s"))
    sys.stdout.write("\nbug, found by which check how often, after\n")
    for bug, text, took in rows:
        sys.stdout.write(f"{bug:<32} {text:<60} {took}\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
