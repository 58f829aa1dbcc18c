"""Errors that are handled and kept for a while hold the frames that they came through.

And a frame often holds its error: nothing of what its variables refer to goes before the garbage
collector comes by, which it does seldom where it has been tuned for speed.
"""

from __future__ import annotations

import traceback

__all__ = ["release_frames"]


def release_frames(error: BaseException) -> None:
    """Let the frames that an error came through, and its causes, forget their variables.

    To be called where the error was caught; frames that still run are left alone.
    """
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
