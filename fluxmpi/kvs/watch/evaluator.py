"""What a watcher is told of a version: one look is one walk, and tells one version, or one part of a long one.

    step ─▶ what stands at the key now, and what stood there ─┬─▶ a key:     one change, or none
                                                             └─▶ a pattern: a diff, SLICE_STEPS at a time, told in parts

Between two parts the watcher keeps the place in the diff, no blobs; so one that waits for its client costs little.

A link into another namespace is followed to the version of that which was looked at last, the first time to its newest. From
then on the watcher is asked at each of its versions, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, IsADirectory, NoSuchNamespace
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Link, Object, split_key
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Found, NodeCache
from fluxmpi.kvs.watch.watcher import Step, Watcher, WatcherState
from fluxmpi.kvs.wire import KeyChange, Notification, PathRequest, RootInfo
from fluxmpi.message import MORE, Message, reply

SLICE_CHANGES = 200
"""Changes in one part of a notification: with the longest keys and values, under 2 MiB."""

SLICE_STEPS = 2000
"""Of a diff, in one look: about 5 ms."""


class Evaluator:
    """``through`` is called with a watcher and a namespace that a link of it leads to."""

    def __init__(
        self,
        reads: Reads,
        nodes: NodeCache,
        replicas: Mapping[str, Replica],
        through: Callable[[Watcher, str], None],
    ) -> None:
        self._reads = reads
        self._nodes = nodes
        self._replicas = replicas
        self._through = through
        self.notified = 0

    def look(self, watcher: Watcher, step: Step) -> Generator[PathRequest | list[Ref], dict[Ref, bytes], list[Message]]:
        """Look at the version of ``step``. What is to be sent to the client."""
        watch, pattern = watcher.watch, watcher.pattern
        own, root = watch.namespace, step.root
        seen = watcher.roots.get(own)
        old = watcher.object
        before = step.before
        if not pattern.plain and not watcher.through_link and before is not None and before.version != seen.version:  # type: ignore[union-attr]
            old = (yield from self._find(watcher, before.ref))[0]
        watcher.roots[root.namespace] = root
        new, lookup = yield from self._find(watcher, watcher.roots[own].ref)
        if watcher.ended:
            return []
        watcher.object = new
        if lookup is not None:
            watcher.resolved = lookup.namespace, lookup.resolved_key
            if lookup.links_followed and not watcher.through_link:
                self._found_link(watcher, root)
        if pattern.plain and type(new) is Dir:
            raise IsADirectory(f"'{watch.key}' is a directory: watch it with recursive, or a pattern")
        if not watcher.begun and (watch.since is not None or not watch.initial):
            if watch.latest:
                self._skip_to_newest(watcher, root)
            return self._tell(watcher, root, [])
        if pattern.plain:
            changes = []
            if new != old:
                changes.append(KeyChange(watcher.key, new, old is not None, old))
            elif step.touched and new is not None:
                changes.append(KeyChange(watcher.key, new, True, new))
            return self._tell(watcher, root, changes)
        changes = []
        if pattern.accepts(pattern.start) and old != new and (is_leaf(old) or is_leaf(new)):
            changes.append(_leaf_change(watcher.key, old, new))
        prefix = "" if watcher.key == ROOT_KEY else watcher.key
        watcher.telling = root
        watcher.diff = Diff(self._nodes, _ref(old), _ref(new), prefix, pattern)
        return (yield from self.go_on(watcher, changes))

    def go_on(
        self, watcher: Watcher, changes: list[KeyChange] | None = None
    ) -> Generator[list[Ref], dict[Ref, bytes], list[Message]]:
        """The next part of what is being told."""
        changes = changes or []
        diff, root = watcher.diff, watcher.telling
        assert diff is not None
        assert root is not None
        found = yield from self.slice(diff)
        if watcher.ended:
            return []
        changes += [_leaf_change(key, old, new) for key, old, new in found.value if is_leaf(old) or is_leaf(new)]
        if not found.more:
            watcher.diff = watcher.telling = None
        return self._tell(watcher, root, changes, found.more)

    def slice(self, diff: Diff) -> Generator[list[Ref], dict[Ref, bytes], Found]:
        """A bounded part of a diff."""
        while True:
            step = diff.advance(SLICE_CHANGES, SLICE_STEPS)
            if isinstance(step, Found):
                return step
            loaded = yield step.refs
            for ref in reversed(step.refs):
                self._nodes.add_blob(ref, loaded[ref])  # what is needed first, last: even a tiny cache has it then

    def _find(
        self, watcher: Watcher, ref: Ref
    ) -> Generator[PathRequest, dict[Ref, bytes], tuple[Object | None, Lookup | None]]:
        """What stands at the watched key in the version with this root, and the way there."""
        watch = watcher.watch

        def root_of(namespace: str) -> Ref | None:
            if namespace not in watcher.roots:
                self._through(watcher, namespace)
            root = watcher.roots.get(namespace)
            return root.ref if root is not None and root.ref else None

        lookup = Lookup(self._nodes, root_of, watch.namespace, ref, watcher.pattern.prefix, watch.follow)
        while True:
            try:
                step = lookup.advance()
            except NoSuchNamespace:
                if not watch.wait:
                    raise
                return None, None
            if isinstance(step, Found):
                return step.value, lookup
            self._reads.add_nodes((yield PathRequest(step.refs[0], lookup.remaining)))

    def _found_link(self, watcher: Watcher, root: RootInfo) -> None:
        """From now on it is asked at every version. It may lag, and later versions that changed what the link leads to did
        not concern it, as far as was known: so it takes all of them from the history.
        """
        own = watcher.watch.namespace
        self._through(watcher, own)
        if watcher.state is WatcherState.REPLAYING or self._replicas[own].version == root.version:
            return
        if watcher.watch.latest:
            self._skip_to_newest(watcher, root)
            return
        watcher.from_history(root.version + 1)

    def _skip_to_newest(self, watcher: Watcher, root: RootInfo) -> None:
        """Live from now on. Also a version that is looked at already may yet be found to concern it: not again, then."""
        watcher.state = WatcherState.LIVE
        newest = self._replicas[root.namespace].root
        watcher.pushed[root.namespace] = root.version
        if newest is not None and newest.version > root.version:
            watcher.page.clear()
            watcher.pushed[root.namespace] = newest.version
            watcher.push(Step(root, newest))

    # ------------------------------------------------------------------------------------------------------ telling

    def _tell(self, watcher: Watcher, root: RootInfo, changes: list[KeyChange], more: bool = False) -> list[Message]:
        """Send what was found; nothing, if it is nothing and the client need not know."""
        out = []
        if changes or (not more and (watcher.parts or not watcher.begun)):
            out.append(self._notification(watcher, root, changes, more))
            watcher.begun = True
            watcher.parts += bool(changes) or more
        if not more:
            if root.namespace == watcher.watch.namespace:
                watcher.come = root.version
            watcher.counted += bool(watcher.parts)
            watcher.parts = 0
        return out

    def tell_progress(self, watcher: Watcher) -> Message:
        """That all up to the version asked for was told."""
        root, watcher.progress = watcher.progress, None
        seen = watcher.roots[watcher.watch.namespace]
        assert root is not None
        if root.version < seen.version:
            root = seen
        watcher.come = root.version
        return self._notification(watcher, root, [], False)

    def _notification(self, watcher: Watcher, root: RootInfo, changes: list[KeyChange], more: bool) -> Message:
        self.notified += 1
        body = Notification(root.version, root.ref, root.time, changes, root.namespace, more)
        return reply(watcher.msg, body, MORE)

    # ------------------------------------------------------------------------------------------------ directories

    def was_directory(self, before: RootInfo | None, root: RootInfo, key: str) -> bool:
        """Whether a directory or link stands at ``key`` in one of two versions; True if that cannot be told at once."""
        if before is None:
            return True
        try:
            for ref in (before.ref, root.ref):
                lookup = Lookup(self._nodes, lambda _: None, root.namespace, ref, split_key(key), follow=False)
                step = lookup.advance()
                if not isinstance(step, Found) or lookup.links_followed or isinstance(step.value, Dir | Link):
                    return True
        except FluxmpiError:
            return True
        return False


def is_leaf(obj: Object | None) -> bool:
    """A value or a link, not a directory and not nothing."""
    return obj is not None and type(obj) is not Dir


def _leaf_change(key: str, old: Object | None, new: Object | None) -> KeyChange:
    """Directories count as nothing: what is in them is told."""
    existed = is_leaf(old)
    return KeyChange(key, new if is_leaf(new) else None, existed, old if existed else None)


def _ref(obj: Object | None) -> Ref | None:
    return obj.ref if type(obj) is Dir else None
