"""Evaluate a version for a watcher: which changes of it does the watch match, and which notifications result?

    match ─▶ what is stored at the key in this version, and in the one before ─┬─▶ a key:      one change, or none
                                                                              └─▶ a directory: a diff of the two, matched
                                                                                  against the pattern, sent in parts

One evaluation is one walk: it is suspended while a node is missing. Between two parts only the place in the diff is
kept, no blobs, so a watcher that waits for credit costs little memory.

A link into another namespace is resolved in the version of that namespace that was evaluated last, the first time in
its newest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, IsADirectory, NoSuchNamespace
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Link, Object, split_key
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.lookup import Lookup, no_other_namespace
from fluxmpi.kvs.store.node import Found, NodeCache
from fluxmpi.kvs.store.pattern import KeyFilter
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.watcher import Match, Watcher
from fluxmpi.kvs.wire import KeyChange, PathRequest, RootInfo
from fluxmpi.message import Message

Parts = Generator[list[Ref], dict[Ref, bytes], list[Message]]
Evaluation = Generator[PathRequest | list[Ref], dict[Ref, bytes], list[Message]]
"""Yields what is missing, is sent what was loaded, returns the notifications."""


class Evaluator:
    """``follow`` is called with a watcher and a namespace before a link of it is resolved there."""

    def __init__(
        self,
        reads: Reads,
        nodes: NodeCache,
        replicas: Mapping[str, Replica],
        follow: Callable[[Watcher, str], None],
        limits: WatchLimits,
    ) -> None:
        self._reads = reads
        self._nodes = nodes
        self._replicas = replicas
        self._follow = follow
        self._limits = limits

    def evaluate(self, watcher: Watcher, match: Match) -> Evaluation:
        """Evaluate one version; return the notifications to send."""
        watch, pattern, root = watcher.watch, watcher.pattern, match.root
        old = watcher.object
        before, seen = match.before, watcher.own.root
        if (
            before is not None
            and seen is not None
            and before.version != seen.version
            and not (pattern.plain or watcher.linked)
        ):
            old = (yield from self._find(watcher, before.ref))[0]  # no version in between matched; the diff is shorter
        watcher.move_to(root)
        own = watcher.own.root
        assert own is not None
        new, lookup = yield from self._find(watcher, own.ref)
        if watcher.ended:
            return []
        where = watcher.resolved
        watcher.found(new, lookup)
        if lookup.links_followed and not watcher.linked:
            self._link_found(watcher, own)
        if pattern.plain and type(new) is Dir:
            raise IsADirectory(f"'{watch.key}' is a directory: watch it with recursive, or a pattern")
        if not watcher.begun and (watch.after is not None or not watch.initial):
            if watch.latest:
                self._skip_to_newest(watcher)
            return watcher.notify(root, [])
        if pattern.plain:
            changes = _key_changes(watcher.key, old, new, match.written)
            if changes and match.appends is not None:
                changes[0].appends = _appends_to(watcher.resolved, where, match)
            return watcher.notify(root, changes)
        changes = []
        if pattern.accepts(pattern.start) and old != new and (is_leaf(old) or is_leaf(new)):
            changes.append(_leaf_change(watcher.key, old, new))
        prefix = "" if watcher.key == ROOT_KEY else watcher.key
        watcher.send_parts(root, Diff(self._nodes, _ref(old), _ref(new), prefix, pattern))
        return (yield from self.next_part(watcher, changes))

    def next_part(self, watcher: Watcher, changes: list[KeyChange] | None = None) -> Parts:
        """Evaluate the next part of the version that is being sent, after ``changes``."""
        changes = changes or []
        diff, root = watcher.diff, watcher.sending
        assert diff is not None
        assert root is not None
        found = yield from self.advance(diff)
        if watcher.ended:
            return []
        changes += [_leaf_change(key, old, new) for key, old, new in found.value if is_leaf(old) or is_leaf(new)]
        return watcher.notify(root, changes, found.more)

    def _find(
        self, watcher: Watcher, ref: Ref
    ) -> Generator[PathRequest, dict[Ref, bytes], tuple[Object | None, Lookup]]:
        """Find what is stored at the watched key in the version with this root, and the path to it."""
        watch, cursors = watcher.watch, watcher.cursors

        def root_of(namespace: str) -> Ref | None:
            if namespace not in cursors:
                self._follow(watcher, namespace)
            cursor = cursors.get(namespace)
            root = None if cursor is None else cursor.root
            return root.ref if root is not None and root.ref else None

        lookup = Lookup(self._nodes, root_of, watch.namespace, ref, watcher.pattern.prefix, watch.follow)
        while True:
            try:
                step = lookup.advance()
            except NoSuchNamespace:
                if not watch.wait:
                    raise
                return None, lookup
            if isinstance(step, Found):
                return step.value, lookup
            self._reads.add_nodes((yield PathRequest(step.refs[0], lookup.remaining)))

    def _link_found(self, watcher: Watcher, root: RootInfo) -> None:
        """Let every version match a watcher whose key leads through a link.

        1. The watcher evaluates version v, in which it meets its first link. 2. Later versions have arrived already,
        and changed what the link leads to. 3. They did not match then. So all versions after v are read from the log.
        """
        own = watcher.watch.namespace
        self._follow(watcher, own)
        if self._replicas[own].version == root.version:
            return
        if watcher.watch.latest:
            self._skip_to_newest(watcher)
        else:
            watcher.rewind()

    def _skip_to_newest(self, watcher: Watcher) -> None:
        newest = self._replicas[watcher.watch.namespace].root
        assert newest is not None
        watcher.skip_to(newest)

    # ---------------------------------------------------------------------------------------- trees, also for the index

    def diff(self, before: RootInfo, root: RootInfo, key_filter: KeyFilter[Any]) -> Diff:
        """Return the diff of two versions, with the keys that the filter accepts."""
        return Diff(self._nodes, before.ref, root.ref, "", key_filter)

    def advance(self, diff: Diff) -> Generator[list[Ref], dict[Ref, bytes], Found]:
        """Advance a diff by one slice."""
        while True:
            step = diff.advance(self._limits.slice_changes, self._limits.slice_steps)
            if isinstance(step, Found):
                return step
            loaded = yield step.refs
            for ref in reversed(step.refs):
                self._nodes.add_blob(
                    ref, loaded[ref]
                )  # what is needed first is learned last: even a tiny cache keeps it

    def was_directory(self, before: RootInfo | None, root: RootInfo, key: str) -> bool:
        """Whether a directory or link is stored at ``key`` in one of two versions; True if that is not known at once."""
        if before is None:
            return True
        try:
            for ref in (before.ref, root.ref):
                lookup = Lookup(self._nodes, no_other_namespace, root.namespace, ref, split_key(key), follow=False)
                step = lookup.advance()
                if not isinstance(step, Found) or lookup.links_followed or isinstance(step.value, Dir | Link):
                    return True
        except FluxmpiError:
            return True
        return False


def is_leaf(obj: Object | None) -> bool:
    """Return True for a value or a link: neither a directory nor nothing."""
    return obj is not None and type(obj) is not Dir


def _key_changes(key: str, old: Object | None, new: Object | None, written: bool) -> list[KeyChange]:
    """Return the change of a watched key, if there is one; ``written``: its value was written again."""
    if new != old:
        return [KeyChange(key, new, old is not None, old)]
    return [KeyChange(key, new, True, new)] if written and new is not None else []


def _appends_to(place: tuple[str, str] | None, before: tuple[str, str] | None, match: Match) -> list[int]:
    """Return the bytes of each append that a version made at ``place``, namespace and key; none if it was elsewhere before.

    It is elsewhere before if a link on its path was changed.
    """
    assert match.appends is not None
    if place is None or (before is not None and before != place) or place[0] != match.root.namespace:
        return []
    return match.appends.get(place[1], [])


def _leaf_change(key: str, old: Object | None, new: Object | None) -> KeyChange:
    """Return the change of a key below a directory. A directory itself counts as nothing; its entries are changes."""
    existed = is_leaf(old)
    return KeyChange(key, new if is_leaf(new) else None, existed, old if existed else None)


def _ref(obj: Object | None) -> Ref | None:
    return obj.ref if type(obj) is Dir else None
