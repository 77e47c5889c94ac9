"""Entries of a namespace's queue: a commit, combined additions to one key, or a complete fence.

The committer *places* an entry in a batch. When the batch is sealed, the entry is *answered*; one that fails, or for
which the store has no room, is *refused*. Both are remembered in the deduplication table, and sent again if the same
commit arrives again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, encode_error
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.leader.batch import Batch, Placed, decode_piece
from fluxmpi.kvs.leader.dedup import ClientResults, DeduplicationTable, answered_already
from fluxmpi.kvs.leader.growth import OP_BYTES, Growth, growth_of
from fluxmpi.kvs.leader.validation import CARRIERS
from fluxmpi.kvs.objects import Val, refs_of
from fluxmpi.kvs.store.edit import Steps
from fluxmpi.kvs.wire import Added, Adds, Commit, CommitId, Committed, FenceDone, OpResult, Put, RootInfo
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
    def size(self) -> int:
        """Bytes that it holds while it waits."""

    @property
    def is_encoded(self) -> bool:
        """True while some of its operations are not decoded, so that ``refs`` does not yield what they name."""

    def place(self, batch: Batch, out: list[Message]) -> bool | Steps[bool]:
        """Apply it to the batch.

        True: the batch has it, or it was answered at once. False: it conflicts, so nothing has changed; the next batch
        takes it. Steps: the work, in slices, that ends with one of these. May raise FluxmpiError.
        """

    def growth(self, batch: Batch) -> Steps[Growth | None]:
        """Return what it adds to the store; None if it was answered before, or ``place`` will find that it conflicts."""

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
    def size(self) -> int:
        return len(self.msg.body)

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

    def growth(self, batch: Batch) -> Steps[Growth | None]:
        commit = self.commit
        if commit.id in batch.ids or self.client.response(commit.id) is not None:
            return None
        found = yield from _growth_in_slices(growth_of(commit.ops), commit.more)
        if commit.guards:
            found |= yield from _growth_in_slices(growth_of(commit.otherwise), commit.otherwise_more)
        return found

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

    @property
    def size(self) -> int:
        return len(self.msg.body)

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

    def growth(self, batch: Batch) -> Steps[Growth | None]:
        parts, client = self.adds.parts, self.table.client
        if any(part.id in batch.ids for part in parts):
            return None
        if all(client(part.id.client).response(part.id) is not None for part in parts):
            return None
        yield len(parts)
        return Growth(OP_BYTES + len(self.adds.key), False)

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
    size = 0  # it was held before, as an incomplete fence

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

    def growth(self, batch: Batch) -> Steps[Growth | None]:
        gathering = self.gathering
        found = growth_of((), gathering.objects)
        for part in gathering.parts.values():
            found = found.plus(growth_of(part.ops))
            found = yield from _growth_in_slices(found, part.more)
        return found

    def answer(self, root: RootInfo, committed: bytes, out: list[Message]) -> None:
        self.table.remember_all(self.gathering.parts, OK, committed)

    def refuse(self, error: FluxmpiError, root: RootInfo, out: list[Message]) -> None:
        gathering = self.gathering
        self.table.remember_all(gathering.parts, *encode_error(error))
        failed = FenceDone.failed(gathering.namespace, gathering.name, list(gathering.parts), error)
        out.append(control("kvs.fence-done", failed))

    def refs(self) -> Iterator[Ref]:
        return self.gathering.refs()


def _growth_in_slices(first: Growth, pieces: Iterable[bytes]) -> Steps[Growth]:
    """Return the growth of a transaction whose first operations grow the store by ``first``."""
    found = first
    for piece in pieces:
        ops = decode_piece(piece)
        yield len(ops)
        found = found.plus(growth_of(ops))
    return found
