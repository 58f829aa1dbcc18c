"""``trickle send``: records from the command line, or one a line from standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from typing import Annotated, Any, cast

import msgspec
import trio
import typer

from trickle.app import App
from trickle.cli.broker import (
    check_partition,
    check_sendable,
    find_topic,
    open_broker,
    require_topic,
    wires,
)
from trickle.cli.output import Output, abandon_output
from trickle.cli.state import DebugOption, JsonOption, get_state, run
from trickle.exceptions import TopicError, UsageError
from trickle.metadata import pack_headers, timestamp_to_ms
from trickle.topics import Topic
from trickle.transport.contract import Admin, ProducerClient, ProducerOptions, TopicInfo
from trickle.types import Headers

__all__ = ["send"]

_LINE_BYTES_MAX = 64 << 20
_CHUNK_BYTES = 1 << 16


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent, checked as far as it can be without the broker."""

    topic: str
    known: Topic[Any, Any] | None
    value: bytes | None
    from_stdin: bool
    key: bytes | None
    headers: Headers
    partition: int | None
    timestamp_ms: int | None
    repeat: int


def send(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="TOPIC|AGENT", show_default=False)],
    value: Annotated[
        str,
        typer.Argument(metavar="VALUE", help="Text, or JSON by the topic's type; - reads lines."),
    ],
    *,
    key: Annotated[str | None, typer.Option(help="The record's key, written as VALUE is.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="May be given several times.")
    ] = None,
    partition: Annotated[
        int | None, typer.Option(min=0, help="Instead of the one that the key chooses.")
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(help="POSIX seconds, or ISO 8601 with its zone; now by default."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Send it so many times.")] = 1,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Send records to a topic, and tell where each went.

    It joins no group; a topic of the app that is missing is declared.
    """
    del debug
    app = get_state(context).app()
    check_sendable(app, topic)
    known = find_topic(app, topic, agents=True)
    keys, values = wires(known)
    if known is not None and known.partitions is not None:
        check_partition(known.name, known.partitions, partition)
    from_stdin = value == "-"
    request = _Request(
        topic=known.name if known is not None else topic,
        known=known,
        value=None if from_stdin else values.encode(value, "VALUE"),
        from_stdin=from_stdin,
        key=None if key is None else keys.encode(key, "--key"),
        headers=pack_headers([_header(text) for text in header or ()]),
        partition=partition,
        timestamp_ms=None if timestamp is None else _timestamp_ms(timestamp),
        repeat=repeat,
    )
    run(partial(_send_all, app, request, Output(as_json=as_json)))


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"--header {text!r}: write NAME=VALUE")
    return name, value


def _timestamp_ms(text: str) -> int:
    try:
        return timestamp_to_ms(_time(text))
    except (UsageError, ValueError, OverflowError):
        raise UsageError(
            f"--timestamp {text!r}: write POSIX seconds, like 1767225600.0, or ISO 8601 with its "
            "zone, like 2026-01-01T00:00:00Z"
        ) from None


def _time(text: str) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text)


async def _send_all(app: App, request: _Request, output: Output) -> None:
    settings = app.resolve().settings
    async with open_broker(settings) as transport:
        info = await _topic_info(app, transport.admin, request)
        check_partition(info.name, info.partitions, request.partition)
        async with transport.producer(ProducerOptions()) as producer:
            async for value in _values(request):
                for _ in range(request.repeat):
                    await _send_one(producer, info, request, value, output)


async def _topic_info(app: App, admin: Admin, request: _Request) -> TopicInfo:
    """Return the topic, declared first where it is the app's and missing."""
    settings, topic = app.resolve().settings, request.known
    if topic is not None and settings.declare_topics:
        missing = topic.name not in await admin.topics([topic.name])
        if missing and topic.internal:
            raise TopicError(
                f"topic {topic.name!r} is declared by the app's workers, with its source's "
                "partition count: start one first"
            )
        if missing:
            spec = topic.spec(partitions=settings.partitions, replicas=settings.replicas)
            await admin.declare([spec])
    return await require_topic(admin, request.topic, app)


async def _send_one(
    producer: ProducerClient,
    info: TopicInfo,
    request: _Request,
    value: bytes | None,
    output: Output,
) -> None:
    partition = request.partition
    if partition is None and request.known is not None:
        partition = request.known.partition_for(request.key, info.partitions)
    sent = await producer.send(
        request.topic, partition, request.key, value, request.headers, request.timestamp_ms
    )
    where = {
        "topic": sent.topic,
        "partition": sent.partition,
        "offset": sent.offset,
        "timestamp": sent.timestamp,
    }
    try:
        output.line(where, f"{sent.topic}  partition {sent.partition}  offset {sent.offset}")
        output.flush()
    except BrokenPipeError:  # nobody reads on, and the rest of the input is sent all the same
        abandon_output()


async def _values(request: _Request) -> AsyncGenerator[bytes | None, None]:
    """Yield the values to send: the one that was given, or one for each line."""
    if not request.from_stdin:
        yield request.value
        return
    _, wire = wires(request.known)
    number = 0
    if cast("object", sys.stdin) is None:
        raise UsageError("standard input is closed: VALUE is -, which takes lines from it")
    async for line in _lines(sys.stdin.fileno()):
        number += 1
        text = line.decode("utf-8", "surrogateescape")
        yield wire.encode(text, f"line {number} of standard input")


async def _lines(fd: int) -> AsyncGenerator[bytes, None]:
    """Yield lines as they come, without their ends; what is read at once is one hop to a thread."""
    rest = b""
    while chunk := await trio.to_thread.run_sync(os.read, fd, _CHUNK_BYTES, abandon_on_cancel=True):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > _LINE_BYTES_MAX:
            raise UsageError(f"a line of standard input is longer than {_LINE_BYTES_MAX:,} bytes")
    if rest:
        yield rest
