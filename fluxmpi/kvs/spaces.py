"""The namespaces as rank 0 has them: each a line of versions, of which the last ones are kept.

Invariant: versions of a namespace count up by one; ``history`` holds the newest root and those before it, in order.
"""

from __future__ import annotations

from fluxmpi.errors import NoSuchNamespace, SnapshotCollected, VersionUnknown
from fluxmpi.kvs.wire import RootInfo

HISTORY_MAX = 1000
"""Roots kept per namespace, so that a version can be read by its number."""


class Space:
    """One namespace. ``root`` is its newest version."""

    def __init__(self, root: RootInfo) -> None:
        self.root = root
        self.history: dict[int, RootInfo] = {root.version: root}

    def advance(self, root: RootInfo) -> None:
        """The next version."""
        assert root.version == self.root.version + 1
        self.root = root
        self.history[root.version] = root
        if len(self.history) > HISTORY_MAX:
            del self.history[next(iter(self.history))]

    def at(self, version: int) -> RootInfo:
        """The root of a version. Raises VersionUnknown for one to come, SnapshotCollected for one not kept."""
        root = self.history.get(version)
        if root is not None:
            return root
        raise not_here(self.root.namespace, version, self.root.version)

    def check(self) -> None:
        assert self.history[self.root.version] is self.root
        versions = list(self.history)
        assert versions == list(range(versions[0], versions[0] + len(versions)))


def not_here(namespace: str, version: int, newest: int) -> VersionUnknown:
    """Why there is no such version, where ``newest`` is the last one."""
    if version > newest:
        return VersionUnknown(f"version {version} of {namespace} was not reached yet: the newest is {newest}")
    return SnapshotCollected(f"version {version} of {namespace} is not kept any more: the newest is {newest}")


class Spaces:
    """All namespaces, by name."""

    def __init__(self) -> None:
        self._spaces: dict[str, Space] = {}

    def find(self, namespace: str) -> Space:
        space = self._spaces.get(namespace)
        if space is None:
            raise NoSuchNamespace(f"namespace '{namespace}' does not exist")
        return space

    def advance(self, root: RootInfo) -> Space:
        """A namespace's next version; a namespace that is new begins with it."""
        space = self._spaces.get(root.namespace)
        if space is None:
            space = self._spaces[root.namespace] = Space(root)
        else:
            space.advance(root)
        return space

    def next_version(self, namespace: str) -> int:
        space = self._spaces.get(namespace)
        return space.root.version + 1 if space else 1

    def roots(self) -> list[RootInfo]:
        """The newest root of every namespace."""
        return [space.root for space in self._spaces.values()]

    def __len__(self) -> int:
        return len(self._spaces)

    def check(self) -> None:
        for space in self._spaces.values():
            space.check()
