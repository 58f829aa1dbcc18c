"""The judgement: pure comparisons of what is in the topics and stores with what must be there.

What must be there follows from the source alone: its keys say which numbers they get, and it is
itself checked against them first. A checker that only compares ids is blind to state: a restore
that read uncommitted data left every id right, and 1,377 running counts wrong. So these are
demanded, each of every partition:

========  ======================================================================================
source    each key has its numbers, each once and in order: else the checker itself is broken
echo      an output's records are the source's, one by one, in its order
pair      what one event sent to two partitions is at both
running   with each event stands its key's count: 1, 2, 3, … in the source's order
grouped   behind the repartition: each event once, each group's counts 1, 2, 3, …, keys in order
table     the changelog, folded, is what the keys say
store     a directory of tables is the fold of the changelog up to the offset that it names
newest    some store holds all that is in the changelog
ticks     what a process's timer sent is there as 1, 2, 3, … to where the process died
offsets   what is committed is the end; the last stable offset is the high watermark
========  ======================================================================================

Under at-least-once an event may come again, with all that follows it: then nothing may be missing,
what comes for the first time comes in order, and counts may be too high but never too low.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.faults.stores import Dump
from tests.faults.topics import Record
from tests.faults.workload import Item, read_key

__all__ = [
    "Counted",
    "Finding",
    "check_echo",
    "check_grouped",
    "check_newest",
    "check_running",
    "check_source",
    "check_store",
    "check_tables",
    "check_ticks",
    "duplicates",
    "expected_tables",
    "fold",
    "read_counted",
    "read_items",
    "read_ticks",
    "too_high",
]

_TOLD = 3  # examples in a finding


class Finding(NamedTuple):
    """Something that is not as it must be.

    Attributes:
        check: which of the demands; see the module.
        text: where, and what is there instead.
    """

    check: str
    text: str


class Counted(NamedTuple):
    """An output behind a count.

    Attributes:
        name: of what was counted: a key, or a group.
        item: the event.
        total: the count with it.
    """

    name: str
    item: Item
    total: int


def read_items(records: Iterable[Record]) -> list[Item]:
    """Return the items that records of the source, or of an echo, hold."""
    items: list[Item] = []
    for record in records:
        key = (record.key or b"").decode()
        items.append(Item(key, int(json.loads(record.value or b"")["number"])))
    return items


def read_counted(records: Iterable[Record]) -> list[Counted]:
    """Return what records behind a count hold."""
    found: list[Counted] = []
    for record in records:
        value = json.loads(record.value or b"")
        item = Item(value["key"], value["number"])
        found.append(Counted((record.key or b"").decode(), item, value["count"]))
    return found


def read_ticks(records: Iterable[Record]) -> dict[str, list[int]]:
    """Return the numbers of each process's ticks, in the order in which they are there."""
    found: dict[str, list[int]] = defaultdict(list)
    for record in records:
        found[(record.key or b"").decode()].append(int(record.value or b""))
    return found


def check_ticks(where: str, ticks: Mapping[str, Sequence[int]], *, exact: bool) -> list[Finding]:
    """Check what timers sent: it follows no source, so each process has numbered its own."""
    findings: list[Finding] = []
    for process, numbers in ticks.items():
        shown = list(numbers) if exact else list(dict.fromkeys(numbers))
        wrong = next((at for at, number in enumerate(shown) if number != at + 1), None)
        if wrong is not None:
            around = f"{shown[max(0, wrong - 2) : wrong + 3]} of {len(numbers)}"
            text = f"{where}: process {process[:8]}: {wrong + 1} belongs at its place in {around}"
            findings.append(Finding("ticks", text))
    return findings


def check_source(partitions: Mapping[int, Sequence[Item]], records: int) -> list[Finding]:
    """Check the workload against its keys."""
    findings: list[Finding] = []
    numbers: dict[str, list[int]] = defaultdict(list)
    home: dict[str, int] = {}
    for partition, items in partitions.items():
        for item in items:
            numbers[item.key].append(item.number)
            if home.setdefault(item.key, partition) != partition:
                findings.append(Finding("source", f"{item.key} is in two partitions"))
    for key, found in numbers.items():
        oracle = read_key(key)
        if found != list(range(oracle.first, oracle.last + 1)):
            findings.append(Finding("source", f"{key} has the numbers {_brief(found)}"))
    total = sum(map(len, partitions.values()))
    if total != records:
        findings.append(Finding("source", f"{total} records instead of {records}"))
    return findings


def check_echo(
    where: str, source: Sequence[Item], echo: Sequence[Item], *, exact: bool, check: str = "echo"
) -> list[Finding]:
    """Check an output that holds each record of the source, partition for partition."""
    shown = list(echo) if exact else list(dict.fromkeys(echo))
    if shown == list(source):
        return []
    expected, found = Counter(source), Counter(echo)
    lost = list((expected - found).elements())
    strange = [item for item in found if item not in expected]
    texts: list[str] = []
    if lost:
        texts.append(f"{len(lost)} lost, {_items(lost)}")
    if exact and (again := [item for item, count in found.items() if count > 1]):
        texts.append(f"{sum(found[item] - 1 for item in again)} duplicated, {_items(again)}")
    if strange:
        texts.append(f"{len(strange)} that were never sent, {_items(strange)}")
    if not texts:
        index = next(i for i, (a, b) in enumerate(zip(source, shown, strict=False)) if a != b)
        texts.append(
            f"out of order from place {index}: {_item(shown[index])} "
            f"where {_item(source[index])} belongs"
        )
    return [Finding(check, f"{where}: {'; '.join(texts)}")]


def duplicates(echo: Sequence[Item]) -> int:
    """Return how many records are there again."""
    return len(echo) - len(set(echo))


def check_running(
    where: str, source: Sequence[Item], running: Sequence[Counted], *, exact: bool
) -> list[Finding]:
    """Check the counts that stand with each event."""
    findings = check_echo(
        where, source, [counted.item for counted in running], exact=exact, check="running"
    )
    wrong = [c for c in running if c.name != c.item.key]
    if wrong:
        findings.append(Finding("running", f"{where}: a key that is not its event's: {wrong[:3]}"))
    return findings + _check_counts(where, running, exact=exact, check="running")


def _check_counts(
    where: str, counted: Iterable[Counted], *, exact: bool, check: str
) -> list[Finding]:
    before: Counter[str] = Counter()
    ranks: dict[str, dict[Item, int]] = defaultdict(dict)
    wrong: list[str] = []
    for name, item, count in counted:
        before[name] += 1
        # An event that comes again counts at least as it did at first, in its place.
        rank = ranks[name].setdefault(item, len(ranks[name]) + 1)
        if exact and count != before[name]:
            wrong.append(f"{name} at {_item(item)}: {count} where {before[name]} belongs")
        elif not exact and count < rank:
            wrong.append(f"{name} at {_item(item)}: {count}, and it is number {rank}")
    if not wrong:
        return []
    told = "; ".join(wrong[:_TOLD])
    return [Finding(check, f"{where}: {len(wrong)} counts are wrong: {told}")]


def check_grouped(
    source: Mapping[int, Sequence[Item]], grouped: Mapping[int, Sequence[Counted]], *, exact: bool
) -> list[Finding]:
    """Check the outputs behind the repartition."""
    findings: list[Finding] = []
    expected = {item for items in source.values() for item in items}
    everything = [counted for outputs in grouped.values() for counted in outputs]
    found = Counter(counted.item for counted in everything)
    lost = [item for item in expected if item not in found]
    again = [item for item, count in found.items() if count > 1]
    strange = [item for item in found if item not in expected]
    if lost:
        findings.append(Finding("grouped", f"{len(lost)} lost, {_items(lost)}"))
    if again and exact:
        findings.append(Finding("grouped", f"{len(again)} duplicated, {_items(again)}"))
    if strange:
        findings.append(Finding("grouped", f"{len(strange)} never sent, {_items(strange)}"))
    for partition, outputs in grouped.items():
        where = f"grouped[{partition}]"
        findings += _check_counts(where, outputs, exact=exact, check="grouped")
        latest: dict[tuple[str, str], int] = {}
        for counted in dict.fromkeys(outputs) if exact else ():
            name, item, _ = counted
            if name != item.group:
                findings.append(Finding("grouped", f"{where}: {_item(item)} is not of {name}"))
            if latest.get((name, item.key), 0) > item.number:
                findings.append(Finding("grouped", f"{where}: {_item(item)} is out of order"))
            latest[name, item.key] = item.number
    return findings


# Tables


def fold(records: Iterable[Record], below: int | None = None) -> dict[bytes, bytes]:
    """Return what a changelog says in the end, or said before an offset."""
    state: dict[bytes, bytes] = {}
    for offset, key, value in records:
        if below is not None and offset >= below:
            break
        if key is None:
            continue
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value
    return state


def expected_tables(
    source: Mapping[int, Sequence[Item]], partition_of: Callable[[bytes], int]
) -> dict[tuple[str, int], dict[bytes, bytes]]:
    """Return what each table must hold in each partition, as bytes, from the keys alone.

    Args:
        source: the workload by partition: where each key lives.
        partition_of: the partition of a group.
    """
    tables: dict[tuple[str, int], dict[bytes, bytes]] = defaultdict(dict)
    groups: Counter[str] = Counter()
    for partition, items in source.items():
        for key in {item.key for item in items}:
            oracle, encoded = read_key(key), key.encode()
            newest = list(range(max(oracle.first, oracle.last - 2), oracle.last + 1))
            tables["counts", partition][encoded] = _json(oracle.size)
            tables["sums", partition][encoded] = _json(oracle.total)
            tables["last", partition][encoded] = _json(newest)
        groups.update(item.group for item in items)
    for name, count in groups.items():
        tables["groups", partition_of(name.encode())][name.encode()] = _json(count)
    return dict(tables)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def check_tables(
    expected: Mapping[tuple[str, int], Mapping[bytes, bytes]],
    found: Mapping[tuple[str, int], Mapping[bytes, bytes]],
    *,
    exact: bool,
) -> list[Finding]:
    """Check the folds of all changelogs."""
    findings: list[Finding] = []
    for place in sorted(expected.keys() | found.keys()):
        table, partition = place
        ours, theirs = expected.get(place, {}), found.get(place, {})
        if exact:
            findings += _check_pairs("table", f"{table}[{partition}]", ours, theirs)
            continue
        if table not in {"counts", "groups"}:
            continue
        low = [key for key, value in ours.items() if int(theirs.get(key, b"0")) < int(value)]
        if low:
            text = f"{table}[{partition}]: {len(low)} counts are too low: {low[:_TOLD]}"
            findings.append(Finding("table", text))
    return findings


def too_high(
    table: str,
    expected: Mapping[tuple[str, int], Mapping[bytes, bytes]],
    found: Mapping[tuple[str, int], Mapping[bytes, bytes]],
) -> int:
    """Return how many keys of a table count more than there is: what came again counted again."""
    return sum(
        int(found.get(place, {}).get(key, b"0")) > int(value)
        for place, pairs in expected.items()
        if place[0] == table
        for key, value in pairs.items()
    )


def check_store(where: str, dump: Dump, changelog: Sequence[Record]) -> list[Finding]:
    """Check one table of one environment against the changelog up to where it goes."""
    name = f"{where}: {dump.table}[{dump.partition}]"
    if dump.offset is None:
        extra = len(dump.pairs)
        return [Finding("store", f"{name} has {extra} keys and no offset")] if extra else []
    return _check_pairs(
        "store", f"{name} at {dump.offset}", fold(changelog, dump.offset), dump.pairs
    )


def check_newest(
    changelogs: Mapping[tuple[str, int], Sequence[Record]], dumps: Iterable[Dump]
) -> list[Finding]:
    """Check that some store holds all of each changelog: that of its last holder."""
    newest: dict[tuple[str, int], int] = defaultdict(int)
    for dump in dumps:
        place = (dump.table, dump.partition)
        newest[place] = max(newest[place], dump.offset or 0)
    return [
        Finding("newest", f"{place[0]}[{place[1]}]: no store goes beyond {newest[place]}, and the "
                f"changelog has a record at {records[-1].offset}")
        for place, records in sorted(changelogs.items())
        if records and newest[place] <= records[-1].offset
    ]  # fmt: skip


def _check_pairs(
    check: str, where: str, expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]
) -> list[Finding]:
    if expected == found:
        return []
    wrong = list(_differences(expected, found))
    told = "; ".join(wrong[:_TOLD])
    return [Finding(check, f"{where}: {len(wrong)} of {len(expected)} keys are wrong: {told}")]


def _differences(expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]) -> Iterator[str]:
    for key in sorted(expected.keys() | found.keys()):
        ours, theirs = expected.get(key), found.get(key)
        if ours != theirs:
            yield f"{key.decode()} is {_text(theirs)} and must be {_text(ours)}"


def _text(value: bytes | None) -> str:
    return "absent" if value is None else value.decode(errors="replace")


def _item(item: Item) -> str:
    return f"{item.key}#{item.number}"


def _items(items: Iterable[Item]) -> str:
    return ", ".join(map(_item, itertools.islice(items, _TOLD)))


def _brief(values: Sequence[int]) -> str:
    return f"{values[:5]} … {values[-3:]}" if len(values) > 8 else str(values)
