"""The ``kvs`` service: every broker's half of the KVS, which clients talk to.

    kvs.commit   ─▶ leader.commit upward; its answer is held until this broker has that version (read your writes)
    kvs.fence    ─▶ combined with others of this turn ─▶ leader.fence to the parent; answered by FenceDone
    kvs.get …    ─▶ a walk down the tree of nodes, at the root asked for; missing nodes are faulted in (see ``stall``)
    kvs.watch    ─▶ a stream, fed by setroot (see ``watch``)
    kvs.setroot  ─▶ keep the nodes, adopt the root, pass it to the children, release who waited, wake the watchers

Monotonic reads: a request carries the highest version that its client has seen in ``at_least``, and is parked until this broker
has it.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Protocol

from fluxmpi.blobref import SIZES, Digest, Ref
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    IsADirectory,
    NoSuchKey,
    NotADirectory,
    Overloaded,
    VersionUnknown,
)
from fluxmpi.kvs.diff import Diff
from fluxmpi.kvs.fence import Gathering
from fluxmpi.kvs.follower import Space
from fluxmpi.kvs.lookup import Listing, Lookup
from fluxmpi.kvs.nodes import Found, NodeCache, Source
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Object, Val, ValRef, join_key, split_key
from fluxmpi.kvs.stall import Stalls, Walk
from fluxmpi.kvs.watch import QUEUE_MAX, Watcher
from fluxmpi.kvs.wire import (
    PRIMARY,
    At,
    Cancel,
    Change,
    CommitId,
    Fence,
    FenceDone,
    Get,
    GetRoot,
    Got,
    List,
    Listed,
    Notification,
    RootInfo,
    Setroot,
    Watch,
)
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import (
    ANY,
    CONTROL,
    MORE,
    OK,
    REQUEST,
    RESPONSE,
    Body,
    Message,
    control,
    encode_body,
    reply,
    reply_error,
)

LIST_MAX = 10_000
"""Entries in one answer of ``kvs.list``."""

_decode_root = Body(RootInfo)
_decode_setroot = Body(Setroot)
_decode_fence = Body(Fence)
_decode_done = Body(FenceDone)
_decode_get = Body(Get)
_decode_list = Body(List)
_decode_getroot = Body(GetRoot)
_decode_watch = Body(Watch)
_decode_cancel = Body(Cancel)


class Tree(Protocol):
    """What this service needs to know of the overlay."""

    rank: int
    parent: int
    children: list[int]
    lost: dict[int, str]


class Kvs(Machine):
    name = "kvs"

    def __init__(self, tree: Tree, nodes: NodeCache, blobs: Source, digest: Digest) -> None:
        super().__init__()
        self._tree = tree
        self._nodes = nodes
        self._blobs = blobs
        self._digest = digest
        self._spaces: dict[str, Space] = {PRIMARY: Space(PRIMARY)}
        self._stalls = Stalls(lambda ref: self.ask("content.load", [ref], tree.rank))
        self._asked: dict[int, Message] = {}
        """Tag to the client's request that rank 0 was asked for: commits, and roots that we do not have."""
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._fence_waiters: dict[CommitId, list[Message]] = {}
        self._outlets: dict[tuple[str, str], None] = {}
        """Fences with something to send up at the end of this turn."""
        self._setroots = self._reads = self._notified = 0

    # ------------------------------------------------------------------------------------------------------- input

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == REQUEST:
            try:
                return self._request(msg, now)
            except FluxmpiError as error:
                return [reply_error(msg, error)]
        if msg.kind == RESPONSE:
            return self._stalls.loaded(msg) if self._stalls.owns(msg.tag) else self._answered(msg, now)
        if msg.kind == CONTROL:
            if msg.topic == "kvs.setroot":
                return self._setroot(_decode_setroot(msg), msg, now)
            if msg.topic == "kvs.gather":
                return self._gathered(msg, now)
            if msg.topic == "kvs.fence-done":
                return self._spread(msg) + self._fence_done(_decode_done(msg))
            if msg.topic == "kvs.dropcache":
                self._nodes.clear()
        return []

    def _request(self, msg: Message, now: float) -> list[Message]:
        topic = msg.topic
        if topic == "kvs.commit":
            return self._ask_leader(msg, "leader.commit")
        if topic == "kvs.get":
            get = _decode_get(msg)
            later = self._when(msg, get.namespace, get.at_least)
            return self._walk(msg, self._get(msg, get)) if later is None else later
        if topic == "kvs.list":
            listing = _decode_list(msg)
            later = self._when(msg, listing.namespace, listing.at_least)
            return self._walk(msg, self._list(msg, listing)) if later is None else later
        if topic == "kvs.getroot":
            return self._getroot(msg)
        if topic == "kvs.fence":
            return self._fence(msg, now)
        if topic == "kvs.watch":
            return self._watch(msg)
        if topic == "kvs.cancel":
            return self._cancel(msg)
        raise InvalidRequest(f"service kvs has no method {topic!r}")

    def _root_of(self, namespace: str) -> Ref | None:
        space = self._spaces.get(namespace)
        return space.root.ref if space is not None and space.root is not None else None

    def _when(self, msg: Message, namespace: str, at_least: int) -> list[Message] | None:
        """None when the namespace is here at that version; else the request is kept for later, and what to send for it."""
        space = self._spaces.get(namespace)
        if space is None:
            return self._ask_leader(msg, "leader.getroot", GetRoot(namespace))
        if space.version < at_least or space.root is None:
            space.park(max(at_least, 0), msg)
            return []
        return None

    # ------------------------------------------------------------------------------------------- asking the leader

    def _ask_leader(self, msg: Message, topic: str, body: GetRoot | None = None) -> list[Message]:
        """Pass the request on to rank 0, with the same body if none is given."""
        ask = self.ask(topic, body, ANY)
        if body is None:
            ask.body = msg.body
        self._asked[ask.tag] = msg
        return [ask]

    def _answered(self, msg: Message, now: float) -> list[Message]:
        """Rank 0's answer to a commit, or to a question for a root."""
        request = self._asked.pop(msg.tag, None)
        if request is None:
            return []
        if msg.status != OK:
            return [Message(RESPONSE, request.topic, tag=request.tag, status=msg.status, route=request.route, body=msg.body)]
        root = _decode_root(msg)
        space = self._spaces.get(root.namespace)
        if space is None:
            space = self._spaces[root.namespace] = Space(root.namespace)
            space.adopt(root)
        if request.topic in ("kvs.commit", "kvs.getroot"):
            answer = Message(RESPONSE, request.topic, tag=request.tag, route=request.route, body=msg.body)
            if root.version <= space.version:
                return [answer]
            space.park(root.version, answer)
            return []
        return self.step(request, now)

    # ------------------------------------------------------------------------------------------------------ setroot

    def _spread(self, msg: Message) -> list[Message]:
        """The same control message to every child."""
        topic, body, lost = msg.topic, msg.body, self._tree.lost
        return [Message(CONTROL, topic, child, body=body) for child in self._tree.children if child not in lost]

    def _setroot(self, setroot: Setroot, msg: Message, now: float) -> list[Message]:
        space = self._spaces.get(setroot.namespace)
        if space is None:
            space = self._spaces[setroot.namespace] = Space(setroot.namespace)
        root = RootInfo(setroot.namespace, setroot.version, setroot.ref, setroot.time)
        if not space.adopt(root):
            return []
        self._setroots += 1
        if self._tree.rank:
            put, digest = self._blobs.put, self._digest
            for blob in setroot.nodes:
                put(digest(blob), blob)
        out = self._spread(msg)
        for done in setroot.fences:
            out += self._fence_done(done)
        if space.parked:
            for parked in space.release():
                out += [parked] if parked.kind == RESPONSE else self.step(parked, now)
        for watcher in space.watches.concerned(setroot.keys):
            out += self._wake(space, watcher, root)
        return out

    # ------------------------------------------------------------------------------------------------------ reading

    def _walk(self, msg: Message, walk: Walk) -> list[Message]:
        self._reads += 1
        return self._stalls.start(walk, lambda error: [reply_error(msg, error)])

    def _through(self, walk: Lookup | Listing | Diff) -> Generator[list[Ref], dict[Ref, bytes], Found]:
        """Advance a walk over nodes to its next finding, faulting in what it lacks."""
        while True:
            step = walk.advance()
            if type(step) is Found:
                return step
            loaded = yield step.refs  # type: ignore[union-attr]
            for ref, blob in loaded.items():
                self._nodes.learn(ref, blob)

    def _root_at(self, namespace: str, at: At) -> RootInfo:
        """The root to read at."""
        space = self._spaces[namespace]
        assert space.root is not None
        if at is None:
            return space.root
        if isinstance(at, int):
            root = space.at(at)
            if root is None:
                what = "was not reached yet" if at > space.version else "is not kept any more"
                raise VersionUnknown(f"version {at} of {namespace} {what}: the newest here is {space.version}")
            return root
        if len(at) not in SIZES.values():
            raise InvalidRequest(f"a root ref of {len(at)} bytes is no digest of this instance")
        return RootInfo(namespace, space.version, at, space.root.time)

    def _lookup(
        self, namespace: str, root: Ref, key: str, follow: bool
    ) -> Generator[list[Ref], dict[Ref, bytes], tuple[Object | None, Lookup]]:
        lookup = Lookup(self._nodes, self._root_of, namespace, root, split_key(key), follow)
        found = yield from self._through(lookup)
        return found.value, lookup

    def _get(self, msg: Message, get: Get) -> Walk:
        root = self._root_at(get.namespace, get.at)
        obj, _ = yield from self._lookup(get.namespace, root.ref, get.key, get.follow)
        if obj is None:
            raise NoSuchKey(f"there is no key '{get.key}'")
        data: bytes | None = None
        if get.load:
            if type(obj) is Dir:
                raise IsADirectory(f"'{get.key}' is a directory: list it, or name a value below it")
            if type(obj) is Val:
                data = obj.data
            elif type(obj) is ValRef:
                if not obj.refs:
                    data = b""
                elif len(obj.refs) == 1:
                    ref = obj.refs[0]
                    data = self._blobs.get(ref)
                    if data is None:
                        data = (yield [ref])[ref]
        return [reply(msg, Got(root.version, root.ref, obj, data))]

    def _list(self, msg: Message, listing: List) -> Walk:
        root = self._root_at(listing.namespace, listing.at)
        obj, _ = yield from self._lookup(listing.namespace, root.ref, listing.key, True)
        if obj is None:
            raise NoSuchKey(f"there is no key '{listing.key}'")
        if type(obj) is not Dir:
            raise NotADirectory(f"'{listing.key}' is not a directory")
        limit = min(listing.limit, LIST_MAX)
        found = yield from self._through(Listing(self._nodes, obj.ref, listing.prefix, listing.after, limit))
        return [reply(msg, Listed(root.version, root.ref, found.value, found.more))]

    def _getroot(self, msg: Message) -> list[Message]:
        getroot = _decode_getroot(msg)
        if getroot.fresh:
            return self._ask_leader(msg, "leader.getroot", GetRoot(getroot.namespace))
        later = self._when(msg, getroot.namespace, getroot.at_least)
        if later is not None:
            return later
        space = self._spaces[getroot.namespace]
        root = space.root if getroot.at is None else space.at(getroot.at)
        if root is None:
            return self._ask_leader(msg, "leader.getroot", getroot)
        return [reply(msg, root)]

    # ------------------------------------------------------------------------------------------------------ fences

    def _fence(self, msg: Message, now: float) -> list[Message]:
        """A client's contribution: its request is kept, since the outcome comes by FenceDone."""
        fence = _decode_fence(msg)
        if len(fence.parts) != 1 or fence.objects:
            raise InvalidRequest("a client contributes to a fence once, with its own operations")
        self._gather(fence, msg.route[-1], now)
        self._fence_waiters.setdefault(fence.parts[0].id, []).append(msg)
        return []

    def _gathered(self, msg: Message, now: float) -> list[Message]:
        """Contributions from a child; those that cannot be taken are told so by a FenceDone of their own."""
        fence = _decode_fence(msg)
        try:
            self._gather(fence, msg.hop, now)
        except FluxmpiError as error:
            ids = [part.id for part in fence.parts]
            done = FenceDone(fence.namespace, fence.name, ids, 0, error.code, error.text)
            return [control("kvs.fence-done", done, msg.hop)]
        return []

    def _gather(self, fence: Fence, hop: int, now: float) -> None:
        key = fence.namespace, fence.name
        gathering = self._fences.get(key)
        if gathering is None:
            gathering = self._fences[key] = Gathering(fence)
        gathering.add(fence, hop)
        self._outlets[key] = None
        self.deadline = now

    def tick(self, now: float) -> list[Message]:
        """The end of a turn: what was gathered in it goes up, one message per fence."""
        self.deadline = NEVER
        outlets, self._outlets = self._outlets, {}
        if self._tree.rank == 0:
            return [control("leader.fence", self._fences[key].outlet()) for key in outlets]
        if self._tree.parent in self._tree.lost:
            return []
        return [control("kvs.gather", self._fences[key].outlet(), self._tree.parent) for key in outlets]

    def _fence_done(self, done: FenceDone) -> list[Message]:
        key = done.namespace, done.name
        gathering = self._fences.get(key)
        if gathering is not None and any(commit_id in gathering.parts for commit_id in done.ids):
            del self._fences[key]
            self._outlets.pop(key, None)
        if not self._fence_waiters:
            return []
        space = self._spaces.get(done.namespace)
        root = space.at(done.version) if space is not None else None
        body = encode_body(root or RootInfo(done.namespace, done.version, b"", 0.0))
        if done.status:
            body = encode_body(done.text)
        out = []
        for commit_id in done.ids:
            for msg in self._fence_waiters.pop(commit_id, ()):
                out.append(Message(RESPONSE, msg.topic, tag=msg.tag, status=done.status, route=msg.route, body=body))
        return out

    # ----------------------------------------------------------------------------------------------------- watches

    def _watch(self, msg: Message) -> list[Message]:
        watch = _decode_watch(msg)
        later = self._when(msg, watch.namespace, watch.at_least)
        if later is not None:
            return later
        parts = split_key(watch.key)
        space = self._spaces[watch.namespace]
        assert space.root is not None
        if any(other.watches.find(msg.route, msg.tag) for other in self._spaces.values()):
            raise InvalidRequest(f"a watch with tag {msg.tag} of this client is under way")
        watcher = Watcher(msg, watch, join_key(parts), parts)
        space.watches.add(watcher)
        return self._wake(space, watcher, space.root)

    def _wake(self, space: Space, watcher: Watcher, root: RootInfo) -> list[Message]:
        """``root`` may have changed what is watched: look, after the versions that wait already."""
        if len(watcher.queue) >= QUEUE_MAX:
            seen = watcher.seen.version if watcher.seen else 0
            return self._end_watch(space, watcher, Overloaded(f"the watch lags {QUEUE_MAX} versions behind {seen}"))
        watcher.queue.append(root)
        if watcher.busy:
            return []
        watcher.busy = True
        return self._stalls.start(self._compare(space, watcher), partial(self._end_watch, space, watcher))

    def _compare(self, space: Space, watcher: Watcher) -> Walk:
        """Look at the versions in the queue, in order; one notification for each that changed something."""
        out = []
        while watcher.queue:
            root = watcher.queue.popleft()
            watch = watcher.watch
            new, lookup = yield from self._lookup(watch.namespace, root.ref, watch.key, watch.follow)
            if lookup.links and not watcher.through_link:
                space.watches.goes_through_link(watcher)
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
                self._notified += 1
                out.append(reply(watcher.msg, Notification(root.version, root.ref, root.time, changes), MORE))
        watcher.busy = False
        return out

    def _changes_below(
        self, watcher: Watcher, new: Object | None
    ) -> Generator[list[Ref], dict[Ref, bytes], list[Change]]:
        """Values and links below the watched directory that changed, or the value that stands in its place."""
        old = watcher.object
        changes = []
        if old != new and (_is_leaf(old) or _is_leaf(new)):
            changes.append(Change(watcher.key, new if _is_leaf(new) else None, _is_leaf(old)))
        diff = Diff(
            self._nodes,
            old.ref if type(old) is Dir else None,
            new.ref if type(new) is Dir else None,
            "" if watcher.key == ROOT_KEY else watcher.key,
        )
        more = True
        while more:
            found = yield from self._through(diff)
            more = found.more
            for key, before, after in found.value:
                if _is_leaf(before) or _is_leaf(after):
                    changes.append(Change(key, after if _is_leaf(after) else None, _is_leaf(before)))
        return changes

    def _end_watch(self, space: Space, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        if watcher.ended:
            return []
        space.watches.remove(watcher)
        return [reply_error(watcher.msg, error)]

    def _cancel(self, msg: Message) -> list[Message]:
        tag = _decode_cancel(msg).tag
        for space in self._spaces.values():
            watcher = space.watches.find(msg.route, tag)
            if watcher is not None:
                space.watches.remove(watcher)
                return [reply(watcher.msg)]
        return []

    # ------------------------------------------------------------------------------------------------ housekeeping

    def disconnect(self, hop: int, now: float) -> list[Message]:
        for space in self._spaces.values():
            space.forget(hop)
            for watcher in space.watches:
                if watcher.msg.route == [hop]:
                    space.watches.remove(watcher)
        return []

    def statistics(self) -> dict[str, float]:
        spaces = self._spaces.values()
        return {
            "version": self._spaces[PRIMARY].version,
            "namespaces": len(spaces),
            "setroots": self._setroots,
            "reads": self._reads,
            "stalled": self._stalls.count,
            "parked": sum(space.parked for space in spaces),
            "asked": len(self._asked),
            "fences": len(self._fences),
            "watchers": sum(len(space.watches) for space in spaces),
            "notified": self._notified,
            **self._nodes.statistics(),
        }

    def check(self) -> None:
        self._nodes.check()
        for space in self._spaces.values():
            space.check()


def _is_leaf(obj: Object | None) -> bool:
    """A value or a link, not a directory and not nothing."""
    return obj is not None and type(obj) is not Dir
