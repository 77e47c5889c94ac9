"""Bodies of the messages about the broker and the instance themselves."""

from __future__ import annotations

import msgspec

from fluxmpi.kvs.wire import SavedFile
from fluxmpi.message import Record


class Hello(Record):
    """CONTROL ``hello``: the first message that a broker sends to a client."""

    protocol: int
    instance: str
    rank: int
    size: int
    algorithm: str
    pid: int


class Shutdown(Record):
    """``lifecycle.shutdown`` to rank 0 → null: the instance ends with ``status``. Also CONTROL, down the tree.

    ``lost``: a broker is dead, so MPI cannot be finalized. ``failed``: a broker has failed, and ends in order. In both
    cases, what is printed also says what is saved.
    """

    status: int = 0
    reason: str = ""
    lost: bool = False
    failed: bool = False


class Rescued(Record):
    """CONTROL ``lifecycle.rescued`` at rank 0, after the broker has failed: the store was saved, or why it was not."""

    file: SavedFile | None
    problem: str = ""


class FailLater(Record):
    """``lifecycle.fail`` → null: the broker fails, as if a machine had raised. Only in an instance for tests."""

    reason: str


class GetAttr(Record):
    """``lifecycle.getattr`` → str; ``lifecycle.lsattr`` (null) → dict of all."""

    name: str


# ---------------------------------------------------------------------------------------------------------------- trace


class TraceStart(Record):
    """``trace.start`` to any rank → TraceState: the broker records its messages.

    ``keep`` False: until this client sends ``trace.stop`` or disconnects. True: until a ``trace.stop`` with ``keep``.
    """

    keep: bool = False


class TraceStop(Record):
    """``trace.stop`` → TraceState: this client needs no recording any more; with ``keep``, end recording for everybody."""

    keep: bool = False


class TraceState(Record):
    """``on``: the broker records. ``next``: the index that its next record will have; indexes count up by one."""

    on: bool
    next: int


class TraceRead(Record):
    """``trace.read`` → TraceChunk with the records from index ``start`` on."""

    start: int = 0


class TraceRecord(Record):
    """One message that a broker handled, once for each hop: delivered to a machine, forwarded, or made here and sent.

    ``time`` and ``count`` are the broker's hybrid logical clock, ``clock`` is its own clock. ``source`` and ``target``
    are hops; where one is LOCAL, ``maker`` or ``handler`` names the machine. ``received`` and ``sent`` number the
    message on its link, in the numbers of its sender: the record with the same link and number is the other end of it;
    -1 is unknown. ``to`` is the message's target.
    """

    time: float
    count: int
    clock: float
    source: int
    maker: str
    target: int
    handler: str
    received: int
    sent: int
    kind: int
    topic: str
    tag: int
    status: int
    to: int
    route: list[int]
    bytes: int


class TraceChunk(Record):
    """``records`` (each a TraceRecord) begin at index ``first``: more than was asked for if the ring has dropped some.

    ``next`` is the index to read from then; ``more``: there are further records now. No later record of this broker has
    an earlier time than (``time``, ``count``).
    """

    on: bool
    first: int
    next: int
    more: bool
    time: float
    count: int
    records: list[msgspec.Raw]


class TraceMark(Record):
    """CONTROL ``trace.mark``: head of a batch from a broker that records.

    It has the clock of that broker, and its number of the next message.
    """

    time: float
    count: int
    number: int
