"""``python -m tests.faults``: break workers for a while, and judge what is left.

It exits with 1 where something is wrong, and tells the first findings in full. The seed that it
prints repeats workload and plan.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.cluster import Cluster
from tests.faults.drive import Drive, Options
from tests.faults.judge import Finding
from tests.faults.plan import END_TXN_FATES, FAIL_POINTS, FAULTS, make_plan
from tests.faults.verdict import Verdict, count_by_check
from tests.faults.workload import make_items

__all__ = ["check", "main"]

_MEAN_SECONDS = 300
_TOLD = 12


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--brokers", type=int, default=1, help="with so many copies of everything")
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=800.0, help="records a second")
    parser.add_argument("--seed", type=int, default=None, help="a new one where left out")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument(
        "--guarantee", choices=["exactly_once", "at_least_once"], default="exactly_once"
    )
    parser.add_argument("--protocol", choices=["classic", "consumer"], default="classic")
    parser.add_argument("--session-timeout", type=float, default=6.0)
    parser.add_argument("--shared", action="store_true", help="one data directory for all")
    parser.add_argument(
        "--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}; none: ''"
    )
    parser.add_argument(
        "--points", default=",".join(FAIL_POINTS), help=f"fail points, of {', '.join(FAIL_POINTS)}"
    )
    parser.add_argument(
        "--fates", default=",".join(END_TXN_FATES), help=f"of EndTxn: {', '.join(END_TXN_FATES)}"
    )
    parser.add_argument(
        "--takeover", type=float, default=0.0, help="seconds that a kill may cost any partition"
    )
    parser.add_argument("--spare", action="store_true", help="no fault hits the first worker")
    parser.add_argument(
        "--settle", type=float, default=150.0, help="seconds to finish in once nothing disturbs"
    )
    parser.add_argument("--tree", default="", help="a checkout whose trickle the workers run")
    parser.add_argument("--keep", action="store_true", help="keep logs and data of a clean run")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the checker once; return its exit code."""
    return 1 if check(argv) else 0


def check(argv: list[str] | None = None) -> list[Finding]:
    """Run the checker once, and tell of it; return what it has found."""
    given = _arguments(argv)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 30)
    faults = [name for name in given.faults.split(",") if name]
    directory = Path(tempfile.mkdtemp(prefix="trickle-faults-"))
    options = Options(
        app=f"faults-{seed}",
        directory=directory,
        seed=seed,
        seconds=given.seconds,
        workers=given.workers,
        partitions=given.partitions,
        rate=given.rate,
        guarantee=given.guarantee,
        protocol=given.protocol,
        session_timeout=given.session_timeout,
        shared=given.shared,
        spare=given.spare,
        settle_max=given.settle,
        tree=given.tree,
    )
    plan = make_plan(
        seed,
        given.seconds,
        every=given.every,
        session_timeout=given.session_timeout,
        faults=faults,
        points=given.points.split(","),
        fates=given.fates.split(","),
    )
    items = list(make_items(seed, given.keys, int(given.seconds * given.rate)))
    _write(f"seed {seed}: {len(plan)} faults, {len(items):,} records; {given.guarantee}, "
           f"{given.protocol}, {given.workers} workers; {directory}")  # fmt: skip
    with Cluster(given.brokers, given.session_timeout) as cluster:
        drive = Drive(cluster, options, plan, items)
        try:
            drive.run()
        finally:
            drive.close()
        verdict = Verdict(cluster, options, drive)
        began = time.monotonic()
        verdict.judge()
        judged = time.monotonic() - began
        findings = drive.findings + verdict.findings + _too_late(drive, given.takeover)
        findings += _leak(drive) if given.spare else []
        if findings:
            for number, broker in enumerate(cluster.brokers):
                shutil.copy(broker.log, directory / f"broker-{number}.log")
    _report(options, drive, verdict, findings, judged)
    if not findings and not given.keep:
        shutil.rmtree(directory, ignore_errors=True)
    return findings


def _report(
    options: Options, drive: Drive, verdict: Verdict, findings: list[Finding], judged: float
) -> None:
    rows: list[tuple[str, object]] = [("seed", options.seed), ("guarantee", options.guarantee)]
    rows += sorted(drive.counts.items())
    rows += list(verdict.checked.items())
    rows += [
        ("duplicated records", verdict.duplicated),
        ("settled after, s", round(drive.settled_after, 1)),
        ("longest drain, s", round(drive.longest_drain, 1)),
        ("starts of workers", sum(slot.starts for slot in drive.slots)),
        ("most memory, MB", _most_memory(drive)),
        *_first_worker_s_memory(drive),
        *_takeovers(drive),
        ("judged in, s", round(judged, 1)),
        ("findings", len(findings)),
    ]
    rows += [(f"  {check}", count) for check, count in sorted(count_by_check(findings).items())]
    _write("\n" + "\n".join(f"{name:<28} {value}" for name, value in rows))
    for finding in findings[:_TOLD]:
        _write(f"\n{finding.check}: {finding.text}")
    if findings:
        _write(f"\nlogs and data: {options.directory}; the same again: --seed {options.seed}")


def _most_memory(drive: Drive) -> int:
    samples = [rss for slot in drive.slots for rss in slot.rss_bytes.values()]
    return max(samples, default=0) >> 20


def _memory_at(samples: Mapping[int, int], seconds: float) -> float | None:
    """Return memory in MB: a mean over five minutes of a worker's life.

    Not of a moment: it swings by a third, as others die and it takes their partitions and gives
    them back. Means over two minutes still differed by a fifth, upwards and downwards.
    """
    start = min(seconds - _MEAN_SECONDS / 2, max(samples, default=0) - _MEAN_SECONDS)
    within = [size for second, size in samples.items() if 0 <= second - start <= _MEAN_SECONDS]
    return sum(within) / len(within) / (1 << 20) if within else None


def _first_worker_s_memory(drive: Drive) -> list[tuple[str, object]]:
    slot = drive.slots[0]
    last = max(slot.rss_bytes, default=0) / 60
    minutes = [float(minute) for minute in (1, 2, 5, 10, 15, 20, 25) if minute < last]
    return [
        (f"  first worker, MB, {minute:.3g} min", f"{own:.1f}, and {mapped:.1f} of files")
        for minute in [*minutes, last]
        if (own := _memory_at(slot.rss_bytes, 60 * minute)) is not None
        and (mapped := _memory_at(slot.mapped_bytes, 60 * minute)) is not None
    ]


def _leak(drive: Drive) -> list[Finding]:
    """Compare resident memory of a worker that was spared after five minutes and at its end.

    With the pages of the stores that are in memory, as ``ps`` shows it; the table tells both.
    """
    slot = drive.slots[0]
    samples = {at: own + slot.mapped_bytes[at] for at, own in slot.rss_bytes.items()}
    last = max(samples, default=0)
    early, late = _memory_at(samples, 300), _memory_at(samples, last)
    if last < 600 or early is None or late is None or late <= 1.1 * early:
        return []
    text = f"the first worker held {early:.1f} MB after 5 minutes, and {late:.1f} after"
    return [Finding("memory", f"{text} {last / 60:.1f}")]


def _too_late(drive: Drive, limit: float) -> list[Finding]:
    silences = drive.watch.takeovers() if drive.watch is not None and limit else []
    return [
        Finding("takeover", f"after kill {number} a partition was silent for {silence:.1f} s")
        for number, silence in enumerate(silences, 1)
        if silence > limit
    ]


def _takeovers(drive: Drive) -> list[tuple[str, object]]:
    if drive.watch is None or not (silences := sorted(drive.watch.takeovers())):
        return []
    middle, longest = silences[len(silences) // 2], silences[-1]
    rows: list[tuple[str, object]] = [
        ("silence after kills, s", f"{middle:.1f} (median), {longest:.1f} (longest)")
    ]
    for one in drive.watch.longest(5):
        where = f"partition {one.partition}, from {one.begin - drive.began:.0f} s on"
        rows.append(("  a long silence, s", f"{one.end - one.begin:.1f}: {where}"))
    return rows


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
