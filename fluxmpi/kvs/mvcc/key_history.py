"""The history of a key: each kept version that changed it, newest first.

A search looks the key up in a version. The lookup gives the object and the keys on its path: more than one where the
path goes through links. Then it goes to the newest older version that may have written one of these keys, and compares
the object with the one of the version before. Between the two versions the path was the same, so no change is missed,
and versions that cannot count are not read. After the last kept version follow the changes that the key's tail has
(``value_history``)::

    version 9  l.a ─link─▶ hot.a      newest write of l.a or hot.a at or below 9: 7
    version 7  l.a is 3, was 2        found; continue below 7, with the path in version 6
"""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, SnapshotCollected
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.objects import ROOT_KEY, Object, join_key, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Missing, NodeCache
from fluxmpi.kvs.wire import KeyVersion


class OtherNamespace(InvalidRequest):
    """A link on the path leads into another namespace, which has versions of its own."""


class KeyHistory:
    """``found`` grows with each ``advance`` up to ``limit``. ``done``: it is full, or all kept versions are searched.

    The constructor raises what is wrong with the key in the newest version.
    """

    def __init__(self, namespace: Namespace, nodes: NodeCache, key: str, before: int | None, limit: int) -> None:
        self.found: list[KeyVersion] = []
        self.done = False
        self._namespace = namespace
        self._nodes = nodes
        self._parts = split_key(key)
        self._limit = limit
        self._version = namespace.root.version if before is None else min(before - 1, namespace.root.version)
        self._lookup(namespace.root.version)

    @property
    def _oldest(self) -> int:
        """The version down to which versions are compared: the tail has all changes up to it, if there is one."""
        namespace = self._namespace
        if namespace.values is not None and namespace.values.matching(join_key(self._parts)):
            return namespace.history.first
        return namespace.oldest

    def advance(self, versions_max: int) -> None:
        """Compare up to ``versions_max`` versions that may have changed the key."""
        namespace, oldest = self._namespace, self._oldest
        for _ in range(versions_max):
            if self._version <= oldest or len(self.found) >= self._limit:
                self._add_recorded()
                self.done = True
                return
            _, path = self._lookup_tolerant(self._version)
            writes = [namespace.key_index.newest_write(key, self._version + 1) for key in path]
            version = max((version for version in writes if version is not None), default=oldest)
            if version > oldest:
                new, _ = self._lookup_tolerant(version)
                old, _ = self._lookup_tolerant(version - 1)
                if new != old:
                    root = namespace.history[version]
                    self.found.append(KeyVersion(version, root.ref, root.time, new, old is not None))
            self._version = max(version - 1, oldest)

    def _add_recorded(self) -> None:
        """Add the changes that the key's tail has, below the versions that were compared."""
        values = self._namespace.values
        if values is not None:
            past = values.history(join_key(self._parts), self._version + 1, self._limit - len(self.found))
            self.found += [KeyVersion(each.version, each.ref, each.time, each.object, each.existed) for each in past]

    def _lookup_tolerant(self, version: int) -> tuple[Object | None, list[str]]:
        """As ``_lookup``, but an error counts as no object, which any write may change."""
        try:
            return self._lookup(version)
        except SnapshotCollected:
            raise
        except FluxmpiError:
            return None, [ROOT_KEY]

    def _lookup(self, version: int) -> tuple[Object | None, list[str]]:
        """Return the object in that version, and the keys on the path to it."""
        root = self._namespace.history[version]
        lookup = Lookup(self._nodes, self._refuse, root.namespace, root.ref, self._parts)
        step = lookup.advance()
        if isinstance(step, Missing):
            raise SnapshotCollected(f"version {version} of {root.namespace} is not kept any more")
        return step.value, [join_key(self._parts), *lookup.link_targets]

    def _refuse(self, namespace: str) -> Ref | None:
        key = join_key(self._parts)
        raise OtherNamespace(f"the path of '{key}' leads into namespace '{namespace}': ask for the history there")
