"""The exit code that the process is about to end with, for whoever must end it at once."""

from __future__ import annotations

__all__ = ["announce", "announced"]

_codes: list[int] = []


def announce(code: int) -> None:
    """Say that the process does nothing more but end, with this exit code."""
    _codes.append(code)


def announced() -> int | None:
    """Return the exit code that was announced, None where the process is another program's."""
    return _codes[-1] if _codes else None
