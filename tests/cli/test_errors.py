"""From groups of errors to sentences and exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

import trickle
import trickle.testing
from trickle.cli.errors import (
    EXIT_ERROR,
    EXIT_STOPPED,
    EXIT_USAGE,
    Stopped,
    exit_code,
    is_interrupt,
    is_output_gone,
    report,
    sentences,
)
from trickle.cli.output import OutputGone
from trickle.exceptions import BrokerUnavailable, ConfigurationError, DecodeError, UsageError
from trickle.utils.logs import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from tests.cli.program import Project


def raised(error: BaseException) -> BaseException:
    """Return the error as one that was raised here."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - the caught one is what is wanted
        return caught


def told(error: BaseException, *, debug: bool = False) -> tuple[int, str]:
    stream = io.StringIO()
    code = report(error, debug=debug, stream=stream, redact=Redactor(["canary"]))
    return code, stream.getvalue()


def test_the_leaves_of_groups_are_told_once_each() -> None:
    error = BaseExceptionGroup(
        "outer",
        [
            ExceptionGroup("inner", [BrokerUnavailable("no answer"), UsageError("wrong")]),
            BrokerUnavailable("no answer"),
        ],
    )
    assert sentences(error) == ["no answer", "wrong"]
    assert told(error) == (EXIT_ERROR, "trickle: no answer\ntrickle: wrong\n")


def test_a_cancellation_beside_an_error_is_not_told() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise DecodeError("unreadable")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert sentences(caught.value) == ["unreadable"]


def test_another_error_is_told_with_its_place_and_a_hint() -> None:
    code, text = told(raised(KeyError("origin")))
    assert code == EXIT_ERROR
    first, second = text.splitlines()
    assert first.startswith("trickle: KeyError: 'origin' (tests/cli/test_errors.py:")
    assert first.endswith(" in raised)")
    assert second == "trickle: --debug shows the traceback"


def test_the_note_of_an_agent_says_where_whichever_group_carries_it() -> None:
    inner = ValueError("no such carrier")
    group = ExceptionGroup("an agent's own nursery", [inner])
    group.add_note("agent 'delays' failed at the event of flights [2] at offset 7")
    group.add_note("some library's note")
    assert sentences(ExceptionGroup("run", [group])) == [
        "agent 'delays' failed at the event of flights [2] at offset 7: ValueError: no such carrier"
    ]
    known = DecodeError("agent 'delays': not JSON")
    known.add_note("agent 'delays' failed at the event of flights [2] at offset 7")
    assert sentences(known) == ["agent 'delays': not JSON"]


def test_exit_codes() -> None:
    wrong, away = ConfigurationError("wrong"), BrokerUnavailable("away")
    assert exit_code(wrong) == EXIT_USAGE
    assert exit_code(ExceptionGroup("g", [wrong, UsageError("x")])) == EXIT_USAGE
    assert exit_code(ExceptionGroup("g", [wrong, away])) == EXIT_ERROR
    assert exit_code(away) == EXIT_ERROR
    assert exit_code(Stopped("cut short")) == EXIT_STOPPED
    assert exit_code(KeyboardInterrupt()) == EXIT_STOPPED


def test_secrets_are_blanked_with_and_without_the_traceback() -> None:
    error = raised(RuntimeError("login of canary failed"))
    for debug in (False, True):
        _, text = told(error, debug=debug)
        assert "canary" not in text
        assert "****" in text
        assert ("Traceback" in text) is debug


def test_many_errors_are_cut_short() -> None:
    error = ExceptionGroup("g", [DecodeError(f"record {number}") for number in range(25)])
    _, text = told(error)
    assert text.count("\n") == 11
    assert text.splitlines()[-1] == "trickle: and 15 more errors"


def test_a_broken_pipe_and_an_interrupt_are_seen_inside_groups() -> None:
    assert is_output_gone(ExceptionGroup("g", [OutputGone(32, "x")]))
    assert not is_output_gone(ExceptionGroup("g", [OutputGone(32, "x"), ValueError()]))
    assert not is_output_gone(ExceptionGroup("g", [BrokenPipeError(32, "x")]))  # an agent's own
    assert is_interrupt(BaseExceptionGroup("g", [KeyboardInterrupt()]))
    assert not is_interrupt(ValueError())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("topics > /dev/full", "standard output cannot be written: No space left on device"),
        ("topics >&-", "standard output is closed: nothing can be printed"),
        ("send words - <&-", "standard input is closed: VALUE is -, which takes lines from it"),
        (
            "tail words --no-follow",
            "topic 'words' is not on the broker yet: a worker declares it as it starts",
        ),
    ],
)
def test_streams_that_are_closed_or_full_are_told_in_a_sentence(
    project: Project, command: str, words: str
) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m trickle -A app:app {command}"],
        cwd=project.path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in {1, 2}
    assert done.stderr == f"trickle: {words}\n"


async def test_what_the_user_wrote_is_named_where_it_fails(mock_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("spoilt")

    def once(app: trickle.App) -> None:
        @app.agent(app.topic("source", value=int, partitions=1))
        async def work(stream: trickle.Stream[int]) -> None:
            async for event in stream.events():
                event.after_commit(fail)

    def serve(app: trickle.App) -> None:
        class Sensor(trickle.Service):
            async def main(self, task_status: trio.TaskStatus[None]) -> None:
                self.nursery.start_soon(fail)
                task_status.started()

        app.service(Sensor)

    cases: list[tuple[Callable[[trickle.App], object], str]] = [
        (lambda app: app.timer(1.0)(fail), "timer 'fail' failed"),
        (lambda app: app.task(fail), "task 'fail' failed"),
        (serve, "service 'Sensor' failed"),
        (once, "a call after a commit (after_commit, or a sink) failed"),
    ]
    for define, words in cases:
        app = trickle.App("app")
        define(app)
        source = next(iter(app.topics.values()), None) or app.topic("source", value=int)
        with pytest.raises((ExceptionGroup, ValueError)) as caught:
            async with trickle.testing.run(app) as t:
                await t.send(source, 1)
                await t.advance(2)
        (sentence,) = sentences(caught.value)
        assert sentence.startswith(f"{words}: ValueError: spoilt (")


async def test_what_only_looked_as_if_it_were_asynchronous_is_told(mock_clock: MockClock) -> None:
    for decorator in ("timer", "task"):
        app = trickle.App("app")
        function = cast("Any", lambda: 7)
        (app.timer(1.0) if decorator == "timer" else app.task)(function)
        with pytest.raises((ExceptionGroup, ConfigurationError)) as caught:
            async with trickle.testing.run(app) as t:
                await t.advance(2)
        (sentence,) = sentences(caught.value)
        assert sentence == (
            f"{decorator} '<lambda>': its function gave 7, which cannot be awaited: decorate an "
            "`async def`"
        )
