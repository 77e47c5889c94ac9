"""What the watches of all brokers need of a namespace's versions, so that they survive a short history.

A notification names long values by their blobs, and the client loads them later. With a short retention the version may
have gone by then. So rank 0 keeps versions for the watches, in three ways, as the brokers' combined ``WatchNeed`` says:

    in transit    a version that put values by reference, until every broker with watches in the namespace has ``passed``
                  it: has matched it, and told which of its watches need it
    floor         this version and all later ones, for watches of mode ``every`` that lag
    versions      single ones, leased, for watches of mode ``latest``

How a version does not go before its watcher has it, though retention keeps one version only:

1. A broker whose first watch in a namespace begins sends its need up. From then on rank 0 keeps each version that puts
   values by reference. (A version that was made before is confirmed by ``roots.held``.)
2. The setroot arrives at the broker. The index matches it; a watcher has it pending.
3. The broker sends its need: it has passed the version, and its floor or its leased versions cover the watcher. Both
   are one message, so there is no moment without either.
4. The client moves past the version: the broker's need shrinks.

A version without values by reference is not kept in transit: a watch of short values costs nothing.

What is held beyond retention is bounded by ``bytes_max``, by the bytes that its versions put by reference. Past that the
oldest versions are given up, and the watches that need them end, or move on (mode ``latest``). If the namespace's
retention says ``full=wait``, commits wait instead (``is_full``), for up to ``wait_s``.

Invariants: ``bytes`` is the sum over the versions beyond retention that are held; ``broken`` never decreases.
"""

from __future__ import annotations

from collections import deque

from fluxmpi.kvs.mvcc.limits import WatchHoldLimits
from fluxmpi.kvs.wire import WatchNeed
from fluxmpi.machine import NEVER


class WatchHold:
    """``waits``: commits wait when it is full. ``bytes``: put by reference by the versions that only it keeps."""

    def __init__(self, limits: WatchHoldLimits) -> None:
        self.bytes = 0
        self.waits = False
        self._limits = limits
        self._passed = -1
        self._floor: int | None = None
        self._transit: deque[int] = deque()
        """Versions that not every broker has passed."""
        self._sizes: deque[tuple[int, int]] = deque()
        """Versions that put values by reference, with their bytes, which retention keeps; oldest first."""
        self._beyond: deque[tuple[int, int]] = deque()
        """The same of those that only this keeps."""
        self.broken = 0
        """Versions below this one were given up."""
        self._full_since = NEVER
        """Since when commits have been waiting."""

    def advance(self, version: int, size: int) -> None:
        """Take the next version, which put ``size`` bytes by reference."""
        self._transit.append(version)
        self._sizes.append((version, size))

    def need(self, need: WatchNeed) -> None:
        """Take what the brokers need now."""
        assert need.passed is not None
        self._passed = max(self._passed, need.passed)
        self._floor = need.floor
        transit = self._transit
        while transit and transit[0] <= self._passed:
            transit.popleft()

    def oldest(self, retained: int, now: float) -> int:
        """Return the oldest version to keep, where retention keeps those from ``retained`` on.

        The version before one that is needed is kept as well: it has the previous values.
        """
        lowest = self._transit[0] - 1 if self._transit else retained
        if self._floor is not None:
            lowest = min(lowest, self._floor)
        lowest = min(max(lowest, self.broken), retained)
        sizes, beyond = self._sizes, self._beyond
        while sizes and sizes[0][0] < retained:
            self.bytes += sizes[0][1]
            beyond.append(sizes.popleft())
        while beyond and beyond[0][0] < lowest:
            self.bytes -= beyond.popleft()[1]
        if self.bytes <= self._limits.bytes_max:
            self._full_since = NEVER
        elif not self.waits or now >= self._full_since + self._limits.wait_s:
            while beyond and self.bytes > self._limits.bytes_max:
                version, size = beyond.popleft()
                self.bytes -= size
                self.broken = lowest = max(lowest, version + 1)
            self._full_since = NEVER
            lowest = min(lowest, retained)
        return lowest

    def give_up(self, version: int) -> None:
        """Keep this version and older ones no more: history takes too many bytes."""
        self.broken = max(self.broken, version + 1)

    def is_full(self, now: float) -> bool:
        """Return whether commits must wait until watches have moved on."""
        if not self.waits or self.bytes <= self._limits.bytes_max:
            return False
        self._full_since = min(self._full_since, now)
        return now < self._full_since + self._limits.wait_s

    def has_expired(self, now: float) -> bool:
        """Return whether commits have waited as long as they may."""
        return now >= self.deadline

    @property
    def deadline(self) -> float:
        """When commits stop waiting, if they do."""
        return self._full_since + self._limits.wait_s

    def check(self) -> None:
        assert self.bytes == sum(size for _, size in self._beyond)
        assert list(self._transit) == sorted(self._transit)
        assert not self._transit or self._transit[0] > self._passed
