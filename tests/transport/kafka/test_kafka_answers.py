"""What the client says, taken for what it is; no broker is needed."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaException

from trickle.transport.kafka.admin import told
from trickle.transport.kafka.errors import AWAY, error_of


def test_an_offset_that_the_client_does_not_know_is_no_end_of_a_topic() -> None:
    """Librdkafka answers -1001, and no error, for a broker that goes away during the question.

    A worker ended by it: its committed offset "lies outside of what the topic holds, 0 to -1001".
    """
    assert told(0) == 0
    with pytest.raises(KafkaException) as caught:
        told(-1001)
    assert error_of(caught.value).code() in AWAY
