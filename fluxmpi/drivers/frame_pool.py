"""Memory for the unfinished frames of all clients of a broker.

A frame that is longer than a small buffer reserves its length before more of it is read. Where the pool has no room, its
connection waits, unread, in order of arrival (back-pressure). A reservation that has not become a whole frame after
``frame_s`` is *stale*: while others wait, its connection is closed, so that a client that stops in the middle of a frame
holds up others for a bounded time, and nobody while there is room.

Invariant: the reservations are at most ``bytes_max`` together.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

NEVER = float("inf")

Owner = TypeVar("Owner", bound=Hashable)


class FramePool(Generic[Owner]):
    """Owners are connections. ``bytes``: the reservations together."""

    def __init__(self, bytes_max: int, frame_s: float) -> None:
        self._bytes_max = bytes_max
        self._frame_s = frame_s
        self.bytes = 0
        self._reserved: dict[Owner, tuple[int, float]] = {}
        """Bytes, and when they were reserved; the oldest first."""
        self._waiting: dict[Owner, int] = {}

    def reserve(self, owner: Owner, size: int, now: float) -> bool:
        """Reserve ``size`` bytes. False: there is no room, and ``release`` returns the owner when there is."""
        size = min(size, self._bytes_max)
        if self._waiting or self.bytes + size > self._bytes_max:
            self._waiting[owner] = size
            return False
        self._reserve(owner, size, now)
        return True

    def _reserve(self, owner: Owner, size: int, now: float) -> None:
        self._reserved[owner] = size, now
        self.bytes += size

    def release(self, owner: Owner, now: float) -> list[Owner]:
        """Free what an owner has reserved or waits for; return those that have a reservation now."""
        self._waiting.pop(owner, None)
        self.bytes -= self._reserved.pop(owner, (0, 0.0))[0]
        granted = []
        for waiting, size in list(self._waiting.items()):
            if self.bytes + size > self._bytes_max:
                break
            del self._waiting[waiting]
            self._reserve(waiting, size, now)
            granted.append(waiting)
        return granted

    def holds(self, owner: Owner) -> bool:
        """Return True if the owner has a reservation."""
        return owner in self._reserved

    def waits(self, owner: Owner) -> bool:
        """Return True if the owner waits for room: do not read from it."""
        return owner in self._waiting

    @property
    def waiting(self) -> int:
        """How many owners wait."""
        return len(self._waiting)

    @property
    def deadline(self) -> float:
        """When the oldest reservation is stale; NEVER while nobody waits."""
        return next(iter(self._reserved.values()))[1] + self._frame_s if self._waiting else NEVER

    def stale(self, now: float) -> tuple[Owner, int] | None:
        """Return the owner of the oldest reservation, and its bytes, if it is stale and others wait."""
        if self.deadline > now:
            return None
        owner, (size, _) = next(iter(self._reserved.items()))
        return owner, size
