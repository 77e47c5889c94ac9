"""What the watches of this broker, and of those below it, need of the versions that rank 0 keeps.

``kvs/mvcc/watch_hold`` says why and in which order. Each broker combines its own need in a namespace with the last one of
each child, and sends the parent what has changed: what its own watches need at the end of a turn, once; a child's at
once, so that it arrives before the child's next request. At rank 0 the sum goes to the ``roots`` service.

A watch has a need of its own while its notifications refer to values (``Watcher.by_reference``):

    every     the lowest version that is pending, or that its client has not moved past: a floor; the latter are leased as
              well
    latest    the version that is pending, those that its client has not moved past, and the ones that they are compared
              with: single versions

A version is *covered*, and can be notified at once, if it is later than the newest one that rank 0 had when it got the
first need of this broker (``_base``): then it is kept in transit until this broker has passed it, and no later setroot
has said that it was given up. Any other version may have gone, so its notification waits for rank 0's confirmation
(``roots.held``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.watch.index import WatchIndex
from fluxmpi.kvs.watch.watcher import Watcher, WatcherState
from fluxmpi.kvs.wire import Held, HeldRequest, RootInfo, WatchNeed
from fluxmpi.message import ANY, CONTROL, OK, Body, Message, control, encode_body

LEASED_MAX = 64
"""Versions leased for one watch of mode ``every``: those that its client has not moved past. So these stay readable when
the floor is given up."""

_decode_held = Body(Held)


class Parent(Protocol):
    """The part of the overlay's router that is used here. ``parent``: -1 at rank 0."""

    parent: int


class WatchNeeds:
    """``indexes``: of the namespaces that have watches here. ``ask`` makes a request to another service.

    ``watchers``: by namespace, those that have needs. ``dirty``: namespaces in which needs have changed; others read both.
    """

    def __init__(
        self,
        tree: Parent,
        replicas: Mapping[str, Replica],
        indexes: Mapping[str, WatchIndex],
        ask: Callable[[str, object, int], Message],
    ) -> None:
        self._tree = tree
        self._replicas = replicas
        self._indexes = indexes
        self._ask = ask
        self.watchers: dict[str, dict[Watcher, None]] = {}
        self._children: dict[str, dict[int, WatchNeed]] = {}
        self._own: dict[str, WatchNeed] = {}
        """What the watches of this broker need, as computed last."""
        self._sent: dict[str, WatchNeed] = {}
        """What was sent last. Without an entry there is no need."""
        self._base: dict[str, int] = {}
        self.dirty: dict[str, None] = {}
        self._asked: dict[int, tuple[str, Watcher | None]] = {}
        """Tag of a ``roots.held`` → namespace, and the watcher whose notification waits for it. Without a namespace if the
        need has ended since.
        """

    # ------------------------------------------------------------------------------------------------------------ input

    def touch(self, namespace: str) -> None:
        """Note that a namespace has more or fewer watches, or a new version that put values by reference."""
        self.dirty[namespace] = None

    def changed(self, watcher: Watcher) -> None:
        """Note that a watcher's needs have changed. One that has ended has none."""
        if watcher.ended:
            return
        for namespace in watcher.cursors:
            self.watchers.setdefault(namespace, {})[watcher] = None
            self.dirty[namespace] = None

    def remove(self, watcher: Watcher) -> None:
        for namespace in watcher.cursors:
            self.dirty[namespace] = None
            watchers = self.watchers.get(namespace)
            if watchers is not None:
                watchers.pop(watcher, None)
                if not watchers:
                    del self.watchers[namespace]

    def removed(self, namespace: str) -> list[Message]:
        """Take back what was sent of a namespace that was removed: one of the same name begins anew.

        1. A child sends a need. 2. The removal arrives here, and what is known of the children is forgotten. 3. The
        child's need arrives. 4. The removal arrives at the child. So the child must say that its need has ended.
        """
        self._forget(namespace)
        self._children.pop(namespace, None)
        self.dirty[namespace] = None
        return self._report(namespace)

    def _forget(self, namespace: str) -> None:
        """Forget the own need in a namespace; an answer under way says nothing of the next one."""
        self._own.pop(namespace, None)
        self._base.pop(namespace, None)
        for tag, (asked, watcher) in self._asked.items():
            if asked == namespace:
                self._asked[tag] = "", watcher

    def from_child(self, need: WatchNeed, child: int) -> list[Message]:
        """Take a child's need, and send the sum."""
        children = self._children.setdefault(need.namespace, {})
        if need.passed is None:
            children.pop(child, None)
            if not children:
                del self._children[need.namespace]
        else:
            children[child] = need
        return self._report(need.namespace)

    # ----------------------------------------------------------------------------------------------------------- output

    def report(self) -> list[Message]:
        """Send what has changed in this turn."""
        out: list[Message] = []
        while self.dirty:
            namespace = next(iter(self.dirty))
            out += self._refresh(namespace)
        return out

    def _refresh(self, namespace: str) -> list[Message]:
        """Compute and send the need in one namespace."""
        self.dirty.pop(namespace, None)
        own = self._own_need(namespace)
        had = namespace in self._own
        if own is None:
            if had:
                self._forget(namespace)
        else:
            self._own[namespace] = own
        out = self._report(namespace)
        if own is not None and not had:
            out.append(self._ask_held(namespace, -1, None))
        return out

    def _own_need(self, namespace: str) -> WatchNeed | None:
        index, replica = self._indexes.get(namespace), self._replicas.get(namespace)
        if index is None or index.idle or replica is None or replica.root is None:
            return None
        passed = index.pending[0].root.version - 1 if index.pending else replica.version
        floor: int | None = None
        versions: dict[int, None] = {}
        for watcher in self.watchers.get(namespace, ()):
            if watcher.watch.latest:
                versions |= dict.fromkeys(needed_versions(watcher, namespace))
                continue
            if watcher.handed is not None:
                versions |= dict.fromkeys(watcher.handed.versions(namespace)[:LEASED_MAX])
            lowest = lowest_needed(watcher, namespace)
            if lowest is not None:
                floor = lowest - 1 if floor is None else min(floor, lowest - 1)
        return WatchNeed(namespace, passed, None if floor is None else max(floor, 0), sorted(versions))

    def _report(self, namespace: str) -> list[Message]:
        """Send the sum of the needs in a namespace, if it has changed."""
        needs = list(self._children.get(namespace, {}).values())
        if namespace in self._own:
            needs.append(self._own[namespace])
        if not needs:
            if self._sent.pop(namespace, None) is None:
                return []
            return [self._to_parent(WatchNeed(namespace))]
        passed = min(need.passed for need in needs if need.passed is not None)
        floor = min((need.floor for need in needs if need.floor is not None), default=None)
        versions = sorted(dict.fromkeys(version for need in needs for version in need.versions))
        total = WatchNeed(namespace, passed, floor, versions)
        if total == self._sent.get(namespace):
            return []
        self._sent[namespace] = total
        return [self._to_parent(total)]

    def _to_parent(self, need: WatchNeed) -> Message:
        if self._tree.parent < 0:
            return control("roots.need", need)
        return Message(CONTROL, "kvs.watch-need", self._tree.parent, body=encode_body(need))

    # --------------------------------------------------------------------------------------------------------- coverage

    def covers(self, watcher: Watcher, root: RootInfo) -> bool:
        """Return whether rank 0 is sure to keep a version for a watcher."""
        base = self._base.get(root.namespace)
        replica = self._replicas.get(root.namespace)
        if replica is None or replica.at(root.version) is None:
            return False  # a later version's setroot said that it was given up
        if base is not None and root.version > base:
            return True
        confirmed = watcher.confirmed_root
        if confirmed is None or confirmed.namespace != root.namespace:
            return False
        return root.version == confirmed.version or (root.version > confirmed.version and not watcher.watch.latest)

    def confirm(self, watcher: Watcher, root: RootInfo) -> list[Message]:
        """Ask rank 0 whether it keeps the version that a watcher's notification is of. Its need is sent before."""
        watcher.waits_for = root
        self.changed(watcher)
        out = self._refresh(root.namespace)
        return [*out, self._ask_held(root.namespace, root.version, watcher)]

    def _ask_held(self, namespace: str, version: int, watcher: Watcher | None) -> Message:
        ask = self._ask("roots.held", HeldRequest(namespace, version), ANY)
        self._asked[ask.tag] = namespace, watcher
        return ask

    def owns(self, tag: int) -> bool:
        return tag in self._asked

    def answered(self, msg: Message) -> tuple[Watcher | None, bool]:
        """Take rank 0's answer. Return the watcher that waited for it, and whether its version is kept."""
        namespace, watcher = self._asked.pop(msg.tag)
        if msg.status != OK:
            return watcher, False
        held = _decode_held(msg)
        if namespace in self._own:
            self._base.setdefault(namespace, held.newest)
        return watcher, held.kept

    def statistics(self) -> dict[str, float]:
        """``watch_needs``: namespaces in which rank 0 keeps versions for watches here or below."""
        return {"watch_needs": len(self._sent)}

    def check(self) -> None:
        for namespace, watchers in self.watchers.items():
            assert watchers
            for watcher in watchers:
                assert namespace in watcher.cursors
                index = self._indexes.get(watcher.watch.namespace)
                assert index is not None
                assert watcher in index, "a watch that was removed still needs versions"
        assert self._base.keys() <= self._own.keys()


def lowest_needed(watcher: Watcher, namespace: str) -> int | None:
    """Return the lowest version that a watcher has still to evaluate, or its client to read; None if there is none.

    A watch that fails later evaluates no more. What its client has still to read is older than the version that has
    gone: no floor keeps it, only leases do.
    """
    if watcher.failure is not None:
        return None
    versions = [match.root.version for match in watcher.pending if match.root.namespace == namespace][:1]
    if watcher.handed is not None:
        versions += watcher.handed.versions(namespace)[:1]
    cursor = watcher.cursors[namespace]
    if cursor is watcher.own and watcher.state is WatcherState.UNSYNCED and not versions:
        versions.append(cursor.next_version)
    if _is_evaluated(watcher) and cursor.root is not None:
        versions.append(cursor.root.version)
    return min(versions, default=None)


def needed_versions(watcher: Watcher, namespace: str) -> list[int]:
    """Return these versions one by one, with those that they are compared with: the need of mode ``latest``."""
    versions = [] if watcher.handed is None else watcher.handed.versions(namespace)
    if watcher.failure is not None:
        return versions
    cursor = watcher.cursors[namespace]
    for match in watcher.pending:
        if match.root.namespace == namespace and match.root.ref:
            versions.append(match.root.version)
            before = match.before or cursor.root
            if before is not None and before.namespace == namespace:
                versions.append(before.version)
    if _is_evaluated(watcher) and cursor.root is not None:
        versions.append(cursor.root.version)
    return versions


def _is_evaluated(watcher: Watcher) -> bool:
    """Whether a version is under evaluation, sent in parts, or waits to be confirmed."""
    return watcher.busy or watcher.diff is not None
