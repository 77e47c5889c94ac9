"""Online garbage collection at rank 0: mark what kept versions reach, sweep the rest, in slices, while commits go on.

    IDLE ──enough was stored,──▶ LIVE ─────────▶ HELD ───────────▶ HISTORY ────────▶ SWEEP ──▶ IDLE
           gc.run, the time, or  what the        what leases,      what older        remove
           a full store          newest roots    checkpoints and   versions reach,   unmarked
                                 reach           pending fences    newest first
                                                 reach

History is bounded in bytes here. Versions are marked from the newest to the oldest, so what a version adds to the marked
blobs is what only it and older versions hold: exactly what compacting them would free. When a namespace's sum passes
its bound, that version's marks are taken back, and it and all older ones are compacted. A blob that is shared with a
newer version, another namespace or a lease costs history nothing, whoever put it. Between two collections history may
exceed its bound by what was stored meanwhile, which is bounded as well (``_slack``).

A version that is kept when the sweep begins is marked completely, and stays so to the end. A blob can become reachable
again, or for the first time, while a collection runs:

1. It is reachable from a newest root when the collection begins: it is marked in LIVE.
2. It is put: a new node, also one that equals an old one, a value, a blob that a client stores. ``Store.put`` marks it.
   A new version is made of such blobs and of those of case 1, so no new root needs to be marked.
3. A client refers to it by its ref, in a value's list of blobs or as a directory. Then the leader verifies that all of
   it is here, and marks it in the same step (``Store.hold``). The leader forgets what it has verified when a collection
   begins.
4. A client stored it, and will refer to it: it is young for ``grace_s``, or until a commit refers to it. A client whose
   commit failed stores it again.
5. An incomplete fence, or a pending commit, refers to it: these are among the roots of HELD. One that arrives later
   refers to blobs that are reachable or young, or that it had no right to expect.
6. A checkpoint saves it, or restored it: these are among the roots of HELD, too.
7. A version is leased while the collection runs, or a value of it becomes a past value (``value_history``). It was kept
   then, and may be compacted before HISTORY comes to it: leases and pinned blobs are marked again at the end of HISTORY.

Decoded nodes are dropped with their blobs. Otherwise a read of a compacted version would sometimes succeed.

Brokers need no notice of a collection: a ref is a digest, so their caches stay right, and a blob that they lack and
rank 0 has collected belongs to a version that is not kept.

Invariant: nothing is swept while something is left to mark.
"""

from __future__ import annotations

import builtins
import enum
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.errors import OutOfMemory, Overloaded, ProtocolError
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces
from fluxmpi.kvs.mvcc.space import StoreSpace
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import GcStatus, Swept
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import LOOP, REQUEST, Message, control, reply, reply_error
from fluxmpi.shares import count_of_client

VALUES_PER_NODE = 50
"""Blobs of values that are marked in the time of one node, which must be decoded."""

TIMED_BYTES_MIN = 4
"""Stores of more than so many times ``bytes_min`` are collected by the time, too (``Collector._timed``)."""

INTERVAL_DURATIONS = 20.0
"""Collections by the time begin so many durations of the last one apart: they take 5 % of the time at most."""

NODE_BYTES = 2048
"""Bytes of an average node, to count the marking of values as one of nodes."""


class SweepableStore(Protocol):
    """See ``content.store.Store``. ``builtins.bytes``: its own attribute ``bytes`` hides the type."""

    bytes: int
    stored: int
    stored_bytes: int
    full_at: float
    swept_large: list[Ref]

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
    HELD = enum.auto()
    HISTORY = enum.auto()
    SWEEP = enum.auto()


class _Count:
    """What a phase has marked. ``trail``: in HISTORY, the marks of the current version, (set, ref, bytes) of each.

    ``records``: memory of the marked versions beside their blobs.
    """

    __slots__ = ("blobs", "bytes", "records", "trail")

    def __init__(self, trail: list[tuple[set[Ref], Ref, int]] | None = None) -> None:
        self.blobs = self.bytes = self.records = 0
        self.trail = trail

    @property
    def total(self) -> int:
        return self.bytes + self.records


class _History:
    """The older versions of a namespace, while they are marked. ``version``: the one that is being marked.

    ``bytes``: of the versions that were marked. ``ends_at``: when the phase has counted more, the version is too much.
    """

    __slots__ = ("began_at", "bytes", "ends_at", "namespace", "version")

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.version = namespace.root.version
        """At first the newest one, which LIVE marks."""
        self.bytes = self.began_at = 0
        self.ends_at: float = 0

    def begin(self, counted: int, bytes_max: int) -> None:
        self.began_at = counted
        self.ends_at = counted + bytes_max

    def end_version(self, counted: int) -> int:
        """End the version; return the number of the next one."""
        self.bytes = counted - self.began_at
        self.version -= 1
        return self.version


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
        space: StoreSpace | None = None,
    ) -> None:
        super().__init__()
        self._store = store
        self._space = StoreSpace(store, namespaces) if space is None else space
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
        self._held: list[Ref] = []
        """What leases, checkpoints and pending commits name."""
        self._histories: list[_History] = []
        """Namespaces whose older versions are to be marked; the last one is being marked."""
        self._trimmed: list[Namespace] = []
        """Namespaces in which this collection has compacted versions."""
        self._untrimmed = 0
        """Bytes that this collection has removed since malloc gave memory back."""
        self._repeats = False
        """Another collection follows this one."""
        self._unswept: list[Ref] = []
        """The blobs that SWEEP has left."""
        self._counted = _Count()
        """What this phase has marked."""
        self._node_bytes = self._live_node_bytes = 0
        """Bytes of the nodes that were marked: in all phases, and in LIVE."""
        self._young_bytes = self._stored_before = 0
        """Bytes of the blobs that were young when the collection began, and bytes stored until then."""
        self._runs: list[tuple[int, Message]] = []
        """Number of a collection and the request that its end answers."""
        self._began = 0
        """Number of the last collection that began."""
        self._stored = 0
        self._requested = False
        """A collection shall begin, or is under way, for another reason than the time."""
        self._began_at = self._duration_s = 0.0
        self._versions_seen = -1
        """``_versions`` when the last collection began."""
        self.abandoned = 0
        """Collections for which there was no memory."""
        self._sliced_at: float | None = None
        self.status = GcStatus()
        self.topics = {
            "gc.run": Topic(REQUEST, Sender.CLIENT, self._run),
            "gc.status": Topic(REQUEST, Sender.CLIENT, self._tell_status, isolated=True),
        }
        store.full_at = store.stored_bytes + self._space.next_collection(limits.bytes_min, limits.bytes_min)
        self.deadline = self._timed(0.0)

    def wake(self) -> None:
        """Begin at the end of this turn: enough was stored, the store is full, or a retention is shorter."""
        self._requested = True
        self.deadline = 0.0

    # ------------------------------------------------------------------------------------------------------- input

    def _run(self, msg: Message, now: float) -> list[Message]:
        if len(self._runs) >= self._limits.runs_max:
            raise Overloaded(f"{self._limits.runs_max} requests wait for a collection already; try again")
        share = self._limits.runs_client_max
        if count_of_client([other for _, other in self._runs], msg) >= share:
            raise Overloaded(f"{share} requests of this client wait for a collection already; try again")
        self._runs.append((self._began + 1, msg))
        self._requested = True
        self.deadline = min(self.deadline, now)
        return []

    def _tell_status(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._status())]

    def _status(self) -> GcStatus:
        status = self.status
        status.running = self.phase is not Phase.IDLE
        status.blobs, status.bytes, status.bytes_max = len(self._store), self._store.bytes, self._space.shown_max
        return status

    # ---------------------------------------------------------------------------------------------------- a cycle

    def tick(self, now: float) -> list[Message]:
        """One slice of a collection."""
        if self._sliced_at is not None:
            self.status.longest_slice_s = max(self.status.longest_slice_s, now - self._sliced_at)
        self._sliced_at, self.deadline = now, now
        try:
            return self._slice(now)
        except MemoryError:
            return self._abandon(now)

    def _slice(self, now: float) -> list[Message]:
        if self.phase is Phase.IDLE and not self._requested:
            self.deadline, self._sliced_at = self._timed(now), None
            if self.deadline > now:
                return []
        if self.phase is Phase.IDLE:
            if not self._leader.blocks_collection:  # otherwise try again in the next turn
                self._begin(now)
            return []
        if self.phase is Phase.SWEEP:
            return self._sweep(now)
        limits = self._limits
        stored, self._stored = self._store.stored - self._stored, self._store.stored
        self._mark(min(limits.nodes_per_turn + limits.nodes_per_stored_blob * stored, limits.nodes_per_turn_max))
        return []

    def _timed(self, now: float) -> float:
        """Return when a collection is due although little was stored: a large directory may have been unlinked.

        In a small store there is nothing to gain.
        """
        if self._store.bytes <= TIMED_BYTES_MIN * self._limits.bytes_min:
            return NEVER
        due = self._began_at + max(self._limits.interval_s, INTERVAL_DURATIONS * self._duration_s)
        if due <= now and self._versions() == self._versions_seen:
            return now + self._limits.interval_s
        return max(due, now)

    def _versions(self) -> int:
        """Return a number that grows with each version."""
        return sum(root.version for root in self._namespaces.roots())

    def _begin(self, now: float) -> None:
        self._began += 1
        self._began_at, self._versions_seen = now, self._versions()
        self.phase = Phase.LIVE
        for namespace in self._namespaces:
            namespace.compact(now)
        limits = self._limits
        pressed = self._space.begin(now)
        self._marked = self._store.begin(now - (limits.pressed_grace_s if pressed else limits.grace_s))
        self._young_bytes = sum(len(self._store.get(ref) or b"") for ref in self._marked)
        self._stored_before = self._store.stored_bytes
        self._walked, self._values = set(), set()
        self._nodes_left = [root.ref for root in self._namespaces.roots()]
        self._held = [*self._leader.pinned(), *self._pinned()]
        self._histories = [_History(namespace) for namespace in self._namespaces]
        self._trimmed, self._repeats = [], False
        self._untrimmed = 0
        self._counted, self._node_bytes = _Count(), 0
        self._stored = self._store.stored

    def _mark(self, work: int) -> None:
        """Mark so many nodes, or what takes as long."""
        nodes, values = self._nodes_left, self._values_left
        in_history = self.phase is Phase.HISTORY
        while work > 0:
            if values:
                work -= 1
                for ref in values[-VALUES_PER_NODE:]:
                    self._mark_blob(ref, self._values)
                del values[-VALUES_PER_NODE:]
            elif nodes:
                work -= 1
                self._mark_node(nodes.pop())
            else:
                work -= 1
                if not self._next_roots():
                    return
                in_history = self.phase is Phase.HISTORY
            if in_history and self._histories and self._counted.total > self._histories[-1].ends_at:
                self._trim()

    def _next_roots(self) -> bool:
        """Continue with the next roots: of this phase, or of the next one. Return False when SWEEP has begun."""
        status, counted = self.status, self._counted
        match self.phase:
            case Phase.LIVE:
                status.live_blobs, status.live_bytes = counted.blobs, counted.bytes
                self._live_node_bytes = self._node_bytes
                self.phase, self._counted = Phase.HELD, _Count()
                self._nodes_left += self._held
                self._nodes_left += self._leased()
                self._held = []
            case Phase.HELD:
                status.leased_blobs, status.leased_bytes = counted.blobs, counted.bytes
                self.phase, self._counted = Phase.HISTORY, _Count([])
                self._begin_history()
            case Phase.HISTORY if self._histories:
                self._next_version()
            case Phase.HISTORY:
                left = [ref for ref in (*self._leased(), *self._pinned()) if ref not in self._walked]
                if left:  # case 7
                    self._nodes_left += left
                    return True
                status.history_blobs, status.history_bytes = counted.blobs, counted.bytes
                status.garbage_blobs = status.garbage_bytes = 0
                self.phase, self._unswept = Phase.SWEEP, self._store.refs()
                return False
        return True

    def _pinned(self) -> Iterator[Ref]:
        for holder in self._holders:
            yield from holder.pinned()

    def _leased(self) -> list[Ref]:
        return [root.ref for namespace in self._namespaces for root in namespace.leased_roots()]

    # --------------------------------------------------------------------------------------------------- history

    def _begin_history(self) -> None:
        """Prepare the first of the namespaces whose older versions are to be marked."""
        status = self.status
        if self._histories:
            stored = self._store.stored_bytes - self._stored_before
            kept = status.live_bytes + status.leased_bytes + self._counted.total + self._young_bytes + stored
            # Under pressure, a namespace gets an equal share of what the ones before it have left.
            allowance = self._space.history_allowance(kept) // len(self._histories)
            history = self._histories[-1]
            history.begin(self._counted.total, min(history.namespace.versions_bytes_max, allowance))

    def _next_version(self) -> None:
        """Continue with the next older version of the namespace, or with the next namespace."""
        history = self._histories[-1]
        namespace = history.namespace
        version = history.end_version(self._counted.total)
        if version < namespace.needed_from or self._namespaces.get(namespace.root.namespace) is not namespace:
            namespace.history_bytes = history.bytes
            self._histories.pop()
            self._begin_history()
            return
        self._counted.records += namespace.record_bytes(version)
        self._counted.trail = []
        self._nodes_left.append(namespace.history[version].ref)

    def _trim(self) -> None:
        """Compact the version that is being marked and all older ones; take back its marks.

        If there are rules for past values, the versions are still needed until these are recorded. So they are marked,
        and another collection follows.
        """
        history = self._histories[-1]
        namespace = history.namespace
        if namespace.values is not None:
            namespace.drop_until(history.version)
            history.ends_at = NEVER
            self._trimmed.append(namespace)
            self._repeats = True
            return
        counted = self._counted
        for kind, ref, size in counted.trail or ():
            kind.discard(ref)
            if size >= 0:
                counted.blobs -= 1
                counted.bytes -= size
                if kind is self._walked:
                    self._node_bytes -= size
        counted.records -= namespace.record_bytes(history.version)
        counted.trail = []
        self._nodes_left.clear()
        self._values_left.clear()
        namespace.drop_until(history.version)
        namespace.history_bytes = history.bytes
        self._trimmed.append(namespace)
        self._histories.pop()
        self._begin_history()

    # --------------------------------------------------------------------------------------------------- marks

    def _mark_blob(self, ref: Ref, kind: set[Ref]) -> None:
        """Mark a blob, if it is here: a pending commit may refer to one that is not."""
        if ref in kind:
            return
        size = -1
        counted = self._counted
        if ref not in self._marked and ref not in self._walked and ref not in self._values:
            blob = self._store.get(ref)
            if blob is not None:
                size = len(blob)
                counted.blobs += 1
                counted.bytes += size
                if kind is self._walked:
                    self._node_bytes += size
        kind.add(ref)
        if counted.trail is not None:
            counted.trail.append((kind, ref, size))

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

    # --------------------------------------------------------------------------------------------------- the end

    def _sweep(self, now: float) -> list[Message]:
        count = self._limits.sweep_blobs_per_node * self._limits.nodes_per_turn
        refs = self._unswept[-count:]
        del self._unswept[-count:]
        gone, size = self._store.sweep(refs, (self._walked, self._values))
        self._nodes.forget(gone)
        status = self.status
        status.garbage_blobs += len(gone)
        status.garbage_bytes += size
        status.freed_blobs += len(gone)
        status.freed_bytes += size
        out = self._free(size)
        self._trimmed = [namespace for namespace in self._trimmed if namespace.compact(now)]
        return out if self._unswept or self._trimmed else out + self._end(now)

    def _free(self, size: int) -> list[Message]:
        """Have brokers drop segments of blobs that are gone, and malloc give back what is free, if it is much."""
        out = []
        store, status = self._store, self.status
        if store.swept_large:
            out.append(control("kvs.swept", Swept(store.swept_large)))
            store.swept_large = []
        self._untrimmed += size
        if self._untrimmed >= self._limits.trim_bytes and status.garbage_bytes >= store.bytes // 4:
            self._untrimmed = 0
            out.append(control("loop.trim", None, LOOP))
        return out

    def _end(self, now: float) -> list[Message]:
        self._store.end()
        self.phase = Phase.IDLE
        status, space = self.status, self._space
        space.live_bytes, space.history_bytes = status.live_bytes, status.history_bytes
        space.leased_bytes = status.leased_bytes
        status.cycles += 1
        self._store.full_at = self._store.stored_bytes + self._slack()
        self._marked, self._walked, self._values = set(), set(), set()
        out = [reply(msg, self._status()) for number, msg in self._runs if number <= self._began]
        self._runs = [entry for entry in self._runs if entry[0] > self._began]
        self._duration_s = now - self._began_at
        self._requested = bool(self._runs) or space.wanted or self._repeats
        if not self._requested:
            self.deadline, self._sliced_at = self._timed(now), None
        warning = space.end(now)
        if warning is not None:
            out.append(control("loop.tell", warning, LOOP))
        return out

    def _abandon(self, now: float) -> list[Message]:
        """End the collection without a result: there is no memory for its marks. What it did not sweep stays."""
        self._marked, self._walked, self._values = set(), set(), set()
        self._nodes_left, self._values_left, self._held, self._unswept = [], [], [], []
        self._histories, self._trimmed = [], []
        self._counted = _Count()
        if self.phase is not Phase.IDLE:
            self.phase = Phase.IDLE
            self._store.end()
            self._space.end(now, abandoned=True)
        runs, self._runs = self._runs, []
        self._requested = False
        self._duration_s = now - self._began_at
        self.deadline, self._sliced_at = self._timed(now), None
        self._store.full_at = self._store.stored_bytes + self._limits.bytes_min
        self.abandoned += 1
        error = OutOfMemory("rank 0 has no memory for the marks of a collection: unlink keys, or lower the retention")
        return [reply_error(msg, error) for _, msg in runs]

    def _slack(self) -> int:
        """Return how many bytes may be stored before the next collection.

        Marking a node takes about as long as storing one, so a collection shall not begin before as much was stored as
        the nodes that it marks. Blobs of values cost a fraction of a node, however large they are: a store of large
        values is collected often, and stays near its bound. Half of the older versions' nodes are counted: there are
        few where commits are small, and where they are large, memory matters more.
        """
        status = self.status
        history_nodes = self._node_bytes - self._live_node_bytes
        values = (status.live_blobs + status.history_blobs) * NODE_BYTES // VALUES_PER_NODE
        least = self._limits.bytes_min
        wanted = max(least, self._live_node_bytes + history_nodes // 2 + values)
        return self._space.next_collection(wanted, least)

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._runs = [entry for entry in self._runs if entry[1].route != [hop]]
        return []

    def statistics(self) -> dict[str, float]:
        status = self._status()
        counts = {name: getattr(status, name) for name in status.__struct_fields__}
        return counts | {"running": int(status.running), "abandoned": self.abandoned} | self._space.statistics()

    def check(self) -> None:
        assert self.phase is Phase.IDLE or self.deadline < NEVER
        assert self.phase is not Phase.SWEEP or not (self._nodes_left or self._values_left or self._histories)
        assert all(number <= self._began + 1 for number, _ in self._runs)
