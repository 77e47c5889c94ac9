"""The clock of a broker: seconds since 1970, monotonic within a process."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Wall clock at creation, advanced by the monotonic clock.

    A correction of the system's time has no effect, forwards or backwards.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return self._offset + self._monotonic()
