"""Online garbage collection at rank 0: mark what kept versions reach, sweep the rest, in slices, while commits go on.

    IDLE ──enough was stored, or gc.run──▶ LIVE ──────────────▶ HISTORY ──────────────▶ SWEEP ──▶ IDLE
                                           mark what the newest mark what older         remove
                                           roots reach          versions, leases,       unmarked
                                                                checkpoints and pending blobs
                                                                fences reach

What is reachable *when a collection begins* is kept to its end, whatever is compacted meanwhile. So a collection
removes only blobs that were garbage when it began and have not been referred to since. A blob can be referred to again
in these cases:

1. It is reachable from a root that was kept when the collection began: it will be marked.
2. It is put again: a new node that equals an old one, a value, a blob that a client stores. ``Store.put`` marks it. A
   new version is made of such blobs and of those of case 1, so no new root needs to be marked.
3. A client refers to it by its ref, in a value's list of blobs or as a directory. Then the leader verifies that all of
   it is here, and marks it in the same step (``Store.hold``). The leader forgets what it has verified when a collection
   begins.
4. A client stored it, and will refer to it: it is young for ``grace_s``, or until a commit refers to it. A client whose
   commit failed stores it again.
5. An incomplete fence, or a pending commit, refers to it: these are among the roots. One that arrives later refers to
   blobs that are reachable or young, or that it had no right to expect.
6. A checkpoint saves it, or restored it: these are among the roots, too.

Decoded nodes are dropped with their blobs. Otherwise a read of a compacted version would sometimes succeed.

Brokers need no notice of a collection: a ref is a digest, so their caches stay right, and a blob that they lack and
rank 0 has collected belongs to a version that is not kept.

Invariant: nothing is swept while something is left to mark.
"""

from __future__ import annotations

import builtins
import enum
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.errors import Overloaded, ProtocolError
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import GcStatus
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import REQUEST, Message, reply

VALUES_PER_NODE = 50
"""Blobs of values that are marked in the time of one node, which must be decoded."""


class SweepableStore(Protocol):
    """See ``content.store.Store``. ``builtins.bytes``: its own attribute ``bytes`` hides the type."""

    bytes: int
    stored: int
    stored_bytes: int
    full_at: float

    def get(self, ref: Ref) -> builtins.bytes | None: ...
    def begin(self, since: float) -> set[Ref]: ...
    def refs(self) -> list[Ref]: ...
    def sweep(self, refs: list[Ref], needed: Sequence[Container[Ref]]) -> tuple[list[Ref], int]: ...
    def end(self) -> None: ...
    def __len__(self) -> int: ...


class Holder(Protocol):
    """A machine that uses blobs which perhaps no root reaches."""

    def pinned(self) -> Iterable[Ref]:
        """Return the refs of directories, which are needed with all that is below them, and of blobs."""


class Committing(Holder, Protocol):
    """The leader."""

    @property
    def blocks_collection(self) -> bool:
        """A version is being made over several turns: it has verified blobs that nothing refers to yet."""


class Phase(enum.Enum):
    IDLE = enum.auto()
    LIVE = enum.auto()
    HISTORY = enum.auto()
    SWEEP = enum.auto()


class Collector(Machine):
    """``phase``: of the collection under way. ``status``: see ``wire.GcStatus``."""

    name = "gc"

    def __init__(
        self,
        store: SweepableStore,
        nodes: NodeCache,
        namespaces: Namespaces,
        leader: Committing,
        holders: list[Holder],
        limits: GcLimits,
    ) -> None:
        super().__init__()
        self._store = store
        self._nodes = nodes
        self._namespaces = namespaces
        self._leader = leader
        self._holders = holders
        self._limits = limits
        self.phase = Phase.IDLE
        self._marked: set[Ref] = set()
        """Blobs that the store has marked: few, as a rule."""
        self._walked: set[Ref] = set()
        """Nodes whose children were marked. A client may store any node, so those in ``_marked`` may have others."""
        self._values: set[Ref] = set()
        """Marked blobs of values."""
        self._nodes_left: list[Ref] = []
        """Nodes to mark, and blobs that may be nodes."""
        self._values_left: list[Ref] = []
        """Blobs of values to mark."""
        self._next: list[Ref] = []
        """The nodes that HISTORY begins with; then the blobs that SWEEP has left."""
        self._counted = [0, 0]
        """Blobs and bytes that this phase has marked."""
        self._runs: list[tuple[int, Message]] = []
        """Number of a collection and the request that its end answers."""
        self._began = 0
        """Number of the last collection that began."""
        self._stored = 0
        self._sliced_at: float | None = None
        self.status = GcStatus()
        self.topics = {
            "gc.run": Topic(REQUEST, Sender.CLIENT, self._run),
            "gc.status": Topic(REQUEST, Sender.CLIENT, self._tell_status, isolated=True),
        }
        store.full_at = store.stored_bytes + limits.bytes_min

    def wake(self) -> None:
        """Begin at the end of this turn: enough was stored."""
        self.deadline = 0.0

    # ------------------------------------------------------------------------------------------------------- input

    def _run(self, msg: Message, now: float) -> list[Message]:
        if len(self._runs) >= self._limits.runs_max:
            raise Overloaded(f"{self._limits.runs_max} requests wait for a collection already; try again")
        self._runs.append((self._began + 1, msg))
        self.deadline = min(self.deadline, now)
        return []

    def _tell_status(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._status())]

    def _status(self) -> GcStatus:
        status = self.status
        status.running = self.phase is not Phase.IDLE
        status.blobs, status.bytes = len(self._store), self._store.bytes
        return status

    # ---------------------------------------------------------------------------------------------------- a cycle

    def tick(self, now: float) -> list[Message]:
        """One slice of a collection."""
        if self._sliced_at is not None:
            self.status.longest_slice_s = max(self.status.longest_slice_s, now - self._sliced_at)
        self._sliced_at, self.deadline = now, now
        if self.phase is Phase.IDLE:
            if not self._leader.blocks_collection:  # otherwise try again in the next turn
                self._begin(now)
            return []
        if self.phase is Phase.SWEEP:
            return self._sweep()
        limits = self._limits
        stored, self._stored = self._store.stored - self._stored, self._store.stored
        self._mark(min(limits.nodes_per_turn + limits.nodes_per_stored_blob * stored, limits.nodes_per_turn_max))
        return []

    def _begin(self, now: float) -> None:
        self._began += 1
        self.phase = Phase.LIVE
        for namespace in self._namespaces:
            namespace.compact(now)
        self._marked = self._store.begin(now - self._limits.grace_s)
        self._walked, self._values = set(), set()
        self._nodes_left = [root.ref for root in self._namespaces.roots()]
        self._next = [root.ref for namespace in self._namespaces for root in namespace.roots()]
        for holder in (self._leader, *self._holders):
            self._next += holder.pinned()
        self._counted = [0, 0]
        self._stored = self._store.stored

    def _mark(self, work: int) -> None:
        """Mark so many nodes, or what takes as long."""
        nodes, values = self._nodes_left, self._values_left
        while work > 0:
            if values:
                work -= 1
                for ref in values[-VALUES_PER_NODE:]:
                    self._mark_blob(ref, self._values)
                del values[-VALUES_PER_NODE:]
            elif nodes:
                work -= 1
                self._mark_node(nodes.pop())
            elif self.phase is Phase.LIVE:
                self.status.live_blobs, self.status.live_bytes = self._counted
                self._counted = [0, 0]
                self.phase, self._nodes_left, self._next = Phase.HISTORY, self._next, []
                nodes = self._nodes_left
            else:
                self.status.history_blobs, self.status.history_bytes = self._counted
                self.status.garbage_blobs = self.status.garbage_bytes = 0
                self.phase, self._next = Phase.SWEEP, self._store.refs()
                return

    def _mark_blob(self, ref: Ref, kind: set[Ref]) -> None:
        """Mark a blob, if it is here: a pending commit may refer to one that is not."""
        blob = self._store.get(ref)
        if blob is not None and ref not in self._marked and ref not in self._walked and ref not in self._values:
            self._counted[0] += 1
            self._counted[1] += len(blob)
        kind.add(ref)

    def _mark_node(self, ref: Ref) -> None:
        """Mark a node, and queue what it refers to."""
        if ref in self._walked:
            return
        self._mark_blob(ref, self._walked)
        try:
            node = self._nodes.peek(ref)
        except ProtocolError:  # a pinned blob that is not a node
            return
        if node is None:
            return
        if type(node) is not Leaf:
            self._nodes_left += node.refs  # type: ignore[union-attr]
            return
        for obj in node.objects:
            if type(obj) is Dir:
                self._nodes_left.append(obj.ref)
            elif type(obj) is ValRef:
                self._values_left += obj.refs

    def _sweep(self) -> list[Message]:
        count = self._limits.sweep_blobs_per_node * self._limits.nodes_per_turn
        refs = self._next[-count:]
        del self._next[-count:]
        gone, size = self._store.sweep(refs, (self._walked, self._values))
        self._nodes.forget(gone)
        status = self.status
        status.garbage_blobs += len(gone)
        status.garbage_bytes += size
        status.freed_blobs += len(gone)
        status.freed_bytes += size
        return [] if self._next else self._end()

    def _end(self) -> list[Message]:
        self._store.end()
        self.phase = Phase.IDLE
        self._marked, self._walked, self._values = set(), set(), set()
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
        assert self.phase is Phase.IDLE or self.deadline < NEVER
        assert self.phase is not Phase.SWEEP or not (self._nodes_left or self._values_left)
        assert all(number <= self._began + 1 for number, _ in self._runs)
