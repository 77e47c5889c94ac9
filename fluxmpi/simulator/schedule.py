"""Virtual time: actions in order of time, and in order of scheduling where times are equal."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]

START = 1000.0
"""The time at which every run begins, in seconds. Not zero, so that a missing time is noticed."""


class Schedule:
    """The virtual clock and its pending actions."""

    def __init__(self) -> None:
        self.now = START
        self.count = 0
        """Number of actions done."""
        self._heap: list[tuple[float, int, Action]] = []
        self._order = 0

    def at(self, when: float, action: Action) -> None:
        """Do ``action`` at that time, or now if that is past."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, action))

    def after(self, delay: float, action: Action) -> None:
        """Do ``action`` after so many seconds."""
        self.at(self.now + delay, action)

    def run(self, end: float, until: Callable[[], bool] | None = None) -> bool:
        """Run until the time ``end``, or until ``until()`` is true; return whether it was."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            if until is not None and until():
                return True
            when, _, action = heapq.heappop(heap)
            self.now = when
            self.count += 1
            action()
        self.now = max(self.now, end)
        return until is not None and until()
