"""The content service: blobs by digest on every broker, faulted in from the parent, kept by rank 0.

    content.load   here? answer. Else ask the parent, once however many wait, verify the digest, keep it, answer all.
    content.store  keep it here, pass it to rank 0, answer when rank 0 has it.

Requests for one blob on their way up meet at the first broker they share (coalescing), so N brokers that read one value cost
each link of the tree one transfer.

Invariants: a blob goes into the cache only after its digest was computed here; every waiter is answered exactly once; a
missing blob is an error, never a hang.
"""

from __future__ import annotations

from typing import Protocol

from fluxmpi.blobref import BLOB_BYTES_MAX, SIZES, Digest, Ref, to_text
from fluxmpi.content.wire import Dropped, Load, Stored
from fluxmpi.errors import DigestMismatch, FluxmpiError, InvalidRequest, NoSuchBlob, Overloaded, TooLarge, decode_error
from fluxmpi.machine import Machine
from fluxmpi.message import OK, RESPONSE, Body, Message, control, reply, reply_error, reply_raw

LOADS_MAX = 100_000
"""Blobs on request at a time; past that, Overloaded."""

_decode_load = Body(Load)


class Blobs(Protocol):
    def get(self, ref: Ref) -> bytes | None: ...
    def put(self, ref: Ref, blob: bytes) -> None: ...
    def drop(self) -> tuple[int, int]: ...
    def statistics(self) -> dict[str, float]: ...
    def check(self) -> None: ...


class Content(Machine):
    """``parent`` is the rank to fault in from, -1 at rank 0, where ``blobs`` is the store itself."""

    name = "content"

    def __init__(self, blobs: Blobs, digest: Digest, parent: int) -> None:
        super().__init__()
        self._blobs = blobs
        self._digest = digest
        self._parent = parent
        self._loads: dict[Ref, list[Message]] = {}
        """Blobs asked of the parent, and the requests that wait for each."""
        self._load_tags: dict[int, Ref] = {}
        self._stores: dict[int, Message] = {}
        self._coalesced = self._loaded = self._stored = self._refused = 0

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == RESPONSE:
            if msg.tag in self._stores:
                return self._store_answered(msg)
            return self._load_answered(msg)
        try:
            match msg.topic:
                case "content.load":
                    return self._load(msg)
                case "content.store":
                    return self._store(msg)
                case "content.dropcache":
                    return [control("kvs.dropcache"), reply(msg, Dropped(*self._blobs.drop()))]
            raise InvalidRequest(f"service content has no method {msg.topic!r}")
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    # ------------------------------------------------------------------------------------------------------ load

    def _load(self, msg: Message) -> list[Message]:
        ref = _decode_load(msg).ref
        if len(ref) not in SIZES.values():
            raise InvalidRequest(f"a ref of {len(ref)} bytes is no digest of this instance")
        blob = self._blobs.get(ref)
        if blob is not None:
            return [reply_raw(msg, blob)]
        if self._parent < 0:
            raise NoSuchBlob(f"no blob {to_text(ref)} in this instance")
        waiting = self._loads.get(ref)
        if waiting is not None:
            waiting.append(msg)
            self._coalesced += 1
            return []
        if len(self._loads) >= LOADS_MAX:
            raise Overloaded(f"{LOADS_MAX} blobs are on request already; try again")
        ask = self.ask("content.load", Load(ref), self._parent)
        self._loads[ref] = [msg]
        self._load_tags[ask.tag] = ref
        return [ask]

    def _load_answered(self, msg: Message) -> list[Message]:
        ref = self._load_tags.pop(msg.tag, None)
        if ref is None:
            return []
        waiting = self._loads.pop(ref)
        blob = bytes(msg.body)
        if msg.status != OK:
            self._refused += 1
            error = decode_error(msg.status, blob)
            return [reply_error(request, error) for request in waiting]
        if self._digest(blob) != ref:
            self._refused += 1
            error = DigestMismatch(f"blob {to_text(ref)} came damaged from rank {self._parent}")
            return [reply_error(request, error) for request in waiting]
        self._loaded += 1
        self._blobs.put(ref, blob)
        return [reply_raw(request, blob) for request in waiting]

    # ----------------------------------------------------------------------------------------------------- store

    def _store(self, msg: Message) -> list[Message]:
        blob = bytes(msg.body)
        if len(blob) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(blob)} bytes: the most is {BLOB_BYTES_MAX}; cut the value into several")
        ref = self._digest(blob)
        self._blobs.put(ref, blob)
        self._stored += 1
        if self._parent < 0:
            return [reply(msg, Stored(ref))]
        ask = self.ask("content.store", None, 0)
        ask.body = blob
        self._stores[ask.tag] = msg
        return [ask]

    def _store_answered(self, msg: Message) -> list[Message]:
        request = self._stores.pop(msg.tag)
        return [Message(RESPONSE, request.topic, tag=request.tag, status=msg.status, route=request.route, body=msg.body)]

    # ------------------------------------------------------------------------------------------------ housekeeping

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """Its loads go on, since others may wait; nobody is there to take its answer."""
        for ref, waiting in self._loads.items():
            self._loads[ref] = [msg for msg in waiting if msg.route != [hop]]
        return []

    def statistics(self) -> dict[str, float]:
        return {
            **self._blobs.statistics(),
            "loaded": self._loaded,
            "coalesced": self._coalesced,
            "stored": self._stored,
            "refused": self._refused,
            "pending": len(self._loads) + len(self._stores),
        }

    def check(self) -> None:
        self._blobs.check()
        assert len(self._loads) == len(self._load_tags)
