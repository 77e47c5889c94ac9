"""The leader: rank 0's write path. All commits get their order here.

A commit takes these steps; each file is one of them::

    service.py     leader.commit ─▶ decode, check limits, deduplicate ─▶ queue of its namespace
                   at the end of the turn of the loop, ``tick``:
    committer.py   queue ─▶ place each entry ─▶ seal ─▶ setroot to all brokers, then events, then the answers
    batch.py       place: does it conflict with the others of this version? else apply it to the tree

``leader.adds`` (combined additions) take the same way, and a fence when it is complete (``fences.py``).

*Group commit*, as in databases: each version wakes every broker, so commits share versions. While commits arrive one
at a time, each is placed at once. When several arrived in the last turn, the next one waits up to ``group_s`` for as
many again.

Invariants:

- Versions of a namespace count up by one.
- A commit id has at most one version.
- The answer to a commit leaves after the setroot of its version, on the same links. So a client that has the answer
  finds the version at its broker.

After flux-core's kvs module (kvstxn.c), with two differences: only disjoint transactions share a version (see
``batch``), and a commit is applied once however often it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchNamespace, OutOfMemory, TooLarge
from fluxmpi.kvs.fence.limits import FENCE_LIMITS, FenceLimits
from fluxmpi.kvs.leader.committer import Ballast, Committer, Resources, setroot
from fluxmpi.kvs.leader.dedup import DeduplicationTable, answered_already
from fluxmpi.kvs.leader.entries import AddsEntry, CommitEntry, Counters, QueueEntry
from fluxmpi.kvs.leader.fences import FenceGatherer
from fluxmpi.kvs.leader.guards import check_guard
from fluxmpi.kvs.leader.limits import LEADER_LIMITS, LeaderLimits
from fluxmpi.kvs.leader.validation import BlobStore, ObjectValidator
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces, no_such_namespace
from fluxmpi.kvs.mvcc.space import StoreSpace
from fluxmpi.kvs.objects import Dir
from fluxmpi.kvs.store.edit import Steps
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import PIECE_OPS, PRIMARY, Adds, Commit, Fence, FenceMember, RootInfo, SavedNamespace
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import (
    CONTROL,
    EVENT_PAYLOAD_BYTES_MAX,
    EVENT_TOPIC_MAX,
    REQUEST,
    Body,
    Message,
)

QUEUED_BYTES = 500
"""What an entry of a queue takes beside its request."""

_decode_commit = Body(Commit)
_decode_adds = Body(Adds)
_decode_fence = Body(Fence)
_decode_member = Body(FenceMember)


class Leader(Machine):
    """Owns the namespaces, the deduplication table, the counters, and a committer for each namespace with commits."""

    name = "leader"

    def __init__(
        self,
        namespaces: Namespaces,
        nodes: NodeCache,
        blobs: BlobStore,
        digest: Digest,
        now: float,
        restored: list[SavedNamespace],
        limits: LeaderLimits = LEADER_LIMITS,
        fence_limits: FenceLimits = FENCE_LIMITS,
        space: StoreSpace | None = None,
    ) -> None:
        """``namespaces`` is empty; it gets the namespaces of ``restored``, and the primary one.

        ``space``: the bound of the store; None: there is none.
        """
        super().__init__()
        self.namespaces = namespaces
        self._nodes = nodes
        self._limits = limits
        self.validator = ObjectValidator(blobs, digest, limits)
        self.table = DeduplicationTable(limits)
        self._counters = Counters()
        space = StoreSpace(blobs, namespaces) if space is None else space
        self._resources = Resources(self._counters, space, Ballast())
        self._committers: dict[str, Committer] = {}
        self._active: dict[str, Committer] = {}
        """Those that are not idle."""
        self._fences = FenceGatherer(namespaces, self.table, self._counters, fence_limits)
        self._arrived = 0
        """Entries that arrived since the last tick; ``_expected``: those before it."""
        self._expected = 1
        self._queued_bytes = 0
        """At least what the queues hold; exactly, at the end of a tick, if it is past ``queue_bytes_high``."""
        self._checks = 0
        """Directories that are being checked, for namespaces that are to be created."""
        machine = Sender.MACHINE
        self.topics = {
            "leader.commit": Topic(REQUEST, machine, self._commit, Commit),
            "leader.adds": Topic(REQUEST, machine, self._adds, Adds),
            "leader.fence": Topic(CONTROL, machine, self._fence, Fence),
            "leader.fence-break": Topic(CONTROL, machine, self._break_fence, FenceMember),
        }
        for saved in restored:
            namespaces.restore(saved, saved.root, nodes)
        if all(saved.namespace != PRIMARY for saved in restored):
            namespaces.advance(RootInfo(PRIMARY, 0, nodes.insert(Leaf([], [])), now))

    def start(self, now: float) -> list[Message]:
        """Return the setroots of the first versions, for all brokers."""
        return [setroot(namespace, self._limits) for namespace in self.namespaces]

    def roots(self) -> list[RootInfo]:
        """Return the newest root of every namespace."""
        return self.namespaces.roots()

    def saved(self) -> list[SavedNamespace]:
        """Return what a checkpoint keeps of every namespace: its newest root and its settings."""
        return self.namespaces.saved()

    # ------------------------------------------------------------------------------------------------------- requests

    def _commit(self, msg: Message, now: float) -> list[Message]:
        commit = _decode_commit(msg)
        if (
            commit.guards
            or commit.more
            or commit.otherwise
            or commit.events
            or commit.durable
            or len(commit.ops) > self._limits.large_ops
        ):
            _check(commit, self._limits)
        client = self.table.arrived(commit.id, commit.acked)
        if commit.id.serial <= client.acked:
            raise answered_already(commit.id)
        try:
            return self._enqueue(commit.namespace, CommitEntry(msg, commit, client, self._counters), now)
        except MemoryError:
            raise OutOfMemory("rank 0 has no memory to queue the commit: nothing of it was done") from None

    def _adds(self, msg: Message, now: float) -> list[Message]:
        adds = _decode_adds(msg)
        for part in adds.parts:
            self.table.arrived(part.id, part.acked)
        try:
            return self._enqueue(adds.namespace, AddsEntry(msg, adds, self.table, self._counters), now)
        except MemoryError:
            raise OutOfMemory("rank 0 has no memory to queue the additions: nothing was added") from None

    def _fence(self, msg: Message, now: float) -> list[Message]:
        fence = _decode_fence(msg)
        out, complete = self._fences.contribute(fence, msg.hop, now)
        if complete is not None:
            out += self._enqueue(fence.namespace, complete, now)
            self.deadline = now
        return out

    def _break_fence(self, msg: Message, now: float) -> list[Message]:
        return self._fences.member_left(_decode_member(msg), now)

    def _enqueue(self, name: str, entry: QueueEntry, now: float) -> list[Message]:
        """Append an entry to the queue of its namespace, and set the deadline of the next tick.

        The deadline is now or, for group commit, when others may have arrived.
        """
        namespace = self.namespaces.get(name)
        committer = self._committers.get(name)
        if namespace is None or (committer is not None and committer.namespace is not namespace):
            return self._refuse(name, no_such_namespace(name), [entry])
        if committer is None:
            committer = self._committers[name] = self._committer(namespace)
        if committer.stalled:
            return committer.park(entry)
        self._active[name] = committer
        committer.queue.append(entry)  # the last step that may lack memory
        self._queued_bytes += entry.size + QUEUED_BYTES
        self._arrived += 1
        if self._arrived >= self._expected:
            self.deadline = now
        elif self.deadline == NEVER:
            self.deadline = now + self._limits.group_s
        return []

    def _committer(self, namespace: Namespace) -> Committer:
        return Committer(namespace, self._nodes, self.validator, self._limits, self._resources)

    def _refuse(self, name: str, error: FluxmpiError, entries: Iterable[QueueEntry]) -> list[Message]:
        """Answer these entries, and the queue of a namespace that does not exist any more, with ``error``.

        The table remembers it: a namespace of that name may be created later.
        """
        committer = self._committers.pop(name, None) or self._committer(Namespace(RootInfo(name, 0, b"", 0.0)))
        self._active.pop(name, None)
        committer.queue.extend(entries)
        return committer.refuse_all(error)

    # ----------------------------------------------------------------------------------------------------------- turns

    def tick(self, now: float) -> list[Message]:
        """Turn what has arrived into versions, in order of arrival, up to ``turn_steps``."""
        self.deadline = NEVER
        self._resources.ballast.refill()
        self._expected, self._arrived = max(self._arrived, 1), 0
        active = self._active
        steps = max(self._limits.turn_steps // max(1, len(active)), 1)
        out: list[Message] = []
        for name, committer in list(active.items()):
            if self.namespaces.get(name) is not committer.namespace:
                out += self._refuse(name, no_such_namespace(name), ())
                continue
            hold = committer.namespace.hold
            if committer.stalled and hold is not None and hold.has_expired(now):
                committer.resume()
            out += committer.turn(steps, now)
            if committer.is_idle:
                del active[name]
            elif not committer.stalled:
                self.deadline = now
            elif hold is not None:
                self.deadline = min(self.deadline, hold.deadline)
        if not active:
            self._queued_bytes = 0
        elif self._queued_bytes > self._limits.queue_bytes_high:
            queues = [committer.queue for committer in active.values() if not committer.stalled]
            self._queued_bytes = sum(entry.size + QUEUED_BYTES for queue in queues for entry in queue)
        return out

    @property
    def congested(self) -> bool:
        """So much is queued that nothing more should be read until some of it is applied."""
        return self._queued_bytes > self._limits.queue_bytes_high

    @property
    def waits_for_room(self) -> bool:
        """Some namespace's queue waits for the end of a collection."""
        return any(committer.stalled for committer in self._active.values())

    def resume(self) -> None:
        """Go on in the next turn with what waits for room in the store: a collection has ended."""
        for committer in self._active.values():
            committer.resume()
        if self._active:
            self.deadline = 0.0

    # ------------------------------------------------------------------------------------- namespaces and collections

    def reset(self, saved: SavedNamespace, now: float) -> tuple[RootInfo, list[Message]]:
        """Make a version with the root that a checkpoint has, and the namespace if it does not exist."""
        root = self.namespaces.next_root(saved.namespace, saved.ref, now)
        return root, [setroot(self.namespaces.restore(saved, root, self._nodes), self._limits)]

    def check_directory(self, ref: Ref) -> Steps[None]:
        """Check, in slices, that a directory is complete. No collection begins meanwhile, so what was checked stays."""
        self._checks += 1
        try:
            yield from self.validator.check_objects([Dir(ref)])
        finally:
            self._checks -= 1

    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]:
        """Create a namespace: empty, or with the root ``ref``, which ``check_directory`` has just found complete."""
        self.namespaces.require_free_name(name)
        if ref is None:
            ref = self._nodes.insert(Leaf([], []))
        root = self.namespaces.next_root(name, ref, now)
        return root, [setroot(self.namespaces.advance(root, owner if owner >= 0 else None), self._limits)]

    def drop(self, name: str) -> list[Message]:
        """Answer everything that is queued for a namespace, which was removed, with NoSuchNamespace."""
        return self._refuse(name, NoSuchNamespace(f"namespace '{name}' was removed"), self._fences.remove(name))

    @property
    def blocks_collection(self) -> bool:
        """Whether blobs are in use that no root reaches and that ``pinned`` does not name.

        That is so while a batch or the check of a directory is suspended, or operations in the queue are encoded. No
        collection may begin then. A stalled queue waits for one: what its encoded operations name is young, or was
        reachable when they were sent; if that is compacted, the commit fails.
        """
        return self._checks > 0 or any(
            committer.is_suspended or (not committer.stalled and any(entry.is_encoded for entry in committer.queue))
            for committer in self._active.values()
        )

    def pinned(self) -> Iterator[Ref]:
        """Yield the directories and blobs that queued transactions and incomplete fences name."""
        for committer in self._active.values():
            for entry in committer.queue:
                yield from entry.refs()
        yield from self._fences.refs()

    # ------------------------------------------------------------------------------------------------------ statistics

    def statistics(self) -> dict[str, float]:
        return {
            **asdict(self._counters),
            "queued": sum(len(committer.queue) for committer in self._committers.values()),
            "stalled": sum(committer.stalled for committer in self._active.values()),
            "fences": len(self._fences),
            **self.table.statistics(),
        }

    def check(self) -> None:
        for name, committer in self._committers.items():
            assert committer.is_idle is not (name in self._active)
        assert self.deadline < NEVER or all(committer.stalled for committer in self._active.values())
        self._fences.check()
        self.table.check()


def _check(commit: Commit, limits: LeaderLimits) -> None:
    """Raise for a commit that is malformed or over a limit, whatever the state of its namespace."""
    branches = (commit.ops, commit.more), (commit.otherwise, commit.otherwise_more)
    count = max(len(ops) + PIECE_OPS * len(more) for ops, more in branches)
    if count > limits.ops_max:
        raise TooLarge(f"a commit of {count} operations: the most is {limits.ops_max}")
    if commit.durable:
        raise InvalidRequest(
            "durable: this instance keeps no journal, so no commit can be on stable storage; leave it out"
        )
    if len(commit.guards) > limits.guards_max:
        raise TooLarge(f"a commit of {len(commit.guards)} guards: the most is {limits.guards_max}")
    for guard in commit.guards:
        check_guard(guard)
    if len(commit.events) > limits.events_max:
        raise TooLarge(f"a commit that publishes {len(commit.events)} events: the most is {limits.events_max}")
    for topic, payload in commit.events:
        if not topic or len(topic) > EVENT_TOPIC_MAX:
            raise InvalidRequest(
                f"the topic of an event has {len(topic)} characters: it must have 1 to {EVENT_TOPIC_MAX}"
            )
        if len(payload) > EVENT_PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"the payload of an event has {len(payload)} bytes: the most is {EVENT_PAYLOAD_BYTES_MAX};"
                " store it and publish its key"
            )
