"""Fixtures that tests of several rooms share."""

from __future__ import annotations

from tests.kafka_broker import kafka_broker

__all__ = ["kafka_broker"]
