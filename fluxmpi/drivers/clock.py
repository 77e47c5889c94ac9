"""The clock of a broker: seconds since 1970, monotonic within a process."""

from __future__ import annotations

import time


class Clock:
    """Wall clock at creation, advanced by the monotonic clock.

    A correction of the system's time has no effect.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return self._offset + time.monotonic()
