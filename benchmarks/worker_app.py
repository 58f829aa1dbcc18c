"""The app that ``trickle worker`` runs where the start of a process is measured."""

from __future__ import annotations

import os

import trickle
from benchmarks.data import PARTITIONS, Flight
from benchmarks.measure import say

app = trickle.App(os.environ["BENCH_GROUP"])
flights = app.topic(os.environ["BENCH_TOPIC"], key=bytes, value=Flight, partitions=PARTITIONS)


@app.agent(flights)
async def read(stream: trickle.Stream[Flight]) -> None:
    """Say when the first record is handled."""
    first = True
    async for _ in stream:
        if first:
            say({"first": True})
            first = False
