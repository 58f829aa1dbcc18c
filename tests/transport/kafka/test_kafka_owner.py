"""What the owner of a member makes of errors that come from the client: without any broker."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from trickle.transport.contract import ConsumerOptions, TransportOptions
from trickle.transport.kafka.config import read_config
from trickle.transport.kafka.epochs import Epoch
from trickle.transport.kafka.logs import ClientLog
from trickle.transport.kafka.owner import Owner
from trickle.types import TopicPartition


class Failed(NamedTuple):
    """A message that is an error; a fake of the client's."""

    code: int
    at: int
    number: int = 0

    def error(self) -> KafkaError:
        return KafkaError(self.code)

    def topic(self) -> str:
        return "flights"

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at


class Client:
    """A fake of the client: it takes positions, and knows no watermarks."""

    def __init__(self) -> None:
        self.sought: list[int] = []

    def assign(self, partitions: list[Any]) -> None:
        pass

    resume = pause = assign

    def seek(self, partition: Any) -> None:
        self.sought.append(partition.offset)

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def owner() -> Owner:
    config = read_config("kafka://127.0.0.1:1", TransportOptions())
    options = ConsumerOptions(group="g", topics=("flights",))
    made = Owner(config, options, ClientLog(config), lambda: None, lambda _: None, lambda: None)
    made.consumer = cast("Any", Client())
    made.rung = True
    made.owned = frozenset({TopicPartition("flights", 0)})
    made.assign(0, Epoch(), {TopicPartition("flights", 0): 100}, frozenset())
    return made


@pytest.mark.parametrize(
    ("at", "number", "told"), [(100, 0, True), (150, 0, True), (99, 0, False), (150, 1, False)]
)
def test_a_position_out_of_range_is_told_unless_it_is_of_an_earlier_assignment(
    owner: Owner, at: int, number: int, told: bool
) -> None:
    """A worker that was stopped comes back; others have moved on, and deleted what they read."""
    late = Failed(KafkaError.OFFSET_OUT_OF_RANGE, at, number)
    assert owner._records([cast("Message", late)]) == []  # pyright: ignore[reportPrivateUsage]
    assert [entry.error is not None for entry in owner.outbox] == [True] * told


@pytest.mark.parametrize("at", [0, 7])
def test_what_is_resumed_is_never_fetched_from_where_nobody_asked_for_it(
    owner: Owner, at: int
) -> None:
    """Not even for a moment: the broker's complaint of an empty partition stops it for good.

    A partition at 0 was woken by way of 1, and between the two the interpreter's lock may be away
    for longer than a broker takes to answer.
    """
    zero = TopicPartition("flights", 0)
    sought = cast("Any", owner.consumer).sought
    sought.clear()
    owner.assign(0, Epoch(), {zero: at}, frozenset({zero}))
    owner.resume(frozenset({zero}))
    owner.assign(0, Epoch(), {zero: at}, frozenset())
    assert sought
    assert set(sought) == {at}
