"""Transactions: operations that are gathered, then committed as one version, or as one contribution to a fence.

A transaction is used once::

    OPEN --commit, commit_async, fence_async, end of the block--> SENT
     └----an exception leaves the block: nothing is sent--------> DROPPED
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.channel import Channel
from fluxmpi.client.content import BlobWriter
from fluxmpi.client.future import Future
from fluxmpi.client.kvs.result import ABSENT, Result
from fluxmpi.client.kvs.value_file import File, TransferProgress, store_file
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import encode_json, encode_value
from fluxmpi.errors import InvalidKey, InvalidRequest, InvalidValue, TooLarge
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Link, Object, Val, ValRef, join_key, refs_of, split_key
from fluxmpi.kvs.wire import PIECE_OPS, Add, Append, Commit, CommitId, Committed, Guard, Op, Put
from fluxmpi.message import EVENT_PAYLOAD_BYTES_MAX, EVENT_TOPIC_MAX, FRAME_BYTES_MAX, INTEGER_MAX, INTEGER_MIN, Message

TRANSACTION_BYTES_MAX = FRAME_BYTES_MAX - (1 << 16)
"""Bytes of the encoded operations together. Long values do not count: they travel as blobs before the commit."""

APPEND_BYTES_MAX = BLOB_BYTES_MAX
"""Bytes of one append."""

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

CARRIED_BYTES_MAX = 64 << 10
"""A value of up to so many bytes travels in the transaction, and rank 0 makes a blob of it: one round trip instead of two."""


_decode_committed = decoder(Committed)


class Transaction:
    """Operations, guards and events that are committed as one version; made by ``h.kvs.txn()``.

    Use it in a ``with`` block: it is committed when the block ends, or not at all if the block raises. If one operation
    is impossible, nothing changes, and the commit raises why. Guards are compared with the state just before it; all
    must hold.

    Example:
        >>> _ = h.kvs.put("doc.state", "ready")
        >>> with h.kvs.txn() as t:
        ...     t.when("doc.state", "==", "ready")
        ...     t.put("doc.state", "started")
        ...     count = t.add("doc.starts")
        ...     with t.otherwise():
        ...         t.append("doc.log", "it was not ready\\n")
        >>> t.succeeded, count.number, h.kvs.get("doc.state", at=t.snapshot)
        (True, 1, 'started')
    """

    def __init__(self, channel: Channel, namespace: str) -> None:
        self._channel = channel
        self._namespace = namespace
        self._then: list[Op] = []
        self._else: list[Op] = []
        self._ops = self._then
        """The branch that operations are added to."""
        self._guards: list[Guard] = []
        self._events: list[tuple[str, bytes]] = []
        self._bytes = 0
        """A lower bound of the encoded size."""
        self._committed: Committed | None = None
        self._blobs: BlobWriter | None = None
        self._carried = 0
        self._future: Future[Snapshot] | None = None
        self._dropped = False

    # ------------------------------------------------------------------------------------------------------- operations

    def put(self, key: str, value: Any) -> None:
        """Set a key, and make the directories above it.

        Args:
            key: the key.
            value: the value; InvalidRequest is raised for one that cannot be stored.
        """
        self.put_typed(key, *encoded(key, value))

    def put_typed(self, key: str, type_: str, data: bytes | memoryview) -> None:
        """Set a key to typed bytes. Long data are read now, piece by piece; the whole is not copied.

        Args:
            key: the key.
            type_: ``raw``, ``json``, or the type of an array; see ``fluxmpi.client.values``.
            data: the bytes.
        """
        self._append(Put(valid_key(key), self._object(type_, data)))

    def put_file(self, key: str, file: File, progress: TransferProgress | None = None) -> int:
        """Set a key to the bytes of a file. They are read and stored now, piece by piece.

        Args:
            key: the key.
            file: a name, or a binary file open for reading, also a pipe.
            progress: called with the number of bytes that have been stored so far.

        Returns:
            The number of bytes.
        """
        size, object_ = store_file(self._channel, file, progress)
        self._append(Put(valid_key(key), object_))
        return size

    def put_object(self, key: str, object_: Object) -> None:
        """Set a key to a stored object. Nothing is copied.

        Args:
            key: the key.
            object_: a value, link or directory, as ``Kvs.get_object`` returns it.
        """
        self._append(Put(valid_key(key), object_))

    def append(self, key: str, data: bytes | str) -> None:
        """Append bytes, or a text as UTF-8, to a value. A key that does not exist starts empty.

        Args:
            key: a value of bytes or JSON; afterwards it is bytes. Of a str, its text is kept; of other JSON, its
                encoding.
            data: at most 1 MiB.

        Raises:
            TooLarge: more than 1 MiB.
        """
        if not isinstance(data, str | bytes | bytearray | memoryview):
            raise InvalidRequest(f"key '{key}': what is appended is bytes or a str, not {type(data).__name__}")
        data = data.encode() if isinstance(data, str) else bytes(data)
        if len(data) > APPEND_BYTES_MAX:
            raise TooLarge(
                f"key '{key}': an append has at most {APPEND_BYTES_MAX:,} bytes, and this one has {len(data):,}"
            )
        self._append(Append(valid_key(key), data))

    def unlink(self, key: str) -> None:
        """Remove a value, a link, or a directory with everything below. A key that does not exist is no error."""
        self._append(wire.Unlink(valid_key(key)))

    def mkdir(self, key: str, *, replace: bool = False) -> None:
        """Make an empty directory. A directory that exists is not changed.

        Args:
            key: the directory.
            replace: if there is a value at the key, or at a key above it, replace it by a directory. Otherwise the commit
                raises NotADirectory.
        """
        self._append(wire.Mkdir(valid_key(key), replace))

    def link(self, target: str, key: str, *, target_namespace: str | None = None) -> None:
        """Make ``key`` a symbolic link to ``target``, which need not exist; its namespace is this one by default."""
        split_key(target)
        self._append(Put(valid_key(key), Link(target, target_namespace)))

    def add(self, key: str, amount: int = 1, *, limit: int | None = None) -> Result:
        """Add to an integer. A key that does not exist starts at 0.

        The commit raises InvalidValue if the key has another value than an integer, or the sum has more than 64 bits.

        Args:
            key: the key.
            amount: what to add; it may be negative.
            limit: add only if the integer is less than this.

        Returns:
            A result whose ``number`` is the sum; it is false if the integer was not less than ``limit``.
        """
        return self._add(checked_add(key, amount, limit))

    def exchange(self, key: str, value: Any) -> Result:
        """Set a key; return a result whose ``value`` is the one before."""
        return self._add(wire.Exchange(valid_key(key), self._object(*encoded(key, value))))

    def compare_and_swap(self, key: str, expected: Any, value: Any) -> Result:
        """Set a key if it has the expected value.

        Args:
            key: the key.
            expected: the value that it must have: of the same type and with the same bytes, so 1 is not 1.0. ABSENT:
                the key must not exist.
            value: the new value. ABSENT: remove the key.

        Returns:
            A result that is true if the key was set. Its ``value`` is the one that was found.
        """
        old = None if expected is ABSENT else self._object(*encoded(key, expected))
        new = None if value is ABSENT else self._object(*encoded(key, value))
        return self._add(wire.Swap(valid_key(key), old, new))

    def publish(self, topic: str, payload: Any = b"") -> None:
        """Publish an event with the commit, if that happens; the event has the commit's snapshot.

        Args:
            topic: the topic.
            payload: bytes, or a value that JSON can hold.

        Raises:
            InvalidRequest: in ``otherwise()``, or the topic is empty or too long.
            TooLarge: the payload is too long.

        Example:
            >>> with there.event.subscribe("doc.run.") as events:
            ...     with h.kvs.txn() as t:
            ...         t.put("doc.mesh", "fine")
            ...         t.publish("doc.run.ready", {"id": 7})
            ...     there.kvs.get("doc.mesh", at=events.get(timeout=10).snapshot)
            'fine'
        """
        self._check_open()
        if self._ops is self._else:
            raise InvalidRequest(
                f"event '{topic}': an event cannot be published in otherwise(): publish it outside of that block"
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
        self._append(op)
        return Result(self, len(self._ops) - 1, self._ops is self._else)

    def _append(self, op: Op) -> None:
        self._check_open()
        if type(op) is Append:
            size = len(op.data)
        else:
            object_ = getattr(op, "object", None)
            size = len(object_.data) if type(object_) is Val else 0
        self._grow(len(op.key) + size)
        self._ops.append(op)

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > TRANSACTION_BYTES_MAX:
            raise TooLarge(
                f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, beside values over 64 KiB: this one has more than"
                f" {self._bytes:,} in {len(self):,} operations: split it"
            )

    def _check_open(self) -> None:
        if self._future is not None or self._dropped:
            raise InvalidRequest("this transaction was committed or dropped: begin another")

    # ---------------------------------------------------------------------------------------------------------- guards

    def when(self, key: str, compare: str, value: Any) -> None:
        """Add a guard on the value of a key. It is a guard for the whole transaction.

        Args:
            key: the key; one that does not exist is ``!=`` to every value.
            compare: ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.
            value: what to compare with. Values are equal if they have the same type and bytes. Only numbers, or texts,
                are less or greater than one another; otherwise the commit raises InvalidValue.

        Raises:
            InvalidRequest: ``compare`` is none of these, or the guard is in ``otherwise()``.
        """
        self._guard(key, wire.GUARD_VALUE, compare, self._object(*encoded(key, value)))

    def when_version(self, key: str, compare: str, version: int) -> None:
        """Add a guard on the version that last changed a key; of a directory, the key or any key below it.

        ``t.when_version("run", "<=", snapshot.version)`` holds if nothing in ``run`` changed since it was read.

        The commit raises SnapshotCollected if the change and ``version`` are both older than what is kept: the two
        cannot be compared then.

        Args:
            key: the key; the version of one that does not exist is 0.
            compare: ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.
            version: the version to compare with.
        """
        if type(version) is not int:
            raise InvalidValue(f"the guard on '{key}': a version is an int, not {version!r}")
        self._guard(key, wire.GUARD_VERSION, compare, version)

    def when_exists(self, key: str) -> None:
        """Add a guard: the key exists."""
        self._guard(key, wire.GUARD_EXISTS, "==", True)

    def when_absent(self, key: str) -> None:
        """Add a guard: the key does not exist."""
        self._guard(key, wire.GUARD_EXISTS, "==", False)

    def _guard(self, key: str, what: int, compare: str, operand: Any) -> None:
        self._check_open()
        if compare not in COMPARISONS:
            raise InvalidRequest(
                f"the guard on '{key}': {compare!r} is not a comparison: use one of {' '.join(COMPARISONS)}"
            )
        if self._ops is self._else:
            raise InvalidRequest(
                f"the guard on '{key}' is in otherwise(): put it before that block; guards are for the whole transaction"
            )
        split_key(key)
        self._grow(len(key))
        self._guards.append(Guard(key, what, compare, operand))

    @contextlib.contextmanager
    def otherwise(self) -> Iterator[None]:
        """Begin a ``with`` block of operations that are done instead of the others if a guard does not hold."""
        self._check_open()
        if not self._guards:
            raise InvalidRequest("otherwise() without a guard: call when() before it")
        self._ops = self._else
        try:
            yield
        finally:
            self._ops = self._then

    def _object(self, type_: str, data: bytes | memoryview) -> Object:
        """Return the object for typed bytes, after sending the blobs of a long one to rank 0."""
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
        """Commit now, instead of at the end of a ``with`` block.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The version that it became. If one operation is impossible, nothing changes, and this raises why.

        Raises:
            InvalidRequest: it was committed or dropped before.
            InvalidValue: an operation or guard cannot be applied to the value of its key.
            NotADirectory: a value is in the way of a key.
            RequestTimeout: no answer within ``timeout``; the commit may still happen, once.
        """
        return self._channel.call(self.commit_async, timeout)

    def replacing(self) -> Transaction:
        """Return a transaction of the same operations that replaces values in their way by directories, as Flux does.

        For one without guards whose commit raised NotADirectory: nothing was changed by it.

        Example:
            >>> _ = h.kvs.put("doc.way", 1)
            >>> t = h.kvs.txn()
            >>> t.put("doc.way.below", 2)
            >>> try:
            ...     _ = t.commit()
            ... except fluxmpi.NotADirectory:
            ...     _ = t.replacing().commit()
            >>> h.kvs.get("doc.way.below")
            2
        """
        if self._guards:
            raise InvalidRequest("a transaction with guards cannot be repeated: make a new one")
        txn = Transaction(self._channel, self._namespace)
        for op in self._then:
            if isinstance(op, wire.Mkdir):
                op = wire.Mkdir(op.key, replace=True)
            elif not isinstance(op, wire.Unlink) and (above := split_key(op.key)[:-1]):
                txn._append(wire.Mkdir(join_key(above), replace=True))
            txn._append(op)
        for topic, payload in self._events:
            txn._events.append((topic, payload))
        return txn

    def commit_async(self) -> Future[Snapshot]:
        """Commit like ``commit``, without waiting; return the future version."""
        (ops, more), (otherwise, otherwise_more) = in_pieces(self._then), in_pieces(self._else)

        def body(id_: CommitId, acked: int) -> bytes:
            commit = Commit(
                self._namespace, id_, acked, ops, self._guards, otherwise, self._events, False, more, otherwise_more
            )
            return bounded(encode("kvs.commit", commit))

        return self._send("kvs.commit", body)

    def fence_async(self, name: str, nprocs: int) -> Future[Snapshot]:
        """Contribute the operations to a fence, without waiting; return the future version that has those of all members.

        Args:
            name: the fence's name; see ``Kvs.fence``.
            nprocs: the number of members.

        Raises:
            InvalidRequest: the transaction has guards or events.
        """
        if self._guards or self._events:
            raise InvalidRequest(f"fence '{name}': a contribution cannot have guards or events")
        ops, more = in_pieces(self._then)
        refs = list(refs_of(getattr(op, "object", None) for op in self._then[len(ops) :]))

        def body(id_: CommitId, acked: int) -> bytes:
            part = wire.Contribution(id_, ops, acked, more, refs)
            return bounded(encode("kvs.fence", wire.Fence(self._namespace, name, nprocs, [part])))

        return self._send("kvs.fence", body)

    def _send(self, topic: str, body: Any) -> Future[Snapshot]:
        self._check_open()
        if self._blobs is not None:
            self._blobs.wait()

        def decode(message: Message) -> Snapshot:
            snapshot: Snapshot
            body, self._committed, snapshot = session.last_commit
            if message.body != body:  # commits that share a version have equal answers
                self._committed = committed = _decode_committed(message)
                snapshot = Snapshot.of(committed)
                session.last_commit = message.body, committed, snapshot
                session.saw(self._namespace, committed.version)
            return snapshot

        session = self._channel.session
        self._future = self._channel.send_once(topic, body, decode)
        return self._future

    def _operations(self, otherwise: bool) -> list[Op]:
        """Return the operations of one branch."""
        return self._else if otherwise else self._then

    def _committed_record(self) -> Committed:
        """Wait for the answer to the commit, and return it."""
        _ = self.snapshot
        assert self._committed is not None
        return self._committed

    @property
    def snapshot(self) -> Snapshot:
        """The version that this became; waits for it. If a guard failed and nothing was done otherwise, the newest version."""
        if self._future is None:
            raise InvalidRequest("this transaction is not committed: that happens when its block ends")
        return self._future.get()

    @property
    def version(self) -> int:
        """The number of the version that this became; waits for it."""
        return self.snapshot.version

    @property
    def root(self) -> str:
        """The blobref of the root directory in that version."""
        return self.snapshot.root

    @property
    def succeeded(self) -> bool:
        """True if all guards held. If not, what ``otherwise`` says was done, or nothing."""
        return self._committed_record().succeeded

    @property
    def results(self) -> list[Result]:
        """The results of the operations of the branch that was done, in order."""
        otherwise = not self.succeeded
        return [Result(self, index, otherwise) for index in range(len(self._operations(otherwise)))]

    def __len__(self) -> int:
        return len(self._then) + len(self._else)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        if exc_type is not None:
            self._dropped = True
        elif self._future is None:
            self.commit()


def in_pieces(ops: list[Op], piece_ops: int = PIECE_OPS) -> tuple[list[Op], list[bytes]]:
    """Return the first operations, and the others encoded in pieces, which rank 0 decodes one at a time."""
    if len(ops) <= piece_ops:
        return ops, []
    rest = range(piece_ops, len(ops), piece_ops)
    return ops[:piece_ops], [encode("kvs.commit", ops[at : at + piece_ops]) for at in rest]


def bounded(data: bytes) -> bytes:
    """Return ``data``. Raises TooLarge if it is too long for a transaction."""
    if len(data) > TRANSACTION_BYTES_MAX:
        raise TooLarge(f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, this one {len(data):,}: split it")
    return data


def checked_add(key: str, amount: int, limit: int | None) -> Add:
    """Return the operation. Raises InvalidValue, InvalidKey."""
    for what, number in (("amount", amount), ("limit", limit)):
        if number is not None and (type(number) is not int or not INTEGER_MIN <= number <= INTEGER_MAX):
            raise InvalidValue(f"key '{key}': the {what} of an add is an int of 64 bits, not {number!r}")
    return Add(valid_key(key), amount, limit)


def encoded(key: str, value: Any) -> tuple[str, bytes | memoryview]:
    """Return (type, bytes) of a value. Raises InvalidRequest, with the key, if it cannot be stored."""
    try:
        return encode_value(value)
    except InvalidRequest as error:
        raise InvalidRequest(f"key '{key}': {error.text}") from None


def valid_key(key: str) -> str:
    """Refuse early a key that the broker would refuse too."""
    if type(key) is not str:
        raise InvalidKey(f"a key is a str, and {key!r} is {type(key).__name__}")
    if not split_key(key):
        raise InvalidKey("the root directory '.' cannot be written as a whole: name a key in it")
    return key
