"""What a key was in a version that may have gone: ``roots.past``.

    the version is kept            look the key up in it
    it has gone, a rule matches    the key's tail (``value_history``); without a tail the key has not changed since its
                                   rule began, so it is in the oldest version what it was
    else                           SnapshotCollected

The answer is never a guess. Nothing is known of a key below a link, since what the link led to may have changed.
"""

from __future__ import annotations

from fluxmpi.errors import InvalidRequest, SnapshotCollected
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.mvcc.value_history import PastEntry, ValueHistory, literal_object
from fluxmpi.kvs.objects import Dir, Link, Object, join_key, split_key
from fluxmpi.kvs.store.lookup import Lookup, no_other_namespace
from fluxmpi.kvs.store.node import Missing, NodeCache
from fluxmpi.kvs.wire import KeyVersion, PastRequest, RootInfo


def past_value(namespace: Namespace, nodes: NodeCache, past: PastRequest, now: float) -> KeyVersion:
    """Return what a key was. Raises SnapshotCollected if that is not known, VersionUnknown for no version."""
    parts = split_key(past.key)
    if (past.version is None) is (past.time is None and past.ago_s is None):
        raise InvalidRequest("give one of version, time and ago_s: each says which version is meant")
    time = past.time if past.ago_s is None else now - past.ago_s
    try:
        root = namespace.at_time(time, now) if time is not None else namespace.at(past.version or 0)
    except SnapshotCollected as error:
        found = _gone(namespace, nodes, past, time, parts, error)
        return KeyVersion(found.version, found.ref, found.time, found.object, found.existed)
    return _kept(root, nodes, past, parts)


def _kept(root: RootInfo, nodes: NodeCache, past: PastRequest, parts: list[str]) -> KeyVersion:
    if not root.ref.startswith(past.root):
        raise SnapshotCollected(f"version {root.version} of {root.namespace} has another root in this instance")
    lookup = Lookup(nodes, no_other_namespace, root.namespace, root.ref, parts, past.follow)
    found = lookup.advance()
    assert not isinstance(found, Missing), "a node of a kept version is missing"
    return KeyVersion(root.version, root.ref, root.time, found.value, found.value is not None)


def _gone(
    namespace: Namespace,
    nodes: NodeCache,
    past: PastRequest,
    time: float | None,
    parts: list[str],
    error: SnapshotCollected,
) -> PastEntry:
    """Return the entry that says what the key was in a version that has gone; else raise ``error``, with the reason."""
    key, values = join_key(parts), namespace.values
    if values is None or not values.matching(key):
        raise error
    recorded = namespace.history.first
    if time is not None and namespace.history.newest_at(time, recorded) >= recorded:
        root = namespace.history[namespace.history.newest_at(time, recorded)]
        return _entry(_kept(root, nodes, past, parts))
    if past.version is not None and past.version >= recorded:
        return _entry(_kept(namespace.history[past.version], nodes, past, parts))
    entry = values.at_time(key, time) if time is not None else values.at_version(key, past.version or 0)
    if entry is None or entry.object is None:
        obj, linked = literal_object(namespace.history[recorded], nodes, parts)
        if linked:
            raise SnapshotCollected(f"{error.text}; a link is on the path of '{key}', so its past value is not known")
        if entry is None:
            entry = _unchanged(values, key, obj, past.version, time)
    if entry is None or (type(entry.object) is Link and past.follow):
        raise SnapshotCollected(f"{error.text}; what '{key}' was then is not among its past values")
    if past.root and not (entry.version == past.version and entry.ref.startswith(past.root)):
        raise SnapshotCollected(
            f"{error.text}; whether it had that root cannot be verified: give the number of the version alone"
        )
    return entry


def _entry(found: KeyVersion) -> PastEntry:
    return PastEntry(found.version, found.time, found.ref, found.object, found.existed)


def _unchanged(
    values: ValueHistory, key: str, obj: Object | None, version: int | None, time: float | None
) -> PastEntry | None:
    """Return the value of a key that has not changed since, if that is certain."""
    since = values.unchanged_since(key, obj is None)
    if since is None or type(obj) is Dir:
        return None
    if (version is not None and version < since.version) or (time is not None and time < since.time):
        return None
    return PastEntry(since.version, since.time, since.ref, obj, obj is not None, False)
