"""Answers: JSON, never cached, never guessed at by a browser."""

from __future__ import annotations

import msgspec
from quart import Response

__all__ = ["json_response"]

_HEADERS = {
    "cache-control": "no-store",
    "content-type": "application/json",
    "x-content-type-options": "nosniff",
}


def json_response(value: object, *, ok: bool = True, status: int | None = None) -> Response:
    """Return a JSON document with status 200, or 503 where not ``ok``, or the given one."""
    body = msgspec.json.encode(value)
    return Response(body, status=status or (200 if ok else 503), headers=_HEADERS)
