"""What can be told of a user's function before it is called."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from trickle.utils.errors import ConfigurationError

__all__ = ["awaited", "check_async"]


def check_async(function: Any, *, what: str, parameters: str = "") -> None:
    """See that a function is asynchronous, and takes what it will be given.

    What only looks synchronous (a lambda, a decorator's wrapper, an object) is let through: it may
    well return something to await.

    Args:
        function: what the user decorated.
        what: begins the sentence of an error: "agent 'count'".
        parameters: what it is called with, as it is written: "stream", or nothing.

    Raises:
        ConfigurationError: it is no function, takes something else, or is a plain ``def``.
    """
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(
            f"{what}: {function!r} is no function: decorate an `async def …({parameters})`"
        )
    try:
        inspect.signature(function).bind(*parameters.split())
    except TypeError as error:
        taken = f"one argument, {parameters}" if parameters else "no argument"
        raise ConfigurationError(
            f"{what}: its function must take {taken}: write `async def …({parameters})` ({error})"
        ) from None
    except ValueError:  # a builtin that does not tell
        return
    plain = inspect.isfunction(function) and function.__name__ != "<lambda>"
    wrapped = hasattr(function, "__wrapped__")
    if plain and not wrapped and not _is_async(function):
        raise ConfigurationError(
            f"{what}: its function is not asynchronous: write `async def "
            f"{function.__name__}({parameters})`"
        )


async def awaited(function: Callable[[], Awaitable[None]], *, what: str) -> None:
    """Call a function that takes nothing, and await what it gives.

    Raises:
        ConfigurationError: there is nothing to await; it only looked as if there might be.
    """
    given: object = function()
    if not inspect.isawaitable(given):
        raise ConfigurationError(
            f"{what}: its function gave {given!r}, which cannot be awaited: decorate an `async def`"
        )
    await given


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
