"""The root page: shared memory that shows a broker's clients the newest roots, without a message.

A broker has one file beside its socket, which its clients map. It has the newest root of each namespace at that
broker::

    header   magic, layout, slots, rank, pid, instance, generation, used
    slot 0   sequence, version, time, state, root ref, namespace, checksum, sequence
    slot 1   …

The writer and a reader share memory without a lock, so a reader may see half of a write, on some processors in any
order. A slot is whole only if the sequence numbers before and after are equal, and the checksum matches the bytes
between. A reader of a torn slot reads it again, and finally asks the broker.

A namespace keeps its slot. The slot of a removed namespace may be given to another one, so a slot has its namespace's
name; ``generation`` counts such changes. A namespace that finds no free slot, or whose name is too long, is not in the
page: its readers ask the broker.

Invariants: the slots in use are the first ``used``; no namespace is in two slots.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol
from zlib import crc32

from fluxmpi.blobref import SIZES, Ref
from fluxmpi.kvs.wire import RootInfo

MAGIC = b"fluxmpi\0"
LAYOUT = 1
"""Version of this format. A client that knows another one asks the broker instead."""

SLOTS = 63
NAME_BYTES_MAX = 184
REF_BYTES_MAX = 32

_HEADER = struct.Struct("<8sIIiI32sII")
_SLOT = struct.Struct(f"<QqdBBH{REF_BYTES_MAX}s{NAME_BYTES_MAX}sIQ")
_COUNTS = struct.Struct("<II")
_CHECK = struct.Struct("<IQ")

SLOT_BYTES = 256
_CHECKED = SLOT_BYTES - _CHECK.size
"""Bytes that the checksum covers: all before it."""

_COUNTS_AT = _HEADER.size - _COUNTS.size
PAGE_BYTES = SLOT_BYTES * (1 + SLOTS)
"""The header takes as much room as a slot."""

assert _SLOT.size == SLOT_BYTES
assert _HEADER.size <= SLOT_BYTES

ROOT, REMOVED = 1, 2

TRIES = 16
"""Reads of a slot that is torn, or has just changed its namespace, before the broker is asked. A write takes 1 µs."""


def path_of(socket: str) -> str:
    """Return the path of a broker's page: that of the socket ``…/broker.3.sock`` is ``…/roots.3``."""
    folder, slash, name = socket.rpartition("/")
    return f"{folder}{slash}roots.{name.removeprefix('broker.').removesuffix('.sock')}"


class Buffer(Protocol):
    """Shared memory: an mmap, or a simulated one."""

    def __getitem__(self, part: slice, /) -> bytes: ...


class WritableBuffer(Protocol):
    def __setitem__(self, part: slice, data: bytes, /) -> None: ...


class Slot(NamedTuple):
    sequence: int
    state: int
    root: RootInfo


def encode_slot(sequence: int, state: int, root: RootInfo, name: bytes) -> bytes:
    """Return the bytes of a slot."""
    body = _SLOT.pack(sequence, root.version, root.time, state, len(root.ref), len(name), root.ref, name, 0, sequence)[
        :_CHECKED
    ]
    return body + _CHECK.pack(crc32(body), sequence)


def decode_slot(image: bytes) -> Slot | None:
    """Decode a slot. None: it is torn, or was never written."""
    if len(image) != SLOT_BYTES:
        return None
    before, version, time, state, ref_bytes, name_bytes, ref, name, check, after = _SLOT.unpack(image)
    if before != after or not before or crc32(image[:_CHECKED]) != check:
        return None
    if state not in (ROOT, REMOVED) or ref_bytes not in _REF_BYTES or name_bytes > NAME_BYTES_MAX:
        return None
    try:
        namespace = name[:name_bytes].decode()
    except UnicodeDecodeError:
        return None
    return Slot(before, state, RootInfo(namespace, version, Ref(ref[:ref_bytes]), time))


_REF_BYTES = frozenset((0, *SIZES.values()))


class Writer:
    """The broker's side. ``put`` and ``remove`` queue changes; ``flush`` writes the newest root of each namespace."""

    def __init__(self, buffer: WritableBuffer, instance: str, rank: int, pid: int) -> None:
        self._buffer = buffer
        self._slots: dict[str, int] = {}
        """Namespace → slot. A removed namespace stays until another one needs its slot."""
        self._removed: dict[str, None] = {}
        self._sequences = [0] * SLOTS
        self._pending: dict[str, tuple[int, RootInfo]] = {}
        self._generation = 0
        self.written = self.left_out = 0
        header = _HEADER.pack(MAGIC, LAYOUT, SLOTS, rank, pid, instance.encode()[:32], 0, 0)
        buffer[0 : len(header)] = header

    def put(self, root: RootInfo) -> None:
        self._pending[root.namespace] = ROOT, root

    def remove(self, namespace: str) -> None:
        self._pending[namespace] = REMOVED, RootInfo(namespace, 0, b"", 0.0)

    def flush(self) -> None:
        for namespace, (state, root) in self._pending.items():
            self._write(namespace, state, root)
        self._pending.clear()

    def _write(self, namespace: str, state: int, root: RootInfo) -> None:
        slot = self._slots.get(namespace)
        if slot is None:
            slot = self._take(namespace) if state == ROOT else None
            if slot is None:
                self.left_out += state == ROOT
                return
        if state == REMOVED:
            self._removed[namespace] = None
        else:
            self._removed.pop(namespace, None)
        self._sequences[slot] = sequence = self._sequences[slot] + 1
        image = encode_slot(sequence, state, root, namespace.encode())
        buffer, begin = self._buffer, SLOT_BYTES * (1 + slot)
        buffer[begin : begin + 8] = image[:8]
        buffer[begin + 8 : begin + SLOT_BYTES - 8] = image[8:-8]
        buffer[begin + SLOT_BYTES - 8 : begin + SLOT_BYTES] = image[-8:]
        self.written += 1
        if self._generation < 0:  # last: readers search for names when this has changed
            self._generation = -self._generation
            buffer[_COUNTS_AT : _COUNTS_AT + _COUNTS.size] = _COUNTS.pack(self._generation, len(self._slots))

    def _take(self, namespace: str) -> int | None:
        """Assign a slot to a namespace: an unused one, or that of a removed namespace."""
        try:
            if len(namespace.encode()) > NAME_BYTES_MAX:
                return None
        except UnicodeEncodeError:
            return None
        if len(self._slots) < SLOTS:
            slot = len(self._slots)
        elif self._removed:
            other = next(iter(self._removed))
            del self._removed[other]
            slot = self._slots.pop(other)
        else:
            return None
        self._slots[namespace] = slot
        self._generation = -(self._generation + 1)
        return slot

    def statistics(self) -> dict[str, float]:
        return {"namespaces": len(self._slots) - len(self._removed), "written": self.written, "left_out": self.left_out}

    def check(self) -> None:
        assert sorted(self._slots.values()) == list(range(len(self._slots)))
        assert self._removed.keys() <= self._slots.keys()


class _Cached:
    """A reader's cache of a namespace: where its slot is, the slot's bytes, and the root decoded from them."""

    __slots__ = ("begin", "end", "image", "root")

    def __init__(self, slot: int) -> None:
        self.begin = SLOT_BYTES * (1 + slot)
        self.end = self.begin + SLOT_BYTES
        self.image = b""
        self.root: RootInfo | None = None


class RootPage:
    """A client's side."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._cached: dict[str, _Cached] = {}
        self._generation = -1
        """At the last search for a name."""
        self._absent: dict[str, None] = {}
        """Namespaces that have no slot in that generation."""
        self.torn = 0

    def is_of(self, instance: str, rank: int, pid: int) -> bool:
        """Return True if that broker writes this page, in a known layout. Otherwise another one left the file."""
        header = bytes(self._buffer[0 : _HEADER.size])
        if len(header) < _HEADER.size:
            return False
        *known, _, _ = _HEADER.unpack(header)
        name = instance.encode()[:32].ljust(32, b"\0")
        return known == [MAGIC, LAYOUT, SLOTS, rank, pid, name]

    def root(self, namespace: str) -> RootInfo | None:
        """Return the broker's newest root, or None if the page does not have it: ask the broker."""
        buffer = self._buffer
        for _ in range(TRIES):
            cached = self._cached.get(namespace)
            if cached is None:
                cached = self._find(namespace)
                if cached is None:
                    return None
            image = buffer[cached.begin : cached.end]
            if image == cached.image:
                return cached.root
            slot = decode_slot(image)
            if slot is None:
                self.torn += 1
            elif slot.root.namespace != namespace:
                del self._cached[namespace]
            else:
                cached.image = bytes(image)
                cached.root = slot.root if slot.state == ROOT else None
                return cached.root
        return None

    def _find(self, namespace: str) -> _Cached | None:
        generation, used = _COUNTS.unpack(self._buffer[_COUNTS_AT : _COUNTS_AT + _COUNTS.size])
        if generation != self._generation:
            self._generation = generation
            self._absent.clear()
        elif namespace in self._absent:
            return None
        whole = True
        for slot in range(min(used, SLOTS)):
            cached = _Cached(slot)
            found = decode_slot(self._buffer[cached.begin : cached.end])
            if found is None:
                whole = False
            elif found.root.namespace == namespace:
                self._cached[namespace] = cached
                return cached
        if whole and len(self._absent) < SLOTS:
            self._absent[namespace] = None
        return None
