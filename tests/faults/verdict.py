"""From a finished run to findings: reads topics and stores, one partition after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from confluent_kafka import KafkaException

from tests.faults import judge
from tests.faults.cluster import Cluster
from tests.faults.drive import Drive, Options
from tests.faults.judge import Counted, Finding
from tests.faults.partitions import partitions_of
from tests.faults.stores import Dump, DumpError, environments, read_environments
from tests.faults.topics import Record, read_partition
from tests.faults.workload import GROUPS, Item

__all__ = ["Verdict", "count_by_check"]

_TABLES = ("counts", "sums", "last", "groups")
_HANGING_MAX = 20.0  # seconds after which a transaction that is still pending hangs


class Verdict:
    """Judges one run.

    Attributes:
        findings: all that is wrong.
        duplicated: records that are there again, in both echoes and the third.
        checked: how many of what were compared.
    """

    def __init__(self, cluster: Cluster, options: Options, drive: Drive) -> None:
        self._cluster = cluster
        self._options = options
        self._drive = drive
        self._app = options.app
        self._exact = options.guarantee == "exactly_once"
        self._partitions = range(options.partitions)
        self.findings: list[Finding] = []
        self.duplicated = 0
        self.checked: dict[str, int] = {}

    def judge(self) -> None:
        """Read and compare everything."""
        if not self._no_transaction_hangs():
            return  # what cannot be read to its end cannot be compared
        source = {p: judge.read_items(self._read("in", p)) for p in self._partitions}
        records = len(self._drive.items)
        self.findings += judge.check_source(source, records)
        self.checked["records"] = records
        self._echoes(source)
        self._outputs(source)
        changelogs = self._tables(source)
        self._stores(changelogs)
        try:
            self._offsets()
        except (TimeoutError, KafkaException) as error:
            self.findings.append(Finding("offsets", f"they cannot be read: {error}"))

    def _read(self, topic: str, partition: int) -> list[Record]:
        return read_partition(self._cluster.servers, f"{self._app}-{topic}", partition)

    def _no_transaction_hangs(self) -> bool:
        counts = {**self._cluster.topics(self._app), **self._cluster.topics("__consumer_offsets")}
        places = [(topic, p) for topic, count in counts.items() for p in range(count)]
        deadline = time.monotonic() + _HANGING_MAX
        while True:
            ends = self._cluster.ends(places)
            pending = {at: e for at, e in ends.items() if e.stable < e.high}
            if not pending:
                return True
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        for (topic, p), e in sorted(pending.items()):
            text = f"{topic}[{p}]: a transaction hangs at {e.stable} of {e.high}"
            producers = self._cluster.describe_producers(topic, p)
            self.findings.append(Finding("offsets", f"{text}\n{producers}"))
        return False

    def _echoes(self, source: dict[int, list[Item]]) -> None:
        left: dict[int, list[Item]] = {}
        right: dict[int, list[Item]] = {}
        count = self._options.partitions
        for partition in self._partitions:
            for name, found in (("left", left), ("right", right), ("third", {})):
                # What the app sends to the right goes one partition further.
                at = (partition + 1) % count if name == "right" else partition
                items = judge.read_items(self._read(name, at))
                found[partition] = items
                self.duplicated += judge.duplicates(items)
                self.findings += judge.check_echo(
                    f"{name}[{at}]", source[partition], items, exact=self._exact
                )
            torn = set(left[partition]) ^ set(right[partition])
            if torn:
                examples = ", ".join(f"{i.key}#{i.number}" for i in list(torn)[:3])
                text = f"partition {partition}: {len(torn)} pairs are torn: {examples}"
                self.findings.append(Finding("pair", text))

    def _outputs(self, source: dict[int, list[Item]]) -> None:
        grouped: dict[int, list[Counted]] = {}
        for partition in self._partitions:
            running = judge.read_counted(self._read("running", partition))
            self.findings += judge.check_running(
                f"running[{partition}]", source[partition], running, exact=self._exact
            )
            grouped[partition] = judge.read_counted(self._read("grouped", partition))
        self.findings += judge.check_grouped(source, grouped, exact=self._exact)
        for partition in self._partitions:
            ticks = judge.read_ticks(self._read("ticks", partition))
            self.checked["ticks"] = self.checked.get("ticks", 0) + sum(map(len, ticks.values()))
            self.findings += judge.check_ticks(f"ticks[{partition}]", ticks, exact=self._exact)

    def _tables(self, source: dict[int, list[Item]]) -> dict[tuple[str, int], list[Record]]:
        changelogs = {
            (table, partition): self._read(f"{table}-changelog", partition)
            for table in _TABLES
            for partition in self._partitions
        }
        home = self._homes_of_groups()
        expected = judge.expected_tables(source, home)
        found = {place: judge.fold(records) for place, records in changelogs.items()}
        for place in changelogs:
            expected.setdefault(place, {})
        self.checked["keys in tables"] = sum(map(len, expected.values()))
        self.findings += judge.check_tables(expected, found, exact=self._exact)
        if not self._exact:
            self.checked["counts too high"] = judge.too_high("counts", expected, found)
        return changelogs

    def _homes_of_groups(self) -> Callable[[bytes], int]:
        """Return where each group lives: Java's partitioner decides."""
        names = [f"g{number}".encode() for number in range(GROUPS)]
        homes = partitions_of(names, len(self._partitions))
        return homes.__getitem__

    def _stores(self, changelogs: dict[tuple[str, int], list[Record]]) -> None:
        options = self._options
        final = sorted((options.directory / "data").iterdir())
        dumps: list[Dump] = []
        for data in final:
            dumps += self._dump(data.name, data / self._app / "tables", changelogs)
        snapshots = 0
        for why, path in self._drive.snapshots:
            snapshots += len(self._dump(why, path, changelogs))
        self.checked["tables on disk"] = len(dumps)
        self.checked["tables of dead workers"] = snapshots
        self.findings += judge.check_newest(changelogs, dumps)

    def _dump(
        self, where: str, tables: Path, changelogs: dict[tuple[str, int], list[Record]]
    ) -> Sequence[Dump]:
        dumps: list[Dump] = []
        for found in read_environments(list(environments(tables))):
            if isinstance(found, DumpError):
                self.findings.append(Finding("store", f"{where}: {found}"))
                continue
            for dump in found:
                changelog = changelogs[dump.table, dump.partition]
                self.findings += judge.check_store(where, dump, changelog)
            dumps += found
        return dumps

    def _offsets(self) -> None:
        """Check that all is committed up to the ends, and that nobody is left in the group."""
        consumed = ("in", "members", "by-group-repartition")
        places = [(f"{self._app}-{name}", p) for name in consumed for p in self._partitions]
        ends = self._cluster.ends(places)
        committed = self._cluster.committed(self._app, places)
        for at, end in sorted(ends.items()):
            offset = committed.get(at, end.low)
            where = f"{at[0]}[{at[1]}]"
            if offset > end.high:
                text = f"{where}: {offset} is committed, and it ends at {end.high}"
                self.findings.append(Finding("offsets", text))
            elif offset < end.high and (
                left := read_partition(self._cluster.servers, *at, start=offset)
            ):
                text = f"{where}: {offset} is committed, and {len(left)} records follow"
                self.findings.append(Finding("offsets", text))
        state = self._cluster.state(self._app)
        if state != "EMPTY":
            text = f"the group is {state} after all workers have left it"
            self.findings.append(Finding("offsets", text))


def count_by_check(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings each demand has."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.check] = counts.get(finding.check, 0) + 1
    return counts
