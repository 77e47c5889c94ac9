"""``kvs.commit``, ``kvs.add``, ``kvs.fence``: what changes the store, and how brokers combine it on its way to rank 0."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import Record, RootInfo


class Put(Record, tag=0):
    """Set ``key`` to ``object``, making the directories above it. A value, a link, or (put-treeobj) a ``Dir``."""

    key: str
    object: Object


class Append(Record, tag=1):
    """Add bytes to a raw or json value, which is raw from then on; a key that does not exist starts empty."""

    key: str
    data: bytes


class Unlink(Record, tag=2):
    """Remove the entry: a value, a link (not what it points to), or a whole directory. No such entry: no effect."""

    key: str


class Mkdir(Record, tag=3):
    """Make an empty directory; one that exists stays."""

    key: str


class PutShared(Record, tag=4):
    """``Put`` in a combined fence: the object is ``objects[index]``, so that equal values travel once."""

    key: str
    index: int


class Add(Record, tag=5):
    """Add to a json integer; a key that does not exist starts at 0. With ``limit``: only if it is less than that
    before.

    Its Result: ``number`` is the integer afterwards, ``done`` whether it was added. What is no integer of 64 bits,
    before or after, is an InvalidValue.
    """

    key: str
    amount: int
    limit: int | None = None


class Exchange(Record, tag=6):
    """``Put``, and its Result has the object that was there before, or None."""

    key: str
    object: Object


class Swap(Record, tag=7):
    """Compare and swap: if what is there is ``expected``, put ``object``. None is no such key, and removes it.

    Its Result: ``done``, and the object that was found, or None.
    """

    key: str
    expected: Object | None
    object: Object | None


Op = Put | Append | Unlink | Mkdir | PutShared | Add | Exchange | Swap

GUARD_VALUE, GUARD_VERSION, GUARD_EXISTS = 0, 1, 2


class Guard(Record):
    """A condition on the state just before a transaction. ``compare``: one of ``== != < <= > >=``.

    GUARD_VALUE compares the value with ``operand``, an Object. Equal is of one type and the same bytes. Only json
    numbers, or json texts, have an order. A key that does not exist is unequal to every value, and neither less nor
    greater. GUARD_VERSION compares the version of the key's last change, 0 if there is no such key, with an int.
    GUARD_EXISTS compares whether the key exists with a bool. A link at the end of the key is not followed, as in
    operations.
    """

    key: str
    what: int
    compare: str
    operand: Object | bool | int


class OpResult(Record):
    """What one operation gave: see Add, Exchange, Swap. Others are done, with nothing to tell."""

    done: bool = True
    number: int | None = None
    object: Object | None = None


class CommitId(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Names one commit of one client for ever; serials count from 1."""

    client: str
    serial: int


PIECE_OPS = 1000
WHOLE_OPS_MAX = 10_000
"""Operations that need not come in pieces. A list of more is refused before it is decoded, since that takes its time,
too.
"""

_Ops = Annotated[list[Op], msgspec.Meta(max_length=WHOLE_OPS_MAX)]


class Commit(Record):
    """``kvs.commit``, ``leader.commit`` → Committed. Applied once however often it is sent.

    ``acked``: the answers to all serials up to this one have arrived, so they need not be remembered. All ``guards``
    hold: ``ops`` are applied and ``events``, (topic, payload) of each, are published. Else ``otherwise`` is applied;
    where that is empty, no version is made. ``durable`` is refused: there is no journal. ``more``, ``otherwise_more``:
    operations that come after ``ops`` and ``otherwise``, encoded, in pieces of up to PIECE_OPS, so that rank 0 can take
    them bit by bit.
    """

    namespace: str
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
    """``kvs.add`` → Committed with one Result. As a Commit of one Add, but combined on its way with others to that key."""

    namespace: str
    id: CommitId
    acked: int
    key: str
    amount: int


class AddPart(Record):
    """One client's addition among the combined."""

    id: CommitId
    acked: int
    amount: int


class Adds(Record):
    """``kvs.adds`` to the parent, ``leader.adds`` at rank 0 → Added: additions to one key, in the order of their
    results.
    """

    namespace: str
    key: str
    parts: list[AddPart]


class Contribution(Record):
    """One contributor's part of a fence. ``acked`` as in a Commit: one client's commits and contributions count
    together.

    ``more`` as in a Commit: brokers on the way pass these pieces on as they are, and rank 0 takes them bit by bit.
    ``refs``: the directories and blobs that they name, so that they are kept until the fence is complete.
    """

    id: CommitId
    ops: _Ops
    acked: int = 0
    more: list[bytes] = []
    refs: list[Ref] = []


class Fence(Record):
    """``kvs.fence``, ``leader.fence`` → RootInfo. ``size`` contributions under one name become one commit.

    A client sends one contribution; brokers on the way up send many, with equal objects once: in ``objects``. A
    broker's message up has no answer of its own: the outcome of the fence comes to every broker as FenceDone. ``first``
    is the place of the first of ``objects`` in the link's table; 0 begins a new table.
    """

    namespace: str
    name: str
    size: int
    parts: list[Contribution]
    objects: list[Object] = []
    first: int = 0


class FenceDone(Record):
    """CONTROL ``kvs.fence-done``, and inside Setroot: the outcome for these contributors. ``status`` as in a response.

    ``ref`` and ``time`` are the version's, where it is not the newest.
    """

    namespace: str
    name: str
    ids: list[CommitId]
    version: int
    status: int = 0
    text: str = ""
    ref: Ref = b""
    time: float = 0.0


class FenceMember(Record):
    """CONTROL: who contributed, and is not waiting for the outcome any more. Up to rank 0: ``kvs.fence-left``; down to
    all: ``kvs.fence-missing``, a search with a number; up again ``kvs.fence-here`` from a broker at which it waits all
    the same, or ``kvs.fence-absent``. ``gone``: it gave up.
    """

    namespace: str
    name: str
    id: CommitId
    gone: bool = False
    search: int = 0


class Committed(RootInfo):
    """What became of a commit, and the version in which; the newest one where no version was made.

    ``succeeded``: its guards held. ``results``: one for each operation applied, or none at all if none has anything to
    tell.
    """

    succeeded: bool = True
    results: list[OpResult] = []


class Added(RootInfo):
    """The version that combined additions became; ``numbers`` are what each made of the integer.

    ``others`` are those parts that this does not hold for: index, status and body of the answer that each gets.
    """

    numbers: list[int] = []
    others: list[tuple[int, int, bytes]] = []
