"""``kvs.commit``, ``kvs.add``, ``kvs.fence``: what changes the store, and how brokers combine it on the way to rank 0."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, error_of
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import Name, Record, RootInfo


class Put(Record, tag=0):
    """Set ``key`` to ``object``, and make the directories above it. A value, a link, or (put-treeobj) a ``Dir``."""

    key: str
    object: Object


class Append(Record, tag=1):
    """Append bytes to a raw or json value, which is raw from then on; a key that does not exist starts empty."""

    key: str
    data: bytes


class Unlink(Record, tag=2):
    """Remove the entry: a value, a link (not its target), or a whole directory. If there is none, do nothing."""

    key: str


class Mkdir(Record, tag=3):
    """Make an empty directory; one that exists stays.

    ``replace``: a value at the key, or above it, is replaced by a directory. Else it is an error.
    """

    key: str
    replace: bool = False


class PutShared(Record, tag=4):
    """``Put`` in a combined fence: the object is ``objects[index]``, so that equal values travel once."""

    key: str
    index: int


class Add(Record, tag=5):
    """Add to a json integer; a key that does not exist starts at 0. With ``limit``: only if the integer is less than it.

    Its OpResult: ``number`` is the integer afterwards, ``done`` whether it was added. If the value before or after is
    not an integer of 64 bits, the commit fails with InvalidValue.
    """

    key: str
    amount: int
    limit: int | None = None


class Exchange(Record, tag=6):
    """``Put``, and its OpResult has the object that was there before, or None."""

    key: str
    object: Object


class Swap(Record, tag=7):
    """Compare and swap: if the key has the object ``expected``, put ``object``.

    None as ``expected`` means no such key, None as ``object`` removes the key.

    Its OpResult: ``done``, and the object that was found, or None.
    """

    key: str
    expected: Object | None
    object: Object | None


Op = Put | Append | Unlink | Mkdir | PutShared | Add | Exchange | Swap

GUARD_VALUE, GUARD_VERSION, GUARD_EXISTS = 0, 1, 2


class Guard(Record):
    """A condition on the state just before a transaction. ``compare``: one of ``== != < <= > >=``.

    GUARD_VALUE compares the value with ``operand``, an Object. Values are equal if type and bytes are the same. Only
    json numbers, or json texts, have an order. A key that does not exist is unequal to every value, and neither less
    nor greater.

    GUARD_VERSION compares the version of the key's last change, 0 if there is no such key, with an int.

    GUARD_EXISTS compares whether the key exists with a bool.

    A link at the end of the key is not followed, as in operations.
    """

    key: str
    what: int
    compare: str
    operand: Object | bool | int


class OpResult(Record):
    """The result of one operation: see Add, Exchange, Swap. Other operations have this one, with the defaults."""

    done: bool = True
    number: int | None = None
    object: Object | None = None


class CommitId(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The id of one commit of one client, never used again; serials count from 1."""

    client: Name
    serial: int


FENCE_NAME_CHARS_MAX = 1024
"""Characters of the name of a fence."""

PIECE_OPS = 1000
"""Operations in one encoded piece of a large transaction."""

WHOLE_OPS_MAX = 10_000
"""Operations that need not be sent in pieces. A longer list is refused before it is decoded, since decoding takes time."""

_Ops = Annotated[list[Op], msgspec.Meta(max_length=WHOLE_OPS_MAX)]


class Commit(Record):
    """``kvs.commit``, ``leader.commit`` → Committed. Applied once however often it is sent.

    ``acked``: the client has the responses to all serials up to this one, so they need not be remembered.

    If all ``guards`` hold, ``ops`` are applied and ``events``, (topic, payload) of each, are published. Else
    ``otherwise`` is applied; if it is empty, no version is made.

    ``durable`` is refused: there is no journal.

    ``more``, ``otherwise_more``: operations that follow ``ops`` and ``otherwise``, encoded, in pieces of up to PIECE_OPS,
    so that rank 0 can decode and apply them in slices.
    """

    namespace: Name
    id: CommitId
    acked: int
    ops: _Ops
    guards: list[Guard] = []
    otherwise: _Ops = []
    events: list[tuple[str, bytes]] = []
    durable: bool = False
    more: list[bytes] = []
    otherwise_more: list[bytes] = []


class AddTo(Record):
    """``kvs.add`` → Committed with one OpResult. Like a Commit of one Add, but brokers combine those to one key."""

    namespace: Name
    id: CommitId
    acked: int
    key: str
    amount: int


class AddPart(Record):
    """One client's addition among combined ones."""

    id: CommitId
    acked: int
    amount: int


class Adds(Record):
    """``kvs.adds`` to the parent, ``leader.adds`` at rank 0 → Added: additions to one key, applied in this order."""

    namespace: Name
    key: str
    parts: list[AddPart]


class Contribution(Record):
    """One client's part of a fence. Its ``id`` and ``acked`` are as in a Commit, and share their serials with the commits.

    ``more`` is as in a Commit: brokers on the way forward these pieces as they are, and rank 0 decodes them in slices.
    ``refs``: the directories and blobs that they name, so that they are kept until the fence is complete.
    """

    id: CommitId
    ops: _Ops
    acked: int = 0
    more: list[bytes] = []
    refs: list[Ref] = []


class Fence(Record):
    """``kvs.fence``, ``leader.fence`` → RootInfo. ``size`` contributions under one name become one commit.

    A client sends one contribution; a broker sends many to its parent, with equal objects once: in ``objects``. A
    broker's message has no response: the outcome of the fence reaches every broker as FenceDone. ``first`` is the index
    of the first of ``objects`` in the link's table; 0 begins a new table.
    """

    namespace: Name
    name: Annotated[str, msgspec.Meta(max_length=FENCE_NAME_CHARS_MAX)]
    size: int
    parts: list[Contribution]
    objects: list[Object] = []
    first: int = 0


class FenceDone(Record):
    """CONTROL ``kvs.fence-done``, and inside Setroot: the outcome for these contributions. ``status`` as in a response.

    ``ref`` and ``time`` are those of the version, if it is not the newest. ``text`` and ``definite`` are the error's.
    """

    namespace: str
    name: str
    ids: list[CommitId]
    version: int
    status: int = 0
    text: str = ""
    ref: Ref = b""
    time: float = 0.0
    definite: bool = True

    @property
    def error(self) -> FluxmpiError:
        """The error that ``status`` names."""
        return error_of(self.status, self.text, self.definite)

    @classmethod
    def failed(cls, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> FenceDone:
        """Return the outcome for contributions that fail with ``error``."""
        return cls(namespace, name, ids, 0, error.code, error.text, definite=error.definite)


class FenceMember(Record):
    """CONTROL: a client that contributed, and that may have left. ``gone``: it gave up, so it has left.

    Up to rank 0: ``kvs.fence-left``. Down to all brokers: ``kvs.fence-missing``, the search with the number ``search``.
    Up again: ``kvs.fence-here`` from a broker at which the client waits, or ``kvs.fence-absent``.
    """

    namespace: str
    name: str
    id: CommitId
    gone: bool = False
    search: int = 0


class Committed(RootInfo):
    """The version that a commit became part of; the newest one if the commit made none.

    ``succeeded``: its guards held. ``results``: one for each operation applied, or none at all if no operation has one.
    """

    succeeded: bool = True
    results: list[OpResult] = []


class Added(RootInfo):
    """The version that combined additions became part of. ``numbers``: the integer after each of them.

    ``others``: the parts with a response of their own: index, status and body.
    """

    numbers: list[int] = []
    others: list[tuple[int, int, bytes]] = []
