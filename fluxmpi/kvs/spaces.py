"""The namespaces as rank 0 has them: each a line of versions, of which the last ones are kept.

Invariant: versions of a namespace count up by one; ``history`` holds the newest root and those before it, in order.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, NoSuchNamespace, SnapshotCollected, VersionUnknown
from fluxmpi.kvs.lookup import Lookup
from fluxmpi.kvs.nodes import Missing, NodeCache
from fluxmpi.kvs.objects import SEPARATOR, split_key
from fluxmpi.kvs.wire import RootInfo

HISTORY_MAX = 1000
"""Roots kept per namespace, so that a version can be read by its number."""

KEYS_MAX = 1024
"""Keys remembered of one version; one that touched more may have changed any."""


class Touched:
    """Which versions touched a key, itself or something above or below it: where its history must be looked for.

    What versions touched is noted at no cost; the index by key is made when somebody asks, and kept up from then on.
    """

    def __init__(self) -> None:
        self._keys: dict[int, list[str] | None] = {}
        self._index: dict[str, list[int]] = {}
        """Key to the versions that touched it, or something below it, in order."""
        self._any: list[int] = []
        """Versions that may have touched anything."""
        self._indexed = -1

    def note(self, version: int, keys: list[str] | None) -> None:
        """``keys`` None: it may have touched any."""
        self._keys[version] = keys if keys is not None and len(keys) <= KEYS_MAX else None

    def forget(self, version: int) -> None:
        """The oldest one is not kept any more."""
        keys = self._keys.pop(version, None)
        if version > self._indexed:
            return
        if keys is None:
            if self._any and self._any[0] == version:
                del self._any[0]
            return
        for key in _with_above(keys):
            versions = self._index[key]
            del versions[0]
            if not versions:
                del self._index[key]

    def versions(self, key: str) -> list[int]:
        """Those that may have changed ``key``, newest first."""
        self._catch_up()
        found: dict[int, None] = dict.fromkeys(self._any)
        found.update(dict.fromkeys(self._index.get(key, ())))
        at = key.rfind(SEPARATOR)
        while at > 0:  # of those above, only what touched them themselves: they are in the index for others, too
            found.update((version, None) for version in self._index.get(key[:at], ()) if key[:at] in (self._keys[version] or ()))
            at = key.rfind(SEPARATOR, 0, at)
        return sorted(found, reverse=True)

    def _catch_up(self) -> None:
        new = list(takewhile(lambda version: version > self._indexed, reversed(self._keys)))
        for version in reversed(new):
            keys = self._keys[version]
            if keys is None:
                self._any.append(version)
                continue
            for key in _with_above(keys):
                self._index.setdefault(key, []).append(version)
        self._indexed = new[0] if new else self._indexed

    def check(self) -> None:
        for versions in self._index.values():
            assert versions == sorted(set(versions))
            assert all(version in self._keys for version in versions)


def _with_above(keys: list[str]) -> dict[str, None]:
    """The keys, and all those above them."""
    found: dict[str, None] = {}
    for key in keys:
        found[key] = None
        at = key.rfind(SEPARATOR)
        while at > 0:
            found[key[:at]] = None
            at = key.rfind(SEPARATOR, 0, at)
    return found


class Space:
    """One namespace. ``root`` is its newest version."""

    def __init__(self, root: RootInfo) -> None:
        self.root = root
        self.history: dict[int, RootInfo] = {root.version: root}
        self.touched = Touched()

    def advance(self, root: RootInfo, keys: list[str] | None = None) -> None:
        """The next version; ``keys`` are what it touched, links resolved, or None when that is not known."""
        assert root.version == self.root.version + 1
        self.root = root
        self.history[root.version] = root
        self.touched.note(root.version, keys)
        if len(self.history) > HISTORY_MAX:
            oldest = next(iter(self.history))
            del self.history[oldest]
            self.touched.forget(oldest)

    def last_change(self, key: str, nodes: NodeCache) -> tuple[int, bool]:
        """The version that last changed ``key``, whose links are resolved, and True. Of a directory: or anything below it.

        False, and the oldest version that is kept, when it was not changed after that one: it was by then.
        """
        parts = split_key(key)
        oldest = next(iter(self.history))
        for version in self.touched.versions(key):
            if version <= oldest:
                break
            if self._found(parts, version, nodes) != self._found(parts, version - 1, nodes):
                return version, True
        return oldest, False

    def _found(self, parts: list[str], version: int, nodes: NodeCache) -> Any:
        """What was there in that version; by another way, through links, it counts as another thing."""
        root = self.history[version]
        lookup = Lookup(nodes, self._no_other, root.namespace, root.ref, parts, follow=False)
        try:
            found = lookup.advance()
        except FluxmpiError as error:
            return type(error)
        if isinstance(found, Missing):
            raise SnapshotCollected(f"version {version} of {root.namespace} is not kept any more")
        return found.value if not lookup.links else (version, lookup.links)

    @staticmethod
    def _no_other(namespace: str) -> Ref | None:
        return None

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
        self.touched.check()


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
