"""Transactions: operations gathered, then committed as one version, or as one contribution to a fence.

A transaction is used once::

    OPEN --commit, commit_async, fence_async, end of the block--> SENT
     └----an exception leaves the block: nothing is sent--------> DROPPED
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.content import BlobWriter
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import encode_value
from fluxmpi.errors import FluxmpiError, InvalidKey, InvalidRequest, TooLarge
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Link, Object, Val, ValRef, split_key
from fluxmpi.kvs.wire import Append, Commit, CommitId, Contribution, Fence, Mkdir, Op, Put, RootInfo, Unlink
from fluxmpi.message import ANY, FRAME_BYTES_MAX, Message

if TYPE_CHECKING:
    from fluxmpi.client.base import Base
    from fluxmpi.client.handle import Future
    from fluxmpi.client.large import File, Progress

TRANSACTION_BYTES_MAX = FRAME_BYTES_MAX - (1 << 16)
"""Of the encoded operations together; long values do not count, since they travel as blobs before."""

CARRIED_BYTES_MAX = 64 << 10
"""A value up to this travels in the transaction, and rank 0 makes a blob of it if need be: one round trip instead of two."""

CARRIED_TOTAL_MAX = 1 << 20
"""Of the values over VAL_BYTES_MAX that one transaction carries; further ones are stored as blobs before."""

APPEND_BYTES_MAX = BLOB_BYTES_MAX
"""Of one append."""

_decode_root = decoder(RootInfo)


class Transaction:
    """See ``Kvs.txn``. After the commit: ``snapshot``, and its ``version`` and ``root``."""

    def __init__(self, kvs: Base, namespace: str) -> None:
        self._kvs = kvs
        self._handle = kvs._handle
        self._namespace = namespace
        self._ops: list[Op] = []
        self._blobs: BlobWriter | None = None
        self._carried = 0
        self._future: Future | None = None
        self._dropped = False

    # ------------------------------------------------------------------------------------------------------- operations

    def put(self, key: str, value: Any) -> None:
        """Set a key, and make the directories above it. Raises InvalidRequest for a value that cannot be stored."""
        try:
            type_, data = encode_value(value)
        except InvalidRequest as error:
            raise InvalidRequest(f"key '{key}': {error.text}") from None
        self.put_typed(key, type_, data)

    def put_typed(self, key: str, type_: str, data: bytes | memoryview) -> None:
        """Set a key to typed bytes; see ``values``. Long data are read now, piece by piece, and no copy is made of the whole."""
        self._add(Put(_valid(key), self._object(type_, data)))

    def put_file(self, key: str, file: File, progress: Progress | None = None) -> int:
        """Set a key to the bytes of a file, by name or open for reading (a pipe, too); returns how many they are.

        They are read, and stored as blobs, a piece at a time. ``progress`` is called with the bytes that are stored so far.
        """
        from fluxmpi.client.large import store_file

        size, object_ = store_file(self._handle.content, file, progress)
        self._add(Put(_valid(key), object_))
        return size

    def put_object(self, key: str, object_: Object) -> None:
        """Set a key to an object that is there already: a directory or long value of any snapshot; no copying."""
        self._add(Put(_valid(key), object_))

    def append(self, key: str, data: bytes | str) -> None:
        """Add bytes to the end of a raw or json value, which is raw from then on; a key that does not exist starts empty."""
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

    def _add(self, op: Op) -> None:
        if self._future is not None or self._dropped:
            raise InvalidRequest("this transaction is over: begin another")
        self._ops.append(op)

    def _object(self, type_: str, data: bytes | memoryview) -> Object:
        """The object for typed bytes; the blobs of a long one are on their way to rank 0 when this returns."""
        size = len(data)
        if size <= VAL_BYTES_MAX:
            return Val(type_, bytes(data))
        if size <= CARRIED_BYTES_MAX and self._carried + size <= CARRIED_TOTAL_MAX:
            self._carried += size
            return Val(type_, bytes(data))
        if self._blobs is None:
            self._blobs = BlobWriter(self._handle.content)
        store = self._blobs.store
        if size <= BLOB_BYTES_MAX:
            return ValRef(type_, size, (store(bytes(data)),))
        refs = [store(bytes(data[begin : begin + BLOB_BYTES_MAX])) for begin in range(0, size, BLOB_BYTES_MAX)]
        return ValRef(type_, size, tuple(refs))

    # ---------------------------------------------------------------------------------------------------------- its end

    def commit(self, timeout: float | None = None) -> Snapshot:
        """Commit now; returns the version that it became. When one operation is impossible, nothing changes."""
        return self.commit_async().get(timeout)

    def commit_async(self) -> Future:
        def body(id_: CommitId, acked: int) -> bytes:
            return encode("kvs.commit", Commit(self._namespace, id_, acked, self._ops))

        return self._send("kvs.commit", body)

    def fence_async(self, name: str, nprocs: int) -> Future:
        def body(id_: CommitId, acked: int) -> bytes:
            return encode("kvs.fence", Fence(self._namespace, name, nprocs, [Contribution(id_, self._ops, acked)]))

        return self._send("kvs.fence", body)

    def _send(self, topic: str, body: Any) -> Future:
        if self._future is not None or self._dropped:
            raise InvalidRequest("this transaction is over: begin another")
        if self._blobs is not None:
            self._blobs.wait()
        session = self._handle.session
        namespace = self._namespace
        id_ = session.commit_id()
        serial = id_.serial
        try:
            data = body(id_, session.acked)
            if len(data) > TRANSACTION_BYTES_MAX:
                raise TooLarge(
                    f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, this one {len(data):,}: split it"
                )
        except FluxmpiError:
            session.answered(serial)
            raise

        def settle(message: Message) -> None:
            session.answered(serial)

        def decode(message: Message) -> Snapshot:
            info = _decode_root(message)
            session.saw(namespace, info.version)
            return Snapshot.of(info)

        self._future = self._handle.send(topic, data, ANY, decode, settle)
        return self._future

    @property
    def snapshot(self) -> Snapshot:
        """The version that this became."""
        if self._future is None:
            raise InvalidRequest("this transaction is not committed: that happens when its block ends")
        return self._future.get()

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def root(self) -> str:
        return self.snapshot.root

    def __len__(self) -> int:
        return len(self._ops)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        if exc_type is not None:
            self._dropped = True
        elif self._future is None:
            self.commit()


def _valid(key: str) -> str:
    """Refuse early what needs no broker to refuse; the broker applies the same rules."""
    if type(key) is not str:
        raise InvalidKey(f"a key is a str, and {key!r} is {type(key).__name__}")
    if not split_key(key):
        raise InvalidKey("the root directory '.' cannot be written as a whole: name a key in it")
    return key
