"""Names that become topics and paths: Kafka's charset, and nothing that a path could abuse."""

from __future__ import annotations

import re

from trickle.utils.errors import ConfigurationError

__all__ = ["NAME_CHARS_MAX", "check_name"]

NAME_CHARS_MAX = 249
"""Kafka's bound on a topic's name (``org.apache.kafka.common.internals.Topic``)."""

_NAME = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)


def check_name(name: object, *, what: str, chars_max: int = NAME_CHARS_MAX) -> str:
    """Return a name that Kafka takes for a topic, and that is safe as one part of a path.

    Args:
        name: what the user gave.
        what: begins the sentence of an error: "a topic's name".
        chars_max: fewer than Kafka's where a longer name will be made of this one.

    Raises:
        ConfigurationError: it is no such name.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{what} must be a str, not {type(name).__name__}: {name!r}")
    if not name:
        raise ConfigurationError(f"{what} is empty: give it at least one letter or digit")
    if len(name) > chars_max:
        raise ConfigurationError(
            f"{what} has {len(name):,} characters, at most {chars_max} are allowed: {name[:40]!r}…"
        )
    if not _NAME.fullmatch(name):
        wrong = next(char for char in name if not _NAME.fullmatch(char))
        raise ConfigurationError(
            f"{what} is {name!r}, with {wrong!r} in it: use only ASCII letters, digits, '.', '_' "
            "and '-', as Kafka does"
        )
    if name in {".", ".."}:
        raise ConfigurationError(f"{what} is {name!r}, which Kafka refuses: use another name")
    return name
