"""Leases: each keeps one version beyond retention.

A lease ends when it is released, when its time to live has passed, when its holder disconnects, and with its namespace.
Renewing it starts its time to live again.

Invariant: each lease keeps its version (``Namespace.lease``) exactly once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from fluxmpi.errors import InvalidRequest, LeaseExpired, Overloaded
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.wire import Lease, Leased, RootInfo
from fluxmpi.machine import NEVER
from fluxmpi.shares import Pool

TTL_S_MAX = 1e9


@dataclass(slots=True)
class _Held:
    namespace: Namespace
    root: RootInfo
    holder: list[int]
    ttl_s: float | None
    expires: float = NEVER


class Leases:
    def __init__(
        self, leases_max: int = MVCC_LIMITS.leases_max, client_max: int = MVCC_LIMITS.leases_client_max
    ) -> None:
        self._leases_max = leases_max
        self._pool = Pool("leases", leases_max, client_max)
        self._held: dict[int, _Held] = {}
        self._last_id = 0
        self._expiries: list[tuple[float, int]] = []
        """A heap of (time, id). Entries of renewed and ended leases stay until they reach its top, or it is rebuilt."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def deadline(self) -> float:
        return self._expiries[0][0] if self._expiries else NEVER

    def grant(self, namespace: Namespace, lease: Lease, holder: list[int], now: float) -> Leased:
        """Lease a version. ``holder``: the route of the client's request, which identifies the client."""
        if lease.ttl_s is not None and not 0 < lease.ttl_s <= TTL_S_MAX:
            raise InvalidRequest(f"invalid lease of {lease.ttl_s} s: give a time above 0 and up to {TTL_S_MAX:g}")
        at = lease.at
        if at is None:
            version = namespace.root.version
        else:
            version = at if isinstance(at, int) else namespace.with_root(at).version
        root = namespace.lease(version)
        try:
            self._pool.take(tuple(holder))
        except Overloaded:
            namespace.release(version)
            raise
        self._last_id += 1
        self._held[self._last_id] = _Held(namespace, root, holder, lease.ttl_s)
        return self.renew(self._last_id, now)

    def renew(self, number: int, now: float) -> Leased:
        """Start the lease's time to live again."""
        held = self._find(number)
        if held.ttl_s is None:
            return Leased(number, held.root, None)
        held.expires = now + held.ttl_s
        heapq.heappush(self._expiries, (held.expires, number))
        if len(self._expiries) > 2 * self._leases_max:
            self._expiries = [(each.expires, number) for number, each in self._held.items() if each.ttl_s is not None]
            heapq.heapify(self._expiries)
        self._drop_stale()
        return Leased(number, held.root, held.expires)

    def _find(self, number: int) -> _Held:
        held = self._held.get(number)
        if held is None:
            raise LeaseExpired(
                f"lease {number} has ended: it was released, it expired, or its holder or namespace is gone"
            )
        return held

    def release(self, number: int) -> None:
        held = self._find(number)
        del self._held[number]
        self._pool.give(tuple(held.holder))
        held.namespace.release(held.root.version)
        self._drop_stale()

    def _drop_stale(self) -> None:
        """Drop stale entries from the top of the heap, so that ``deadline`` is the expiry of a lease."""
        heap, held = self._expiries, self._held
        while heap and (heap[0][1] not in held or held[heap[0][1]].expires != heap[0][0]):
            heapq.heappop(heap)

    def expire(self, now: float) -> None:
        """End the leases whose time to live has passed."""
        while self._expiries and self._expiries[0][0] <= now:
            self.release(self._expiries[0][1])

    def release_of(self, holder: list[int]) -> None:
        """Release all leases of a disconnected client."""
        for number in [number for number, held in self._held.items() if held.holder == holder]:
            self.release(number)

    def release_in(self, namespace: Namespace) -> None:
        """Release all leases in a removed namespace."""
        for number in [number for number, held in self._held.items() if held.namespace is namespace]:
            self.release(number)

    def statistics(self) -> dict[str, int]:
        """``expiries``: entries of the heap, stale ones included."""
        return {"leases": len(self._held), "expiries": len(self._expiries)}

    def check(self) -> None:
        self._pool.check()
        assert self._pool.taken == len(self._held)
        counts: dict[tuple[int, int], int] = {}
        for held in self._held.values():
            key = id(held.namespace), held.root.version
            counts[key] = counts.get(key, 0) + 1
            assert held.namespace.leases(held.root.version) >= counts[key]
            assert held.expires == NEVER or self.deadline <= held.expires
        assert not self._expiries or self._expiries[0][1] in self._held
