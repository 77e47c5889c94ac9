"""The clock of a broker: seconds since 1970, monotonic within a process."""

from __future__ import annotations

import time


class Clock:
    """The wall clock's time at creation, advanced by the monotonic clock: a correction of the system time has no
    effect.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return self._offset + time.monotonic()
