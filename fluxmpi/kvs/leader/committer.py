"""The committer: turns the queue of one namespace into versions.

A queue entry is a commit, combined additions to one key, or a complete fence::

    queue ──▶ entry.place(batch) ──conflict, batch full, or queue empty──▶ seal ──▶ setroot
                │                                                                  events of the batch's commits
                └─ answered before, or fails: answered at once, no version         entry.answer(…) of each

An entry is *placed* when the batch has applied it to the tree in memory. Nothing of a batch is visible before its
setroot. So when the namespace gets another root meanwhile (a restored checkpoint) or is removed, the batch is dropped,
and its entries start over or fail.

``turn`` does a bounded number of steps and keeps its place in a generator (``Steps``). So a transaction of any size, or
a flood of small ones, delays nothing else: between two turns the broker reads from its neighbours, serves reads, and
makes the versions of other namespaces.

When the store is nearly full, each entry is admitted first (``StoreSpace``). One that must wait for a collection stalls
the queue, since the namespace has one order: what was placed is sealed, and ``turn`` does nothing until ``resume``.

A MemoryError is the failure of one entry. The tree of the batch may be in the middle of a change, so it is discarded;
the batch's other entries are placed again in a new one, one to a version, so that the next failure has one cause.

Invariant: an entry is in the queue, or in the batch, or was answered. An entry that is being placed is the first in the
queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, OutOfMemory, Overloaded
from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.kvs.leader.entries import Counters, QueueEntry
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.validation import ObjectValidator
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.mvcc.space import StoreSpace
from fluxmpi.kvs.store.edit import Edit, Steps
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import Committed, FenceDone, RootInfo, Setroot
from fluxmpi.message import Message, control, encode_body


class Ballast:
    """Memory that is kept for the moment in which none is left, to refuse a commit, or to publish a version."""

    BYTES = 1 << 20

    def __init__(self) -> None:
        self._kept: bytearray | None = bytearray(self.BYTES)

    def release(self) -> None:
        self._kept = None

    def refill(self) -> None:
        """Keep the memory again, if there is any."""
        if self._kept is None:
            with suppress(MemoryError):
                self._kept = bytearray(self.BYTES)


class Resources(NamedTuple):
    """What the committers of all namespaces share."""

    counters: Counters
    space: StoreSpace
    ballast: Ballast


class Committer:
    """Makes the versions of ``namespace``. The leader owns ``resources``, and appends to ``queue``."""

    def __init__(
        self,
        namespace: Namespace,
        nodes: NodeCache,
        validator: ObjectValidator,
        limits: LeaderLimits,
        resources: Resources,
    ) -> None:
        self.namespace = namespace
        self.queue: deque[QueueEntry] = deque()
        self._nodes = nodes
        self._validator = validator
        self._limits = limits
        self._counters, self._space, self._ballast = resources
        self.stalled = False
        """The first entry of the queue waits for room in the store; nothing is placed until ``resume``."""
        self._parked_bytes = 0
        """Bytes of the entries that arrived since it stalled."""
        self._alone = 0
        """So many entries get a version each."""
        self._work: Steps[None] | None = None
        """Work that was suspended, or runs."""
        self._base = namespace.root
        """The root that the work builds on."""
        self._batch: Batch | None = None
        self._out: list[Message] = []
        """What this turn sends."""
        self._now = 0.0

    @property
    def is_idle(self) -> bool:
        """True when the queue is empty and no work is suspended."""
        return self._work is None and not self.queue

    @property
    def is_suspended(self) -> bool:
        """True when the last turn ended in the middle of its work."""
        return self._work is not None

    def turn(self, steps: int, now: float) -> list[Message]:
        """Do about ``steps`` steps of work; return what it sends."""
        if self.stalled:
            return []
        if self._work is not None and self._base is not self.namespace.root:
            self._start_over()
        if self._work is None:
            self._work = self._make_versions()
        self._now = now
        try:
            for done in self._work:
                steps -= done
                if steps <= 0:
                    break
            else:
                self._work = self._batch = None
        except MemoryError:  # between two entries: the next one could not begin
            self._start_over()
            if self.queue:
                self._refuse_for_memory(self.queue.popleft())
        return self._sent()

    def park(self, entry: QueueEntry) -> list[Message]:
        """Append an entry to the stalled queue, or refuse it if too much waits there."""
        self._parked_bytes += entry.size
        if self._parked_bytes <= self._limits.parked_bytes_max:
            self.queue.append(entry)
            return []
        error = Overloaded(
            f"the store is nearly full, and over {self._limits.parked_bytes_max:,} bytes of commits wait for a garbage "
            "collection to make room: try again later"
        )
        entry.refuse(error, self.namespace.root, self._out)
        return self._sent()

    def resume(self) -> None:
        """Go on: a collection has ended."""
        self.stalled = False

    def refuse_all(self, error: FluxmpiError) -> list[Message]:
        """Answer everything in the queue, because the namespace does not exist any more.

        The answer is ``error``, except for an entry that was answered before.
        """
        self._start_over()
        while self.queue:
            self.queue.popleft().refuse(error, self.namespace.root, self._out)
        return self._sent()

    def _sent(self) -> list[Message]:
        out, self._out = self._out, []
        return out

    def _start_over(self) -> None:
        """Drop the batch; its entries are the first in the queue again."""
        if self._work is not None:
            self._work.close()
        self.stalled = False
        if self._batch is not None:
            self.queue.extendleft(reversed(self._batch.entries))
        self._work = self._batch = None

    def _make_versions(self) -> Steps[None]:
        """Place the entries of the queue, in order of arrival.

        A version is sealed whenever a batch cannot take the next entry.
        """
        queue, limits, space = self.queue, self._limits, self._space
        store, tight_at = space.store, space.tight_at
        edit = self._edit()
        batch = self._begin(edit)
        count = 0
        while queue:
            entry = queue[0]
            try:
                if store.bytes > tight_at and not (yield from self._admitted(entry, batch)):
                    self.stalled, self._parked_bytes = True, 0
                    break
                hold = self.namespace.hold
                if hold is not None and hold.waits and not (yield from self._may_go_on(entry, batch)):
                    self.stalled, self._parked_bytes = True, 0
                    break
                placed = entry.place(batch, self._out)
                if type(placed) is not bool:
                    placed = yield from placed
            except FluxmpiError as error:
                entry.refuse(error, self.namespace.root, self._out)
                placed = True
            except MemoryError:
                edit, batch = self._failed(entry, batch)
                continue
            if placed:
                queue.popleft()
            if not placed or batch.full or batch.steps >= limits.batch_steps_max or self._alone:
                sealed = yield from self._seal(batch)
                if not sealed:
                    edit = self._edit()
                batch = self._begin(edit)
            count += 1
            if not count % limits.slice_ops:
                yield limits.slice_ops
        if batch.entries:
            yield from self._seal(batch)

    def _edit(self) -> Edit:
        root = self.namespace.root
        return Edit(self._nodes, root.ref, root.namespace, self._limits.slice_nodes)

    def _admitted(self, entry: QueueEntry, batch: Batch) -> Steps[bool]:
        """Return whether the store has room for an entry, False if it must wait. Raises StoreFull."""
        growth = yield from entry.growth(batch)
        return growth is None or self._space.has_room(growth.bytes, self._now, removes=growth.removes)

    def _may_go_on(self, entry: QueueEntry, batch: Batch) -> Steps[bool]:
        """Return whether an entry may be placed now: False while watches lag too far, but for one that only removes."""
        hold = self.namespace.hold
        if hold is None or not hold.is_full(self._now):
            return True
        growth = yield from entry.growth(batch)
        return growth is not None and growth.removes

    def _failed(self, entry: QueueEntry, batch: Batch) -> tuple[Edit, Batch]:
        """Refuse an entry that could not be placed for lack of memory; return the next edit and batch.

        What the batch had before is placed again.
        """
        self.queue.popleft()
        self._put_back([other for other in batch.entries if other is not entry])
        self._refuse_for_memory(entry)
        edit = self._edit()
        return edit, self._begin(edit)

    def _put_back(self, entries: list[QueueEntry]) -> None:
        """Put a batch's entries back to the front of the queue, to be placed one to a version."""
        self.queue.extendleft(reversed(entries))
        self._alone = len(entries)
        self._batch = None

    def _refuse_for_memory(self, entry: QueueEntry) -> None:
        self._ballast.release()
        error = OutOfMemory("rank 0 could not allocate the memory that this commit needs: nothing of it was done")
        entry.refuse(error, self.namespace.root, self._out)

    def _begin(self, edit: Edit) -> Batch:
        self._base = base = self.namespace.root
        self._batch = batch = Batch(base, edit, self._validator, self._limits, self._last_change)
        return batch

    def _last_change(self, key: str) -> tuple[int, bool]:
        return self.namespace.last_change(key, self._nodes)

    def _seal(self, batch: Batch) -> Steps[bool]:
        """Make the version. Return False if there was no memory for it: nothing has changed.

        Then a batch of one entry is refused; the entries of a larger one are placed again, one to a version.
        """
        self._alone = max(0, self._alone - 1)
        namespace = self.namespace
        try:
            ref, new_nodes = yield from batch.seal_in_slices()
            root = RootInfo(batch.base.namespace, batch.number, ref, namespace.clock(self._now))
            namespace.advance(root, batch.changed_keys, len(batch.ids) + len(batch.fences), batch.referenced)
        except MemoryError:
            if len(batch.entries) > 1:
                self._put_back(batch.entries)
            else:
                self._batch = None
                for entry in batch.entries:
                    self._refuse_for_memory(entry)
            return False
        self._base, self._batch = root, None
        sent = len(self._out)
        try:
            self._publish(batch, root, new_nodes)
        except MemoryError:  # the version exists: it must be published, and its commits answered
            del self._out[sent:]
            self._ballast.release()
            self._publish(batch, root, new_nodes)
        self._counters.merged += max(0, len(batch.ids) - 1)
        yield batch.steps + len(batch.entries)
        return True

    def _publish(self, batch: Batch, root: RootInfo, new_nodes: list[tuple[Ref, bytes]]) -> None:
        """Send a new version's messages: the setroot leaves first, then the batch's events, then the answers."""
        out = self._out
        by_reference = batch.referenced > 0
        message = setroot(
            self.namespace, self._limits, batch.changed_keys, new_nodes, batch.fences, batch.appends, by_reference
        )
        out.append(message)
        if batch.events:
            snapshot = root.namespace, root.version, root.ref, root.time
            out.append(control("event.committed", (batch.events, snapshot)))
        committed = encode_body(Committed(root.namespace, root.version, root.ref, root.time))
        for entry in batch.entries:
            entry.answer(root, committed, out)


def setroot(
    namespace: Namespace,
    limits: LeaderLimits,
    keys: list[str] | None = None,
    new_nodes: Iterable[tuple[Ref, bytes]] = (),
    fences: list[FenceDone] | None = None,
    appends: dict[str, list[int]] | None = None,
    by_reference: bool = True,
) -> Message:
    """Return the message that publishes a namespace's newest version.

    ``keys``: the changed ones, None if they are not known; ``appends`` as in ``Batch``. ``by_reference``: values were
    put by reference, or perhaps were.
    """
    root = namespace.root
    nodes = [blob for _, blob in new_nodes]
    if sum(map(len, nodes)) > limits.setroot_nodes_bytes_max:
        nodes = []
    if keys is not None and len(keys) > limits.setroot_keys_max:
        keys = appends = None
    body = Setroot(
        root.namespace, root.version, root.ref, root.time, keys, nodes, fences or [], namespace.held, appends or None,
        by_reference,
    )  # fmt: skip
    return control("kvs.setroot", body)
