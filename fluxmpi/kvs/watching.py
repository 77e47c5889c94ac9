"""What watchers are told: each version that may concern one is compared with the version before.

    setroot ─▶ Watches.concerned ─▶ queue of each ─▶ compare (a walk, may stall) ─▶ Notification, if something changed

The first notification comes at once and holds what is there. A watcher takes its versions in order, one walk at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from functools import partial

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, IsADirectory, Overloaded
from fluxmpi.kvs.follower import Space
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Object, join_key, split_key
from fluxmpi.kvs.reads import Reads
from fluxmpi.kvs.stall import Stalls, Walk
from fluxmpi.kvs.watch import QUEUE_MAX, Watcher
from fluxmpi.kvs.wire import Change, Notification, RootInfo, Watch
from fluxmpi.message import MORE, Message, reply, reply_error


class Watching:
    def __init__(self, reads: Reads, stalls: Stalls) -> None:
        self._reads = reads
        self._stalls = stalls
        self.notified = 0

    def begin(self, space: Space, spaces: Iterable[Space], msg: Message, watch: Watch) -> list[Message]:
        """A new watcher in ``space``; its request's tag must not be that of another one under way."""
        parts = split_key(watch.key)
        if any(other.watches.find(msg.route, msg.tag) for other in spaces):
            raise InvalidRequest(f"a watch with tag {msg.tag} of this client is under way")
        assert space.root is not None
        watcher = Watcher(msg, watch, join_key(parts), parts)
        space.watches.add(watcher)
        return self._wake(space, watcher, space.root)

    def new_version(self, space: Space, root: RootInfo, keys: list[str] | None) -> list[Message]:
        """``root`` is now ``space``'s; ``keys`` are what it changed, None if that is not known."""
        out = []
        for watcher in space.watches.concerned(keys):
            out += self._wake(space, watcher, root)
        return out

    def _wake(self, space: Space, watcher: Watcher, root: RootInfo) -> list[Message]:
        """``root`` may have changed what is watched: look, after the versions that wait already."""
        if len(watcher.queue) >= QUEUE_MAX:
            seen = watcher.seen.version if watcher.seen else 0
            return self._end(space, watcher, Overloaded(f"the watch lags {QUEUE_MAX} versions behind, at {seen}"))
        watcher.queue.append(root)
        if watcher.busy:
            return []
        watcher.busy = True
        return self._stalls.start(self._compare(space, watcher), partial(self._end, space, watcher))

    def _compare(self, space: Space, watcher: Watcher) -> Walk:
        """Look at the versions in the queue, in order; one notification for each that changed something, sent at once:
        under a steady flow of commits the queue may never be empty.
        """
        watch = watcher.watch
        while watcher.queue:
            root = watcher.queue.popleft()
            new, lookup, _ = yield from self._reads.lookup(watch.namespace, root.ref, watch.key, watch.follow)
            if lookup.links and not watcher.through_link:
                # 1. The walk stalled before it came to the link. 2. A version changed what the link leads to, which did not
                # concern this watcher, as far as was known. So all that came meanwhile is looked at.
                space.watches.goes_through_link(watcher)
                watcher.queue = deque(space.since(root.version))
                if len(watcher.queue) < space.version - root.version:
                    raise Overloaded(f"the watch lags {space.version - root.version} versions behind, at {root.version}")
            if watch.recursive:
                changes = yield from self._changes_below(watcher, new)
            elif type(new) is Dir:
                raise IsADirectory(f"'{watch.key}' is a directory: watch it with recursive")
            elif new != watcher.object:
                changes = [Change(watcher.key, new, watcher.object is not None)]
            else:
                changes = []
            watcher.object = new
            if (changes or watcher.seen is None) and not watcher.ended:
                watcher.seen = root
                self.notified += 1
                yield reply(watcher.msg, Notification(root.version, root.ref, root.time, changes), MORE)
        watcher.busy = False
        return []

    def _changes_below(
        self, watcher: Watcher, new: Object | None
    ) -> Generator[list[Ref], dict[Ref, bytes], list[Change]]:
        """Values and links below the watched directory that changed, or the value that stands in its place."""
        old = watcher.object
        changes = []
        if old != new and (_is_leaf(old) or _is_leaf(new)):
            changes.append(Change(watcher.key, new if _is_leaf(new) else None, _is_leaf(old)))
        found = yield from self._reads.changes(old, new, "" if watcher.key == ROOT_KEY else watcher.key)
        for key, before, after in found:
            if _is_leaf(before) or _is_leaf(after):
                changes.append(Change(key, after if _is_leaf(after) else None, _is_leaf(before)))
        return changes

    def _end(self, space: Space, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        if watcher.ended:
            return []
        space.watches.remove(watcher)
        return [reply_error(watcher.msg, error)]

    def removed(self, space: Space, error: FluxmpiError) -> list[Message]:
        """The namespace is no more, and so are its watches."""
        return [msg for watcher in space.watches for msg in self._end(space, watcher, error)]

    def cancel(self, spaces: Iterable[Space], msg: Message, tag: int) -> list[Message]:
        """Ends the watch of the same client with this tag; its stream's last response says so."""
        for space in spaces:
            watcher = space.watches.find(msg.route, tag)
            if watcher is not None:
                space.watches.remove(watcher)
                return [reply(watcher.msg)]
        return []

    def disconnect(self, space: Space, hop: int) -> None:
        for watcher in space.watches:
            if watcher.msg.route == [hop]:
                space.watches.remove(watcher)


def _is_leaf(obj: Object | None) -> bool:
    """A value or a link, not a directory and not nothing."""
    return obj is not None and type(obj) is not Dir
