"""A version under construction: transactions that are applied together, and how they are applied.

Transactions merge into one version only when they are *disjoint*: no key of one is a key of another, or lies above or below
one. So every value that a key ever had is the value in some version, and watchers and histories miss nothing.

    place(commit)   conflicts with what is in already?  -> False: seal this version, start the next
                    an operation fails?                 -> raises; the edit is as before, the others are unharmed
                    else                                -> in

Keys are compared as resolved (after links), since two names can mean one place.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX, Digest, Ref
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchBlob, ProtocolError, TooLarge
from fluxmpi.kvs.nodes import Source, canonical, decode_node, name_of
from fluxmpi.kvs.objects import SEPARATOR, VAL_BYTES_MAX, Dir, Object, Val, ValRef, split_key
from fluxmpi.kvs.tree import Edit
from fluxmpi.kvs.wire import Append, CommitId, FenceDone, Mkdir, Op, Put, Unlink
from fluxmpi.message import Message

_decode_text = msgspec.json.Decoder(str).decode

APPEND_BLOB_BYTES = 16 << 10
"""An append extends the value's last blob up to this size, and then begins a new one: a log of short lines stays short."""

VALUE_BLOBS_MAX = 1 << 20

WHOLE_MAX = 65_536
"""Directories remembered as whole, so that one that is put again is not looked through again."""


class Blobs(Source, Protocol):
    """The store: ``hold`` finds a blob for who is about to refer to it, and keeps the collection under way from it."""

    cycle: int

    def hold(self, ref: Ref) -> bytes | None: ...


class Values:
    """Objects as they may stand in a directory: long values as blobs, refs that exist, and do until the version is made."""

    def __init__(self, blobs: Blobs, digest: Digest) -> None:
        self._blobs = blobs
        self._digest = digest
        self._whole: dict[Ref, None] = {}
        self._whole_in = 0
        """The collection since whose beginning these were looked through, and held."""

    def settle(self, obj: Object) -> Object:
        """The object to put into the tree for one that a client sent."""
        kind = type(obj)
        if kind is Val:
            return obj if len(obj.data) <= VAL_BYTES_MAX else self._cut(obj.type, obj.data)  # type: ignore[union-attr]
        if kind is ValRef:
            self._check_list(obj)  # type: ignore[arg-type]
        elif kind is Dir:
            self._check_directory(obj.ref)  # type: ignore[union-attr]
        else:
            split_key(obj.target)  # type: ignore[union-attr]
        return obj

    def _check_list(self, value: ValRef) -> None:
        """A client's list of blobs: readers and appends rely on its size."""
        if len(value.refs) > VALUE_BLOBS_MAX:
            raise TooLarge(f"a value of {len(value.refs)} blobs: the most is {VALUE_BLOBS_MAX}")
        size = sum(len(self._require(ref)) for ref in value.refs)
        if size != value.size:
            raise InvalidRequest(f"a value of {value.size} bytes, but its blobs have {size} together")

    def _check_directory(self, ref: Ref) -> None:
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
                todo += self._check_nodes(ref)
            except ProtocolError as error:
                raise InvalidRequest(f"{name_of(ref)} cannot be put as a directory: {error.text}") from None
        if len(self._whole) + len(seen) > WHOLE_MAX:
            self._whole.clear()
        self._whole.update(seen)

    def _check_nodes(self, ref: Ref) -> list[Ref]:
        """The directories in one directory, after a look at all of its nodes and values."""
        below: list[Ref] = []
        for leaf in canonical(lambda ref: decode_node(self._require(ref), ref), ref):
            for name, obj in zip(leaf.names, leaf.objects, strict=True):
                if split_key(name) != [name]:
                    raise ProtocolError(f"'{name}' is no name")
                if type(obj) is Dir:
                    below.append(obj.ref)
                elif type(obj) is ValRef:
                    self._check_list(obj)
        return below

    def _require(self, ref: Ref) -> bytes:
        blob = self._blobs.hold(ref)
        if blob is None:
            raise NoSuchBlob(f"no blob {name_of(ref)} in this instance: store it before the commit that refers to it")
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
            tail = self._require(refs[-1])
            if len(tail) + len(data) <= APPEND_BLOB_BYTES:
                refs, data = refs[:-1], tail + data
            else:
                tail = b""
        more = self._cut("raw", data)
        return ValRef("raw", old.size - len(tail) + more.size, refs + more.refs)

    def _unquoted(self, key: str, old: Val | ValRef) -> Val | ValRef:
        """A JSON string as its text, so that what is appended stands behind the text and not behind a quote."""
        start = old.data if isinstance(old, Val) else b"".join(map(self._require, old.refs[:1]))
        if not start.startswith(b'"'):
            return old
        if isinstance(old, ValRef) and old.size > BLOB_BYTES_MAX:
            raise TooLarge(f"{key} is a text of {old.size:,} bytes stored as JSON: append to bytes, or to a text of 1 MiB")
        data = start if isinstance(old, Val) else b"".join(map(self._require, old.refs))
        try:
            return Val("raw", _decode_text(data).encode())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return old


class Version:
    """``number`` will be the version's; ``seal`` ends it."""

    def __init__(self, number: int, edit: Edit, values: Values) -> None:
        self.number = number
        self.keys: list[str] = []
        self.replies: list[Message] = []
        self.fences: list[FenceDone] = []
        self.ids: dict[CommitId, None] = {}
        self._edit = edit
        self._values = values
        self._touched: dict[str, None] = {}
        self._above: dict[str, None] = {}

    @property
    def empty(self) -> bool:
        return not self.ids and not self.fences

    def place(self, ops: list[Op]) -> bool:
        """Apply one transaction. False when it touches what another one in this version touches; then nothing changed."""
        if self._touched and self._conflicts([op.key for op in ops]):
            return False
        edit = self._edit
        mark = edit.mark()
        try:
            keys = [self._apply(op) for op in ops]
        except BaseException:
            edit.rollback(mark)
            raise
        if self._touched and self._conflicts(keys):
            edit.rollback(mark)
            return False
        touched, above = self._touched, self._above
        for key in keys:
            touched[key] = None
            at = key.rfind(SEPARATOR)
            while at > 0:
                prefix = key[:at]
                if prefix in above:
                    break
                above[prefix] = None
                at = key.rfind(SEPARATOR, 0, at)
        self.keys += keys
        return True

    def _conflicts(self, keys: list[str]) -> bool:
        touched, above = self._touched, self._above
        for key in keys:
            if key in touched or key in above or key == SEPARATOR:
                return True
            at = key.rfind(SEPARATOR)
            while at > 0:
                if key[:at] in touched:
                    return True
                at = key.rfind(SEPARATOR, 0, at)
        return SEPARATOR in touched

    def _apply(self, op: Op) -> str:
        """Apply one operation; the key that it changed, links resolved."""
        edit = self._edit
        kind = type(op)
        parts = split_key(op.key)
        if kind is Put:
            return edit.put(parts, self._values.settle(op.object))  # type: ignore[union-attr, arg-type]
        if kind is Unlink:
            return edit.unlink(parts)
        if kind is Append:
            old = edit.get(parts)
            return edit.put(parts, self._values.append(op.key, old, op.data))  # type: ignore[union-attr]
        if kind is Mkdir:
            return edit.mkdir(parts)
        raise InvalidRequest(f"operation {kind.__name__} cannot stand in a commit")

    def seal(self) -> tuple[Ref, list[tuple[Ref, bytes]]]:
        """The root ref, and the tree nodes that are new."""
        return self._edit.seal()
