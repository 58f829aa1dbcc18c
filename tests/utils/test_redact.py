"""Secrets are hidden by an allow-list."""

from __future__ import annotations

import pytest

from trickle.utils.redact import client_secrets, redact_client, redact_url, url_secrets


def test_only_options_known_to_be_harmless_are_shown() -> None:
    options = {"sasl.password": "s3cret", "linger.ms": 5, "some.new.option": "x", "debug": "all"}
    assert redact_client(options) == {
        "sasl.password": "****",
        "linger.ms": 5,
        "some.new.option": "****",
        "debug": "all",
    }
    assert client_secrets(options) == ["s3cret", "x"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("kafka://localhost:9092", "kafka://localhost:9092"),
        ("kafka://a:1,b:2", "kafka://a:1,b:2"),
        ("kafka://user:pa55@host:1", "kafka://****@host:1"),
        ("kafka://user:p@ss/w?rd#@host:1", "kafka://****@host:1"),
        ("kafka://host?password=x", "kafka://host?****"),
        ("http://u:p@h/x#frag", "http://****@h/x?****"),
        ("lmdb:///data/a@b", "lmdb:///data/a@b"),
        ("memory://x", "memory://x"),
        ("localhost:9092", "localhost:9092"),
        ("user:pa55@localhost:9092", "****@localhost:9092"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_a_password_is_secret_as_it_stands_and_unquoted() -> None:
    assert url_secrets("kafka://user:p%40ss@host") == ["p%40ss", "p@ss"]
    assert url_secrets("kafka://host") == []
    assert url_secrets("lmdb:///a:b@c") == []
