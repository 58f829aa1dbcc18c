"""Quix Streams: the same work as a StreamingDataFrame.

Its own JSON (orjson into dicts, for it decodes into nothing typed), batches and linger as the
others have them, ``fetch.queue.backoff.ms`` as the bare client has it, RocksDB with its defaults.
"""

from __future__ import annotations

import time

from quixstreams import Application, State

from benchmarks.measure import Stopwatch, say, tune_gc
from benchmarks.peers.common import parse


def application(options, **more):
    latency = options.workload == "latency"
    return Application(
        broker_address=options.bootstrap,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        commit_interval=options.commit_interval,
        processing_guarantee=options.guarantee.replace("_", "-"),
        state_dir=options.data_dir,
        loglevel="WARNING",
        consumer_extra_config={
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 20_000,
        },
        producer_extra_config={
            "linger.ms": 0 if latency else 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
        },
        **more,
    )


def until(app, records, watch):
    """Run the app until its last record is committed."""
    context = app._processing_context
    commit = context.commit_checkpoint

    def committed(force=False, **more):
        commit(force, **more)
        if force and not more:  # the one behind the loop; another follows as partitions are left
            watch.report(records)

    context.commit_checkpoint = committed
    app.run()


def counted(options):
    """Return an app that stops behind the last record, and the watch that its first one starts."""
    watch = Stopwatch()
    seen = [0]

    def processed(topic, partition, offset):
        if not seen[0]:
            watch.start()
        seen[0] += 1
        if seen[0] >= options.records:
            app.stop()

    app = application(options, on_message_processed=processed)
    return app, watch


def stateless(options):
    app, watch = counted(options)
    distance = [0]

    def read(flight):
        distance[0] += flight["distance"]

    frame = app.dataframe(app.topic(options.topic))
    frame.update(read)
    until(app, options.records, watch)


def pipe(options):
    app, watch = counted(options)
    frame = app.dataframe(app.topic(options.topic))
    frame.to_topic(app.topic(options.out))
    until(app, options.records, watch)


def latency(options):
    app = application(options)
    frame = app.dataframe(app.topic(options.topic))
    frame.to_topic(app.topic(options.out))
    app.run()


def tally(flight, state: State):
    state.set("count", state.get("count", 0) + 1)


def count(options):
    app, watch = counted(options)
    frame = app.dataframe(app.topic(options.topic))
    frame.update(tally, stateful=True)
    until(app, options.records, watch)


def recovery(options):
    """Restore the store whose changelog the count has written; its source has no more records."""
    watch = Stopwatch()
    app = application(options)
    manager = app._state_manager
    recover = manager.do_recovery

    def timed():
        began = time.perf_counter()
        recover()
        seconds = time.perf_counter() - began
        store = next(iter(next(iter(manager.stores.values())).values()))
        keys = sum(
            1 for partition in store.partitions.values() for _ in partition.iter_items(b"", b"\xff")
        )
        if keys != options.records:
            raise RuntimeError(f"{keys:,} of {options.records:,} keys are in the store")
        watch.report(options.records, seconds=seconds)
        app.stop()

    manager.do_recovery = timed
    frame = app.dataframe(app.topic(options.topic))
    frame.update(tally, stateful=True)
    watch.start()
    app.run()


def startup(options):
    def processed(topic, partition, offset):
        say({"first": True})
        app.stop()

    app = application(options, on_message_processed=processed)
    frame = app.dataframe(app.topic(options.topic))
    frame.update(lambda flight: None)
    app.run()


if __name__ == "__main__":
    workloads = {
        "count": count,
        "latency": latency,
        "pipe": pipe,
        "recovery": recovery,
        "startup": startup,
        "stateless": stateless,
    }
    given = parse(*workloads)
    tune_gc()
    workloads[given.workload](given)
