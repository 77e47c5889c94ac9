"""Broken fences: a member has left, so they cannot become complete, and every other member gets FenceBroken.

A name is free again when as many clients as the fence has members have got the error, or have left; or after
``broken_s``, so that a program that is started again may use the same names. (Python's ``threading.Barrier`` breaks
likewise, and stays broken.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fluxmpi.errors import FenceBroken
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.wire import CommitId, Fence


@dataclass(slots=True)
class _Broken:
    until: float
    size: int
    text: str
    clients: dict[str, None] = field(default_factory=dict)
    """Those that have got the error, or have left."""


class BrokenFences:
    """The broken fences at rank 0, by namespace and name."""

    def __init__(self, limits: FenceLimits) -> None:
        self._limits = limits
        self._fences: dict[tuple[str, str], _Broken] = {}
        self.clients = 0
        """Members that have got the error, of all fences."""

    def __len__(self) -> int:
        return len(self._fences)

    def add(self, gathering: Gathering, member: CommitId, now: float) -> FenceBroken:
        """Break a fence because ``member`` has left; return the error for all that have contributed."""
        key = gathering.namespace, gathering.name
        text = (
            f"fence '{gathering.name}' is broken: client {member.client} left it when {len(gathering.parts)} of"
            f" {gathering.size} contributions had arrived; nothing of it was committed"
        )
        self._forget(key)
        self._fences[key] = _Broken(now + self._limits.broken_s, gathering.size, text)
        if len(self._fences) > self._limits.broken_max:
            self._forget(next(iter(self._fences)))
        self._count(key, gathering.parts)
        return FenceBroken(text)

    def error(self, fence: Fence, now: float) -> FenceBroken | None:
        """Return the error for these contributors if their fence is broken."""
        key = fence.namespace, fence.name
        broken = self._fences.get(key)
        if broken is None:
            return None
        if broken.until <= now:
            self._forget(key)
            return None
        self._count(key, [part.id for part in fence.parts])
        return FenceBroken(broken.text)

    def _count(self, key: tuple[str, str], ids: Iterable[CommitId]) -> None:
        """Count clients that got the error; forget the fence with the last one."""
        broken = self._fences[key]
        before = len(broken.clients)
        broken.clients.update((id_.client, None) for id_ in ids)
        self.clients += len(broken.clients) - before
        if len(broken.clients) >= broken.size:
            self._forget(key)
        while self.clients > self._limits.broken_clients_max:
            self._forget(next(iter(self._fences)))

    def _forget(self, key: tuple[str, str]) -> None:
        broken = self._fences.pop(key, None)
        if broken is not None:
            self.clients -= len(broken.clients)

    def check(self) -> None:
        """Assert the invariants."""
        assert self.clients == sum(len(broken.clients) for broken in self._fences.values())
        assert self.clients <= self._limits.broken_clients_max
