"""Objects as a directory may hold them: rank 0 checks and normalizes what clients send.

- A long value becomes blobs.
- A ref must name a blob of the store, and the sizes of a value's blobs must add up; a value without a size gets it.
- A directory must be complete and canonical, and no key in it may get more than KEY_DEPTH_MAX components.

Large objects are checked in slices (``Steps``) before the operation that puts them. Whatever is checked is also held
(``BlobStore.hold``): a collection that is under way does not remove it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Protocol

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX, Digest, Ref
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchBlob, ProtocolError, TooLarge
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.objects import (
    KEY_DEPTH_MAX,
    SEPARATOR,
    UNKNOWN_SIZE,
    VAL_BYTES_MAX,
    Dir,
    Link,
    Object,
    Val,
    ValRef,
    split_key,
)
from fluxmpi.kvs.store.edit import Steps, run_to_end
from fluxmpi.kvs.store.node import BlobSource, canonical_leaves, decode_node, ref_text
from fluxmpi.kvs.wire import Exchange, Op, Put, Swap

_decode_text = msgspec.json.Decoder(str).decode

CARRIERS = Put, Exchange, Swap
"""Operations that carry an object."""


SIZES_MAX = 64
"""Sizes that are kept from the check of a long list of blobs to its put. One that is dropped is added up again."""


class BlobStore(BlobSource, Protocol):
    """Rank 0's store."""

    bytes: int
    """The sum of the blobs' sizes."""

    cycle: int
    """The number of the newest collection."""

    def hold(self, ref: Ref) -> builtins.bytes | None:
        """Return a blob, and keep the collection that is under way from removing it."""


class ObjectValidator:
    """Checks and normalizes objects. ``digest`` names the blobs that it cuts long values into."""

    def __init__(self, blobs: BlobStore, digest: Digest, limits: LeaderLimits) -> None:
        self._blobs = blobs
        self._digest = digest
        self._limits = limits
        self._complete: dict[Ref, int] = {}
        """Directories that were found complete, and are held, since the collection ``_cycle`` began; with their height."""
        self._cycle = 0
        self._sizes: dict[tuple[Ref, ...], int] = {}
        """Sizes of long lists of blobs that came without one, and were checked for an operation that follows."""

    def forget(self) -> None:
        """Check every directory again when it is put the next time."""
        self._complete.clear()

    def normalize(self, obj: Object) -> Object:
        """Return the object to store for one that a client sent. Objects of ``unchecked`` must have been checked."""
        if type(obj) is Val:
            return obj if len(obj.data) <= VAL_BYTES_MAX else self._cut(obj.type, obj.data)
        if type(obj) is ValRef:
            size = obj.size
            if len(obj.refs) > self._limits.slice_ops and size == UNKNOWN_SIZE:
                size = self._sizes.pop(obj.refs, UNKNOWN_SIZE)
            if len(obj.refs) <= self._limits.slice_ops or size == UNKNOWN_SIZE:
                size = run_to_end(self._check_blobs(obj))
            return obj if size == obj.size else ValRef(obj.type, size, obj.refs)
        if type(obj) is Link:
            split_key(obj.target)
        return obj

    def require_blob(self, ref: Ref) -> bytes:
        """Return a blob and hold it. Raises NoSuchBlob."""
        blob = self._blobs.hold(ref)
        if blob is None:
            raise NoSuchBlob(f"no blob {ref_text(ref)} in this instance: store it before the commit that refers to it")
        return blob

    def check_depth(self, key: str, directory: Dir) -> None:
        """Raise TooLarge if keys below ``key``, where a directory was put, have too many components to be named.

        No walk of a tree has to be prepared for more levels than that.
        """
        height = self._complete.get(directory.ref)
        if height is None:  # it was checked, and forgotten since then
            run_to_end(self._check_directory(directory.ref))
            height = self._complete[directory.ref]
        depth = key.count(SEPARATOR) + 1 + height
        if depth > KEY_DEPTH_MAX:
            raise TooLarge(
                f"'{key}': the directory has {height} levels, so keys in it would have {depth} components: the most is"
                f" {KEY_DEPTH_MAX}; put it higher up, or put a part of it"
            )

    # -------------------------------------------------------------------------------------------------- large objects

    def unchecked(self, ops: Iterable[Op]) -> list[Object]:
        """Return the objects of these operations that ``check_objects`` must check before they are put."""
        found: list[Object] = []
        for op in ops:
            if type(op) is Put or type(op) in CARRIERS:
                obj = op.object  # type: ignore[union-attr]
                if type(obj) is Dir:
                    if obj.ref not in self._complete or self._cycle != self._blobs.cycle:
                        found.append(obj)
                elif type(obj) is ValRef and len(obj.refs) > self._limits.slice_ops:
                    found.append(obj)
        return found

    def check_objects(self, objects: list[Object]) -> Steps[None]:
        """Check directories and lists of blobs, in slices. Raises InvalidRequest, NoSuchBlob, TooLarge."""
        if len(self._sizes) >= SIZES_MAX:
            self._sizes.clear()
        for obj in objects:
            if isinstance(obj, Dir):
                yield from self._check_directory(obj.ref)
            elif isinstance(obj, ValRef):
                size = yield from self._check_blobs(obj)
                if obj.size == UNKNOWN_SIZE:
                    self._sizes[obj.refs] = size

    def _check_blobs(self, value: ValRef) -> Steps[int]:
        """Check a client's list of blobs, and return its size, on which readers and appends rely."""
        if len(value.refs) > self._limits.value_blobs_max:
            raise TooLarge(f"a value of {len(value.refs)} blobs: the most is {self._limits.value_blobs_max}")
        slice_ops = self._limits.slice_ops
        size = 0
        for count, ref in enumerate(value.refs, 1):
            size += len(self.require_blob(ref))
            if not count % slice_ops:
                yield slice_ops // 16
        if size != value.size != UNKNOWN_SIZE:
            raise InvalidRequest(
                f"the value says that it has {value.size} bytes, and its blobs have {size} together: leave the size out,"
                " or correct it"
            )
        return size

    def _check_directory(self, ref: Ref) -> Steps[None]:
        """Check that a client's directory is complete and canonical, to its last blob.

        Else no checkpoint could be written any more, since a save takes everything that a root reaches, and the same
        entries would not give the same ref.
        """
        if self._cycle != self._blobs.cycle:
            self._cycle = self._blobs.cycle
            self._complete.clear()
        top = ref
        heights: dict[Ref, int] = {}
        """Levels of entries: 0 for an empty directory, 1 for one with values only."""
        opened: dict[Ref, tuple[list[Ref], int]] = {}
        """Directories in ``todo`` that were checked, but not all of those in them: these, and the number of entries."""
        todo = [ref]
        while todo:
            ref = todo[-1]
            if ref not in heights and ref not in opened and ref not in self._complete:
                try:
                    opened[ref] = yield from self._check_nodes(ref)
                except ProtocolError as error:
                    raise InvalidRequest(f"{ref_text(ref)} cannot be put as a directory: {error.text}") from None
                todo += opened[ref][0]
                continue
            todo.pop()
            if ref in opened:
                below, entries = opened.pop(ref)
                heights[ref] = 1 + max(map(heights.__getitem__, below), default=0) if entries else 0
            elif ref not in heights:
                heights[ref] = self._complete[ref]
        if heights[top] > KEY_DEPTH_MAX:
            raise TooLarge(f"{ref_text(top)} has {heights[top]} levels of directories: the most is {KEY_DEPTH_MAX}")
        if len(self._complete) + len(heights) > self._limits.checked_directories_max:
            self._complete.clear()
        self._complete.update(heights)

    def _check_nodes(self, ref: Ref) -> Steps[tuple[list[Ref], int]]:
        """Check the nodes and values of one directory; return the directories in it, and the number of its entries."""
        below: list[Ref] = []
        entries = 0
        for leaf in canonical_leaves(lambda ref: decode_node(self.require_blob(ref), ref), ref):
            yield 8
            entries += len(leaf.names)
            for name, obj in zip(leaf.names, leaf.objects, strict=True):
                if split_key(name) != [name]:
                    raise ProtocolError(f"'{name}' is not a valid name")
                if type(obj) is Dir:
                    below.append(obj.ref)
                elif type(obj) is ValRef:
                    if obj.size == UNKNOWN_SIZE:
                        raise ProtocolError(f"'{name}' is a value without a size")
                    yield from self._check_blobs(obj)
        return below, entries

    # ---------------------------------------------------------------------------------------------------- long values

    def _cut(self, kind: str, data: bytes) -> ValRef:
        """Store a long value as blobs."""
        size = self._limits.blob_bytes_max
        refs = []
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            ref = self._digest(piece)
            self._blobs.put(ref, piece)
            refs.append(ref)
        return ValRef(kind, len(data), tuple(refs))

    def append(self, key: str, old: Object | None, data: bytes) -> Object:
        """Return ``old`` with ``data`` appended.

        The result is raw; of a JSON string it is the text. An array has no append.
        """
        if old is None:
            return self.normalize(Val("raw", data))
        if isinstance(old, Dir):
            raise IsADirectory(f"{key} is a directory: append to a value")
        if not isinstance(old, Val | ValRef) or old.type.startswith("ndarray"):
            raise InvalidRequest(f"{key} is not raw or json: only those can be appended to")
        if old.type == "json":
            old = self._unquoted(key, old)
        if isinstance(old, Val):
            return self.normalize(Val("raw", old.data + data))
        refs, tail = old.refs, b""
        if refs:
            tail = self.require_blob(refs[-1])
            if len(tail) + len(data) <= self._limits.append_blob_bytes:
                refs, data = refs[:-1], tail + data
            else:
                tail = b""
        more = self._cut("raw", data)
        return ValRef("raw", old.size - len(tail) + more.size, refs + more.refs)

    def _unquoted(self, key: str, old: Val | ValRef) -> Val | ValRef:
        """Return the text of a JSON string, so that an append follows the text and not the closing quote."""
        start = old.data if isinstance(old, Val) else b"".join(map(self.require_blob, old.refs[:1]))
        if not start.startswith(b'"'):
            return old
        if isinstance(old, ValRef) and old.size > BLOB_BYTES_MAX:
            raise TooLarge(
                f"{key} is a text of {old.size:,} bytes stored as JSON: append to bytes, or to a text of 1 MiB"
            )
        data = start if isinstance(old, Val) else b"".join(map(self.require_blob, old.refs))
        try:
            return Val("raw", _decode_text(data).encode())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return old
