"""Reading at one broker: walks from a root to a value, a page of a directory, or the changes between two.

Each is a generator in the manner of ``stall``: it yields the refs it lacks and goes on when they are here. What a walk answers
is true of one root, however long it takes and whatever is committed meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

from fluxmpi.blobref import SIZES, Ref
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchKey, NotADirectory, VersionUnknown
from fluxmpi.kvs.diff import Change, Diff
from fluxmpi.kvs.follower import Space
from fluxmpi.kvs.lookup import Listing, Lookup
from fluxmpi.kvs.nodes import Found, NodeCache, Source
from fluxmpi.kvs.objects import Dir, Object, Val, ValRef, split_key
from fluxmpi.kvs.stall import Walk
from fluxmpi.kvs.wire import At, Get, Got, List, Listed, RootInfo
from fluxmpi.message import Message, reply

LIST_MAX = 10_000
"""Entries in one answer of ``kvs.list``."""

class Reads:
    """``spaces``: the namespaces that this broker knows, by name; they change under us."""

    def __init__(self, nodes: NodeCache, blobs: Source, spaces: Mapping[str, Space]) -> None:
        self._nodes = nodes
        self._blobs = blobs
        self._spaces = spaces

    def root_of(self, namespace: str) -> Ref | None:
        space = self._spaces.get(namespace)
        return space.root.ref if space is not None and space.root is not None else None

    def root_at(self, namespace: str, at: At) -> RootInfo:
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

    def _through(self, walk: Lookup | Listing | Diff) -> Generator[list[Ref], dict[Ref, bytes], Found]:
        """Advance a walk over nodes to its next finding, faulting in what it lacks."""
        while True:
            step = walk.advance()
            if type(step) is Found:
                return step
            loaded = yield step.refs  # type: ignore[union-attr]
            for ref in reversed(step.refs):  # type: ignore[union-attr]
                self._nodes.learn(ref, loaded[ref])  # what is needed first comes last: even a tiny cache still has it then

    def lookup(
        self, namespace: str, root: Ref, key: str, follow: bool
    ) -> Generator[list[Ref], dict[Ref, bytes], tuple[Object | None, Lookup]]:
        """What stands at ``key``, or None; and the walk, which knows the links it went through."""
        lookup = Lookup(self._nodes, self.root_of, namespace, root, split_key(key), follow)
        found = yield from self._through(lookup)
        return found.value, lookup

    def changes(
        self, old: Object | None, new: Object | None, key: str
    ) -> Generator[list[Ref], dict[Ref, bytes], list[Change]]:
        """All changes below ``key`` between two objects that stood there; what is no directory counts as an empty one."""
        before = old.ref if type(old) is Dir else None
        diff = Diff(self._nodes, before, new.ref if type(new) is Dir else None, key)
        changes: list[Change] = []
        more = True
        while more:
            found = yield from self._through(diff)
            changes += found.value
            more = found.more
        return changes

    def get(self, msg: Message, get: Get) -> Walk:
        """Answers ``kvs.get``."""
        root = self.root_at(get.namespace, get.at)
        obj, _ = yield from self.lookup(get.namespace, root.ref, get.key, get.follow)
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
                        loaded = yield [ref]
                        assert loaded is not None
                        data = loaded[ref]
        return [reply(msg, Got(root.version, root.ref, obj, data))]

    def list(self, msg: Message, listing: List) -> Walk:
        """Answers ``kvs.list``."""
        root = self.root_at(listing.namespace, listing.at)
        obj, _ = yield from self.lookup(listing.namespace, root.ref, listing.key, True)
        if obj is None:
            raise NoSuchKey(f"there is no key '{listing.key}'")
        if type(obj) is not Dir:
            raise NotADirectory(f"'{listing.key}' is not a directory")
        limit = min(listing.limit, LIST_MAX)
        found = yield from self._through(Listing(self._nodes, obj.ref, listing.prefix, listing.after, limit))
        return [reply(msg, Listed(root.version, root.ref, found.value, found.more))]
