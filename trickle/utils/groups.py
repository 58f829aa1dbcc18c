"""Exception groups, for those who want the one error in them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

__all__ = ["Guard", "only_error", "single_errors"]


class Guard:
    """What is known of a block that runs beside others in a nursery.

    Attributes:
        entered: the block has begun.
        own: the error that the block itself raised.
    """

    def __init__(self) -> None:
        self.entered = False
        self.own: BaseException | None = None

    @contextmanager
    def block(self) -> Generator[None, None, None]:
        """The block runs now."""
        self.entered = True
        try:
            yield
        except BaseException as error:
            self.own = error
            raise


@contextmanager
def single_errors() -> Generator[Guard, None, None]:
    """Let the one error that keeps a block from being entered, or that it raises, be itself.

    Nurseries wrap all that leaves them in groups. For what runs in them that is right: several
    things may fail. What fails before anything runs is one thing, and so is an error of the block
    alone; whoever wrote the block wants to catch it by its type.
    """
    guard = Guard()
    try:
        yield guard
    except BaseExceptionGroup as group:
        error = only_error(group)
        if error is None or (guard.entered and error is not guard.own):
            raise
        raise error from error.__cause__


def only_error(error: BaseException) -> BaseException | None:
    """Return the one error that there is, itself or in a group; None where there are several."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    first, *others = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return None if others else only_error(first)
