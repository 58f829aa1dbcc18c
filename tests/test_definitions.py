"""What is defined wrongly is refused where it stands, in a sentence, and not when it would run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import pytest

import trickle

app: Any = None
topic: Any = None


@pytest.fixture(autouse=True)
def fresh() -> None:
    global app, topic  # noqa: PLW0603 - what the cases below are written with
    app = trickle.App("app")
    topic = app.topic("topic", key=str, value=int)


async def good(stream: trickle.Stream[int]) -> None:
    async for _ in stream:
        pass


async def yields(stream: trickle.Stream[int]) -> Any:
    async for value in stream:
        yield value


def plain(stream: trickle.Stream[int]) -> None:
    del stream


async def without() -> None: ...


def plain_without() -> None: ...


class Needs(trickle.Service):
    def __init__(self, what: str) -> None:
        super().__init__(what)


WHAT_AGENTS_READ = (
    "write @app.agent(topic), with a topic of app.topic(…), several in a list, or what group_by "
    "and the like make of one"
)


PARTIAL = functools.partial(good)
ROUND = "round and round without end; give through(…) a topic that feeds none of its own sources"
LETTERS = (
    "which it reads itself: a record that fails would come back without end; give "
    "DeadLetter(topic=) another topic, or leave it out"
)


def other() -> Any:
    return app.topic("other", key=str, value=int)


def case(define: Callable[[], object], message: str) -> tuple[Callable[[], object], str]:
    return define, message


CASES = {
    "an agent that is not async": case(
        lambda: app.agent(topic)(plain),
        "agent 'plain': its function is not asynchronous: write `async def plain(stream)`",
    ),
    "an agent without a stream": case(
        lambda: app.agent(topic)(without),
        "agent 'without': its function must take one argument, stream: write `async def …(stream)` "
        "(too many positional arguments)",
    ),
    "a class as an agent": case(
        lambda: app.agent(topic, name="needs")(Needs),
        f"agent 'needs': {Needs!r} is no function: decorate an `async def …(stream)`",
    ),
    "an agent without parentheses": case(
        lambda: app.agent(good),
        f"app.agent(…): {good!r} is no source: {WHAT_AGENTS_READ}",
    ),
    "a topic's name as a source": case(
        lambda: app.agent(["topic"])(good),
        f"agent 'good': 'topic' is no source: {WHAT_AGENTS_READ}",
    ),
    "no source at all": case(
        lambda: app.agent([])(good),
        "agent 'good' reads a list of sources: give one or more topics, without filter or map on a "
        "single one of them",
    ),
    "a topic twice": case(
        lambda: app.agent([topic, topic])(good),
        "agent 'good' reads a topic twice: topic, topic; name each once",
    ),
    "no time for an event": case(
        lambda: app.agent(topic, deadline=0),
        "agent(deadline=0): an event needs some time",
    ),
    "a timer that is not async": case(
        lambda: app.timer(1)(plain_without),
        "timer 'plain_without': its function is not asynchronous: write "
        "`async def plain_without()`",
    ),
    "a timer with an argument": case(
        lambda: app.timer(1)(good),
        "timer 'good': its function must take no argument: write `async def …()` (missing a "
        "required argument: 'stream')",
    ),
    "a task that is not async": case(
        lambda: app.task(plain_without),
        "task 'plain_without': its function is not asynchronous: write `async def plain_without()`",
    ),
    "a command without parentheses": case(
        lambda: app.command(without),
        "@app.command takes parentheses: write @app.command()",
    ),
    "a command twice": case(
        lambda: (app.command()(without), app.command()(without)),
        "there are two commands named 'without': give one another name, by @app.command(name)",
    ),
    "a function as a service": case(
        lambda: app.service(without),
        f"service: {without!r} is no subclass of trickle.Service: write one with `async def "
        "main(self, task_status)`, or use @app.task for a function",
    ),
    "a service that needs arguments": case(
        lambda: app.service(Needs),
        "service 'Needs': it must be made without arguments (missing a required argument: 'what')",
    ),
    "a table of a topic's name": case(
        lambda: app.table("table", key=str, value=int, source="topic"),
        "table 'table': source='topic' is no source: give what its agent reads, a topic or what "
        "group_by makes of one",
    ),
    "a partitioner that is none": case(
        lambda: app.topic("other", partitioner=5),
        "topic 'other': partitioner=5 is no function: give one of a key's bytes and the number of "
        "partitions",
    ),
    "a topic's config that is no mapping": case(
        lambda: app.topic("other", config=["a"]),
        "topic 'other': config=['a'] is no mapping of str to str",
    ),
    "a number as group_by's key": case(
        lambda: topic.group_by(5, name="x"),
        "group_by(5, name='x'): give a function of the value, or a field's name",
    ),
    "a field of a number": case(
        lambda: topic.group_by("carrier", name="x"),
        "group_by('carrier', name='x'): int has no fields; give a function of the value",
    ),
    "a predicate that is none": case(
        lambda: topic.filter("x"),
        "filter('x'): that is no function of the value",
    ),
    "through a topic's name": case(
        lambda: topic.through("x"),
        "through('x'): that is no topic: give one of app.topic(…)",
    ),
    "an agent without arguments": case(
        lambda: app.agent(),  # noqa: PLW0108 - there is no app yet
        "@app.agent() does not say what the agent reads: write @app.agent(topic)",
    ),
    "a timer without arguments": case(
        lambda: app.timer(),  # noqa: PLW0108 - there is no app yet
        "@app.timer() does not say how often: write @app.timer(30.0), in seconds",
    ),
    "a timer without parentheses": case(
        lambda: app.timer(without),
        "@app.timer takes seconds: write @app.timer(30.0), as an example",
    ),
    "a task with parentheses": case(
        lambda: app.task(),  # noqa: PLW0108 - there is no app yet
        "@app.task takes no parentheses: write @app.task",
    ),
    "a partial without a name": case(
        lambda: app.agent(topic)(PARTIAL),
        f"{PARTIAL!r} has no name of its own: give it one by @app.agent(…, name=)",
    ),
    "an empty name of an agent": case(
        lambda: app.agent(topic, name="")(good),
        "@app.agent(…, name=) is empty: give a name, or leave it out",
    ),
    "an empty name of a timer": case(
        lambda: app.timer(1, name="")(without),
        "@app.timer(…, name=) is empty: give a name, or leave it out",
    ),
    "an empty name of dead letters": case(
        lambda: app.agent(topic, on_error=trickle.DeadLetter(""))(good),
        "DeadLetter(…): a topic, or its name, is empty: give it at least one letter or digit",
    ),
    "an empty name of a through": case(
        lambda: topic.through(other(), name=""),
        "through(name=…) is empty: give it at least one letter or digit",
    ),
    "a type as text": case(
        lambda: app.topic("text", value="Flight"),
        "the values of topic 'text' cannot be of type 'Flight': text is not supported; give the "
        "type itself, without quotes, or give a codec of your own as the serializer",
    ),
    "through a topic onto itself": case(
        lambda: app.agent(topic.through(topic))(good),
        f"through: events would go from topic 'topic' to 'topic', {ROUND}",
    ),
    "a filter alone on the way round": case(
        lambda: app.agent(topic.filter(bool).through(topic))(good),
        f"through: events would go from topic 'topic' to 'topic', {ROUND}",
    ),
    "through another topic and back": case(
        lambda: app.agent(topic.through(other()).through(topic))(good),
        f"through: events would go from topic 'other' to 'topic' to 'other', {ROUND}",
    ),
    "regrouped on the way round": case(
        lambda: app.agent(topic.group_by(str, name="x").through(topic))(good),
        "through: events would go from topic 'app-x-repartition' to 'topic' to "
        f"'app-x-repartition', {ROUND}",
    ),
    "a round through two agents": case(
        lambda: (
            app.agent(topic.through(other()), name="one")(good),
            app.agent(app.topics["other"].through(topic), name="two")(good),
        ),
        f"through: events would go from topic 'other' to 'topic' to 'other', {ROUND}",
    ),
    "dead letters into the own source": case(
        lambda: app.agent(topic, on_error=trickle.DeadLetter(topic))(good),
        f"agent 'good': its dead letters go to topic 'topic', {LETTERS}",
    ),
    "dead letters that go to no topic": case(
        lambda: trickle.DeadLetter(cast("Any", 3)),
        "DeadLetter(…): a topic, or its name, must be a str, not int: 3",
    ),
    "a table whose changelog Kafka could not name": case(
        lambda: app.table("t" * 240, key=str, value=int),
        f"the name of the changelog of table '{'t' * 240}' has 254 characters, at most 249 are "
        f"allowed: 'app-{'t' * 36}'…",
    ),
    "dead letters by name into a source upstream": case(
        lambda: app.agent(
            topic.group_by(str, name="x"),
            on_error=trickle.Retry(then=trickle.DeadLetter("topic")),
        )(good),
        f"agent 'good': its dead letters go to topic 'topic', {LETTERS}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_where_it_stands(case: str) -> None:
    define, message = CASES[case]
    with pytest.raises(trickle.ConfigurationError) as caught:
        define()
    assert str(caught.value) == message


def test_what_only_looks_wrong_is_let_through() -> None:
    @functools.wraps(good)
    def wrapped(stream: trickle.Stream[int]) -> Any:
        return good(stream)

    class Object:
        async def __call__(self, stream: trickle.Stream[int], more: int = 0) -> None: ...

    app.agent(topic, name="one")(wrapped)
    app.agent(topic, name="two")(Object())
    app.agent(topic, name="three")(functools.partial(good))
    plainly: Callable[[trickle.Stream[int]], Any] = lambda stream: good(stream)  # noqa: E731, PLW0108
    app.agent(topic, name="four")(plainly)
    app.agent(topic, name="five")(yields)
    app.timer(1, name="six")(lambda: without())  # noqa: PLW0108
    assert len(app.agents) == 5


def test_a_round_that_may_end_is_let_be() -> None:
    app.agent(topic.filter(bool).map(int).through(topic, name="x"), name="one")(good)
    app.agent(topic.flat_map(range).through(topic, name="y"), name="two")(good)
    assert {"one", "two"} < set(app.agents)
