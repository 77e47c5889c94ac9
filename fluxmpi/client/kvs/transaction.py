"""Transactions: operations gathered, then committed as one version, or as one contribution to a fence.

A transaction is used once::

    OPEN --commit, commit_async, fence_async, end of the block--> SENT
     └----an exception leaves the block: nothing is sent--------> DROPPED

Guards are compared with the state just before it, and all must hold::

    with h.kvs.txn() as t:
        t.when("run.state", "==", "ready")
        t.put("run.state", "started")
        count = t.add("run.starts")
        with t.otherwise():
            t.append("log", "it was not ready\n")
    if t.succeeded:
        print(count.number, t.version)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.channel import Channel
from fluxmpi.client.content import BlobWriter
from fluxmpi.client.future import Future
from fluxmpi.client.kvs.stored_value import value_of
from fluxmpi.client.kvs.value_file import File, Progress, store_file
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import encode_json, encode_value
from fluxmpi.errors import FluxmpiError, InvalidKey, InvalidRequest, InvalidValue, TooLarge
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Link, Object, Val, ValRef, refs_of, split_key
from fluxmpi.kvs.wire import (
    PIECE_OPS,
    Add,
    Append,
    Commit,
    CommitId,
    Committed,
    Contribution,
    Exchange,
    Fence,
    Guard,
    Mkdir,
    Op,
    Put,
    Swap,
    Unlink,
)
from fluxmpi.message import (
    ANY,
    EVENT_PAYLOAD_BYTES_MAX,
    EVENT_TOPIC_MAX,
    FRAME_BYTES_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    Message,
)

TRANSACTION_BYTES_MAX = FRAME_BYTES_MAX - (1 << 16)
"""Of the encoded operations together; long values do not count, since they travel as blobs before."""

CARRIED_BYTES_MAX = 64 << 10
"""A value up to this travels in the transaction, and rank 0 makes a blob of it if need be: one round trip instead of two."""

APPEND_BYTES_MAX = BLOB_BYTES_MAX
"""Of one append."""

T = TypeVar("T")

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""For ``swap``: no such key. (None is a value: JSON's null.)"""

_decode_committed = decoder(Committed)


class Result:
    """What one operation of a transaction gave, when that is committed. It is true when the operation was done.

    ``number``: of an ``add``, the integer after it. ``found``: of an ``exchange`` or ``swap``, whether there was something
    before; ``object`` and ``value`` are what it was.
    """

    __slots__ = ("_index", "_otherwise", "_txn")

    def __init__(self, txn: Transaction, index: int, otherwise: bool) -> None:
        self._txn = txn
        self._index = index
        self._otherwise = otherwise

    @property
    def kind(self) -> str:
        """The operation's name: put, append, unlink, mkdir, add, exchange, swap."""
        return type(self._txn.operations(self._otherwise)[self._index]).__name__.lower()

    def _told(self) -> wire.OpResult:
        committed = self._txn.committed
        if committed.succeeded is self._otherwise:
            return wire.OpResult(False)
        return committed.results[self._index] if committed.results else wire.OpResult()

    @property
    def done(self) -> bool:
        """False: a swap that found something else, an add at its limit, or the other branch was taken."""
        return self._told().done

    @property
    def number(self) -> int | None:
        return self._told().number

    @property
    def object(self) -> Object | None:
        return self._told().object

    @property
    def found(self) -> bool:
        return self.object is not None

    @property
    def value(self) -> Any:
        """The Python value that was there; loaded now if it is long. None for no key, a directory or a link."""
        return value_of(self._txn._channel, self.object)

    def __bool__(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        if not self._txn.sent:
            return "<Result of a transaction that is not committed>"
        return f"<Result done={self.done} number={self.number} object={self.object}>"


class Transaction:
    """See ``Kvs.txn``. After the commit: ``snapshot``, its ``version`` and ``root``, ``succeeded``, and ``results``."""

    def __init__(self, channel: Channel, namespace: str) -> None:
        self._channel = channel
        self._namespace = namespace
        self._then: list[Op] = []
        self._else: list[Op] = []
        self._ops = self._then
        """The branch that operations go to."""
        self._guards: list[Guard] = []
        self._events: list[tuple[str, bytes]] = []
        self._bytes = 0
        """What the operations have at least, encoded."""
        self._committed: Committed | None = None
        self._blobs: BlobWriter | None = None
        self._carried = 0
        self._future: Future[Snapshot] | None = None
        self._dropped = False

    # ------------------------------------------------------------------------------------------------------- operations

    def put(self, key: str, value: Any) -> None:
        """Set a key, and make the directories above it. Raises InvalidRequest for a value that cannot be stored."""
        self.put_typed(key, *_encoded(key, value))

    def put_typed(self, key: str, type_: str, data: bytes | memoryview) -> None:
        """Set a key to typed bytes; see ``values``. Long data are read now, piece by piece, and no copy is made of the whole."""
        self._add(Put(_valid(key), self._object(type_, data)))

    def put_file(self, key: str, file: File, progress: Progress | None = None) -> int:
        """Set a key to the bytes of a file, by name or open for reading (a pipe, too); returns how many they are.

        They are read, and stored as blobs, a piece at a time. ``progress`` is called with the bytes that are stored so far.
        """
        size, object_ = store_file(self._channel, file, progress)
        self._add(Put(_valid(key), object_))
        return size

    def put_object(self, key: str, object_: Object) -> None:
        """Set a key to an object that is there already: a directory or long value of any snapshot; no copying."""
        self._add(Put(_valid(key), object_))

    def append(self, key: str, data: bytes | str) -> None:
        """Add bytes to the end of a raw or json value, which is raw from then on; a key that does not exist starts empty."""
        if not isinstance(data, str | bytes | bytearray | memoryview):
            raise InvalidRequest(f"key '{key}': what is appended is bytes or a str, not {type(data).__name__}")
        data = data.encode() if isinstance(data, str) else bytes(data)
        if len(data) > APPEND_BYTES_MAX:
            raise TooLarge(
                f"key '{key}': an append has at most {APPEND_BYTES_MAX:,} bytes, and this one has {len(data):,}"
            )
        self._add(Append(_valid(key), data))

    def unlink(self, key: str) -> None:
        """Remove a value, a link, or a directory and all below; no such key is no error."""
        self._add(Unlink(_valid(key)))

    def mkdir(self, key: str) -> None:
        """Make an empty directory; one that exists stays as it is."""
        self._add(Mkdir(_valid(key)))

    def link(self, target: str, key: str, *, target_namespace: str | None = None) -> None:
        """Make ``key`` a symbolic link to ``target``, which need not exist."""
        split_key(target)
        self._add(Put(_valid(key), Link(target, target_namespace)))

    def add(self, key: str, amount: int = 1, *, limit: int | None = None) -> Result:
        """Add to an integer; a key that does not exist starts at 0. With ``limit``: only if it is less than that before.

        Its Result's ``number`` is the integer then. The transaction fails with InvalidValue if there is something else, or if
        the sum has over 64 bits.
        """
        return self._add(checked_add(key, amount, limit))

    def exchange(self, key: str, value: Any) -> Result:
        """``put``; its Result's ``value`` is what was there before."""
        return self._add(Exchange(_valid(key), self._object(*_encoded(key, value))))

    def compare_and_swap(self, key: str, expected: Any, value: Any) -> Result:
        """Compare and swap: if ``expected`` is there, put ``value``. ABSENT stands for no such key, and removes it.

        Its Result is true if it was done; its ``value`` is what was found. To be equal, a value must have the same type and
        bytes: 1 is not 1.0.
        """
        old = None if expected is ABSENT else self._object(*_encoded(key, expected))
        new = None if value is ABSENT else self._object(*_encoded(key, value))
        return self._add(Swap(_valid(key), old, new))

    def publish(self, topic: str, payload: Any = b"") -> None:
        """Publish an event with the commit: it happens if that does, and carries its snapshot. ``payload`` as in ``h.event``."""
        self._check_open()
        if self._ops is self._else:
            raise InvalidRequest(
                f"event '{topic}': only what is done when the guards hold can publish, not otherwise()"
            )
        if not topic or len(topic) > EVENT_TOPIC_MAX:
            raise InvalidRequest(f"an event's topic has 1 to {EVENT_TOPIC_MAX} characters")
        data = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else encode_json(payload)
        if len(data) > EVENT_PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"event '{topic}': a payload has at most {EVENT_PAYLOAD_BYTES_MAX:,} bytes, and this one has {len(data):,}:"
                " put it, and publish its key"
            )
        self._grow(len(topic) + len(data))
        self._events.append((topic, data))

    def _add(self, op: Op) -> Result:
        self._check_open()
        if type(op) is Append:
            size = len(op.data)
        else:
            object_ = getattr(op, "object", None)
            size = len(object_.data) if type(object_) is Val else 0
        self._grow(len(op.key) + size)
        ops = self._ops
        ops.append(op)
        return Result(self, len(ops) - 1, ops is self._else)

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > TRANSACTION_BYTES_MAX:
            raise TooLarge(
                f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, beside values over 64 KiB: this one has more than"
                f" {self._bytes:,} in {len(self):,} operations: split it"
            )

    def _check_open(self) -> None:
        if self._future is not None or self._dropped:
            raise InvalidRequest("this transaction is over: begin another")

    # ---------------------------------------------------------------------------------------------------------- guards

    def when(self, key: str, compare: str, value: Any) -> None:
        """A guard on the value of a key: ``== != < <= > >=``.

        Equal are values of the same type and bytes. Only numbers, or texts, are less or greater than one another, else the
        transaction fails with InvalidValue. A key that does not exist is ``!=`` every value, and nothing else.
        """
        self._guard(key, wire.GUARD_VALUE, compare, self._object(*_encoded(key, value)))

    def when_version(self, key: str, compare: str, version: int) -> None:
        """A guard on the version that last changed a key, of a directory also below it; 0 if there is no such key.

        ``t.when_version("run", "<=", snapshot.version)``: what was read there is still so. Raises SnapshotCollected when the
        change and ``version`` are both older than what is kept, so that it cannot be told.
        """
        if type(version) is not int:
            raise InvalidValue(f"the guard on '{key}': a version is an int, not {version!r}")
        self._guard(key, wire.GUARD_VERSION, compare, version)

    def when_exists(self, key: str) -> None:
        self._guard(key, wire.GUARD_EXISTS, "==", True)

    def when_absent(self, key: str) -> None:
        self._guard(key, wire.GUARD_EXISTS, "==", False)

    def _guard(self, key: str, what: int, compare: str, operand: Any) -> None:
        self._check_open()
        if compare not in COMPARISONS:
            raise InvalidRequest(
                f"the guard on '{key}': {compare!r} compares nothing, use one of {' '.join(COMPARISONS)}"
            )
        if self._ops is self._else:
            raise InvalidRequest(
                f"the guard on '{key}' stands in otherwise(): guards stand before it, and hold for the whole"
            )
        split_key(key)
        self._grow(len(key))
        self._guards.append(Guard(key, what, compare, operand))

    @contextlib.contextmanager
    def otherwise(self) -> Iterator[None]:
        """The operations of this block are done, in place of the others, when a guard does not hold."""
        self._check_open()
        if not self._guards:
            raise InvalidRequest("otherwise() without a guard: say before it when() the others are done")
        self._ops = self._else
        try:
            yield
        finally:
            self._ops = self._then

    def _object(self, type_: str, data: bytes | memoryview) -> Object:
        """The object for typed bytes; the blobs of a long one are on their way to rank 0 when this returns."""
        size = len(data)
        if size <= VAL_BYTES_MAX:
            return Val(type_, bytes(data))
        if size <= CARRIED_BYTES_MAX and self._carried + size <= self._channel.limits.carried_bytes_max:
            self._carried += size
            return Val(type_, bytes(data))
        if self._blobs is None:
            self._blobs = BlobWriter(self._channel)
        store = self._blobs.store
        if size <= BLOB_BYTES_MAX:
            return ValRef(type_, size, (store(bytes(data)),))
        refs = [store(bytes(data[begin : begin + BLOB_BYTES_MAX])) for begin in range(0, size, BLOB_BYTES_MAX)]
        return ValRef(type_, size, tuple(refs))

    # ---------------------------------------------------------------------------------------------------------- its end

    def commit(self, timeout: float | None = None) -> Snapshot:
        """Commit now; returns the version that it became. When one operation is impossible, nothing changes."""
        return self.commit_async().get(timeout)

    def commit_async(self) -> Future[Snapshot]:
        (ops, more), (otherwise, otherwise_more) = in_pieces(self._then), in_pieces(self._else)

        def body(id_: CommitId, acked: int) -> bytes:
            commit = Commit(
                self._namespace, id_, acked, ops, self._guards, otherwise, self._events, False, more, otherwise_more
            )
            return _bounded(encode("kvs.commit", commit))

        return self._send("kvs.commit", body)

    def fence_async(self, name: str, nprocs: int) -> Future[Snapshot]:
        if self._guards or self._events:
            raise InvalidRequest(f"fence '{name}': a contribution has no guards, and publishes nothing")
        ops, more = in_pieces(self._then)
        refs = list(refs_of(getattr(op, "object", None) for op in self._then[len(ops) :]))

        def body(id_: CommitId, acked: int) -> bytes:
            part = Contribution(id_, ops, acked, more, refs)
            return _bounded(encode("kvs.fence", Fence(self._namespace, name, nprocs, [part])))

        return self._send("kvs.fence", body)

    def _send(self, topic: str, body: Any) -> Future[Snapshot]:
        self._check_open()
        if self._blobs is not None:
            self._blobs.wait()

        def decode(message: Message) -> Snapshot:
            body, self._committed, snapshot = session.told
            if message.body != body:  # the commits of one version have the same answer
                self._committed = committed = _decode_committed(message)
                snapshot = Snapshot.of(committed)
                session.told = message.body, committed, snapshot
                session.saw(self._namespace, committed.version)
            return snapshot

        session = self._channel.session
        self._future = send_once(self._channel, topic, body, decode)
        return self._future

    def operations(self, otherwise: bool = False) -> list[Op]:
        """Of one branch."""
        return self._else if otherwise else self._then

    @property
    def sent(self) -> bool:
        return self._future is not None

    @property
    def snapshot(self) -> Snapshot:
        """The version that this became; when the guards failed and nothing was to be done otherwise, the newest one."""
        if self._future is None:
            raise InvalidRequest("this transaction is not committed: that happens when its block ends")
        return self._future.get()

    @property
    def committed(self) -> Committed:
        _ = self.snapshot  # it waits
        assert self._committed is not None
        return self._committed

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def root(self) -> str:
        return self.snapshot.root

    @property
    def succeeded(self) -> bool:
        """Whether all guards held; else what ``otherwise`` says was done, or nothing."""
        return self.committed.succeeded

    @property
    def results(self) -> list[Result]:
        """One for each operation that was done, in order."""
        otherwise = not self.succeeded
        return [Result(self, index, otherwise) for index in range(len(self.operations(otherwise)))]

    def __len__(self) -> int:
        return len(self._then) + len(self._else)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        if exc_type is not None:
            self._dropped = True
        elif self._future is None:
            self.commit()


def in_pieces(ops: list[Op]) -> tuple[list[Op], list[bytes]]:
    """The first operations, and the others encoded in pieces, so that rank 0 need not take them at one go."""
    if len(ops) <= PIECE_OPS:
        return ops, []
    rest = range(PIECE_OPS, len(ops), PIECE_OPS)
    return ops[:PIECE_OPS], [encode("kvs.commit", ops[at : at + PIECE_OPS]) for at in rest]


def _bounded(data: bytes) -> bytes:
    if len(data) > TRANSACTION_BYTES_MAX:
        raise TooLarge(f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, this one {len(data):,}: split it")
    return data


def send_once(
    channel: Channel, topic: str, body: Callable[[CommitId, int], bytes], decode: Callable[[Message], T]
) -> Future[T]:
    """Send what must happen once however often it is sent: with an id of the session, acknowledged when it is answered."""
    session = channel.session
    id_ = session.commit_id()
    serial = id_.serial
    try:
        data = body(id_, session.acked)
    except FluxmpiError:
        session.answered(serial)
        raise
    return channel.send(topic, data, ANY, decode, lambda message: session.answered(serial))


def checked_add(key: str, amount: int, limit: int | None) -> Add:
    for what, number in (("amount", amount), ("limit", limit)):
        if number is not None and (type(number) is not int or not INTEGER_MIN <= number <= INTEGER_MAX):
            raise InvalidValue(f"key '{key}': the {what} of an add is an int of 64 bits, not {number!r}")
    return Add(_valid(key), amount, limit)


def _encoded(key: str, value: Any) -> tuple[str, bytes | memoryview]:
    try:
        return encode_value(value)
    except InvalidRequest as error:
        raise InvalidRequest(f"key '{key}': {error.text}") from None


def _valid(key: str) -> str:
    """Refuse early what needs no broker to refuse; the broker applies the same rules."""
    if type(key) is not str:
        raise InvalidKey(f"a key is a str, and {key!r} is {type(key).__name__}")
    if not split_key(key):
        raise InvalidKey("the root directory '.' cannot be written as a whole: name a key in it")
    return key
