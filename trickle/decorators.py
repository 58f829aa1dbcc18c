"""How definitions are written: each decorator with its parentheses or without, named, and in time.

What is written otherwise would fail where nobody looks for it, or never be called.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from trickle.agents import Agent, AgentFunction
from trickle.exceptions import DefinitionError

__all__ = ["AgentDecorator", "Season", "label", "parentheses"]

V = TypeVar("V", default=Any)
K = TypeVar("K", default=Any)


class AgentDecorator(Generic[V, K]):
    """What ``@app.agent(source)`` is: a decorator that knows the source's types."""

    def __init__(self, make: Callable[[Any], Agent[Any, Any]]) -> None:
        self._make = make

    def __call__(self, function: AgentFunction[V, K]) -> Agent[V, K]:
        return cast("Agent[V, K]", self._make(function))


class Season:
    """When an app may be defined: not while it runs, as a Run takes its definitions at its start.

    Args:
        app_id: whose.
    """

    def __init__(self, app_id: str) -> None:
        self._app_id = app_id
        self._runs = 0

    @contextmanager
    def closed(self) -> Generator[None]:
        """Refuse definitions for as long as the block lasts."""
        self._runs += 1
        try:
            yield
        finally:
            self._runs -= 1

    def check(self, what: str) -> None:
        """See that something may be defined now.

        Raises:
            DefinitionError: the app runs.
        """
        if self._runs:
            raise DefinitionError(
                f"{what} is defined while app {self._app_id!r} runs, which would not know of it: "
                "define it before the run begins, beside the app's other definitions"
            )


def label(function: object, name: str | None, *, decorator: str) -> str:
    """Return what a function is called: the name that it is given, or its own.

    Args:
        decorator: how a name is given, for the message: "@app.agent(…, name=)".

    Raises:
        DefinitionError: it has none, as a partial or an object that can be called.
    """
    if name == "":
        raise DefinitionError(f"{decorator} is empty: give a name, or leave it out")
    if name is not None:
        return name
    own = getattr(function, "__name__", None)
    if callable(function) and (not isinstance(own, str) or own == "<lambda>"):
        raise DefinitionError(f"{function!r} has no name of its own: give it one by {decorator}")
    return str(own)


def parentheses(given: object, *, right: str) -> None:
    """See that a decorator that takes arguments was given some, and not the function itself.

    Args:
        right: how it is written.

    Raises:
        DefinitionError: it was written without parentheses, or with empty ones.
    """
    if given is None or callable(given):
        raise DefinitionError(f"a decorator is written without its arguments: write {right}")
