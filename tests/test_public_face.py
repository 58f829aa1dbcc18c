"""A user's program, for the type checkers: strict mode is clean on it, and infers what it says.

The functions are only checked; what runs is that the definitions can be made.
"""

from __future__ import annotations

from typing import Any, assert_type

import trickle


class Flight(trickle.Model):
    carrier: str
    origin: str
    arr_delay: float | None = None


def make() -> trickle.App:
    app = trickle.App(
        "flights",
        broker="memory://typing",
        data_dir=".trickle",
        store="memory://",
        processing_guarantee="exactly_once",
        commit_interval=0.1,
    )
    flights = app.topic("flights", key=str, value=Flight, partitions=4)
    late = app.topic("late", key=str, value=Flight)
    maybe = app.topic("maybe", key=str, value=Flight | None)
    by_carrier = app.table("by_carrier", key=str, value=int, default=int)

    assert_type(flights, trickle.Topic[Flight, str])
    assert_type(maybe, trickle.Topic[Flight | None, str])
    assert_type(by_carrier, trickle.Table[str, int])

    @app.agent(flights)
    async def delays(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            assert_type(flight, Flight)
            by_carrier[flight.carrier] += 1
            if flight.arr_delay and flight.arr_delay > 60:
                late.send_nowait(flight, key=flight.carrier)

    @app.agent(flights, sink=late, on_error=trickle.Retry(times=2, then=trickle.Skip()))
    async def forward(stream: trickle.Stream[Flight]):  # noqa: ANN202 - as in the docs
        async for flight in stream:
            yield flight

    @app.agent(flights.group_by(lambda flight: flight.origin, name="by_origin"), deadline=30)
    async def per_airport(stream: trickle.Stream[Flight]) -> None:
        async for batch in stream.take(10, within=1):
            assert_type(batch, list[Flight])

    @app.agent([flights, late], on_error=trickle.DeadLetter())
    async def both(stream: trickle.Stream[Flight, str]) -> None:
        async for event in stream.filter(lambda f: f.origin == "JFK").events():
            assert_type(event, trickle.Event[Flight, str])
            assert_type(event.key, str)
            async with event:
                event.forward(late)

    assert_type(app.topic("bytes"), trickle.Topic[bytes | None, bytes])
    assert_type(app.topic("keyed", key=int, partitions=2), trickle.Topic[bytes | None, int])
    assert_type(app.topic("perhaps", value=Flight | None), trickle.Topic[Flight | None, bytes])

    @app.timer(30.0)
    async def every_half_minute() -> None:
        await late.send(Flight(carrier="AA", origin="JFK"), key="AA")

    @app.task
    async def once_started() -> None:
        metadata = await flights.send(Flight(carrier="AA", origin="JFK"), key="AA")
        assert_type(metadata, trickle.RecordMetadata)

    @app.command()
    async def load(path: str) -> None:
        del path

    assert_type(delays, trickle.Agent[Flight, str])
    del delays, forward, per_airport, both, every_half_minute, once_started, load
    return app


def side_by_side(app: trickle.App, flights: trickle.Topic[Flight, str]) -> None:
    @app.agent(flights, concurrency=20, ordering=lambda flight: flight.origin)
    async def by_origin(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            assert_type(flight, Flight)

    @app.agent(flights, concurrency=20, ordering="none")
    async def in_any_order(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            assert_type(flight, Flight)

    numbers = app.topic("numbers", key=int, value=float)

    @app.agent([flights, numbers])
    async def either(stream: trickle.Stream[Flight | float]) -> None:
        async for value in stream:
            assert_type(value, Flight | float)

    del by_origin, in_any_order, either


async def program(app: trickle.App) -> None:
    async with app.run() as run:
        assert_type(run, trickle.Run)


def test_the_program_can_be_defined() -> None:
    app = make()
    agents: dict[str, trickle.Agent[Any, Any]] = dict(app.agents)
    assert sorted(agents) == ["both", "by_origin-repartition", "delays", "forward", "per_airport"]
    assert sorted(app.tables) == ["by_carrier"]
    side_by_side(app, app.topics["flights"])
    assert app.agents.keys() - agents.keys() == {"by_origin", "in_any_order", "either"}
    assert "flights-both-dead-letters" in app.topics
