"""Log lines: their shapes, the secrets that are not in them, and the repeats that are held back."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trickle.utils.logs import Redactor, RepeatFilter, setup_logging, where_raised

if TYPE_CHECKING:
    from collections.abc import Generator

CANARY = 'canary"password'


@contextmanager
def logged(**arguments: Any) -> Generator[io.StringIO]:
    """Set logging up on a stream, and put everything back."""
    root, ours = logging.getLogger(), logging.getLogger("trickle")
    levels = root.level, ours.level
    stream = io.StringIO()
    handler = setup_logging(stream=stream, **arguments)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        logging.captureWarnings(capture=False)


def fail() -> None:
    raise ValueError("no such carrier")


def test_a_plain_line_has_time_level_logger_and_message() -> None:
    with logged() as stream:
        logging.getLogger("trickle.agents").warning("agent %s is slow", "delays")
    line = stream.getvalue()
    assert line.endswith("WARNING  trickle.agents: agent delays is slow\n")
    assert line[:4].isdigit()


def test_an_error_is_one_sentence_with_the_place_and_a_traceback_for_who_debugs() -> None:
    for debug in (False, True):
        with logged(debug=debug) as stream:
            try:
                fail()
            except ValueError:
                logging.getLogger("trickle.agents").exception("an event failed")
        text = stream.getvalue()
        assert ("Traceback" in text) is debug
        if not debug:
            assert "an event failed: ValueError: no such carrier (" in text
            assert "test_logs.py:" in text
            assert text.count("\n") == 1


def test_json_is_one_object_a_line_with_extra_fields_and_the_error() -> None:
    with logged(format="json") as stream:
        log = logging.getLogger("trickle.agents")
        log.info("two\nlines", extra={"agent": "delays", "partition": 3})
        try:
            fail()
        except ValueError:
            log.exception("an event failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["level"], first["logger"]) == ("info", "trickle.agents")
    assert (first["agent"], first["partition"]) == ("delays", 3)
    assert first["time"].endswith("Z")
    assert second["error"]["type"] == "ValueError"
    assert second["error"]["message"] == "no such carrier"
    assert "in fail" in second["error"]["where"]
    assert "Traceback" in second["error"]["traceback"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_secret_leaves_by_message_argument_extra_field_or_traceback(format: str) -> None:
    redact = Redactor([CANARY])
    with logged(format=format, redact=redact, debug=True) as stream:
        log = logging.getLogger("trickle.transport")
        log.info(f"message {CANARY}")
        log.info("argument %s", CANARY, extra={"url": f"kafka://me:{CANARY}@host"})
        try:
            raise RuntimeError(f"login failed for me:{CANARY}")
        except RuntimeError:
            log.exception("no broker")
    text = stream.getvalue()
    assert "canary" not in text
    assert text.count("****") >= 3


def test_a_secret_inside_another_leaves_no_rest() -> None:
    redact = Redactor(["pass", "password1"])
    assert redact("password1 pass x") == "**** **** x"
    assert Redactor(["p'ss/w\\rd"])(repr({"p": "p'ss/w\\rd"})) == """{'p': "****"}"""
    assert Redactor(["p@ssword"])("kafka://me:p%40ssword@host") == "kafka://me:****@host"
    assert Redactor(["abc", ""])("abc") == "abc"  # too short to blank without harm


def test_repeats_are_held_back_and_counted() -> None:
    repeats = RepeatFilter(burst=2, period=10)

    def passes(at: float, level: int = logging.WARNING, name: str = "trickle.agents") -> bool | str:
        record = logging.LogRecord(name, level, "f", 1, "event %d skipped", (at,), None)
        record.created = at
        return repeats.filter(record) and getattr(record, "held_back", True)

    assert [passes(0), passes(1), passes(2), passes(3)] == [True, True, False, False]
    assert passes(4, logging.ERROR) is True
    assert passes(4, name="app") is True
    assert passes(11) == 2  # two were held back meanwhile
    assert passes(12) is True


def test_the_place_is_the_last_one_outside_libraries() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    place = where_raised(caught.value)
    assert place is not None
    assert "test_logs.py:" in place


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="no log level 'loud': use one of debug, info"):
        setup_logging(level="loud")
