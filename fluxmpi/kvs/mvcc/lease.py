"""Leases: versions that are kept although retention would let them go.

A lease ends when it is released, when its time is over, with its holder's connection, and with its namespace. A renewed one
has its whole time again.

Invariants: a lease that has not ended keeps its version (``Namespace.lease``), exactly once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from fluxmpi.errors import InvalidRequest, LeaseExpired, Overloaded
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.wire import Lease, Leased, RootInfo
from fluxmpi.machine import NEVER

TTL_S_MAX = 1e9


@dataclass(slots=True)
class _Held:
    namespace: Namespace
    root: RootInfo
    holder: list[int]
    ttl_s: float | None
    expires: float = NEVER


class Leases:
    def __init__(self, leases_max: int = MVCC_LIMITS.leases_max) -> None:
        self._leases_max = leases_max
        self._held: dict[int, _Held] = {}
        self._last = 0
        self._soonest: list[tuple[float, int]] = []
        """A heap of (time, id); a lease that was renewed or released has entries that mean nothing any more."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def deadline(self) -> float:
        return self._soonest[0][0] if self._soonest else NEVER

    def take(self, namespace: Namespace, lease: Lease, holder: list[int], now: float) -> Leased:
        """``holder``: the route of the client's request, which tells it from all others."""
        if lease.ttl_s is not None and not 0 < lease.ttl_s <= TTL_S_MAX:
            raise InvalidRequest(f"a lease cannot be for {lease.ttl_s} s: give a time above 0 and up to {TTL_S_MAX:g}")
        if len(self._held) >= self._leases_max:
            raise Overloaded(f"{self._leases_max} leases are held already")
        at = lease.at
        version = namespace.root.version if at is None else at if isinstance(at, int) else namespace.of(at).version
        root = namespace.lease(version)
        self._last += 1
        self._held[self._last] = _Held(namespace, root, holder, lease.ttl_s)
        return self.renew(self._last, now)

    def renew(self, number: int, now: float) -> Leased:
        """Its time begins again."""
        held = self._find(number)
        if held.ttl_s is None:
            return Leased(number, held.root, None)
        held.expires = now + held.ttl_s
        heapq.heappush(self._soonest, (held.expires, number))
        if len(self._soonest) > 2 * self._leases_max:
            self._soonest = [(each.expires, number) for number, each in self._held.items() if each.ttl_s is not None]
            heapq.heapify(self._soonest)
        self._tidy()
        return Leased(number, held.root, held.expires)

    def _find(self, number: int) -> _Held:
        held = self._held.get(number)
        if held is None:
            raise LeaseExpired(
                f"lease {number} has ended: it was released, its time is over, or its holder or namespace is gone"
            )
        return held

    def release(self, number: int) -> None:
        held = self._find(number)
        del self._held[number]
        held.namespace.release(held.root.version)
        self._tidy()

    def _tidy(self) -> None:
        """Let the heap begin with what still means something, so that nobody is woken for nothing."""
        heap, held = self._soonest, self._held
        while heap and (heap[0][1] not in held or held[heap[0][1]].expires != heap[0][0]):
            heapq.heappop(heap)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        while self._soonest and self._soonest[0][0] <= now:
            self.release(self._soonest[0][1])

    def forget(self, holder: list[int]) -> None:
        """This client is gone."""
        for number in [number for number, held in self._held.items() if held.holder == holder]:
            self.release(number)

    def removed(self, namespace: Namespace) -> None:
        for number in [number for number, held in self._held.items() if held.namespace is namespace]:
            self.release(number)

    def check(self) -> None:
        counts: dict[tuple[int, int], int] = {}
        for held in self._held.values():
            key = id(held.namespace), held.root.version
            counts[key] = counts.get(key, 0) + 1
            assert held.namespace.leases(held.root.version) >= counts[key]
            assert held.expires == NEVER or self.deadline <= held.expires
        assert not self._soonest or self._soonest[0][1] in self._held
