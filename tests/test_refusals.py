"""Whose fault a refused record is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trickle.exceptions import CommitFailed, RecordRefused, TopicError, TopicRefused
from trickle.refusals import Refusals
from trickle.snapshots import Snapshot

TAKEN = Snapshot(
    plan={}, dirty=[], events=1, size=0, after=[], ticks=[], holder=None, mark=None
)  # fmt: skip
GONE = TopicRefused("no such topic", topic="out")


def ended(refusals: Refusals, times: Sequence[float]) -> list[bool]:
    """Tell for each of some refusals whether it ends the Run."""
    return [isinstance(refusals.fault(TAKEN, GONE, now), TopicError) for now in times]


@pytest.mark.parametrize(
    ("times", "last"),
    [
        ([0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 9.9], False),
        ([0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 10.1], True),
        ([0, 95], False),  # however far apart: it may have been well between
        ([0, 30, 60], True),  # each attempt takes that long
        ([0, 5, 4000, 4005], False),
    ],
)
def test_what_lasts_ends_the_run(times: list[float], last: bool) -> None:
    refusals = Refusals({"out"}, set[str]())
    *before, found = ended(refusals, times)
    assert not any(before)
    assert found == last


def test_a_topic_that_has_taken_something_begins_anew() -> None:
    refusals = Refusals({"out", "other"}, set[str]())
    assert ended(refusals, [0, 4, 8]) == [False] * 3
    refusals.passed(["other"])
    assert ended(refusals, [12]) == [True]
    refusals.passed(["out"])
    assert ended(refusals, [13, 17, 21]) == [False] * 3


def test_what_an_event_is_to_blame_for_never_ends_the_run() -> None:
    refusals = Refusals({"out"}, set[str]())
    for refused in (RecordRefused("large", topic="out"), TopicRefused("gone", topic="theirs")):
        assert not refusals.blame_topic(refused)
        assert [refusals.fault(TAKEN, refused, now) for now in (0, 5, 10, 15)] == [None] * 4
    timer = TAKEN._replace(events=0, ticks=[("theirs", None, None, b"", (), None)])
    refused = RecordRefused("large", topic="theirs")
    assert refusals.fault(timer, refused, 0) is refused


def test_a_client_that_says_no_more_than_that_it_waited_in_vain() -> None:
    missing: set[str] = set()
    refusals = Refusals({"out"}, missing)
    failure = CommitFailed("no answer")
    assert refusals.find(failure, ["out"]) is None
    missing.add("out")
    assert refusals.find(failure, ["other"]) is None
    found = refusals.find(failure, ["other", "out"])
    assert found is not None
    assert found.topic == "out"
    assert refusals.blame_topic(found)
    said = RecordRefused("large", topic="other")
    assert refusals.find(CommitFailed("refused", refused=said), ["out"]) is said
