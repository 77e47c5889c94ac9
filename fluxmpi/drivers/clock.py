"""The clock that machines are given: seconds since 1970, never going backwards in one process."""

from __future__ import annotations

import time


class Clock:
    """The wall clock when it was made, and from then on the monotonic clock: a correction of the time moves nothing."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()
