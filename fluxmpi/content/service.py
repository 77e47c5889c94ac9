"""The content service: blobs by digest on every broker, faulted in from the parent, stored by rank 0.

    content.load   cached: respond. Else ask the parent once for all requests, verify the digest, cache, respond to all.
                   (A blob in a segment of ``values`` is read from there instead.)
    content.store  cache it, send it to rank 0, respond when rank 0 has it. A full store lets it wait for a collection, or
                   refuses it.

Requests for one blob meet at the first broker that they share, which asks its parent once (coalescing). So N brokers
that read one value cost each link of the tree one transfer.

Invariants: a blob is cached only after its digest was computed here; every request is answered exactly once; a missing
blob is an error, never a hang.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX, SIZES, Digest, Ref, to_text
from fluxmpi.content.wire import BlobPlace, Dropped, LoadRequest, Stored, read
from fluxmpi.errors import DigestMismatch, FluxmpiError, InvalidRequest, NoSuchBlob, Overloaded, TooLarge, decode_error
from fluxmpi.machine import MACHINES_MAX, NEVER, Machine, Sender, Topic
from fluxmpi.message import (
    CLIENT_FIRST,
    CONTROL,
    LOOP,
    OK,
    REQUEST,
    RESPONSE,
    Body,
    Message,
    control,
    reply,
    reply_error,
    reply_raw,
)
from fluxmpi.shares import Pool

_decode_load = Body(LoadRequest)


class ContentLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of the content service."""

    loads_max: int = 100_000
    """Blobs that are requested from the parent at a time; above that, Overloaded."""
    parked_bytes_max: int = 128 << 20
    """Bytes of blobs that wait at rank 0 for a garbage collection, because the store is full; above that, Overloaded."""
    waiting_max: int = 200_000
    """Requests that wait for blobs, or for rank 0 to store one; above that, Overloaded."""
    waiting_client_max: int = 50_000
    """Of one client. A broker's machine, which works for many clients, has no share."""


CONTENT_LIMITS = ContentLimits()


class BlobCache(Protocol):
    """``Cache``, or rank 0's ``Store``."""

    def get(self, ref: Ref) -> bytes | None: ...
    def put(self, ref: Ref, blob: bytes) -> None: ...
    def has_room(self, size: int, now: float, /) -> bool: ...
    def __contains__(self, ref: Ref) -> bool: ...
    def touch(self, ref: Ref, now: float) -> None: ...
    def drop(self) -> tuple[int, int]: ...
    def statistics(self) -> dict[str, float]: ...
    def check(self) -> None: ...


class ContentService(Machine):
    """The ``content`` service of one broker. ``parent`` is -1 at rank 0, where ``blobs`` is the store itself."""

    name = "content"

    def __init__(
        self,
        blobs: BlobCache,
        digest: Digest,
        parent: int,
        placed: Mapping[Ref, BlobPlace] | None = None,
        limits: ContentLimits = CONTENT_LIMITS,
    ) -> None:
        """``placed``: blobs that are stored in a segment of this broker, and were verified when they arrived."""
        super().__init__()
        self._limits = limits
        self._placed = {} if placed is None else placed
        self._blobs = blobs
        self._digest = digest
        self._parent = parent
        self._loads: dict[Ref, list[Message]] = {}
        """Each blob that was requested from the parent, with the requests that wait for it."""
        self._uncached: dict[Ref, None] = {}
        """Those of them that will be stored in a segment."""
        self._load_tags: dict[int, Ref] = {}
        self._stores: dict[int, Message] = {}
        self._parked: deque[Message] = deque()
        """At rank 0, requests to store blobs that wait for room, in order."""
        self._parked_bytes = 0
        """Requests to store a blob, without it, until rank 0 has answered."""
        self._waiting = Pool("requests for blobs", limits.waiting_max, limits.waiting_client_max)
        self._coalesced = self._loaded = self._read = self._stored = self._refused = 0
        client, machine = Sender.CLIENT, Sender.MACHINE
        self.topics = {
            "content.load": Topic(REQUEST, client | machine, self._load, LoadRequest, isolated=True),
            "content.store": Topic(REQUEST, client | machine, self._store, bytes, isolated=True),
            "content.dropcache": Topic(REQUEST, client, self._drop),
            "content.read": Topic(CONTROL, Sender.SEGMENTS, self._read_answered, bytes),
        }

    def answered(self, msg: Message, now: float) -> list[Message]:
        return self._store_answered(msg) if msg.tag in self._stores else self._load_answered(msg)

    def _drop(self, msg: Message, now: float) -> list[Message]:
        drop = [control("kvs.dropcache"), control("value.dropcache"), control("loop.trim", None, LOOP)]
        return [*drop, reply(msg, Dropped(*self._blobs.drop()))]

    # ------------------------------------------------------------------------------------------------------ load

    def _load(self, msg: Message, now: float) -> list[Message]:
        asked = _decode_load(msg)
        ref = asked.ref
        if len(ref) not in SIZES.values():
            raise InvalidRequest(f"a ref of {len(ref)} bytes: a digest of this instance has 20 or 32")
        blob = self._blobs.get(ref)
        if blob is not None:
            return [reply_raw(msg, blob)]
        if self._parent < 0:
            raise NoSuchBlob(f"no blob {to_text(ref)} in this instance")
        waiting = self._loads.get(ref)
        if waiting is None and len(self._loads) >= self._limits.loads_max:
            raise Overloaded(f"{self._limits.loads_max} blobs are requested already: try again later")
        self._waiting.take(tuple(msg.route), shared=msg.route[0] <= CLIENT_FIRST)
        msg.body = b""
        place = self._placed.get(ref)
        out = [] if waiting is not None else [self._ask(ref) if place is None else self._read_from(ref, place)]
        if not asked.keep:
            self._uncached[ref] = None
        if waiting is not None:
            waiting.append(msg)
            self._coalesced += 1
        else:
            self._loads[ref] = [msg]
        return out

    def _ask(self, ref: Ref) -> Message:
        ask = self.ask("content.load", LoadRequest(ref), self._parent)
        self._load_tags[ask.tag] = ref
        return ask

    def _read_from(self, ref: Ref, place: BlobPlace) -> Message:
        self._tag += MACHINES_MAX
        self._load_tags[self._tag] = ref
        return read(place, self._tag)

    def _read_answered(self, msg: Message, now: float) -> list[Message]:
        ref = self._load_tags.pop(msg.tag, None)
        if ref is None:
            return []
        if msg.status != OK:  # the segment was closed meanwhile
            return [self._ask(ref)]
        self._read += 1
        self._uncached.pop(ref, None)
        return [reply_raw(request, msg.body) for request in self._take_waiting(ref)]

    def _take_waiting(self, ref: Ref) -> list[Message]:
        """Take out the requests that wait for a blob."""
        waiting = self._loads.pop(ref)
        for request in waiting:
            self._waiting.give(tuple(request.route))
        return waiting

    def _load_answered(self, msg: Message) -> list[Message]:
        ref = self._load_tags.pop(msg.tag, None)
        if ref is None:
            return []
        waiting = self._take_waiting(ref)
        keep = ref not in self._uncached
        self._uncached.pop(ref, None)
        blob = msg.body
        if msg.status != OK:
            self._refused += 1
            error = decode_error(msg.status, blob)
            return [reply_error(request, error) for request in waiting]
        if self._digest(blob) != ref:
            self._refused += 1
            error = DigestMismatch(f"blob {to_text(ref)} arrived damaged from rank {self._parent}")
            return [reply_error(request, error) for request in waiting]
        self._loaded += 1
        if keep:
            self._blobs.put(ref, blob)
        return [reply_raw(request, blob) for request in waiting]

    # ----------------------------------------------------------------------------------------------------- store

    def _store(self, msg: Message, now: float) -> list[Message]:
        blob = bytes(msg.body)
        if len(blob) > BLOB_BYTES_MAX:
            raise TooLarge(
                f"a blob of {len(blob)} bytes: the limit is {BLOB_BYTES_MAX}; cut the value into several blobs"
            )
        if self._parent >= 0:
            self._waiting.take(tuple(msg.route), shared=msg.route[0] <= CLIENT_FIRST)
            msg.body = b""
        ref = self._digest(blob)
        if self._parent < 0:
            if self._parked:
                return self._park(msg)
            if ref not in self._blobs and not self._blobs.has_room(len(blob), now):
                return self._park(msg)
            return [self._keep(msg, ref, blob, now)]
        self._blobs.put(ref, blob)
        self._stored += 1
        ask = self.ask("content.store", None, 0)
        ask.body = blob
        self._stores[ask.tag] = msg
        return [ask]

    def _keep(self, msg: Message, ref: Ref, blob: bytes, now: float) -> Message:
        self._blobs.put(ref, blob)
        self._blobs.touch(ref, now)
        self._stored += 1
        return reply(msg, Stored(ref))

    def _park(self, msg: Message) -> list[Message]:
        """Let a request to store a blob wait for the end of a collection."""
        bytes_max = self._limits.parked_bytes_max
        if self._parked_bytes + len(msg.body) > bytes_max:
            raise Overloaded(
                f"the store is nearly full, and {bytes_max:,} bytes of blobs wait for a garbage collection to make room: "
                "try again later"
            )
        self._parked.append(msg)
        self._parked_bytes += len(msg.body)
        return []

    def resume(self) -> None:
        """Try again, in the next turn, to store what waits for room: a collection has ended."""
        if self._parked:
            self.deadline = 0.0

    def tick(self, now: float) -> list[Message]:
        """Store the blobs that waited, in order, until one has to wait again."""
        self.deadline = NEVER
        out = []
        while self._parked:
            msg = self._parked[0]
            blob = bytes(msg.body)
            ref = self._digest(blob)
            try:
                if ref not in self._blobs and not self._blobs.has_room(len(blob), now):
                    break
                out.append(self._keep(msg, ref, blob, now))
            except FluxmpiError as error:
                out.append(reply_error(msg, error))
            self._parked.popleft()
            self._parked_bytes -= len(msg.body)
        return out

    def _store_answered(self, msg: Message) -> list[Message]:
        request = self._stores.pop(msg.tag)
        self._waiting.give(tuple(request.route))
        return [
            Message(RESPONSE, request.topic, tag=request.tag, status=msg.status, route=request.route, body=msg.body)
        ]

    # ------------------------------------------------------------------------------------------------ housekeeping

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """Drop the client's requests; their loads continue, since others may wait for them. What it stored stays."""
        if not self._waiting.held((hop,)):
            return []
        for ref, waiting in self._loads.items():
            left = [msg for msg in waiting if msg.route != [hop]]
            self._waiting.give((hop,), len(waiting) - len(left))
            self._loads[ref] = left
        return []

    def statistics(self) -> dict[str, float]:
        return {
            **self._blobs.statistics(),
            "loaded": self._loaded,
            "read": self._read,
            "coalesced": self._coalesced,
            "stored": self._stored,
            "refused": self._refused,
            "pending": len(self._loads) + len(self._stores) + len(self._parked),
        }

    def check(self) -> None:
        self._blobs.check()
        assert self._parked_bytes == sum(len(msg.body) for msg in self._parked)
        assert len(self._loads) == len(self._load_tags)
        assert all(ref in self._loads for ref in self._uncached)
        self._waiting.check()
        assert self._waiting.taken == len(self._stores) + sum(map(len, self._loads.values()))
