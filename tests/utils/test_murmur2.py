"""Keys find their partitions exactly as Java's clients and librdkafka have it."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import given
from hypothesis import strategies as st

from tests.kafka_broker import KafkaBroker
from trickle.utils.murmur2 import murmur2, partition_of


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_vectors_of_kafkas_own_test(data: bytes, expected: int) -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    assert murmur2(data) == expected


def java(data: bytes) -> int:
    """Transcribe Utils.murmur2 line by line, with Java's 32-bit arithmetic."""

    def cut(number: int) -> int:
        return number & 0xFFFFFFFF

    length = len(data)
    m = 0x5BD1E995
    h = cut(0x9747B28C ^ length)
    for i in range(length // 4):
        i4 = i * 4
        k = data[i4] + (data[i4 + 1] << 8) + (data[i4 + 2] << 16) + (data[i4 + 3] << 24)
        k = cut(k * m)
        k ^= k >> 24
        k = cut(k * m)
        h = cut(h * m)
        h ^= k
    tail = length & ~3
    if length % 4 == 3:
        h ^= data[tail + 2] << 16
    if length % 4 >= 2:
        h ^= data[tail + 1] << 8
    if length % 4 >= 1:
        h ^= data[tail]
        h = cut(h * m)
    h ^= h >> 13
    h = cut(h * m)
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@given(st.binary(max_size=200))
def test_it_is_javas_arithmetic(data: bytes) -> None:
    assert murmur2(data) == java(data)


@given(st.binary(max_size=200), st.integers(1, 1000))
def test_a_key_has_one_partition(key: bytes, count: int) -> None:
    # toPositive clears the sign bit; abs() would differ.
    assert partition_of(key, count) == (java(key) & 0x7FFFFFFF) % count
    assert partition_of(bytes(bytearray(key)), count) == partition_of(key, count)


def test_no_key_goes_anywhere_and_an_empty_key_does_not() -> None:
    assert {partition_of(None, 3) for _ in range(1000)} == {0, 1, 2}
    assert len({partition_of(b"", 7) for _ in range(100)}) == 1


@pytest.mark.kafka
def test_librdkafka_finds_the_same_partitions(kafka_broker: KafkaBroker) -> None:
    topic, count = f"murmur2-{uuid.uuid4().hex[:12]}", 7
    admin: Any = AdminClient({"bootstrap.servers": kafka_broker.address})
    admin.create_topics([NewTopic(topic, num_partitions=count)])[topic].result(30)
    chosen = random.Random(1)
    keys = [b"", *(chosen.randbytes(size) for size in range(1, 200))]
    found: dict[bytes, int] = {}

    def delivered(error: Any, message: Any) -> None:
        assert error is None
        found[message.key() or b""] = message.partition()

    settings = {"bootstrap.servers": kafka_broker.address, "partitioner": "murmur2_random"}
    producer: Any = Producer(settings)
    for key in keys:
        producer.produce(topic, b"", key, on_delivery=delivered)
    assert producer.flush(30) == 0
    assert found == {key: partition_of(key, count) for key in keys}
