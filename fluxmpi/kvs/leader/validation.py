"""Objects as they may stand in a directory: what rank 0 makes of those that clients send.

Long values become blobs, refs must exist, a directory must be whole. What takes long is looked through in slices (``tree.Steps``)
before it is put.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX, Digest, Ref
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchBlob, ProtocolError, TooLarge
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Dir, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.edit import Steps, run_to_end
from fluxmpi.kvs.store.node import BlobSource, canonical_leaves, decode_node, ref_text
from fluxmpi.kvs.wire import Exchange, Op, Put, Swap

_decode_text = msgspec.json.Decoder(str).decode

APPEND_BLOB_BYTES = 16 << 10
"""An append extends the value's last blob up to this size, and then begins a new one: a log of short lines stays short."""

VALUE_BLOBS_MAX = 1 << 20

WHOLE_MAX = 65_536
"""Directories remembered as whole, so that one that is put again is not looked through again."""

SLICE_OPS = 256
"""Operations applied, or blobs looked at, between two chances to do other work."""


CARRIERS = Put, Exchange, Swap
"""Operations with an object."""


class BlobStore(BlobSource, Protocol):
    """The store: ``hold`` finds a blob for who is about to refer to it, and keeps the collection under way from it."""

    cycle: int

    def hold(self, ref: Ref) -> bytes | None: ...


class ObjectValidator:
    """Objects as they may stand in a directory: long values as blobs, refs that exist, and do until the version is made."""

    def __init__(self, blobs: BlobStore, digest: Digest) -> None:
        self._blobs = blobs
        self._digest = digest
        self._whole: dict[Ref, None] = {}
        self._whole_in = 0
        """The collection since whose beginning these were looked through, and held."""

    def settle(self, obj: Object) -> Object:
        """The object to put into the tree for one that a client sent; what is ``large`` was looked through before."""
        kind = type(obj)
        if kind is Val:
            return obj if len(obj.data) <= VAL_BYTES_MAX else self._cut(obj.type, obj.data)  # type: ignore[union-attr]
        if kind is ValRef:
            if len(obj.refs) <= SLICE_OPS:  # type: ignore[union-attr]
                run_to_end(self._checking_list(obj))  # type: ignore[arg-type]
        elif kind is not Dir:
            split_key(obj.target)  # type: ignore[union-attr]
        return obj

    def large(self, ops: Iterable[Op]) -> list[Object]:
        """Objects of these operations that must be looked through, with ``checking``, before they are put."""
        found: list[Object] = []
        for op in ops:
            if type(op) is Put or type(op) in CARRIERS:
                obj = op.object  # type: ignore[union-attr]
                if type(obj) is Dir:
                    if obj.ref not in self._whole or self._whole_in != self._blobs.cycle:
                        found.append(obj)
                elif type(obj) is ValRef and len(obj.refs) > SLICE_OPS:
                    found.append(obj)
        return found

    def checking(self, objects: list[Object]) -> Steps[None]:
        for obj in objects:
            if isinstance(obj, Dir):
                yield from self._checking_directory(obj.ref)
            elif isinstance(obj, ValRef):
                yield from self._checking_list(obj)

    def _checking_list(self, value: ValRef) -> Steps[None]:
        """A client's list of blobs: readers and appends rely on its size."""
        if len(value.refs) > VALUE_BLOBS_MAX:
            raise TooLarge(f"a value of {len(value.refs)} blobs: the most is {VALUE_BLOBS_MAX}")
        size = 0
        for count, ref in enumerate(value.refs, 1):
            size += len(self.require(ref))
            if not count % SLICE_OPS:
                yield SLICE_OPS // 16
        if size != value.size:
            raise InvalidRequest(f"a value of {value.size} bytes, but its blobs have {size} together")

    def _checking_directory(self, ref: Ref) -> Steps[None]:
        """A client's directory must be whole and canonical, to its last blob: else no checkpoint could be written any more,
        since a save takes everything that a root reaches, and the same entries would not give the same ref.
        """
        if self._whole_in != self._blobs.cycle:
            self._whole_in = self._blobs.cycle
            self._whole.clear()
        seen: dict[Ref, None] = {}
        todo = [ref]
        while todo:
            ref = todo.pop()
            if ref in seen or ref in self._whole:
                continue
            seen[ref] = None
            try:
                todo += yield from self._checking_nodes(ref)
            except ProtocolError as error:
                raise InvalidRequest(f"{ref_text(ref)} cannot be put as a directory: {error.text}") from None
        if len(self._whole) + len(seen) > WHOLE_MAX:
            self._whole.clear()
        self._whole.update(seen)

    def _checking_nodes(self, ref: Ref) -> Steps[list[Ref]]:
        """The directories in one directory, after a look at all of its nodes and values."""
        below: list[Ref] = []
        for leaf in canonical_leaves(lambda ref: decode_node(self.require(ref), ref), ref):
            yield 8
            for name, obj in zip(leaf.names, leaf.objects, strict=True):
                if split_key(name) != [name]:
                    raise ProtocolError(f"'{name}' is no name")
                if type(obj) is Dir:
                    below.append(obj.ref)
                elif type(obj) is ValRef:
                    yield from self._checking_list(obj)
        return below

    def require(self, ref: Ref) -> bytes:
        blob = self._blobs.hold(ref)
        if blob is None:
            raise NoSuchBlob(f"no blob {ref_text(ref)} in this instance: store it before the commit that refers to it")
        return blob

    def _cut(self, kind: str, data: bytes) -> ValRef:
        pieces = [data[at : at + BLOB_BYTES_MAX] for at in range(0, len(data), BLOB_BYTES_MAX)]
        refs = []
        for piece in pieces:
            ref = self._digest(piece)
            self._blobs.put(ref, piece)
            refs.append(ref)
        return ValRef(kind, len(data), tuple(refs))

    def append(self, key: str, old: Object | None, data: bytes) -> Object:
        """``old`` with ``data`` behind it. The result is raw, of a JSON string its text; an array cannot be appended to."""
        if old is None:
            return self.settle(Val("raw", data))
        if isinstance(old, Dir):
            raise IsADirectory(f"{key} is a directory: append to a value")
        if not isinstance(old, Val | ValRef) or old.type.startswith("ndarray"):
            raise InvalidRequest(f"{key} is not raw or json: only those can be appended to")
        if old.type == "json":
            old = self._unquoted(key, old)
        if isinstance(old, Val):
            return self.settle(Val("raw", old.data + data))
        refs, tail = old.refs, b""
        if refs:
            tail = self.require(refs[-1])
            if len(tail) + len(data) <= APPEND_BLOB_BYTES:
                refs, data = refs[:-1], tail + data
            else:
                tail = b""
        more = self._cut("raw", data)
        return ValRef("raw", old.size - len(tail) + more.size, refs + more.refs)

    def _unquoted(self, key: str, old: Val | ValRef) -> Val | ValRef:
        """A JSON string as its text, so that what is appended stands behind the text and not behind a quote."""
        start = old.data if isinstance(old, Val) else b"".join(map(self.require, old.refs[:1]))
        if not start.startswith(b'"'):
            return old
        if isinstance(old, ValRef) and old.size > BLOB_BYTES_MAX:
            raise TooLarge(
                f"{key} is a text of {old.size:,} bytes stored as JSON: append to bytes, or to a text of 1 MiB"
            )
        data = start if isinstance(old, Val) else b"".join(map(self.require, old.refs))
        try:
            return Val("raw", _decode_text(data).encode())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return old
