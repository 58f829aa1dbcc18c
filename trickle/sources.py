"""Sources of agents: several topics as one, and the agents within that feed a repartition topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

from trickle.exceptions import DefinitionError
from trickle.streams import Stream
from trickle.topics import Repartition, Source, Topic
from trickle.untyped import key_headers

__all__ = ["check_letters", "check_round", "join_sources", "no_source", "repartition_function"]


def join_sources(
    source: Source[Any, Any] | Sequence[Source[Any, Any]], agent: str
) -> Source[Any, Any]:
    """Make one source of what an agent is given: a source, or several topics.

    Raises:
        DefinitionError: it is no source, or they do not go together.
    """
    sources = [source] if isinstance(source, Source) else list(_sequence(source, agent))
    for one in sources:
        if not isinstance(one, Source):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_source(one, agent)
    if len(sources) == 1:
        return sources[0]
    if not sources or any(one.steps for one in sources):
        raise DefinitionError(
            f"agent {agent!r} reads a list of sources: give one or more topics, without filter or "
            "map on a single one of them"
        )
    topics = [topic for one in sources for topic in one.topics]
    if len(set(topics)) < len(topics):
        names = ", ".join(topic.name for topic in topics)
        raise DefinitionError(f"agent {agent!r} reads a topic twice: {names}; name each once")
    repartitions = [r for one in sources for r in one.repartitions]
    return Source(topics, (), tuple(dict.fromkeys(repartitions)))


def _sequence(source: Any, agent: str) -> Sequence[Source[Any, Any]]:
    if not isinstance(source, list | tuple):
        raise no_source(source, agent)
    return cast("Sequence[Source[Any, Any]]", source)


def no_source(given: object, agent: str | None = None) -> DefinitionError:
    """Return the error of something that no agent can read."""
    where = f"agent {agent!r}" if agent is not None else "app.agent(…)"
    return DefinitionError(
        f"{where}: {given!r} is no source: write @app.agent(topic), with a topic of "
        "app.topic(…), several in a list, or what group_by and the like make of one"
    )


def check_letters(agent: str, source: Source[Any, Any], letters: Topic[Any, Any]) -> None:
    """See that an agent's dead letters do not come back to it.

    Raises:
        DefinitionError: it reads their topic, and would bury the same record without end.
    """
    reads = [*source.topics, *(t for r in source.repartitions for t in r.source.topics)]
    if any(topic.name == letters.name for topic in reads):
        raise DefinitionError(
            f"agent {agent!r}: its dead letters go to topic {letters.name!r}, which it reads "
            "itself: a record that fails would come back without end; give DeadLetter(topic=) "
            "another topic, or leave it out"
        )


def check_round(known: Iterable[Repartition], new: Repartition) -> None:
    """See that what is sent ``through`` a topic does not come back to where it began.

    Where a function makes other values on the way and something may leave them out, the round
    may end, and is let be.

    Raises:
        DefinitionError: every event would go round without end.
    """
    steps = [*known, new]
    begins = {topic.name for topic in new.source.topics}
    paths = [[new]]
    while paths:
        path = paths.pop()
        last = path[-1].target.name
        if last not in begins:
            paths += [
                [*path, step]
                for step in steps
                if step not in path and any(topic.name == last for topic in step.source.topics)
            ]
            continue
        kinds = {kind for step in path for kind, _ in step.source.steps}
        if "flat_map" not in kinds and not {"filter", "map"} <= kinds:
            names = " to ".join(repr(name) for name in [last, *(r.target.name for r in path)])
            raise DefinitionError(
                f"through: events would go from topic {names}, round and round without end; give "
                "through(…) a topic that feeds none of its own sources"
            )


def repartition_function(repartition: Repartition) -> Callable[[Any], Awaitable[None]]:
    """Return the function of the internal agent that feeds a repartition topic."""
    target, make_key = repartition.target, repartition.key

    async def regroup(stream: Stream[Any, Any]) -> None:
        async for event in stream.events():
            key = event.key if make_key is None else make_key(event.value)
            headers = key_headers(target.key_codec, key, event.headers)
            target.send_nowait(event.value, key=key, headers=headers)

    async def regroup_as_it_is(stream: Stream[Any, Any]) -> None:
        async for event in stream.events():
            key = event.key if make_key is None else make_key(event.value)
            headers = key_headers(target.key_codec, key, event.headers)
            target.send_encoded(event.record.value, key=key, headers=headers)

    changed = any(kind != "filter" for kind, _ in repartition.source.steps)
    return regroup if changed or not repartition.owned else regroup_as_it_is
