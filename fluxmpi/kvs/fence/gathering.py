"""Fences: ``size`` contributions under one name become one commit.

Contributions are combined at every broker on the way up. What a broker got in one turn of the loop goes up as one message, and
over one link each distinct object goes once per fence: the sender and the receiver of a link both keep the table of the
objects that crossed it, and a ``PutShared`` names an object by its place in that table. So N equal values cost each link one
value, and N distinct values cost the links into rank 0 what they are. A contribution of many operations has but its first in
this form; the others are pieces of bytes that only rank 0 decodes (``Contribution.more``).

Contributors are counted by id, so that resending is harmless, and a name may be used again when its fence is done. What came
too late for a fence that is done belongs to the next of that name::

    1. The child sends a contribution up, and then another one, while the fence is completed without them.
    2. Here it is done: what belonged to it is forgotten, and so is the table, if nothing is left over.
    3. The second one comes, and builds on a table that is not here: it is ignored.
    4. The child hears that it is done. What it has left over it sends again, with a new table.

    client's Put(key, object) --> PutShared(key, place in our table) --> the parent's PutShared --> ... rank 0: Put(key, object)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from fluxmpi.blobref import Ref
from fluxmpi.errors import FenceBroken, FenceMismatch, InvalidRequest
from fluxmpi.kvs.objects import Object, refs_of
from fluxmpi.kvs.wire import CommitId, Contribution, Fence, Op, Put, PutShared
from fluxmpi.message import CLIENT_FIRST

FENCE_SIZE_MAX = 10_000_000

OUTLET_OPS = 10_000
"""Operations in one message up, so that no turn above takes in many more: about 5 ms. Those that are encoded do not count."""

BROKEN_S = 30.0
"""How long a broken fence's name is remembered for members that have not come yet."""

BROKEN_MAX = 10_000
"""Names of broken fences that are remembered; past it the oldest is forgotten."""


class Gathering:
    """One fence at one broker: everything that came, from clients and children, with every distinct object once."""

    def __init__(self, fence: Fence) -> None:
        if not 1 <= fence.size <= FENCE_SIZE_MAX:
            raise InvalidRequest(f"fence '{fence.name}': a size of {fence.size} is not from 1 to {FENCE_SIZE_MAX}")
        self.namespace = fence.namespace
        self.name = fence.name
        self.size = fence.size
        self.parts: dict[CommitId, Contribution] = {}
        self.objects: list[Object] = []
        self._index: dict[Object, int] = {}
        self._tables: dict[int, list[int]] = {}
        """Neighbour to its link's table: the place in ``objects`` of each object that came over it."""
        self._unsent: deque[tuple[Contribution, int]] = deque()
        """What the parent does not have yet, each with the number of ``objects`` that it needs."""
        self._sent_objects = 0

    @property
    def complete(self) -> bool:
        return len(self.parts) >= self.size

    def add(self, fence: Fence, hop: int) -> bool:
        """Take what the neighbour or client ``hop`` sent; False when all of it was here already."""
        if fence.size != self.size:
            raise FenceMismatch(f"fence '{self.name}' is of {self.size} contributions, this one says {fence.size}")
        table: list[int] = []
        if hop > CLIENT_FIRST:
            if fence.first:
                table = self._tables.get(hop, table)
            else:
                self._tables[hop] = table
        if len(table) != fence.first:
            return False
        place = self._place
        table += [place(obj) for obj in fence.objects]
        parts, unsent, before = self.parts, self._unsent, len(self.parts)
        for part in fence.parts:
            id_ = part.id
            if id_ in parts:
                continue
            ops: list[Op] = []  # each with its object's place in our own table
            for op in part.ops:
                if type(op) is Put:
                    op = PutShared(op.key, place(op.object))
                elif type(op) is PutShared:
                    if not 0 <= op.index < len(table):
                        raise InvalidRequest(
                            f"fence '{self.name}': object {op.index} is not in the table of {len(table)}"
                        )
                    op = PutShared(op.key, table[op.index])
                ops.append(op)
            shared = parts[id_] = Contribution(id_, ops, part.acked, part.more, part.refs)
            unsent.append((shared, len(self.objects)))
        return len(parts) > before

    def _place(self, obj: Object) -> int:
        place = self._index.get(obj)
        if place is None:
            place = self._index[obj] = len(self.objects)
            self.objects.append(obj)
        return place

    def outlet(self) -> Fence:
        """The next message of what the parent does not have yet: contributions of OUTLET_OPS operations, or one."""
        first = last = self._sent_objects
        parts: list[Contribution] = []
        ops = 0
        while self._unsent and ops < OUTLET_OPS:
            part, last = self._unsent.popleft()
            parts.append(part)
            ops += len(part.ops)
        self._sent_objects = last
        return Fence(self.namespace, self.name, self.size, parts, self.objects[first:last], first)

    @property
    def behind(self) -> bool:
        """There is more for the parent."""
        return bool(self._unsent)

    def forget(self, ids: list[CommitId]) -> int:
        """These are done. How many of them were here; if any, what is left is to be sent up, as if nothing had been."""
        parts = self.parts
        before = len(parts)
        for commit_id in ids:
            parts.pop(commit_id, None)
        if len(parts) < before:
            self._unsent = deque((part, len(self.objects)) for part in parts.values())
            self._sent_objects = 0
        return before - len(parts)

    def refs(self) -> Iterator[Ref]:
        """The directories and blobs that they name."""
        yield from refs_of(self.objects)
        for part in self.parts.values():
            yield from part.refs

    def pieces(self, count: int) -> Iterator[list[Op] | bytes]:
        """All operations, with the objects themselves, ``count`` at a time; or encoded, where they came so."""
        objects = self.objects
        piece: list[Op] = []
        for part in self.parts.values():
            for op in part.ops:
                piece.append(Put(op.key, objects[op.index]) if type(op) is PutShared else op)
                if len(piece) == count:
                    yield piece
                    piece = []
            if part.more:
                yield piece
                yield from part.more
                piece = []
        if piece:
            yield piece


class BrokenFences:
    """Fences that broke: a member left, so they cannot become complete, and whoever else comes is told at once.

    A name is free again when as many clients as the fence has members have been told, or have left; or after BROKEN_S, for
    the sake of a program that is started again and uses the same names. (As Python's threading.Barrier, which stays broken.)
    """

    def __init__(self) -> None:
        self._fences: dict[tuple[str, str], tuple[float, int, dict[str, None], str]] = {}
        """Name to when it is forgotten, the fence's size, the clients that are accounted for, and why."""

    def __len__(self) -> int:
        return len(self._fences)

    def add(self, gathering: Gathering, member: CommitId, now: float) -> FenceBroken:
        """It breaks now, with what has come; the error for these."""
        key = gathering.namespace, gathering.name
        come = len(gathering.parts)
        text = (
            f"fence '{gathering.name}' is broken: client {member.client} left it when {come} of {gathering.size} had come;"
            " nothing of it was committed"
        )
        self._fences.pop(key, None)
        self._fences[key] = now + BROKEN_S, gathering.size, {}, text
        if len(self._fences) > BROKEN_MAX:
            del self._fences[next(iter(self._fences))]
        self._account(key, list(gathering.parts))
        return FenceBroken(text)

    def error(self, fence: Fence, now: float) -> FenceBroken | None:
        """What to tell these contributors, if the fence that they come to is broken."""
        key = fence.namespace, fence.name
        found = self._fences.get(key)
        if found is None:
            return None
        until, _, _, text = found
        if until <= now:
            del self._fences[key]
            return None
        self._account(key, [part.id for part in fence.parts])
        return FenceBroken(text)

    def _account(self, key: tuple[str, str], ids: list[CommitId]) -> None:
        _, size, clients, _ = self._fences[key]
        clients.update((id_.client, None) for id_ in ids)
        if len(clients) >= size:
            del self._fences[key]
