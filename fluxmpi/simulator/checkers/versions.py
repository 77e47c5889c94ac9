"""The versions of each namespace with their trees: what all answers are compared with.

``replay`` computes them from a history alone; the simulator computes them from the leader's log as well, which leaves
nothing unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fluxmpi.simulator.checkers.model import Tree


@dataclass(slots=True)
class VersionState:
    """One version.

    ``ref``: its root in hexadecimal, empty if unknown. ``tree`` None: unknown. ``written``: the keys it wrote.
    """

    version: int
    ref: str
    tree: Tree | None
    written: list[str] = field(default_factory=list)


@dataclass(slots=True)
class VersionStates:
    """``problems``: where versions are not what their transactions make.

    ``complete``: the last version here is the newest there is, and all trees are known. ``guessed``: commits without an
    answer were placed where they explain what was read. ``newest_at``: the newest version of a namespace at a time, if
    known. ``retention``: the minimum number of retained versions, 0 if unknown.
    """

    problems: list[str] = field(default_factory=list)
    namespaces: dict[str, dict[int, VersionState]] = field(default_factory=dict)
    by_ref: dict[str, VersionState] = field(default_factory=dict)
    complete: bool = False
    guessed: bool = False
    newest_at: Callable[[str, float], int] | None = None
    retention: int = 0

    def add(self, namespace: str, state: VersionState) -> None:
        """Add the next version of a namespace."""
        self.namespaces.setdefault(namespace, {})[state.version] = state
        if state.ref:
            self.by_ref.setdefault(state.ref, state)

    def at(self, namespace: str, version: int) -> VersionState | None:
        return self.namespaces.get(namespace, {}).get(version)

    def versions(self, namespace: str) -> list[VersionState]:
        """Return the versions of a namespace in order."""
        return list(self.namespaces.get(namespace, {}).values())

    def collected(self, namespace: str, version: int, time: float) -> bool:
        """Return whether retention may have dropped a version at that time."""
        if self.newest_at is None:
            return True
        return version <= self.newest_at(namespace, time) - self.retention
