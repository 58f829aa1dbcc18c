"""Errors that are handled and kept for a while hold the frames that they came through.

And a frame often holds its error: nothing of what its variables refer to goes before the garbage
collector comes by, which it does seldom where it has been tuned for speed.
"""

from __future__ import annotations

__all__ = ["release_frames"]


def release_frames(error: BaseException) -> None:
    """Let an error and its causes forget the frames that they came through.

    The frames themselves are not touched: an error that several tasks were told of has frames of
    tasks that go on.
    """
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
