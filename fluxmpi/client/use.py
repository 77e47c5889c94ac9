"""Refuse a second thread: a handle is used by one thread at a time."""

from __future__ import annotations

import threading

from fluxmpi.errors import InvalidRequest


def two_threads() -> InvalidRequest:
    """Return the error for the second of two threads."""
    return InvalidRequest("two threads use this handle at the same time: connect in each thread")


class OneThread:
    """A lock that the thread which uses a handle holds. Use it in a ``with`` block; calls of that thread may be nested.

    Another thread does not wait for it. It is refused at once, before it has queued anything, so the error is definite.
    """

    __slots__ = ("acquire", "release")

    def __init__(self) -> None:
        lock = threading.RLock()
        self.acquire = lock.acquire
        """Begin a use: ``acquire(False)`` returns False if another thread uses the handle."""
        self.release = lock.release
        """End a use."""

    def __enter__(self) -> None:
        if not self.acquire(False):
            raise two_threads()

    def __exit__(self, *exc: object) -> None:
        self.release()
