"""The two errors that helpers below :mod:`trickle.exceptions` raise themselves.

They are defined here, the lowest room, and belong to the tree that ``trickle.exceptions`` draws:
import them from there.
"""

from __future__ import annotations

__all__ = ["ConfigurationError", "TrickleError"]


class TrickleError(Exception):
    """The root of trickle's errors: one sentence for a person, with what to change."""


class ConfigurationError(TrickleError):
    """A setting, an argument or a definition is wrong."""


for _error in (TrickleError, ConfigurationError):
    _error.__module__ = "trickle.exceptions"  # where people look for them, and tracebacks point
