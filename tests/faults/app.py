"""The app under test: the only module of the checker that knows trickle.

Every event of the source is echoed into two topics, at two different partitions, counted per key,
and counted again per group behind a repartition; a second agent reads the same source at a pace of
its own. Some events fail at their first attempt, after they have written and sent, and some take a
while there: so an undo that forgets something, or a cancelled event that leaves something, shows.
A timer sends, too, what no position would bring back.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import time
import uuid
from typing import cast

import trio

import trickle
from trickle.stores.lmdb import LmdbStore

_ID = os.environ["FAULTS_APP"]
_PARTITIONS = int(os.environ["FAULTS_PARTITIONS"])


def _jump(days: int) -> None:
    """Let the clock jump every three seconds; waits and order may not depend on it."""
    real = time.time

    def jumping() -> float:
        step = int(time.monotonic() / 3) * 7919 % (2 * days + 1)
        return real() + (step - days) * 86_400

    time.time = jumping


if "FAULTS_CLOCK" in os.environ:
    _jump(int(os.environ["FAULTS_CLOCK"]))
if "FAULTS_FILE_BYTES" in os.environ:
    _bytes = int(os.environ["FAULTS_FILE_BYTES"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (_bytes, _bytes))
# Maps are small at first, so that they have to grow.
cast("dict[str, int]", LmdbStore.__init__.__kwdefaults__)["map_bytes"] = 1 << 17


class Item(trickle.Model):
    """A record of the workload: ``number`` is unique for its key."""

    number: int
    group: str


class Counted(trickle.Model):
    """What is told of an event behind a count: whose it was, and the count with it."""

    key: str
    number: int
    count: int


class FlakyError(Exception):
    """What an event fails with at its first attempt."""


app = trickle.App(
    _ID,
    broker=os.environ["FAULTS_BROKER"],
    data_dir=os.environ["FAULTS_DATA"],
    processing_guarantee=(
        "exactly_once" if os.environ["FAULTS_GUARANTEE"] == "exactly_once" else "at_least_once"
    ),
    group_protocol="consumer" if os.environ["FAULTS_PROTOCOL"] == "consumer" else "classic",
    session_timeout=float(os.environ["FAULTS_SESSION_TIMEOUT"]),
    drain_timeout=2,
    broker_timeout=12,
    # Full after a minute or two, so that values leave it, and memory is level from then on.
    cache_bytes=1 << 20,
)

source = app.topic(f"{_ID}-in", key=str, value=Item, partitions=_PARTITIONS)
left = app.topic(f"{_ID}-left", key=str, value=Item, partitions=_PARTITIONS)
right = app.topic(f"{_ID}-right", key=str, value=Item, partitions=_PARTITIONS)
third = app.topic(f"{_ID}-third", key=str, value=Item, partitions=_PARTITIONS)
running = app.topic(f"{_ID}-running", key=str, value=Counted, partitions=_PARTITIONS)
grouped = app.topic(f"{_ID}-grouped", key=str, value=Counted, partitions=_PARTITIONS)

counts = app.table("counts", key=str, value=int, default=int)
sums = app.table("sums", key=str, value=int, default=int)
groups = app.table("groups", key=str, value=int, default=int)
last = app.table("last", key=str, value=list[int], default=list[int])

_failed_once: set[tuple[str, int]] = set()


@app.agent(source, on_error=trickle.Retry(times=3, backoff=0))
async def echo(stream: trickle.Stream[Item, str]) -> None:
    """Echo each event twice, and count it."""
    async for event in stream.events():
        key, item = event.key, event.value
        counts[key] += 1
        sums[key] += item.number
        last[key] = [*last[key][-2:], item.number]
        left.send_nowait(item, key=key)
        if item.number % 101 == 0 and (key, item.number) not in _failed_once:
            _failed_once.add((key, item.number))
            raise FlakyError
        if item.number % 41 == 0:
            await trio.sleep(0.05)
        running.send_nowait(Counted(key=key, number=item.number, count=counts[key]), key=key)
        right.send_nowait(item, key=key, partition=(event.partition + 1) % _PARTITIONS)


@app.agent(source)
async def second(stream: trickle.Stream[Item, str]) -> None:
    """Echo each event as well, behind or ahead of the other agent."""
    async for event in stream.events():
        if event.offset % 40 == 0:
            await trio.sleep(0.2)
        third.send_nowait(event.value, key=event.key)


class Member(trickle.Model):
    """An item on its way to its group: it takes its key with it."""

    key: str
    number: int
    group: str


members = app.topic(f"{_ID}-members", key=str, value=Member, partitions=_PARTITIONS)


@app.agent(source, name="enlist")
async def enlist(stream: trickle.Stream[Item, str]) -> None:
    """Send each event on with its key in its value, for grouping changes the key."""
    async for event in stream.events():
        item = event.value
        members.send_nowait(
            Member(key=event.key, number=item.number, group=item.group), key=event.key
        )


@app.agent(members.group_by("group", name="by-group"), name="group")
async def group(stream: trickle.Stream[Member, str]) -> None:
    """Count per group."""
    async for event in stream.events():
        member = event.value
        groups[event.key] += 1
        grouped.send_nowait(
            Counted(key=member.key, number=member.number, count=groups[event.key]), key=event.key
        )


ticks = app.topic(f"{_ID}-ticks", key=str, value=int, partitions=_PARTITIONS)
_PROCESS = uuid.uuid4().hex
_numbers = itertools.count(1)


@app.timer(0.3)
async def tick() -> None:
    """Tell that this process is alive: its ticks have no position, and are numbered instead."""
    ticks.send_nowait(next(_numbers), key=_PROCESS)


@app.task
async def trim() -> None:
    """Give back what the C library keeps of freed memory: what is measured is what is held."""
    libc = ctypes.CDLL(None)
    while True:
        await trio.sleep(20)
        libc.malloc_trim(0)
