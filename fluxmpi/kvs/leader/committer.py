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

Invariant: an entry is in the queue, or in the batch, or was answered. An entry that is being placed is the first in the
queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, encode_error
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.leader.batch import Batch, Placed
from fluxmpi.kvs.leader.dedup import ClientResults, DeduplicationTable, answered_already
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.validation import CARRIERS, ObjectValidator
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.objects import Val, refs_of
from fluxmpi.kvs.store.edit import Edit, Steps
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import Added, Adds, Commit, CommitId, Committed, FenceDone, OpResult, Put, RootInfo, Setroot
from fluxmpi.message import ANY, LOCAL, OK, RESPONSE, Message, control, encode_body, reply


@dataclass(slots=True)
class Counters:
    """What the leader counts, for ``statistics``."""

    commits: int = 0
    """Commits that are part of a version."""
    merged: int = 0
    """Commits and additions that share their version with an earlier one."""
    resent: int = 0
    """Commits and contributions that arrived again."""
    failed: int = 0
    added: int = 0
    """Additions that arrived combined, in ``combined`` messages."""
    combined: int = 0


class QueueEntry(Protocol):
    """An entry of the queue. The messages that its methods send are appended to ``out``."""

    @property
    def is_encoded(self) -> bool:
        """True while some of its operations are not decoded, so that ``refs`` does not yield what they name."""

    def place(self, batch: Batch, out: list[Message]) -> bool | Steps[bool]:
        """Apply it to the batch.

        True: the batch has it, or it was answered at once. False: it conflicts, so nothing has changed; the next batch
        takes it. Steps: the work, in slices, that ends with one of these. May raise FluxmpiError.
        """

    def answer(self, root: RootInfo, committed: bytes, out: list[Message]) -> None:
        """Its version, ``root``, is sealed: remember and send the response. ``committed``: encoded, without results."""

    def refuse(self, error: FluxmpiError, root: RootInfo, out: list[Message]) -> None:
        """Remember and send the error. What was answered before gets that answer again."""

    def refs(self) -> Iterable[Ref]:
        """Yield the directories and blobs that it names. They are kept from collection until it is placed."""


class CommitEntry(msgspec.Struct, gc=False):
    """A ``leader.commit``. ``client``: the responses to its client. The fields with defaults are set by ``place``."""

    msg: Message
    commit: Commit
    client: ClientResults
    counters: Counters
    succeeded: bool = True
    """Its guards held."""
    results: list[OpResult] | None = None
    repeats: bool = False
    """It arrived again, and an earlier entry of the batch is the same commit."""

    @property
    def is_encoded(self) -> bool:
        return bool(self.commit.more or self.commit.otherwise_more)

    def place(self, batch: Batch, out: list[Message]) -> bool | Steps[bool]:
        commit, counters = self.commit, self.counters
        if commit.id in batch.ids:
            self.repeats = True
            counters.resent += 1
            batch.entries.append(self)
            return True
        # Checked here and not on arrival, since an acknowledgement may arrive in between:
        # 1. The commit arrives again while its response is in the table, and is queued.
        # 2. In the same turn a later commit of the client acknowledges that response, so the table forgets it.
        # 3. ``response`` returns an error for an acknowledged serial: the commit is not applied again.
        response = self.client.response(commit.id)
        if response is not None:
            counters.resent += 1
            self._send(*response, out)
            return True
        if commit.more or commit.otherwise_more:
            return self._place_in_slices(batch, out)
        ops = commit.ops
        if commit.guards:
            if batch.needs_slices(ops + commit.otherwise):
                return self._place_in_slices(batch, out)
            placed = batch.place_guarded(commit.guards, ops, commit.otherwise)
            return placed is not None and self._accept(placed, batch, out)
        if len(ops) == 1 and type(ops[0]) is Put and type(ops[0].object) is Val:
            if not batch.place_put(ops[0]):
                return False
        elif batch.needs_slices(ops):
            return self._place_in_slices(batch, out)
        else:
            results = batch.place(ops)
            if results is None:
                return False
            self.results = results
        self._join(batch)
        return True

    def _place_in_slices(self, batch: Batch, out: list[Message]) -> Steps[bool]:
        commit = self.commit
        placed = yield from batch.place_in_slices(
            commit.ops, commit.more, commit.guards, commit.otherwise, commit.otherwise_more
        )
        return placed is not None and self._accept(placed, batch, out)

    def _accept(self, placed: Placed, batch: Batch, out: list[Message]) -> bool:
        """Note the outcome of a transaction that did not conflict; answer at once if the batch does not have it."""
        self.succeeded, self.results = placed.succeeded, placed.results
        if placed.made:
            self._join(batch)
        else:
            base = batch.base
            self._respond(encode_body(Committed(base.namespace, base.version, base.ref, base.time, False)), out)
        return True

    def _join(self, batch: Batch) -> None:
        """Note in the batch that it has this commit."""
        commit = self.commit
        self.repeats = False
        batch.entries.append(self)
        batch.ids[commit.id] = None
        if commit.events and self.succeeded:
            batch.events += commit.events

    def answer(self, root: RootInfo, committed: bytes, out: list[Message]) -> None:
        if self.repeats:
            response = self.client.response(self.commit.id)
            if response is not None:
                self._send(*response, out)
            return
        self.counters.commits += 1
        if self.succeeded and not self.results:
            self._respond(committed, out)
        else:
            body = Committed(root.namespace, root.version, root.ref, root.time, self.succeeded, self.results or [])
            self._respond(encode_body(body), out)

    def refuse(self, error: FluxmpiError, root: RootInfo, out: list[Message]) -> None:
        response = self.client.response(self.commit.id)
        if response is None:
            response = encode_error(error)
            self.client.remember(self.commit.id.serial, *response)
            self.counters.failed += 1
        else:
            self.counters.resent += 1
        self._send(*response, out)

    def _respond(self, body: bytes, out: list[Message]) -> None:
        """Remember and send a Committed."""
        msg = self.msg
        self.client.remember(self.commit.id.serial, OK, body)
        out.append(Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, OK, msg.route, body))

    def _send(self, status: int, body: bytes, out: list[Message]) -> None:
        msg = self.msg
        out.append(Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, msg.route, body))

    def refs(self) -> Iterator[Ref]:
        ops = self.commit.ops + self.commit.otherwise
        return refs_of(op.object for op in ops if isinstance(op, CARRIERS))


class AddsEntry(msgspec.Struct, gc=False):
    """A ``leader.adds``: additions of several clients to one key.

    ``sums``: those that the batch has, and the sum after each.
    """

    msg: Message
    adds: Adds
    table: DeduplicationTable
    counters: Counters
    sums: dict[CommitId, int] = {}

    is_encoded = False

    def place(self, batch: Batch, out: list[Message]) -> bool:
        parts, client, ids = self.adds.parts, self.table.client, batch.ids
        if any(part.id in ids for part in parts):
            return False  # one of them arrived again: the next batch finds its response in the table
        fresh: dict[CommitId, int] = {}
        for part in parts:
            if client(part.id.client).response(part.id) is None:
                fresh.setdefault(part.id, part.amount)
        made = batch.place_adds(self.adds.key, list(fresh.values()))
        if made is None:
            return False
        self.sums = sums = {}
        for id_, number in zip(fresh, made, strict=True):
            if isinstance(number, FluxmpiError):
                self.counters.failed += 1
                client(id_.client).remember(id_.serial, *encode_error(number))
            else:
                sums[id_] = number
        if sums:
            batch.entries.append(self)
            ids.update(dict.fromkeys(sums))
        else:
            self._respond(batch.base, out)
        return True

    def answer(self, root: RootInfo, committed: bytes, out: list[Message]) -> None:
        client = self.table.client
        for id_, number in self.sums.items():
            results = [OpResult(True, number)]
            body = Committed(root.namespace, root.version, root.ref, root.time, True, results)
            client(id_.client).remember(id_.serial, OK, encode_body(body))
        self._respond(root, out)

    def _respond(self, root: RootInfo, out: list[Message]) -> None:
        """Answer. Parts that are not in ``sums`` have responses of their own: they arrived again, or failed."""
        parts, sums, client = self.adds.parts, self.sums, self.table.client
        others = []
        for index, part in enumerate(parts):
            if part.id not in sums:
                response = client(part.id.client).response(part.id) or encode_error(answered_already(part.id))
                others.append((index, *response))
        self.counters.combined += 1
        self.counters.added += len(sums)
        numbers = [sums.get(part.id, 0) for part in parts]
        out.append(reply(self.msg, Added(root.namespace, root.version, root.ref, root.time, numbers, others)))

    def refuse(self, error: FluxmpiError, root: RootInfo, out: list[Message]) -> None:
        status, body = encode_error(error)
        for part in self.adds.parts:
            client = self.table.client(part.id.client)
            if client.response(part.id) is None:
                client.remember(part.id.serial, status, body)
        self.counters.failed += len(self.adds.parts)
        self.sums = {}
        self._respond(root, out)

    def refs(self) -> Iterable[Ref]:
        return ()


class FenceEntry(msgspec.Struct, gc=False):
    """A complete fence. Its outcome travels in the setroot; in a ``kvs.fence-done`` of its own if it fails."""

    gathering: Gathering
    table: DeduplicationTable

    is_encoded = False  # the refs of its encoded pieces are in the contributions

    def place(self, batch: Batch, out: list[Message]) -> Steps[bool]:
        gathering = self.gathering
        pieces = gathering.pieces(batch.limits.large_ops)
        first, second = next(pieces, []), next(pieces, None)
        assert isinstance(first, list), "the encoded pieces of a contribution follow its first operations"
        placed = yield from batch.place_in_slices(first, () if second is None else chain([second], pieces))
        if placed is None:
            return False
        batch.entries.append(self)
        batch.fences.append(FenceDone(gathering.namespace, gathering.name, list(gathering.parts), batch.number))
        return True

    def answer(self, root: RootInfo, committed: bytes, out: list[Message]) -> None:
        self.table.remember_all(self.gathering.parts, OK, committed)

    def refuse(self, error: FluxmpiError, root: RootInfo, out: list[Message]) -> None:
        gathering = self.gathering
        self.table.remember_all(gathering.parts, *encode_error(error))
        failed = FenceDone.failed(gathering.namespace, gathering.name, list(gathering.parts), error)
        out.append(control("kvs.fence-done", failed))

    def refs(self) -> Iterator[Ref]:
        return self.gathering.refs()


class Committer:
    """Makes the versions of ``namespace``. The leader owns ``counters``, and appends to ``queue``."""

    def __init__(
        self,
        namespace: Namespace,
        nodes: NodeCache,
        validator: ObjectValidator,
        counters: Counters,
        limits: LeaderLimits,
    ) -> None:
        self.namespace = namespace
        self.queue: deque[QueueEntry] = deque()
        self._nodes = nodes
        self._validator = validator
        self._counters = counters
        self._limits = limits
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
        if self._work is not None and self._base is not self.namespace.root:
            self._start_over()
        if self._work is None:
            self._work = self._make_versions()
        self._now = now
        for done in self._work:
            steps -= done
            if steps <= 0:
                break
        else:
            self._work = self._batch = None
        return self._sent()

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
        if self._batch is not None:
            self.queue.extendleft(reversed(self._batch.entries))
        self._work = self._batch = None

    def _make_versions(self) -> Steps[None]:
        """Place the entries of the queue, in order of arrival.

        A version is sealed whenever a batch cannot take the next entry.
        """
        queue, limits = self.queue, self._limits
        root = self.namespace.root
        edit = Edit(self._nodes, root.ref, root.namespace, limits.slice_nodes)
        batch = self._begin(edit)
        count = 0
        while queue:
            entry = queue[0]
            try:
                placed = entry.place(batch, self._out)
                if type(placed) is not bool:
                    placed = yield from placed
            except FluxmpiError as error:
                entry.refuse(error, self.namespace.root, self._out)
                placed = True
            if placed:
                queue.popleft()
            if not placed or batch.full or batch.steps >= limits.batch_steps_max:
                yield from self._seal(batch)
                batch = self._begin(edit)
            count += 1
            if not count % limits.slice_ops:
                yield limits.slice_ops
        if batch.entries:
            yield from self._seal(batch)

    def _begin(self, edit: Edit) -> Batch:
        self._base = base = self.namespace.root
        self._batch = batch = Batch(base, edit, self._validator, self._limits, self._last_change)
        return batch

    def _last_change(self, key: str) -> tuple[int, bool]:
        return self.namespace.last_change(key, self._nodes)

    def _seal(self, batch: Batch) -> Steps[None]:
        """Make the version: the setroot leaves first, then the batch's events, then the answers."""
        namespace = self.namespace
        ref, new_nodes = yield from batch.seal_in_slices()
        root = RootInfo(batch.base.namespace, batch.number, ref, namespace.clock(self._now))
        self._base, self._batch = root, None
        namespace.advance(root, batch.changed_keys, len(batch.ids) + len(batch.fences))
        out = self._out
        out.append(setroot(namespace, self._limits, batch.changed_keys, new_nodes, batch.fences, batch.appends))
        if batch.events:
            snapshot = root.namespace, root.version, root.ref, root.time
            out.append(control("event.committed", (batch.events, snapshot)))
        committed = encode_body(Committed(root.namespace, root.version, ref, root.time))
        for entry in batch.entries:
            entry.answer(root, committed, out)
        self._counters.merged += max(0, len(batch.ids) - 1)
        yield batch.steps + len(batch.entries)


def setroot(
    namespace: Namespace,
    limits: LeaderLimits,
    keys: list[str] | None = None,
    new_nodes: Iterable[tuple[Ref, bytes]] = (),
    fences: list[FenceDone] | None = None,
    appends: dict[str, list[int]] | None = None,
) -> Message:
    """Return the message that publishes a namespace's newest version.

    ``keys``: the changed ones, None if they are not known; ``appends`` as in ``Batch``.
    """
    root = namespace.root
    nodes = [blob for _, blob in new_nodes]
    if sum(map(len, nodes)) > limits.setroot_nodes_bytes_max:
        nodes = []
    if keys is not None and len(keys) > limits.setroot_keys_max:
        keys = appends = None
    body = Setroot(
        root.namespace, root.version, root.ref, root.time, keys, nodes, fences or [], namespace.oldest, appends or None
    )
    return control("kvs.setroot", body)
