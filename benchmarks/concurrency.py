"""Concurrency within a partition: requests in flight against a local HTTP server, and its price.

An agent reads one partition and asks a server on loopback, in a process of its own, which answers
each request after a fixed delay. With N events in hand the throughput should be near N / delay. The
same client without trickle, N tasks that do nothing but ask, tells how near it can be here.

Then the price: CPU time for each event of an agent that does nothing, or sleeps, with and without
concurrency; and that of bare tasks that sleep as long.

    python -m benchmarks.concurrency [--concurrency 1000] [--delay 0.5] [--broker URL]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

import trickle
from benchmarks.measure import tune_gc

__all__ = ["main"]

ANSWER = (
    b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"fit": true}'
)
ASK = b"GET /score/%d HTTP/1.1\r\nhost: localhost\r\n\r\n"
KEYS = 10_000

Ask = Callable[[int], Awaitable[None]]


# The server


async def serve(delay: float) -> None:
    """Answer each request after the delay; print the port first."""

    async def answer(stream: trio.SocketStream) -> None:
        unread = b""
        with contextlib.suppress(trio.BrokenResourceError):  # a client that has ended
            while data := bytes(await stream.receive_some()):
                unread += data
                while (end := unread.find(b"\r\n\r\n")) >= 0:
                    unread = unread[end + 4 :]
                    await trio.sleep(delay)
                    await stream.send_all(ANSWER)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(answer, listeners)


async def ask_over(stream: trio.SocketStream, number: int) -> None:
    """Send one request and read its answer."""
    await stream.send_all(ASK % number)
    unread = b""
    while not unread.endswith(b"}"):
        unread += bytes(await stream.receive_some())


# Runs: each returns how many events a second, and the CPU time of one


class Run:
    """What is measured between the first event and the last, without the way up to full speed."""

    def __init__(self, events: int, warm_up: int) -> None:
        self._warm_up = warm_up
        self._last = events + warm_up
        self._seen = 0
        self._began = (0.0, 0.0)
        self.result: dict[str, float] = {}
        self.done = trio.Event()

    def count(self) -> None:
        self._seen += 1
        if self._seen == self._warm_up:
            self._began = (time.perf_counter(), time.process_time())
        elif self._seen == self._last:
            wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
            events = self._last - self._warm_up
            self.result = {"per_second": events / wall, "cpu_us": cpu / events * 1e6}
            self.done.set()


async def bare(run: Run, concurrency: int, connect: Callable[[], Awaitable[Ask]]) -> None:
    """Ask from so many tasks, without trickle."""

    async def work() -> None:
        ask = await connect()
        number = 0
        while True:
            await ask(number)
            number += 1
            run.count()

    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(work)
        await run.done.wait()
        nursery.cancel_scope.cancel()


async def through_trickle(
    run: Run, concurrency: int, connect: Callable[[], Awaitable[Ask]], broker: str, records: int
) -> None:
    """Ask from an agent over one partition."""
    name = f"bench-{time.time_ns()}"
    with tempfile.TemporaryDirectory() as directory:
        app = trickle.App(
            name, broker=broker or f"lmdb://{directory}/log", data_dir=directory, web=False
        )
        source = app.topic(name, key=int, value=int, partitions=1)

        @app.agent(source, concurrency=concurrency)
        async def work(stream: trickle.Stream[int]) -> None:
            ask = await connect()
            async for number in stream:
                await ask(number)
                run.count()

        del work
        async with app.client():
            for start in range(0, records, 5_000):
                numbers = range(start, min(start + 5_000, records))
                await source.send_all([(number % KEYS, number) for number in numbers])
        async with app.run():
            await run.done.wait()


async def measure(
    kind: str, concurrency: int, connect: Callable[[], Awaitable[Ask]], events: int, broker: str
) -> dict[str, float]:
    run = Run(events, max(2 * concurrency, events // 5))
    if kind == "bare":
        await bare(run, concurrency, connect)
    else:
        await through_trickle(run, concurrency, connect, broker, events * 2 + 4 * concurrency)
    return run.result


async def connect_to(port: int) -> Ask:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return partial(ask_over, stream)


async def nothing() -> Ask:
    async def ask(number: int) -> None:
        del number

    return ask


async def sleeping(seconds: float) -> Ask:
    async def ask(number: int) -> None:
        del number
        await trio.sleep(seconds)

    return ask


def main() -> None:
    """Measure one thing, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=1_000)
    parser.add_argument("--delay", type=float, default=0.5)
    parser.add_argument("--broker", default="")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--events", type=int)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--one", choices=["bare", "trickle"])
    parser.add_argument("--work", choices=["http", "nothing", "sleep"])
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.delay)
    elif options.one:
        connect: dict[str, Callable[[], Awaitable[Ask]]] = {
            "http": partial(connect_to, options.port),
            "nothing": nothing,
            "sleep": partial(sleeping, options.delay),
        }
        tune_gc()
        result = trio.run(
            measure, options.one, options.concurrency, connect[options.work], options.events,
            options.broker,
        )  # fmt: skip
        print(json.dumps(result))
    else:
        measure_all(options.concurrency, options.delay, options.broker, options.repeat)


def measure_all(concurrency: int, delay: float, broker: str, repeat: int) -> None:
    """Print a table: what was asked of each, and the median of some runs."""
    ideal = concurrency / delay
    waits = int(ideal * 8)
    lines: list[tuple[str, list[str]]] = [
        ("bare, http", ["bare", "http", str(concurrency), str(waits)]),
        (f"trickle, http, {concurrency}", ["trickle", "http", str(concurrency), str(waits)]),
        ("bare, sleep", ["bare", "sleep", str(concurrency), str(waits)]),
        (f"trickle, sleep, {concurrency}", ["trickle", "sleep", str(concurrency), str(waits)]),
        ("trickle, nothing, 1", ["trickle", "nothing", "1", "200000"]),
        ("trickle, nothing, 10", ["trickle", "nothing", "10", "100000"]),
        (f"trickle, nothing, {concurrency}", ["trickle", "nothing", str(concurrency), "100000"]),
    ]
    me = [sys.executable, "-m", "benchmarks.concurrency"]
    serving = [*me, "--serve", "--delay", str(delay)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        found: dict[str, list[dict[str, float]]] = {name: [] for name, _ in lines}
        for _ in range(repeat):
            for name, (kind, work, count, events) in lines:
                command = [
                    *me, "--one", kind, "--work", work, "--concurrency", count, "--events", events,
                    "--delay", str(delay), "--port", port, "--broker", broker,
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        server.terminate()
    print(f"{concurrency} in flight, {delay:g} s each: {ideal:,.0f} a second at best")
    for name, runs in found.items():
        runs.sort(key=lambda run: run["per_second"])
        middle = runs[len(runs) // 2]
        low, high = runs[0]["per_second"], runs[-1]["per_second"]
        print(
            f"{name:28} {middle['per_second']:10,.0f} a second ({low:,.0f} to {high:,.0f}), "
            f"{middle['cpu_us']:8.1f} µs of CPU each"
        )


if __name__ == "__main__":
    main()
