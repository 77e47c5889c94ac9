"""The bound of rank 0's store in bytes: whether more may be stored now, after a collection, or not at all.

    has_room ──fits──────────────────▶ True: store it
             ──too full──────────────▶ False: wait. A collection *under pressure* begins; at its end the waiting requests
                                       are told (``on_end``) and ask again
             ──and collecting cannot─▶ raises StoreFull
               help

A collection under pressure drops what it may: old versions, as far as the request needs it (``history_allowance``), and
blobs that a client stored some time ago without a commit. After one that has left no old version, further requests are
refused at once until a version was made, a lease ended or a retention changed, or some time has passed: each of them
can make garbage.

A *removal*, a transaction that only removes keys, needs new nodes too. It may use a reserve beyond the bound, so a full
store can always be emptied. The nodes of other commits may use it as well: only their values are counted beforehand.

Invariant: ``store.bytes`` exceeds ``bytes_max`` by the reserve, and the nodes of one version, at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fluxmpi.errors import StoreFull
from fluxmpi.kvs.mvcc.limits import SPACE_LIMITS, SpaceLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.message import FRAME_BYTES_MAX

UNBOUNDED = 1 << 62
"""``bytes_max`` of a store without a bound."""


class SizedStore(Protocol):
    """See ``content.store.Store``."""

    bytes: int


class StoreSpace:
    """``live_bytes``, ``history_bytes``, ``leased_bytes``: as the last collection found them.

    ``tight_at``: below so many bytes every request fits, so callers need not ask.
    """

    def __init__(
        self,
        store: SizedStore,
        namespaces: Namespaces,
        bytes_max: int = UNBOUNDED,
        limits: SpaceLimits = SPACE_LIMITS,
    ) -> None:
        self.bytes_max = bytes_max
        self.reserve = int(bytes_max * limits.reserve_share)
        self.tight_at = bytes_max - 2 * FRAME_BYTES_MAX
        self.live_bytes = self.history_bytes = self.leased_bytes = 0
        self.store = store
        self._namespaces = namespaces
        self._limits = limits
        self._needed = 0
        """Bytes of the largest request that waits."""
        self._wanted = False
        """A collection under pressure shall begin."""
        self._pressed = False
        """One is under way."""
        self._began = 0.0
        self._seen: object = None
        """What could make garbage (``_causes``) when the last one under pressure began."""
        self._retry_at = 0.0
        self._vain = False
        """The last one under pressure left nothing that a further one could drop."""
        self._warned = False
        self.refused = self.waits = 0
        self.on_wanted: Callable[[], None] = lambda: None
        self.on_end: list[Callable[[], None]] = []

    # ---------------------------------------------------------------------------------------------------- requests

    def has_room(self, size: int, now: float, *, removes: bool = False) -> bool:
        """Return whether ``size`` bytes more may be stored now; False: wait for ``on_end``, and ask again.

        ``removes``: of a transaction that only removes keys. Raises StoreFull.
        """
        bytes_max = self.bytes_max + self.reserve if removes else self.bytes_max
        if self.store.bytes + size <= bytes_max:
            return True
        if size > self.bytes_max:
            self.refused += 1
            raise StoreFull(f"{size:,} bytes do not fit into a store of {self.bytes_max:,} (--store-bytes)")
        if not self._wanted and not self._pressed:
            if now < self._retry_at and self._vain and self._causes() == self._seen:
                self.refused += 1
                raise self._full()
            self._wanted = True
            self.on_wanted()
        self._needed = max(self._needed, size)
        self.waits += 1
        return False

    def _full(self) -> StoreFull:
        return StoreFull(
            f"the store is full: {self.store.bytes:,} of {self.bytes_max:,} bytes. The newest versions need "
            f"{self.live_bytes:,}, older ones {self.history_bytes:,}, leases {self.leased_bytes:,}. Unlink keys, release "
            "leases, or restart with a larger --store-bytes"
        )

    def _causes(self) -> object:
        """Return what changes with everything that can make garbage, time apart."""
        return [
            (namespace.root.namespace, namespace.root.version, namespace.oldest, namespace.leased_versions)
            for namespace in self._namespaces
        ]

    # -------------------------------------------------------------------------------------------------- the collector

    def begin(self, now: float) -> bool:
        """Note that a collection begins; return whether it is under pressure."""
        self._pressed, self._wanted = self._wanted, False
        if self._pressed:
            self._began = now
            self._seen = self._causes()
        return self._pressed

    @property
    def wanted(self) -> bool:
        """A collection under pressure shall begin after the one that is under way."""
        return self._wanted

    def history_allowance(self, kept: int) -> int:
        """Return how many bytes history may have after this collection, if everything else has ``kept`` bytes."""
        if not self._pressed:
            return UNBOUNDED
        most = min(int(self.bytes_max * self._limits.pressed_share), self.bytes_max - self._needed)
        return max(0, most - kept)

    def next_collection(self, wanted: int, least: int) -> int:
        """Return how many bytes may be stored before the next collection: ``wanted``, or less in a small or full store.

        ``least``: of them are always useful to store before, unless the store is small.
        """
        room = max(self.bytes_max - self.store.bytes, 0) // 2
        return max(min(wanted, room), min(least, self.bytes_max // 32), 1)

    def end(self, now: float, *, abandoned: bool = False) -> str | None:
        """Note the end of the collection, and tell those who wait. Return a warning, if there is reason for one."""
        if self._pressed:
            self._vain = abandoned or not self.history_bytes
            limits = self._limits
            self._retry_at = now + max(limits.retry_s, limits.retry_durations * (now - self._began))
            self._needed = 0
        self._pressed = False
        for tell in self.on_end:
            tell()
        return self._warning()

    def _warning(self) -> str | None:
        """Return a warning when a collection leaves more than ``warn_share``, once until it was below again.

        Old versions do not count: they are dropped when there is no other room.
        """
        used = (self.store.bytes - self.history_bytes) / self.bytes_max
        if used < self._limits.rearm_share:
            self._warned = False
        if used < self._limits.warn_share or self._warned:
            return None
        self._warned = True
        return (
            f"the store is {used:.0%} full: of {self.bytes_max:,} bytes (--store-bytes) the newest versions need "
            f"{self.live_bytes:,}, leases {self.leased_bytes:,}; older versions have {self.history_bytes:,}. When it is "
            "full, commits are refused with StoreFull: unlink keys, release leases, or restart with a larger "
            "--store-bytes"
        )

    @property
    def warned(self) -> bool:
        """The store is nearly full, as the last warning said."""
        return self._warned

    @property
    def shown_max(self) -> int:
        """The bound for people: 0 if there is none."""
        return self.bytes_max if self.bytes_max < UNBOUNDED else 0

    def statistics(self) -> dict[str, float]:
        return {"warned": int(self._warned), "refused": self.refused, "waits": self.waits}
