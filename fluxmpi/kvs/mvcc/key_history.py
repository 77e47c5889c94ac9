"""The history of a key: each version that changed it, newest first.

A search goes from version to version: what stands at the key in one, and by which keys (more than one where the way goes through
links); then to the newest version before that may have changed any of these keys, where the object is compared with the
one of the version before. Between the two the way was the same, so nothing is missed, and nothing is looked at but what may
count::

    version 9  l.a ─link─▶ hot.a      newest that touched l.a or hot.a, at or below 9: 7
    version 7  l.a is 3, was 2        found; go on below 7, with the ways of version 6
"""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, SnapshotCollected
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.objects import Object, join_key, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Missing, NodeCache
from fluxmpi.kvs.wire import KeyVersion


class OtherNamespace(InvalidRequest):
    """A way into another namespace, which has versions of its own."""


class KeyHistory:
    """``found`` grows with each ``advance``, up to ``limit``; ``done`` then, or when what is kept has been searched."""

    def __init__(self, namespace: Namespace, nodes: NodeCache, key: str, before: int | None, limit: int) -> None:
        self.found: list[KeyVersion] = []
        self.done = False
        self._namespace = namespace
        self._nodes = nodes
        self._parts = split_key(key)
        self._limit = limit
        self._version = namespace.root.version if before is None else min(before - 1, namespace.root.version)
        self._look(namespace.root.version)  # raises what is wrong with the key now

    def advance(self, most: int) -> None:
        """Look at up to ``most`` versions that may have changed the key."""
        namespace = self._namespace
        for _ in range(most):
            if self._version <= namespace.oldest or len(self.found) >= self._limit:
                self.done = True
                return
            _, ways = self._tolerant(self._version)
            touched = [namespace.key_index.newest(way, self._version + 1) for way in ways]
            version = max((version for version in touched if version is not None), default=namespace.oldest)
            if version > namespace.oldest:
                new, _ = self._tolerant(version)
                old, _ = self._tolerant(version - 1)
                if new != old:
                    root = namespace.history[version]
                    self.found.append(KeyVersion(version, root.ref, root.time, new, old is not None))
            self._version = version - 1

    def _tolerant(self, version: int) -> tuple[Object | None, list[str]]:
        """A way that led nowhere then is no error now: nothing was there."""
        try:
            return self._look(version)
        except SnapshotCollected:
            raise
        except FluxmpiError:
            return None, ["."]

    def _look(self, version: int) -> tuple[Object | None, list[str]]:
        """What stood there, and the keys on the way to it."""
        root = self._namespace.history[version]
        lookup = Lookup(self._nodes, self._elsewhere, root.namespace, root.ref, self._parts)
        step = lookup.advance()
        if isinstance(step, Missing):
            raise SnapshotCollected(f"version {version} of {root.namespace} is not kept any more")
        return step.value, [join_key(self._parts), *lookup.link_targets]

    def _elsewhere(self, namespace: str) -> Ref | None:
        key = join_key(self._parts)
        raise OtherNamespace(f"the way to '{key}' leads into namespace '{namespace}': ask for the history there")
