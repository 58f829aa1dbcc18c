"""bytewax: the same work as a dataflow in one worker.

Batches of 1,000, orjson, and a recovery store (SQLite) that takes the positions with each epoch, as
it has no consumer group. Its sink flushes after each batch. It has no exactly-once output, and its
state rests in the recovery store, so it takes part where neither is asked for.
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import orjson
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

from benchmarks.measure import Stopwatch, say, tune_gc
from benchmarks.peers.common import parse


class Counted(StatelessSinkPartition):
    """Adds up distances."""

    def __init__(self, total):
        self.total = total

    def write_batch(self, items):
        self.total[0] += sum(items)


class CountSink(DynamicSink):
    """Where the distances go."""

    def __init__(self, total):
        self.total = total

    def build(self, step_id, worker_index, worker_count):
        return Counted(self.total)


class Bench:
    """One run."""

    def __init__(self, options):
        self.options = options
        self.watch = Stopwatch()
        self.seen = 0

    def source(self, flow):
        options = self.options
        settings = {"fetch.queue.backoff.ms": "5", "queued.min.messages": "20000"}
        source = KafkaSource(
            [options.bootstrap],
            [options.topic],
            tail=options.workload == "latency",
            add_config=settings,
            batch_size=1_000,
        )
        return op.input("in", flow, source)

    def decode(self, message):
        if not self.seen:
            self.watch.start()
            if self.options.workload == "startup":
                say({"first": True})
                os._exit(0)
        self.seen += 1
        return message.key, orjson.loads(message.value)

    def run(self, flow):
        home = Path(self.options.data_dir)
        init_db_dir(home, 1)
        interval = timedelta(seconds=self.options.commit_interval)
        run_main(flow, epoch_interval=interval, recovery_config=RecoveryConfig(str(home)))
        self.watch.report(self.seen)
        if self.seen != self.options.records:
            raise RuntimeError(f"{self.seen:,} records were handled")


def stateless(bench):
    flow = Dataflow("stateless")
    flights = op.map("decode", bench.source(flow), bench.decode)
    distances = op.map("distance", flights, lambda item: item[1]["distance"])
    op.output("out", distances, CountSink([0]))
    bench.run(flow)


def pipe(bench):
    flow = Dataflow("pipe")
    flights = op.map("decode", bench.source(flow), bench.decode)
    outputs = op.map(
        "encode",
        flights,
        lambda item: KafkaSinkMessage(item[1]["tail"].encode(), orjson.dumps(item[1])),
    )
    settings = {
        "linger.ms": "0" if bench.options.workload == "latency" else "20",
        "batch.size": "1000000",
        "queue.buffering.max.messages": "500000",
        "partitioner": "murmur2_random",
    }
    sink = KafkaSink([bench.options.bootstrap], bench.options.out, add_config=settings)
    op.output("out", outputs, sink)
    bench.run(flow)


if __name__ == "__main__":
    workloads = {"latency": pipe, "pipe": pipe, "startup": stateless, "stateless": stateless}
    bench = Bench(parse(*workloads))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tune_gc()
    workloads[bench.options.workload](bench)
