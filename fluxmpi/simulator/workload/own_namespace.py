"""What the reference client knows of a namespace that only it writes: every version, and which ones must be kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.kvs.wire import RootInfo

OwnValues = dict[str, bytes]
"""Key to value."""


@dataclass(slots=True)
class OwnVersion:
    """One version: its root, and its values by key."""

    root: RootInfo
    content: OwnValues


@dataclass(slots=True)
class OwnNamespace:
    """All versions of a namespace, and those that must be kept.

    Kept are ``count`` versions, those younger than ``age_s``, and leased ones. ``bounded``: the history is bounded in
    bytes, so only the newest version and leased ones are certain.
    """

    name: str
    made: dict[int, OwnVersion]
    count: int
    age_s: float = 0.0
    floor: int = 0
    """Versions below this one may be dropped. If no age was ever set, they are dropped."""
    aged: bool = False
    bounded: bool = False
    leases: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Lease to its version and the time at which it ends."""

    @property
    def newest(self) -> OwnVersion:
        """The newest version."""
        return self.made[max(self.made)]

    def trim(self, now: float) -> None:
        """Raise ``floor`` to what retention keeps at that time."""
        newest = max(self.made)
        self.floor = newest if self.bounded else max(self.floor, newest - self.count + 1)
        while self.age_s and self.floor < newest and self.made[self.floor + 1].root.time + self.age_s <= now:
            self.floor += 1

    def kept(self, version: int, now: float) -> bool:
        """Return whether a version must still be readable."""
        self.trim(now)
        return version >= self.floor or any(at == version and now < end for at, end in self.leases.values())
