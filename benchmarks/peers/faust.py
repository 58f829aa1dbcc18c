"""Faust: the same work as agents, run by its own worker.

With uvloop, orjson and its Cython parts; no waiting for streams to be empty, no web server; batches
of 256 KB and the linger of the others. Tables are in memory, its default and its fastest.

It takes no part where exactly-once is asked for: with that setting, 0.15.3 sends to a topic that
the app does not itself consume outside of any transaction, for its consumer does not know that
topic's partitions. The output has no transaction markers, which is what the check looks for.
"""

from __future__ import annotations

import os

os.environ["FAUST_LOOP"] = "uvloop"

import asyncio
import signal
import sys
import time

import faust

from benchmarks.measure import Stopwatch, say, tune_gc
from benchmarks.peers.common import PARTITIONS, parse


class Flight(faust.Record, serializer="json"):
    """One departure."""

    carrier: str
    flight: int
    tail: str
    origin: str
    dest: str
    distance: int
    dep_delay: int | None
    arr_delay: int | None
    departure: str


class Bench:
    """One run."""

    def __init__(self, options):
        self.options = options
        latency = options.workload == "latency"
        self.app = faust.App(
            options.group,
            broker=f"kafka://{options.bootstrap}",
            datadir=options.data_dir,
            store="memory://",
            processing_guarantee=options.guarantee,
            broker_commit_interval=options.commit_interval,
            consumer_auto_offset_reset="earliest",
            producer_linger=0.0 if latency else 0.02,
            producer_max_batch_size=256 * 1024,
            stream_wait_empty=False,
            topic_partitions=PARTITIONS,
            topic_replication_factor=1,
            topic_disable_leader=True,
            web_enabled=False,
            worker_redirect_stdouts=False,
        )
        self.flights = self.app.topic(options.topic, key_type=str, value_type=Flight)
        self.watch = Stopwatch()
        self.seen = 0
        self.all_seen = asyncio.Event()

    def note(self):
        if not self.seen:
            self.watch.start()
        self.seen += 1
        if self.seen == self.options.records:
            self.all_seen.set()

    def stops_when_all_is_committed(self):
        @self.app.task
        async def finish():
            await self.all_seen.wait()
            await asyncio.sleep(0)  # the last event is acknowledged as its agent asks for the next
            await self.app.producer.flush()
            await self.app.consumer.commit()
            self.watch.report(self.seen)
            self.stop()

    def stop(self):
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)

    def run(self):
        faust.Worker(
            self.app, loglevel="warn", redirect_stdouts=False, quiet=True
        ).execute_from_commandline()


def stateless(bench):
    distance = [0]

    @bench.app.agent(bench.flights)
    async def read(flights):
        async for flight in flights:
            distance[0] += flight.distance
            bench.note()

    bench.stops_when_all_is_committed()


def pipe(bench):
    out = bench.app.topic(bench.options.out, key_type=str, value_type=Flight)

    @bench.app.agent(bench.flights)
    async def forward(flights):
        async for flight in flights:
            await out.send(key=flight.tail, value=flight)
            bench.note()

    if bench.options.workload == "pipe":
        bench.stops_when_all_is_committed()


def count(bench):
    counts = bench.app.Table("counts", default=int, key_type=str, value_type=int)

    @bench.app.agent(bench.flights)
    async def tally(flights):
        async for flight in flights:
            counts[flight.tail] += 1
            bench.note()

    bench.stops_when_all_is_committed()


def recovery(bench):
    counts = bench.app.Table("counts", default=int, key_type=str, value_type=int)
    service = bench.app.tables.recovery
    start, completed = service._set_recovery_started, service.on_recovery_completed
    began = []

    def started():
        began.append(time.perf_counter())
        bench.watch.start()
        start()

    async def ended(*given):
        await completed(*given)
        if not began or len(counts) != bench.options.records:
            raise RuntimeError(f"{len(counts):,} keys were restored")
        bench.watch.report(len(counts), seconds=time.perf_counter() - began[0])
        bench.stop()

    service._set_recovery_started, service.on_recovery_completed = started, ended

    @bench.app.agent(bench.flights)
    async def tally(flights):
        async for flight in flights:
            counts[flight.tail] += 1


def startup(bench):
    @bench.app.agent(bench.flights)
    async def read(flights):
        async for _ in flights:
            if not bench.seen:
                say({"first": True})
                bench.stop()
            bench.seen += 1


if __name__ == "__main__":
    workloads = {
        "count": count,
        "latency": pipe,
        "pipe": pipe,
        "recovery": recovery,
        "startup": startup,
        "stateless": stateless,
    }
    bench = Bench(parse(*workloads))
    tune_gc()
    workloads[bench.options.workload](bench)
    bench.run()
