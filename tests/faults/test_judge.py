"""The judge finds what is wrong, and nothing in what is right: without a broker."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.faults import judge
from tests.faults.judge import Counted
from tests.faults.partitions import partitions_of
from tests.faults.plan import FAIL_POINTS, FAULTS, make_plan
from tests.faults.planted import BUGS, plant
from tests.faults.stores import Dump, DumpError, environments, read_environments
from tests.faults.topics import Record
from tests.faults.watch import Silence, Watch
from tests.faults.workload import Item, make_items, read_key

ITEMS = list(make_items(seed=7, keys=20, records=400))


def counted(items: list[Item]) -> list[Counted]:
    counts: Counter[str] = Counter()
    found: list[Counted] = []
    for item in items:
        counts[item.key] += 1
        found.append(Counted(item.key, item, counts[item.key]))
    return found


def grouped(items: list[Item]) -> dict[int, list[Counted]]:
    homes = partitions_of({item.group.encode() for item in items}, 4)
    counts: Counter[str] = Counter()
    found: dict[int, list[Counted]] = defaultdict(list)
    for item in items:
        counts[item.group] += 1
        home = homes[item.group.encode()]
        found[home].append(Counted(item.group, item, counts[item.group]))
    return found


def texts(findings: list[judge.Finding]) -> str:
    return "\n".join(f"{finding.check}: {finding.text}" for finding in findings)


# Plan and workload


def test_a_seed_repeats_the_plan_and_the_workload() -> None:
    first, again = (make_plan(5, 600, every=5, session_timeout=6) for _ in range(2))
    assert first == again
    assert {fault.kind for fault in first} == FAULTS.keys()
    assert first != make_plan(6, 600, every=5, session_timeout=6)
    assert list(make_items(5, 50, 500)) == list(make_items(5, 50, 500))


def test_each_fail_point_has_its_turn() -> None:
    plan = make_plan(3, 200, every=5, session_timeout=6, faults=["failpoint"])
    met = [fault.detail.partition(":")[0] for fault in plan]
    assert set(met[: len(FAIL_POINTS)]) == FAIL_POINTS.keys()


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no faults or fail points \\['flood'\\]"):
        make_plan(1, 10, every=5, session_timeout=6, faults=["kill", "flood"])


def test_keys_say_what_they_get() -> None:
    numbers: dict[str, list[int]] = defaultdict(list)
    for item in ITEMS:
        numbers[item.key].append(item.number)
    assert len(numbers) == 20
    for key, found in numbers.items():
        oracle = read_key(key)
        assert found == list(range(oracle.first, oracle.last + 1))
        assert (len(found), sum(found)) == (oracle.size, oracle.total)


def test_partitions_are_those_of_java() -> None:
    # From Kafka's own UtilsTest, as signed numbers there.
    assert partitions_of([b"21"], 1000)[b"21"] == (-973932308 & 0x7FFFFFFF) % 1000
    assert partitions_of([b"foobar"], 1000)[b"foobar"] == (-790332482 & 0x7FFFFFFF) % 1000


# What is right


def test_what_is_right_is_not_found_fault_with() -> None:
    assert judge.check_source({0: ITEMS}, len(ITEMS)) == []
    assert judge.check_echo("left[0]", ITEMS, ITEMS, exact=True) == []
    assert judge.check_running("running[0]", ITEMS, counted(ITEMS), exact=True) == []
    assert judge.check_grouped({0: ITEMS}, grouped(ITEMS), exact=True) == []


def test_at_least_once_may_repeat() -> None:
    again = ITEMS[:50] + ITEMS[20:]
    assert judge.check_echo("left[0]", ITEMS, again, exact=False) == []
    assert judge.duplicates(again) == 30
    counts = counted(ITEMS)
    assert judge.check_running("r[0]", ITEMS, counts[:50] + counts[20:], exact=False) == []


# What is wrong


def test_lost_duplicated_strange_and_swapped_records_are_told_apart() -> None:
    def found(echo: list[Item], *, exact: bool = True) -> str:
        return texts(judge.check_echo("left[0]", ITEMS, echo, exact=exact))

    lost = ITEMS[5]
    assert f"1 lost, {lost.key}#{lost.number}" in found(ITEMS[:5] + ITEMS[6:])
    assert "1 lost" in found(ITEMS[:5] + ITEMS[6:], exact=False)
    assert "1 duplicated" in found([*ITEMS, ITEMS[0]])
    assert "1 that were never sent" in found([*ITEMS, Item("k0:1:9", 10_000)])
    swapped = [ITEMS[1], ITEMS[0], *ITEMS[2:]]
    assert "out of order from place 0" in found(swapped)


def test_a_count_that_is_off_is_found_where_all_ids_are_right() -> None:
    wrong = [c._replace(total=c.total + 1) if i == 9 else c for i, c in enumerate(counted(ITEMS))]
    assert "1 counts are wrong" in texts(judge.check_running("r[0]", ITEMS, wrong, exact=True))
    low = [c._replace(total=c.total - 1) if i == 9 else c for i, c in enumerate(counted(ITEMS))]
    assert "1 counts are wrong" in texts(judge.check_running("r[0]", ITEMS, low, exact=False))


def test_groups_are_checked_for_loss_repetition_counts_and_order() -> None:
    right = grouped(ITEMS)
    home = max(right, key=lambda partition: len(right[partition]))

    def found(outputs: list[Counted]) -> str:
        return texts(judge.check_grouped({0: ITEMS}, {**right, home: outputs}, exact=True))

    assert "1 lost" in found(right[home][:-1])
    assert "1 duplicated" in found([*right[home], right[home][0]])
    assert "counts are wrong" in found([right[home][0]._replace(total=5), *right[home][1:]])


def test_the_source_itself_is_checked() -> None:
    assert "records instead of" in texts(judge.check_source({0: ITEMS}, len(ITEMS) + 1))
    assert "has the numbers" in texts(judge.check_source({0: ITEMS[1:]}, len(ITEMS) - 1))


# Tables and stores

LOG = [Record(0, b"a", b"1"), Record(1, b"b", b"1"), Record(3, b"a", b"2"), Record(5, b"b", None)]


def test_counts_that_are_too_high_are_counted() -> None:
    expected = {("counts", 0): {b"a": b"3", b"b": b"2"}, ("sums", 0): {b"a": b"9"}}
    found = {("counts", 0): {b"a": b"4", b"b": b"1"}, ("sums", 0): {b"a": b"10"}}
    assert judge.too_high("counts", expected, found) == 1
    assert judge.too_high("counts", expected, expected) == 0


def test_a_changelog_is_folded_up_to_an_offset() -> None:
    assert judge.fold(LOG) == {b"a": b"2"}
    assert judge.fold(LOG, 3) == {b"a": b"1", b"b": b"1"}
    assert judge.fold(LOG, 4) == {b"a": b"2", b"b": b"1"}


def test_a_store_is_the_fold_up_to_where_it_says_it_goes() -> None:
    right = Dump("t", 0, 4, {b"a": b"2", b"b": b"1"})
    assert judge.check_store("w", right, LOG) == []
    ahead = right._replace(offset=3)
    assert "a is 2 and must be 1" in texts(judge.check_store("w", ahead, LOG))
    early = Dump("t", 0, None, {b"a": b"1"})
    assert "1 keys and no offset" in texts(judge.check_store("w", early, LOG))


def test_some_store_holds_all_of_the_changelog() -> None:
    logs = {("t", 0): LOG}
    assert judge.check_newest(logs, [Dump("t", 0, 3, {}), Dump("t", 0, 6, {})]) == []
    assert "beyond 5" in texts(judge.check_newest(logs, [Dump("t", 0, 5, {})]))


def test_tables_follow_from_the_keys() -> None:
    homes = partitions_of({item.group.encode() for item in ITEMS}, 1)
    expected = judge.expected_tables({0: ITEMS}, homes.__getitem__)
    assert judge.check_tables(expected, expected, exact=True) == []
    key = ITEMS[0].key.encode()
    counts = {**expected["counts", 0], key: b"0"}
    broken = {**expected, ("counts", 0): counts}
    assert "1 of 20 keys are wrong" in texts(judge.check_tables(expected, broken, exact=True))
    assert "counts are too low" in texts(judge.check_tables(expected, broken, exact=False))


def write_environment(path: Path, value: bytes, *, crc: int = 0) -> None:
    path.mkdir(parents=True)
    env: Any = lmdb.open(str(path), max_dbs=4)
    meta, table = env.open_db(b"meta"), env.open_db(b"table:t")
    with env.begin(write=True) as txn:
        txn.put(b"table:t", b'{"topic_id":"x","offset":4}', db=meta)
        checksum = zlib.crc32(value, zlib.crc32(b"a\x00")) ^ crc
        txn.put(b"a\x00", value + checksum.to_bytes(4, "little"), db=table)
    env.close()


def dumps(*paths: Path) -> list[list[Dump] | DumpError]:
    return list(read_environments([(2, path) for path in paths]))


def test_environments_are_read_from_their_bytes(tmp_path: Path) -> None:
    write_environment(tmp_path / "4" / "2", b"5")
    write_environment(tmp_path / "4" / "2.g1", b"6")
    assert [(p, path.name) for p, path in environments(tmp_path)] == [(2, "2.g1")]
    assert dumps(tmp_path / "4" / "2.g1") == [[Dump("t", 2, 4, {b"a": b"6"})]]


def test_what_cannot_be_read_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """A wrong checksum, no LMDB at all, and a file that is cut wherever it may be."""
    wrong, garbage, right = (tmp_path / name for name in ("wrong", "garbage", "right"))
    write_environment(wrong, b"5", crc=1)
    garbage.mkdir()
    (garbage / "data.mdb").write_bytes(bytes(20_000))
    write_environment(right, b"7")
    whole = (right / "data.mdb").read_bytes()
    cut: list[Path] = []
    for size in range(0, len(whole), 2048):
        cut.append(tmp_path / str(size))
        cut[-1].mkdir()
        (cut[-1] / "data.mdb").write_bytes(whole[:size])
    first, second, *rest, last = dumps(wrong, garbage, *cut, right)
    assert "checksum" in str(first)
    assert "MDB_INVALID" in str(second)
    assert rest == [[]] * len(cut)
    assert last == [Dump("t", 2, 4, {b"a": b"7"})]


@pytest.mark.parametrize("name", BUGS)
def test_the_bugs_can_be_planted(tmp_path: Path, name: str) -> None:
    plant(BUGS[name], tmp_path)
    source = (tmp_path / "trickle" / BUGS[name].module).read_text(encoding="utf-8")
    compile(source, BUGS[name].module, "exec")


# What is watched


def test_a_kill_s_silence_is_the_longest_that_it_falls_into_or_that_follows_at_once() -> None:
    watch = Watch("127.0.0.1:1", "topic", 2)
    watch.silences = [Silence(0, 5, 12), Silence(1, 10.5, 13), Silence(1, 20, 22)]
    kills = [10.0, 15.0]
    assert [watch.after(kill) for kill in kills] == [3.0, 0.0]


@pytest.mark.parametrize(
    ("numbers", "exact", "wrong"),
    [
        ([1, 2, 3], True, False),
        ([], True, False),
        ([1, 3], True, True),
        ([2, 3], True, True),
        ([1, 2, 2, 3], True, True),
        ([1, 3, 2], True, True),
        ([1, 2, 2, 3, 1, 4], False, False),
        ([1, 3, 2], False, True),
        ([1, 2, 2, 4], False, True),
    ],
)
def test_ticks_are_numbered_without_a_gap(numbers: list[int], exact: bool, wrong: bool) -> None:
    records = [Record(at, b"process", b"%d" % number) for at, number in enumerate(numbers)]
    findings = judge.check_ticks("ticks[0]", judge.read_ticks(records), exact=exact)
    assert bool(findings) is wrong
