"""A broker's state of one namespace: its newest root, recent versions, and requests parked for later ones.

    setroot v ──▶ adopt ──newer──▶ root = v; the log of recent versions grows; parked messages up to v become free
                        └─older──▶ ignored: a root never goes back

Reads with ``at_least``, answers to commits, and waits are *parked* until their version arrives.

Invariants: ``root.version`` never decreases; nothing is parked for a version that is here.
"""

from __future__ import annotations

import heapq

from fluxmpi.kvs.replica.limits import REPLICA_LIMITS
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import REQUEST, Message


class Replica:
    """``root`` is None, and ``version`` -1, until the first setroot."""

    def __init__(self, namespace: str, history_max: int = REPLICA_LIMITS.history_max) -> None:
        self.namespace = namespace
        self.root: RootInfo | None = None
        self.version = -1
        self._history = VersionLog(namespace)
        self._history_max = history_max
        self._parked: list[tuple[int, int, Message]] = []
        """A heap of (version, order of arrival, message)."""
        self._order = 0

    def adopt(self, root: RootInfo, oldest: int = 0) -> bool:
        """Take a newer root. Return False, and change nothing, if it is not newer.

        ``oldest``: rank 0 has compacted the versions before that one.
        """
        if root.version <= self.version:
            return False
        self.root = root
        self.version = root.version
        oldest = max(oldest, root.version - self._history_max + 1)
        if oldest > self._history.last or not self._history:
            self._history = VersionLog(self.namespace, root.version)
        self._history.append(root)
        if oldest > self._history.first:
            self._history.compact(oldest - self._history.first)
        return True

    def at(self, version: int) -> RootInfo | None:
        """Return the root of a recent version, or None if it is not known here."""
        return self._history.get(version)

    def park(self, version: int, msg: Message) -> None:
        """Keep ``msg`` until ``version`` arrives. Requests are stepped then, responses sent."""
        assert version > self.version
        self._order += 1
        heapq.heappush(self._parked, (version, self._order, msg))

    def release(self) -> list[Message]:
        """Take out the messages whose version is here, the oldest version first."""
        free = []
        while self._parked and self._parked[0][0] <= self.version:
            free.append(heapq.heappop(self._parked)[2])
        return free

    def release_all(self) -> list[Message]:
        """Take out all parked messages: the namespace was removed."""
        free = [entry[2] for entry in sorted(self._parked, key=lambda entry: entry[:2])]
        self._parked = []
        return free

    def unpark(self, route: list[int], tag: int) -> Message | None:
        """Take out the request with this route and tag, if it is parked."""
        for index, (_, _, msg) in enumerate(self._parked):
            if msg.kind == REQUEST and msg.tag == tag and msg.route == route:
                del self._parked[index]
                heapq.heapify(self._parked)
                return msg
        return None

    def drop(self, route: list[int]) -> None:
        """Drop what is parked for a disconnected client."""
        if self._parked:
            self._parked = [entry for entry in self._parked if entry[2].route != route]
            heapq.heapify(self._parked)

    @property
    def parked(self) -> int:
        return len(self._parked)

    def parked_requests(self) -> list[Message]:
        """Return the requests among what is parked; the others are answers."""
        return [msg for _, _, msg in self._parked if msg.kind == REQUEST]

    def check(self) -> None:
        assert all(version > self.version for version, _, _ in self._parked)
        assert (self.root is None) == (self.version < 0)
        self._history.check()
        assert len(self._history) <= self._history_max
        assert self.root is None or self._history.last == self.version
