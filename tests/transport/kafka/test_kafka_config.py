"""Broker URLs, client options, and what the client's log lines become: without any broker."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError

from trickle.exceptions import BrokerUnavailable, ConfigurationError, RecordRefused
from trickle.transport.contract import ConsumerOptions, ProducerOptions, TopicSpec, TransportOptions
from trickle.transport.kafka.admin import topic_config
from trickle.transport.kafka.again import HELD_BACK
from trickle.transport.kafka.blame import refused_by
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.config import read_config
from trickle.transport.kafka.errors import failed
from trickle.transport.kafka.logs import ClientLog
from trickle.transport.kafka.transaction import make_producer

LOGGER = "trickle.transport.kafka"


def test_hosts_without_a_port_get_kafkas() -> None:
    config = read_config("kafka://a,b:1234,[::1]", TransportOptions())
    assert config.servers == "a:9092,b:1234,[::1]:9092"
    assert config.url == "kafka://a:9092,b:1234,[::1]:9092"


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://a:b",
        "kafka://a:0",
        "kafka://a:\u00b2",
        "kafka://a,",
        "kafka://a/b",
        "kafka://a b",
        "kafka://[::1",
        "kafka://::1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address; write kafka://host:port"):
        read_config(url, TransportOptions())


def test_a_password_is_never_shown() -> None:
    config = read_config("kafka://me:s%40crt!@host", TransportOptions())
    assert config.url == "kafka://me:****@host:9092"
    assert config.client["sasl.password"] == "s@crt!"
    assert config.client["security.protocol"] == "SASL_SSL"
    assert config.redact("s@crt! and s%40crt!") == "**** and ****"
    with pytest.raises(ConfigurationError) as caught:
        read_config("kafka://me:hidden@host:x", TransportOptions())
    assert "hidden" not in str(caught.value)


def test_a_password_without_encryption_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    options = TransportOptions(client={"security.protocol": "SASL_PLAINTEXT"})
    with caplog.at_level(logging.WARNING, LOGGER):
        read_config("kafka://me:secret@host", options)
    assert [record.message for record in caplog.records] == [
        (
            "the broker's password and all records travel without encryption: "
            "set the client option security.protocol to SASL_SSL"
        )
    ]


@pytest.mark.parametrize(
    "name",
    ["enable.auto.commit", "isolation.level", "transactional.id", "error_cb", "group.id", "acks"],
)
def test_settings_that_trickle_owns_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the client option '{name}' may not be set: "):
        read_config("kafka://host", TransportOptions(client={name: "x"}))


def test_other_client_options_win() -> None:
    config = read_config("kafka://host", TransportOptions(client={"linger.ms": 0}))
    assert config.producer(ProducerOptions())["linger.ms"] == 0


def test_virtual_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"works with memory:// only"):
        read_config("kafka://host", TransportOptions(inline=True))


def test_an_unknown_group_protocol_is_refused() -> None:
    config = read_config("kafka://host", TransportOptions())
    options = ConsumerOptions(group="g", topics=("t",), protocol="other")
    with pytest.raises(ConfigurationError, match="must be 'classic' or 'consumer', not 'other'"):
        config.consumer(options)


def test_the_session_of_kip_848_is_the_brokers() -> None:
    config = read_config("kafka://host", TransportOptions())
    settings = config.consumer(ConsumerOptions(group="g", topics=("t",), protocol="consumer"))
    assert settings["group.remote.assignor"] == "range"
    assert "session.timeout.ms" not in settings


def test_topic_policies_in_kafkas_names() -> None:
    def policy(*, compacting: bool | None, deleting: bool | None) -> str | None:
        spec = TopicSpec(name="t", compacting=compacting, deleting=deleting)
        return topic_config(spec).get("cleanup.policy")

    assert policy(compacting=None, deleting=None) is None
    assert policy(compacting=True, deleting=None) == "compact"
    assert policy(compacting=True, deleting=True) == "compact,delete"
    assert policy(compacting=False, deleting=None) == "delete"
    spec = TopicSpec(name="t", retention_ms=5, config={"retention.ms": "6"})
    assert topic_config(spec) == {"retention.ms": "6"}


def test_a_refused_record_is_found_in_the_errors_words() -> None:
    text = "ProduceRequest for late-2 [3] with 7 message(s) failed: Broker: Message size too large"
    refused = refused_by(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, text), {"late", "late-2"})
    assert isinstance(refused, RecordRefused)
    assert (refused.topic, refused.partition) == ("late-2", 3)
    assert "max.message.bytes" in str(refused)
    unknown = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "late-2: not allowed")
    found = refused_by(unknown, {"late", "late-2"})
    assert found is not None
    assert found.topic == "late-2"
    assert refused_by(KafkaError(KafkaError.NOT_COORDINATOR), {"late"}) is None


def test_a_broker_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    config = read_config("kafka://me:secret@host:1", TransportOptions())
    log = ClientLog(config)
    with caplog.at_level(logging.DEBUG, LOGGER):
        for attempt in range(5):
            log.log(40, "%s [%s] %s", "FAIL", "client-1", f"secret: refused after {attempt} ms")
        log.log(30, "%s [%s] %s", "OTHER", "client-1", "took 5 ms")
        log.log(30, "%s [%s] %s", "OTHER", "client-1", "took 7 ms")
    assert [record.message for record in caplog.records] == [
        (
            "the broker kafka://me:****@host:1 is away, trying again until it answers: "
            "****: refused after 0 ms"
        ),
        "OTHER: took 5 ms",
    ]


@pytest.mark.parametrize(
    "name", ["_NOENT", "_TRANSPORT", "CONCURRENT_TRANSACTIONS", "NOT_LEADER_FOR_PARTITION"]
)
def test_what_may_pass_by_itself_is_an_unavailable_broker(name: str) -> None:
    """A partition without a leader ("No leaders found") is waited for as a broker that is away."""
    error = KafkaError(getattr(KafkaError, name))
    assert isinstance(failed("kafka://h:1", 1, "looking", error), BrokerUnavailable)


def test_what_does_not_pass_is_no_unavailable_broker() -> None:
    error = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED)
    assert not isinstance(failed("kafka://h:1", 1, "looking", error), BrokerUnavailable)


@pytest.mark.parametrize("request_timeout", [1, 5, 20])
def test_what_ends_forgotten_transactions_can_be_made_whatever_the_timeout(
    request_timeout: float,
) -> None:
    """It holds its records back for longer than a short broker_timeout lets others live."""
    config = read_config("kafka://127.0.0.1:1", TransportOptions(request_timeout=request_timeout))
    options = ProducerOptions(transactional_id="healer")
    bury(make_producer(config, options, ClientLog(config), more=HELD_BACK))  # it is not refused
