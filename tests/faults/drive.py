"""One run: workload, workers, the plan carried out, the end awaited, and everything judged.

The faults of the plan are begun when they fall due; what has to happen later for them (SIGCONT, a
proxy that heals, another start) is kept in a list by time. When the plan is over, everything is
healed, and the workers get time to finish without disturbance: what they cannot finish then they
would never finish. Then they are told to stop, and must do so with exit code 0.
"""

from __future__ import annotations

import heapq
import itertools
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from confluent_kafka import KafkaException

from tests.faults.cluster import Cluster
from tests.faults.judge import Finding
from tests.faults.plan import Fault
from tests.faults.proxy import EndTxnFate
from tests.faults.stores import copy_tables
from tests.faults.topics import read_partition
from tests.faults.watch import Watch
from tests.faults.workers import CLOCK, FILE_BYTES, Slot
from tests.faults.workload import Feeder, Item

__all__ = ["Drive", "Options"]

_SNAPSHOTS_MAX = 60
_DRAIN_MAX = 15.0  # seconds that a SIGTERM may take, everything included
_BROKER_TIMEOUT = 12.0  # seconds that the app under test waits for an answer of the broker's
_START_MAX = 30.0  # seconds after a fault of the broker in which a start may fail by it
_OWN_TREE = str(Path(__file__).parents[2])
_WORKERS_MAX = 3  # more than there were at the start
# What the last commit may fail by where the broker went away: its events run again elsewhere.
_NOT_LAST = ("was committed is not known", "which may be forgotten")


class Options(NamedTuple):
    """What a run is made of.

    Attributes:
        app: the app's id; all topics begin with it.
        directory: where data, logs and snapshots go.
        shared: all workers use one data directory.
        spare: no fault hits the first worker, so that its memory can be measured.
        settle_max: seconds that the rest may take once nothing disturbs.
        tree: the checkout whose trickle the workers run; empty: the checker's own.
    """

    app: str
    directory: Path
    seed: int
    seconds: float
    workers: int
    partitions: int
    rate: float
    guarantee: str
    protocol: str
    session_timeout: float
    shared: bool
    spare: bool
    settle_max: float
    tree: str = ""


class Drive:
    """Carries out a plan.

    Attributes:
        findings: what is wrong already without a look at the topics.
        counts: how often what happened.
        snapshots: copies of the tables of workers that died, with whose they were.
    """

    def __init__(
        self, cluster: Cluster, options: Options, plan: list[Fault], items: list[Item]
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._plan = plan
        self.items = items
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.snapshots: list[tuple[str, Path]] = []
        self.settled_after = 0.0
        self.longest_drain = 0.0
        self.watch: Watch | None = None
        self.slots: list[Slot] = []
        self._wanted = options.workers
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._dice = random.Random(f"drive {options.seed}")
        self.began = time.monotonic()
        self._disturbed_until = 0.0  # the broker was not to be reached, or not well, until then

    # The run

    def run(self) -> None:
        """Do all of it."""
        source = f"{self._options.app}-in"
        self._cluster.create([source], self._options.partitions)
        feeder = Feeder(self._cluster.servers, source, self.items, self._options.rate)
        for _ in range(self._options.workers):
            self._add_slot().start()
        self._wait_ready()
        left = f"{self._options.app}-left"
        self.watch = Watch(self._cluster.servers, left, self._options.partitions)
        self.watch.start()
        self.began = time.monotonic()
        feeder.start()
        self._carry_out(feeder)
        self._heal()
        while feeder.is_alive():
            self._tick()
        if feeder.failure:
            raise RuntimeError(f"the workload could not be sent: {feeder.failure}")
        self._settle()
        self._stop_all()

    def _wait_ready(self) -> None:
        """Wait until all workers are: before that there is nothing to disturb."""
        deadline = time.monotonic() + 60
        while not all("ready after" in slot.output() for slot in self.slots):
            self._tick()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the workers did not start:\n{self.slots[0].tail(30)}")

    def _carry_out(self, feeder: Feeder) -> None:
        told = 0.0
        plan = list(reversed(self._plan))
        while (passed := time.monotonic() - self.began) < self._options.seconds:
            while plan and plan[-1].at <= passed:
                self._begin(plan.pop())
            self._tick()
            if passed - told >= 10:
                told = passed
                self._say(f"{feeder.sent:,} of {len(self.items):,} records sent")

    def _tick(self) -> None:
        """Do what is due, look after the workers, and rest for a moment."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for slot in self.slots:
            self._look_after(slot)
        time.sleep(0.02)

    def _look_after(self, slot: Slot) -> None:
        now = time.monotonic()
        state, armed = slot.state, slot.fail_point
        code = slot.ended()
        if code is not None:
            self._has_ended(slot, state, armed, code)
        elif state == "ending" and now - slot.told_at > _DRAIN_MAX:
            slot.send(signal.SIGUSR1)  # the worker's log shows where its tasks stand
            time.sleep(1)
            self._find("drain", f"worker {slot.number} was told to end, and runs on after "
                       f"{_DRAIN_MAX:g} s:\n{slot.tail()}")  # fmt: skip
            slot.kill()
            slot.restart_at = now
        if slot.state == "dead" and slot.restart_at is not None and slot.restart_at <= now:
            slot.start()
        slot.sample()

    def _has_ended(self, slot: Slot, state: str, armed: str, code: int) -> None:
        if code == -signal.SIGKILL and armed:
            self.counts[f"died at {armed.partition(':')[0]}"] += 1
            self._snapshot(slot, f"killed at {armed}")
        elif state == "ending":
            self.longest_drain = max(self.longest_drain, time.monotonic() - slot.told_at)
            # Before it has said anything it may still be at its imports, where a signal ends it.
            # Likewise when all is done and said, and the second one finds it on its way out.
            said = slot.last_output()
            over = "drained and committed" in said or "before it was ready" in said
            done = slot.told_twice and over
            outside = code == -signal.SIGTERM and (not said or done)
            # Without an answer of the broker's the end is bounded, and says by 3 what it cut short.
            bounded = slot.told_twice or slot.told_at < self._disturbed_until + _BROKER_TIMEOUT
            unknown = code == 1 and any(words in slot.tail() for words in _NOT_LAST)
            if code and not outside and not (bounded and (code == 3 or unknown)):
                self._find("exit", f"worker {slot.number} was told to end, and did so with exit "
                           f"code {code}:\n{slot.tail()}")  # fmt: skip
        elif code == 1 and slot.limited and "trickle: the tables in" in slot.tail():
            self.counts["ended by a full disk"] += 1
            self._snapshot(slot, "ended by a full disk")
        elif code == 1 and self._disturbed_at_start(slot):
            self.counts["not started without a broker"] += 1
        else:
            self._find("exit", f"worker {slot.number} ended by itself, with exit code {code}:\n"
                       f"{slot.tail(25)}")  # fmt: skip
            self._snapshot(slot, f"ended with exit code {code}")
        if slot.restart_at is None and slot.number < self._wanted:
            slot.restart_at = time.monotonic() + 0.5

    def _disturbed_at_start(self, slot: Slot) -> bool:
        """Tell whether a worker could not start because of us: then its error is what it owes."""
        lately = time.monotonic() - max(self._disturbed_until, slot.started_at) < _START_MAX
        return lately and not slot.was_ready() and "see that the broker runs" in slot.tail()

    def _find(self, check: str, text: str) -> None:
        finding = Finding(check, f"at {time.monotonic() - self.began:.1f} s: {text}")
        self.findings.append(finding)
        self._say(f"FOUND {finding.check}: {finding.text}")

    def _say(self, text: str) -> None:
        running = sum(slot.state == "running" for slot in self.slots)
        passed = time.monotonic() - self.began
        sys.stdout.write(f"[{passed:6.1f} s, {running} running] {text}\n")
        sys.stdout.flush()

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        due = time.monotonic() + seconds
        heapq.heappush(self._later, (due, next(self._order), call))

    # Slots

    def _add_slot(self) -> Slot:
        options = self._options
        number = len(self.slots)
        name = "shared" if options.shared else f"worker-{number}"
        data = options.directory / "data" / name
        data.mkdir(parents=True, exist_ok=True)
        environment = {
            "FAULTS_APP": options.app,
            "FAULTS_BROKER": self._cluster.workers_url,
            "FAULTS_GUARANTEE": options.guarantee,
            "FAULTS_PARTITIONS": str(options.partitions),
            "FAULTS_PROTOCOL": options.protocol,
            "FAULTS_SESSION_TIMEOUT": str(options.session_timeout),
            # What threads keep of freed memory, a block of each page, is no leak: see tuning.md
            "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
            # Not the trickle that happens to be installed: it may be another checkout's.
            "PYTHONPATH": options.tree or _OWN_TREE,
        }
        slot = Slot(number, data, environment, options.directory / f"worker-{number}.log")
        self.slots.append(slot)
        return slot

    def _pick(self, number: int) -> Slot | None:
        spared = 1 if self._options.spare else 0
        running = [slot for slot in self.slots[spared:] if slot.state == "running"]
        return running[number % len(running)] if running else None

    def _snapshot(self, slot: Slot, why: str) -> None:
        """Keep what a dead worker has on its disk: nothing of it may be uncommitted."""
        if self._options.shared or len(self.snapshots) >= _SNAPSHOTS_MAX:
            return
        target = self._options.directory / "snapshots" / str(len(self.snapshots))
        copy_tables(slot.data / self._options.app / "tables", target)
        self.snapshots.append((f"worker {slot.number}, {why}", target))

    def _kill(self, slot: Slot, restart_in: float) -> None:
        slot.kill()
        if self.watch is not None:
            self.watch.note_kill()
        self._snapshot(slot, "killed")
        slot.restart_at = time.monotonic() + restart_in

    # Faults

    def _begin(self, fault: Fault) -> None:
        slot = self._pick(fault.worker)
        if slot is None and fault.kind not in _OF_NO_WORKER:
            self.counts["no worker to hit"] += 1
            return
        self.counts[fault.kind] += 1
        where = "" if fault.kind in _OF_NO_WORKER or slot is None else f" worker {slot.number}"
        self._say(f"{fault.kind}{where} {fault.seconds:g} s {fault.detail}".rstrip())
        if fault.kind == "grow":
            self._grow()
        elif fault.kind == "shrink":
            self._shrink()
        elif slot is None or not self._hit_worker(fault, slot):
            self._hit_broker(fault)

    def _hit_worker(self, fault: Fault, slot: Slot) -> bool:
        match fault.kind:
            case "kill":
                self._kill(slot, fault.seconds)
            case "failpoint":
                slot.next_fail_point = fault.detail
                self._kill(slot, fault.seconds)
                if fault.detail.startswith("recovery") and not self._options.shared:
                    self._wipe(slot, "all")
            case "full":
                slot.next_environment = {FILE_BYTES: fault.detail}
                self._kill(slot, fault.seconds)
            case "clock":
                slot.next_environment = {CLOCK: fault.detail}
                self._kill(slot, fault.seconds)
            case "stop" | "pause":
                slot.stop()
                self._after(fault.seconds, slot.resume)
            case "term":
                slot.terminate()
                slot.restart_at = time.monotonic() + fault.seconds
            case "term-twice":
                slot.terminate()
                slot.told_twice = True
                self._after(0.05, lambda: slot.send(signal.SIGTERM))
            case "wipe":
                self._kill(slot, fault.seconds)
                self._wipe(slot, fault.detail)
            case _:
                return False
        return True

    def _grow(self) -> None:
        if self._wanted >= self._options.workers + _WORKERS_MAX:
            return
        self._wanted += 1
        while len(self.slots) < self._wanted:
            self._add_slot()
        slot = self.slots[self._wanted - 1]
        if slot.state in {"empty", "dead"}:
            slot.start()

    def _shrink(self) -> None:
        if self._wanted <= max(1, self._options.workers - 1):
            return  # else the others would have nobody to hit in the end
        self._wanted -= 1
        slot = self.slots[self._wanted]
        slot.restart_at = None
        if slot.state in {"running", "stopped"}:
            slot.terminate()

    def _wipe(self, slot: Slot, how: str) -> None:
        """Take from a dead worker's data; in a shared directory others are at work."""
        if self._options.shared:
            return
        if how == "all":
            shutil.rmtree(slot.data)
            slot.data.mkdir()
            return
        tables = slot.data / self._options.app / "tables" / str(self._options.partitions)
        homes = [p for p in tables.iterdir() if p.is_dir()] if tables.is_dir() else []
        for home in sorted(homes):
            if self._dice.random() < 0.5:
                continue
            data = home / "data.mdb"
            if how == "some":
                shutil.rmtree(home)
            elif data.is_file():
                size = data.stat().st_size
                with data.open("r+b") as file:
                    file.truncate(size // 2 if how == "cut" else 0)

    def _hit_broker(self, fault: Fault) -> None:
        lasts = time.monotonic() + fault.seconds
        self._disturbed_until = max(self._disturbed_until, lasts)
        which = fault.worker % len(self._cluster.brokers)  # of several, one is hit
        proxy, broker = self._cluster.proxies[which], self._cluster.brokers[which]
        match fault.kind:
            case "cut":
                proxy.cut()
                return
            case "delay":
                proxy.delay(float(fault.detail))
            case "blackhole":
                proxy.hold()
            case "endtxn":
                proxy.drop_end_txn(cast("EndTxnFate", fault.detail))
            case _:
                if not all(one.pid for one in self._cluster.brokers):
                    return  # one is away already, and two might be most of them
                (broker.kill if fault.detail == "kill" else broker.stop)()
                self._after(fault.seconds, self._start_broker)
                return
        self._after(fault.seconds, proxy.heal)

    def _start_broker(self) -> None:
        for broker in self._cluster.brokers:
            if not broker.pid:
                broker.start()
                self._disturbed_until = time.monotonic()

    # The end

    def _heal(self) -> None:
        """Undo all faults that are still going on."""
        while self._later:
            heapq.heappop(self._later)[2]()
        for proxy in self._cluster.proxies:
            proxy.heal()
        self._start_broker()
        for slot in self.slots:
            slot.resume()
        self._say("healed: from here on nothing disturbs")
        # A fail point that was not reached could still be: it is not one of the plan any more.
        for slot in self.slots:
            if (slot.fail_point or slot.limited) and slot.state == "running":
                slot.kill()
                slot.restart_at = time.monotonic()
            slot.next_fail_point, slot.next_environment = "", {}

    def _settle(self) -> None:
        """Wait until all is done, as the committed offsets tell."""
        began = time.monotonic()
        behind: dict[tuple[str, int], int] = {}
        trouble = ""
        while time.monotonic() - began < self._options.settle_max:
            for _ in range(10):
                self._tick()
            try:
                behind = self._behind()
            except (KafkaException, TimeoutError) as error:
                trouble = f"; {error}"
                continue
            trouble = ""
            if not behind:
                self.settled_after = time.monotonic() - began
                self._say(f"settled after {self.settled_after:.1f} s")
                return
        logs = "\n".join(slot.tail(8) for slot in self.slots)
        text = f"{self._options.settle_max:g} s after the last fault the group is behind at "
        some = dict(sorted(behind.items())[:5])
        self._find("lag", f"{text}{len(behind)} partitions: {some}{trouble}\n{logs}")

    def _behind(self) -> dict[tuple[str, int], int]:
        """Return how far the group is behind, by partition; a commit's marker may be left."""
        app = self._options.app
        consumed = (f"{app}-in", f"{app}-members", f"{app}-by-group-repartition")
        counts = self._cluster.topics(app)
        places = [(t, p) for t in consumed if t in counts for p in range(counts[t])]
        committed = self._cluster.committed(app, places)
        behind: dict[tuple[str, int], int] = {}
        for at, ends in self._cluster.ends(places).items():
            start = committed.get(at, ends.low)
            # Markers and what was aborted take offsets too, and nobody commits those. They are in
            # the source as well, where a worker has ended once more what the broker forgot.
            if start < ends.high and (
                left := read_partition(self._cluster.servers, *at, start=start)
            ):
                behind[at] = len(left)
        return behind

    def _stop_all(self) -> None:
        for slot in self.slots:
            slot.restart_at = None
            if slot.state == "running":
                slot.terminate()
        self._wanted = 0
        deadline = time.monotonic() + _DRAIN_MAX + 2
        while any(slot.state == "ending" for slot in self.slots):
            self._tick()
            if time.monotonic() > deadline:
                break
        self.close()

    def close(self) -> None:
        """End what still runs."""
        if self.watch is not None:
            self.watch.stop()
        for slot in self.slots:
            if slot.state in {"running", "stopped", "ending"}:
                slot.kill()


_OF_NO_WORKER = frozenset({"cut", "delay", "blackhole", "endtxn", "broker", "grow", "shrink"})
