"""How definitions are written: each decorator with its parentheses or without, named, and in time.

What is written otherwise would fail where nobody looks for it, or never be called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, cast

from typing_extensions import TypeVar

from trickle.agents import Agent, AgentFunction
from trickle.exceptions import DefinitionError

__all__ = ["AgentDecorator", "Season", "explained", "named"]

V = TypeVar("V", default=Any)
K = TypeVar("K", default=Any)
P = ParamSpec("P")
R = TypeVar("R")


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


def explained(missing: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method say what to write where it is called without any argument.

    Args:
        missing: the sentence.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) + len(kwargs) == 1:  # self alone
                raise DefinitionError(missing)
            return method(*args, **kwargs)

        return called

    return decorate


def named(
    function: object, name: str | None, *, decorator: str, otherwise: str | None = None
) -> str:
    """Return what a function is called: the name that it is given, or its own.

    Args:
        decorator: how a name is given, for the message: "@app.agent(…, name=)".
        otherwise: the name of a function that has none; an error where it is left out.

    Raises:
        DefinitionError: the name is empty; or it has none, as a partial or a lambda.
    """
    if name == "":
        raise DefinitionError(f"{decorator} is empty: give a name, or leave it out")
    if name is not None:
        return name
    own = getattr(function, "__name__", otherwise)
    if callable(function) and (own is None or (own == "<lambda>" and otherwise is None)):
        raise DefinitionError(f"{function!r} has no name of its own: give it one by {decorator}")
    return str(own)
