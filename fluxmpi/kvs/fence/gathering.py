"""A gathering: one incomplete fence at one broker.

``size`` contributions under one name become one commit. They are combined at every broker on the way up: what a broker
got in one turn goes up as one message, and each distinct object crosses a link once per fence. The sender and the
receiver of a link both keep the *table* of the objects that crossed it, and a ``PutShared`` names an object by its
index in that table::

    client: Put(key, object) ─▶ PutShared(key, our index) ─▶ PutShared(key, parent's index) ─▶ … rank 0: Put(key, object)

So N equal values cost each link one value, and N distinct ones cost the links into rank 0 their bytes. Of a
contribution with many operations only the first have this form; the others are encoded pieces that only rank 0 decodes
(``Contribution.more``).

Contributions are counted by id, so resending is harmless, and a name may be used again when its fence is done. A
contribution that arrives after its fence is done belongs to the next fence of that name::

    1. The child sends a contribution, and then another one, while the fence is completed without them.
    2. The fence is done here: its contributions are removed, and with the last one the table.
    3. The second message arrives and builds on a table that does not exist: it is ignored.
    4. The child learns that the fence is done. It sends its remaining contributions again, with a new table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from fluxmpi.blobref import Ref
from fluxmpi.errors import FenceMismatch, InvalidRequest
from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.objects import Object, refs_of
from fluxmpi.kvs.wire import CommitId, Contribution, Fence, Op, Put, PutShared
from fluxmpi.message import CLIENT_FIRST


class Gathering:
    """The contributions to one fence that arrived from clients and children, each distinct object once."""

    def __init__(self, fence: Fence, limits: FenceLimits) -> None:
        if not 1 <= fence.size <= limits.size_max:
            raise InvalidRequest(
                f"fence '{fence.name}' has the size {fence.size}: a size is from 1 to {limits.size_max}"
            )
        self.namespace = fence.namespace
        self.name = fence.name
        self.size = fence.size
        self.parts: dict[CommitId, Contribution] = {}
        self.bytes = 0
        """Of the messages that brought them, as long as it gathers."""
        self.objects: list[Object] = []
        """This broker's table."""
        self._limits = limits
        self._indices: dict[Object, int] = {}
        self._tables: dict[int, list[int]] = {}
        """Child to the table of its link: the index in ``objects`` of each object that crossed it."""
        self._unsent: deque[tuple[Contribution, int]] = deque()
        """What the parent does not have yet; each with the number of ``objects`` that it needs."""
        self._sent_objects = 0

    @property
    def complete(self) -> bool:
        return len(self.parts) >= self.size

    def add(self, fence: Fence, hop: int) -> bool:
        """Add the contributions that the child or client ``hop`` sent; return whether one of them is new."""
        if fence.size != self.size:
            raise FenceMismatch(
                f"fence '{self.name}' has {self.size} contributions, but this one was sent with size {fence.size}"
            )
        table: list[int] = []
        if hop > CLIENT_FIRST:
            if fence.first:
                table = self._tables.get(hop, table)
            else:
                self._tables[hop] = table
        if len(table) != fence.first:
            return False
        index_of = self._index_of
        table += [index_of(obj) for obj in fence.objects]
        parts, unsent, before = self.parts, self._unsent, len(self.parts)
        for part in fence.parts:
            id_ = part.id
            if id_ in parts:
                continue
            ops: list[Op] = []  # each with its object's index in our own table
            for op in part.ops:
                if type(op) is Put:
                    op = PutShared(op.key, index_of(op.object))
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

    def _index_of(self, obj: Object) -> int:
        index = self._indices.get(obj)
        if index is None:
            index = self._indices[obj] = len(self.objects)
            self.objects.append(obj)
        return index

    @property
    def has_unsent(self) -> bool:
        """True while the parent does not have all of it."""
        return bool(self._unsent)

    def take_unsent(self) -> Fence:
        """Return the next message to the parent: contributions of ``message_ops`` operations, or one contribution."""
        first = last = self._sent_objects
        parts: list[Contribution] = []
        ops, ops_max = 0, self._limits.message_ops
        while self._unsent and ops < ops_max:
            part, last = self._unsent.popleft()
            parts.append(part)
            ops += len(part.ops)
        self._sent_objects = last
        return Fence(self.namespace, self.name, self.size, parts, self.objects[first:last], first)

    def remove(self, ids: Iterable[CommitId]) -> int:
        """Remove contributions, which are done; return how many were here.

        If any was, the remaining ones are sent up again, with a new table.
        """
        parts = self.parts
        before = len(parts)
        for id_ in ids:
            parts.pop(id_, None)
        if len(parts) < before:
            self._unsent = deque((part, len(self.objects)) for part in parts.values())
            self._sent_objects = 0
        return before - len(parts)

    def refs(self) -> Iterator[Ref]:
        """Yield the directories and blobs that the contributions name."""
        yield from refs_of(self.objects)
        for part in self.parts.values():
            yield from part.refs

    def pieces(self, count: int) -> Iterator[list[Op] | bytes]:
        """Yield all operations with their objects, ``count`` at a time; encoded ones as they are."""
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
