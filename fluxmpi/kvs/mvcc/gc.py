"""The collector: rank 0's blobs that nothing needs any more are found and removed, in slices, while everything goes on.

    IDLE ──enough was stored, or gc.run──▶ LIVE ─────────▶ HISTORY ────────────────────▶ SWEEP ──▶ IDLE
                                           what the newest what older versions, leases,  all that is
                                           roots reach     checkpoints and waiting       not marked
                                                           fences reach                  is removed

A collection takes what is reachable *when it begins* as needed, to its end, whatever is forgotten meanwhile. So it removes only
what was garbage then and has not been referred to since. What can be referred to again is in one of these cases:

1. It is reachable from a root that was kept when the collection began: it is marked, sooner or later.
2. It is put again: a new node that equals an old one, a value, a blob that a client stores. Then it is marked by that
   (``Store.put``). A new version is made of such blobs and of those of case 1, so no new root must be looked at.
3. A client refers to it by its name, in a value's list of blobs or as a directory. Then the leader looks whether it is here, all
   of it, and marks it in the same step (``Store.hold``). What it remembers as whole it forgets when a collection begins.
4. A client stored it, and will refer to it: it is young for ``grace_s``, or until a commit refers to it. A client whose commit
   failed stores it again.
5. A fence that gathers, or a commit that waits, refers to it: these are among the roots. One that comes later refers to what is
   reachable, or young, or nothing that it could count on.
6. A checkpoint saves it, or brought it: these are among the roots, too.

Decoded nodes are dropped with their blobs. Had they stayed, a read of a forgotten version would be answered half the time.

Nothing here is remembered by brokers: a blob's name is its content, so their caches stay right, and a blob that they lack and
rank 0 has collected is one of a version that is not kept.

Invariant: nothing is swept while there is something left to look at.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, Overloaded, ProtocolError
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import GcStatus
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import REQUEST, Message, reply, reply_error

MARK_BLOBS = 50
"""Blobs of values that cost as much as a node, which must be decoded."""

Blob = bytes


class SweepableStore(Protocol):
    """The store, see there."""

    bytes: int
    stored: int
    stored_bytes: int
    full_at: float

    def get(self, ref: Ref) -> Blob | None: ...
    def begin(self, since: float) -> set[Ref]: ...
    def refs(self) -> list[Ref]: ...
    def sweep(self, refs: list[Ref], needed: Sequence[Container[Ref]]) -> tuple[list[Ref], int]: ...
    def end(self) -> None: ...
    def __len__(self) -> int: ...


class Holder(Protocol):
    """Who works with blobs that perhaps no root reaches."""

    def pinned(self) -> Iterable[Ref]:
        """Directories, which are needed with all that is below them, and blobs."""


class PinnedRefs(Holder, Protocol):
    @property
    def making(self) -> bool:
        """A version is made over several turns: it has looked for blobs already that nothing refers to yet."""


class Phase(enum.Enum):
    IDLE = enum.auto()
    LIVE = enum.auto()
    HISTORY = enum.auto()
    SWEEP = enum.auto()


class Collector(Machine):
    name = "gc"

    def __init__(
        self,
        store: SweepableStore,
        nodes: NodeCache,
        namespaces: Namespaces,
        maker: PinnedRefs,
        holders: list[Holder],
        limits: GcLimits,
    ) -> None:
        super().__init__()
        self._store = store
        self._nodes = nodes
        self._namespaces = namespaces
        self._maker = maker
        self._holders = holders
        self._limits = limits
        self._phase = Phase.IDLE
        self._marked: set[Ref] = set()
        """By the store: few, as a rule."""
        self._walked: set[Ref] = set()
        """Nodes that were looked at. To be marked is not enough: what a client stored is, whatever it names."""
        self._valued: set[Ref] = set()
        """Blobs of values."""
        self._todo: list[Ref] = []
        """Nodes to look at, and blobs that may be some."""
        self._parts: list[Ref] = []
        """Blobs of values."""
        self._later: list[Ref] = []
        """What HISTORY begins with, or SWEEP has left."""
        self._counted = [0, 0]
        self._runs: list[tuple[int, Message]] = []
        """Requests, and the number of the collection that answers each."""
        self._began = 0
        self._stored = 0
        self._sliced_at: float | None = None
        self.status = GcStatus()
        store.full_at = store.stored_bytes + limits.bytes_min

    def wake(self) -> None:
        """Enough was stored: begin at the end of this turn."""
        self.deadline = 0.0

    # ------------------------------------------------------------------------------------------------------- input

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind != REQUEST:
            return []
        try:
            match msg.topic:
                case "gc.run":
                    if len(self._runs) >= self._limits.runs_max:
                        raise Overloaded(f"{self._limits.runs_max} requests wait for a collection already; try again")
                    self._runs.append((self._began + 1, msg))
                    self.deadline = min(self.deadline, now)
                    return []
                case "gc.status":
                    return [reply(msg, self._status())]
            raise InvalidRequest(f"service gc has no method {msg.topic!r}")
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _status(self) -> GcStatus:
        status = self.status
        status.running = self._phase is not Phase.IDLE
        status.blobs, status.bytes = len(self._store), self._store.bytes
        return status

    # ---------------------------------------------------------------------------------------------------- a cycle

    def tick(self, now: float) -> list[Message]:
        """One slice."""
        if self._sliced_at is not None:
            self.status.longest_slice_s = max(self.status.longest_slice_s, now - self._sliced_at)
        self._sliced_at, self.deadline = now, now
        if self._phase is Phase.IDLE:
            if not self._maker.making:  # else the leader has the next turn, too
                self._begin(now)
            return []
        if self._phase is Phase.SWEEP:
            return self._sweep()
        limits = self._limits
        stored, self._stored = self._store.stored - self._stored, self._store.stored
        self._mark(min(limits.nodes_per_turn + limits.nodes_per_stored_blob * stored, limits.nodes_per_turn_max))
        return []

    def _begin(self, now: float) -> None:
        self._began += 1
        self._phase = Phase.LIVE
        for namespace in self._namespaces:
            namespace.compact(now)
        self._marked = self._store.begin(now - self._limits.grace_s)
        self._walked, self._valued = set(), set()
        self._todo = [root.ref for root in self._namespaces.roots()]
        self._later = [root.ref for namespace in self._namespaces for root in namespace.roots()]
        for holder in (self._maker, *self._holders):
            self._later += holder.pinned()
        self._counted = [0, 0]
        self._stored = self._store.stored

    def _mark(self, work: int) -> None:
        """Look at so many nodes, or what costs as much."""
        todo, parts = self._todo, self._parts
        while work > 0:
            if parts:
                work -= 1
                for ref in parts[-MARK_BLOBS:]:
                    self._found(ref, self._valued)
                del parts[-MARK_BLOBS:]
            elif todo:
                work -= 1
                self._look(todo.pop())
            elif self._phase is Phase.LIVE:
                self.status.live_blobs, self.status.live_bytes = self._counted
                self._counted = [0, 0]
                self._phase, self._todo, self._later = Phase.HISTORY, self._later, []
                todo = self._todo
            else:
                self.status.history_blobs, self.status.history_bytes = self._counted
                self.status.garbage_blobs = self.status.garbage_bytes = 0
                self._phase, self._later = Phase.SWEEP, self._store.refs()
                return

    def _found(self, ref: Ref, among: set[Ref]) -> None:
        """It is needed, if it is here: a commit that waits may refer to what is not."""
        blob = self._store.get(ref)
        if blob is not None and ref not in self._marked and ref not in self._walked and ref not in self._valued:
            self._counted[0] += 1
            self._counted[1] += len(blob)
        among.add(ref)

    def _look(self, ref: Ref) -> None:
        """What a node refers to is needed as well."""
        if ref in self._walked:
            return
        self._found(ref, self._walked)
        try:
            node = self._nodes.peek(ref)
        except ProtocolError:  # a blob that is pinned as such
            return
        if node is None:
            return
        if type(node) is not Leaf:
            self._todo += node.refs  # type: ignore[union-attr]
            return
        for obj in node.objects:
            if type(obj) is Dir:
                self._todo.append(obj.ref)
            elif type(obj) is ValRef:
                self._parts += obj.refs

    def _sweep(self) -> list[Message]:
        count = self._limits.sweep_blobs_per_node * self._limits.nodes_per_turn
        refs = self._later[-count:]
        del self._later[-count:]
        gone, size = self._store.sweep(refs, (self._walked, self._valued))
        self._nodes.forget(gone)
        status = self.status
        status.garbage_blobs += len(gone)
        status.garbage_bytes += size
        status.freed_blobs += len(gone)
        status.freed_bytes += size
        return [] if self._later else self._end()

    def _end(self) -> list[Message]:
        self._store.end()
        self._phase = Phase.IDLE
        self._marked, self._walked, self._valued = set(), set(), set()
        self.status.cycles += 1
        self._store.full_at = self._store.stored_bytes + max(self._limits.bytes_min, self.status.live_bytes)
        out = [reply(msg, self._status()) for number, msg in self._runs if number <= self._began]
        self._runs = [entry for entry in self._runs if entry[0] > self._began]
        if not self._runs:
            self.deadline, self._sliced_at = NEVER, None
        return out

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._runs = [entry for entry in self._runs if entry[1].route != [hop]]
        return []

    def statistics(self) -> dict[str, float]:
        status = self._status()
        return {name: float(getattr(status, name)) for name in status.__struct_fields__}

    def check(self) -> None:
        assert self._phase is Phase.IDLE or self.deadline < NEVER
        assert self._phase is not Phase.SWEEP or not (self._todo or self._parts)
        assert all(number <= self._began + 1 for number, _ in self._runs)
