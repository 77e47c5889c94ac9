"""Long values as files that the clients of a node share: ``value.map``.

A client that reads a long value sends the refs of its blobs. Its broker loads them, writes them one after another into
a *segment*, a file without a name in memory (``drivers/segments``), and sends the descriptor to each client that
requested it. The bytes cross no socket, and all clients of a node map the same pages.

    map ─▶ is there a segment of these blobs? ─complete──────────────────────────────────────▶ pass
           └─no─▶ create ─▶ FILLING: content.load, window_pieces at a time, in order ─last─▶ seal ─▶ pass to all waiting
                              └─a blob is missing, the sizes are wrong, no client waits any more─▶ close, send the error

Each broker loads a blob once from its parent (``content.load``), and serves its children as soon as it has it. So the
value flows down the tree in pieces, all levels work at the same time, and N brokers that map it cost each link of the
tree one transfer. The content service has verified the digest of every blob before it gets here. A blob in a segment
need not be in the cache: children that request it later are served from the segment (``placed``).

Only a tick requests further blobs, never a response: a cached blob is answered at once, so a chain of responses and
requests would exceed the depth of the stack, and delay everything else.

Invariants: each waiting client is answered once; a segment that is passed is complete and sealed; all segments have at
most ``bytes_max`` bytes, and at most ``loading_max`` pieces are requested at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX, SIZES, Ref
from fluxmpi.content.wire import BlobPlace, Create, LoadRequest, Map, Pass, Spoilt, write
from fluxmpi.errors import DigestMismatch, FluxmpiError, InvalidRequest, Overloaded, TooLarge, decode_error
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import ANY, CONTROL, OK, REQUEST, SEGMENTS, Body, Message, control, reply_error

SEGMENTS_BYTES_MAX = 4 << 30
"""Default bound of all segments of a broker together. It is memory of the node; clients that have mapped a segment may
hold it longer.
"""

Key = tuple[int, tuple[Ref, ...]]

_decode_map = Body(Map)
_decode_spoilt = Body(Spoilt)
_decode_refs = Body(list[Ref])


class ValueLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of the values that are mapped."""

    segments_max: int = 256
    """Segments of a broker; each is an open file."""
    refs_max: int = 1 << 16
    """Blobs of one segment; a value with more, which are small then, is loaded blob by blob."""
    window_pieces: int = 8
    """Blobs of one value that are requested, or have arrived out of order."""
    loading_max: int = 32
    """Blobs of all values that are requested at a time: 32 MiB at most."""
    waiting_max: int = 4096
    """Clients' requests that wait for segments to fill; above that, Overloaded."""
    waiting_client_max: int = 1024
    """Of one client."""


VALUE_LIMITS = ValueLimits()


@dataclass(slots=True)
class _Segment:
    """``asked`` and ``placed`` count blobs that were requested and written, ``filled`` bytes.

    ``early``: blobs that arrived out of order.
    """

    id: int
    size: int
    refs: tuple[Ref, ...]
    waiting: list[Message] = field(default_factory=list)
    asked: int = 0
    placed: int = 0
    filled: int = 0
    early: dict[int, bytes] = field(default_factory=dict)
    complete: bool = False

    @property
    def key(self) -> Key:
        return self.size, self.refs


class ValueService(Machine):
    """The ``value`` service of one broker."""

    name = "value"

    def __init__(
        self,
        placed: dict[Ref, BlobPlace],
        bytes_max: int = SEGMENTS_BYTES_MAX,
        limits: ValueLimits = VALUE_LIMITS,
    ) -> None:
        """``placed``: the blobs in segments; this machine changes it, and ``ContentService`` reads it."""
        super().__init__()
        self._limits = limits
        self._placed = placed
        self._bytes_max = bytes_max
        self._segments: dict[Key, _Segment] = {}
        """In order of last use."""
        self._bytes = 0
        self._filling: dict[int, _Segment] = {}
        self._loads: dict[int, tuple[_Segment, int]] = {}
        """Tag to the blob's segment and position, until the response arrives, also if the segment was closed
        meanwhile.
        """
        self._ids = 0
        self._hits = self._filled = self._failed = self._evictions = self._collected = 0
        self.topics = {
            "value.map": Topic(REQUEST, Sender.OWN_CLIENT, self._map, Map),
            "value.spoilt": Topic(CONTROL, Sender.SEGMENTS, self._spoilt, Spoilt),
            "value.dropcache": Topic(CONTROL, Sender.MACHINE, self._drop),
            "value.swept": Topic(CONTROL, Sender.MACHINE, self._swept, list[bytes]),
        }

    # ---------------------------------------------------------------------------------------------------------- map

    def _map(self, msg: Message, now: float) -> list[Message]:
        asked = _decode_map(msg)
        key = asked.size, tuple(asked.refs)
        out: list[Message] = []
        segment = self._segments.get(key)
        if segment is not None:
            self._hits += 1
            self._segments[key] = self._segments.pop(key)
            if segment.complete:
                return [_pass(segment, msg)]
        limits, waiting = self._limits, [other for each in self._filling.values() for other in each.waiting]
        if len(waiting) >= limits.waiting_max:
            raise Overloaded(f"{limits.waiting_max} requests for long values wait already: try again later")
        if sum(other.route == msg.route for other in waiting) >= limits.waiting_client_max:
            raise Overloaded(
                f"{limits.waiting_client_max:,} requests of this client for long values wait already: try again later"
            )
        if segment is None:
            self._validate(asked)
            out = self._make_room(asked.size)
            segment = self._create(key)
            out.append(control("segment.create", Create(segment.id, segment.size), SEGMENTS))
        msg.body = b""
        segment.waiting.append(msg)
        self.deadline = now
        return out

    def _create(self, key: Key) -> _Segment:
        self._ids += 1
        self._segments[key] = self._filling[self._ids] = segment = _Segment(self._ids, *key)
        self._bytes += segment.size
        return segment

    def _validate(self, asked: Map) -> None:
        """Raise InvalidRequest for an impossible value, TooLarge for one that fits into no segment."""
        size, count = asked.size, len(asked.refs)
        if not 0 < size <= count * BLOB_BYTES_MAX:
            raise InvalidRequest(f"value.map: {count} blobs cannot have {size} bytes together")
        if any(len(ref) not in SIZES.values() for ref in asked.refs):
            raise InvalidRequest("value.map: invalid ref: a digest has 20 bytes (sha1) or 32 (sha256)")
        if count > self._limits.refs_max:
            raise TooLarge(
                f"a value of {count:,} blobs: at most {self._limits.refs_max:,} can be mapped; load them one by one"
            )
        if size > self._bytes_max:
            raise TooLarge(
                f"a value of {size:,} bytes: this broker maps at most {self._bytes_max:,}; load its blobs one by one"
            )

    def _make_room(self, size: int) -> list[Message]:
        """Close the least recently used complete segments. Raises Overloaded if that is not enough."""
        segments_max = self._limits.segments_max
        victims: list[_Segment] = []
        bytes_left, count = self._bytes + size, len(self._segments) + 1
        for segment in self._segments.values():
            if bytes_left <= self._bytes_max and count <= segments_max:
                break
            if segment.complete:
                victims.append(segment)
                bytes_left -= segment.size
                count -= 1
        if bytes_left > self._bytes_max or count > segments_max:
            raise Overloaded("values that are being loaded use all the memory for segments: load the blobs one by one")
        self._evictions += len(victims)
        return [self._forget(segment) for segment in victims]

    def tick(self, now: float) -> list[Message]:
        """Request as many blobs as the windows allow, of the values in the order of their requests."""
        self.deadline = NEVER
        window, loading_max = self._limits.window_pieces, self._limits.loading_max
        out: list[Message] = []
        for segment in self._filling.values():
            end = min(len(segment.refs), segment.placed + window)
            while segment.asked < end and len(self._loads) < loading_max:
                ask = self.ask("content.load", LoadRequest(segment.refs[segment.asked], keep=False), ANY)
                self._loads[ask.tag] = (segment, segment.asked)
                segment.asked += 1
                out.append(ask)
        return out

    # ------------------------------------------------------------------------------------------------------- filling

    def answered(self, msg: Message, now: float) -> list[Message]:
        load = self._loads.pop(msg.tag, None)
        if load is None:
            return []
        segment, position = load
        self.deadline = now
        if segment.id not in self._filling:
            return []
        if msg.status != OK:
            return self._fail(segment, decode_error(msg.status, msg.body))
        early = segment.early
        early[position] = msg.body
        out: list[Message] = []
        while segment.placed in early:
            blob = early.pop(segment.placed)
            if segment.filled + len(blob) > segment.size:
                return out + self._fail(segment, _damaged(segment, f"over {segment.size:,}"))
            out.append(write(segment.id, segment.filled, blob))
            self._placed[segment.refs[segment.placed]] = BlobPlace(segment.id, segment.filled, len(blob))
            segment.filled += len(blob)
            segment.placed += 1
        if segment.placed == len(segment.refs):
            out += self._end(segment)
        return out

    def _end(self, segment: _Segment) -> list[Message]:
        if segment.filled != segment.size:
            return self._fail(segment, _damaged(segment, f"{segment.filled:,}"))
        self._filled += 1
        segment.complete = True
        del self._filling[segment.id]
        waiting, segment.waiting = segment.waiting, []
        return [control("segment.seal", segment.id, SEGMENTS), *[_pass(segment, msg) for msg in waiting]]

    def _fail(self, segment: _Segment, error: FluxmpiError) -> list[Message]:
        self._failed += 1
        return [self._forget(segment), *[reply_error(msg, error) for msg in segment.waiting]]

    def _spoilt(self, msg: Message, now: float) -> list[Message]:
        """Send the driver's error to the waiting clients; a segment that was passed already is complete."""
        spoilt = _decode_spoilt(msg)
        for segment in self._segments.values():
            if segment.id == spoilt.segment:
                return self._fail(segment, decode_error(spoilt.status, spoilt.body))
        return []

    def _forget(self, segment: _Segment) -> Message:
        del self._segments[segment.key]
        self._filling.pop(segment.id, None)
        self._bytes -= segment.size
        segment.early.clear()
        placed = self._placed
        for ref in segment.refs[: segment.placed]:
            if ref in placed and placed[ref].segment == segment.id:
                del placed[ref]
        return control("segment.close", segment.id, SEGMENTS)

    # -------------------------------------------------------------------------------------------------- housekeeping

    def _drop(self, msg: Message, now: float) -> list[Message]:
        """Close the complete segments; clients that have mapped them keep their pages."""
        return [self._forget(segment) for segment in list(self._segments.values()) if segment.complete]

    def _swept(self, msg: Message, now: float) -> list[Message]:
        """Close the complete segments of values of which rank 0 has collected a blob: no version has them any more.

        One that is stored again meanwhile is loaded again. One that is being filled fails by itself, or is closed later.
        """
        placed = self._placed
        gone = {placed[ref].segment: None for ref in _decode_refs(msg) if ref in placed}
        if not gone:
            return []
        dropped = [segment for segment in self._segments.values() if segment.complete and segment.id in gone]
        self._collected += len(dropped)
        return [self._forget(segment) for segment in dropped]

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """Drop the client's requests, and close segments for which no client waits any more."""
        out = []
        for segment in list(self._filling.values()):
            segment.waiting = [msg for msg in segment.waiting if msg.route[0] != hop]
            if not segment.waiting:
                out.append(self._forget(segment))
        return out

    def statistics(self) -> dict[str, float]:
        return {
            "segments": len(self._segments),
            "bytes": self._bytes,
            "bytes_max": self._bytes_max,
            "hits": self._hits,
            "filled": self._filled,
            "failed": self._failed,
            "evictions": self._evictions,
            "collected": self._collected,
            "loading": len(self._loads),
            "pending": sum(len(segment.waiting) for segment in self._filling.values()),
        }

    def check(self) -> None:
        assert self._bytes == sum(segment.size for segment in self._segments.values()) <= self._bytes_max
        limits = self._limits
        assert len(self._segments) <= limits.segments_max
        assert len(self._loads) <= limits.loading_max
        assert len(self._placed) <= sum(segment.placed for segment in self._segments.values())
        for segment in self._segments.values():
            assert segment.complete != (segment.id in self._filling)
            assert bool(segment.waiting) != segment.complete, "clients wait for segments that fill, and for no other"
            assert segment.placed <= segment.asked <= segment.placed + limits.window_pieces
            assert len(segment.early) <= limits.window_pieces


def _pass(segment: _Segment, msg: Message) -> Message:
    return control("segment.pass", Pass(segment.id, msg.route[0], msg.tag), SEGMENTS)


def _damaged(segment: _Segment, found: str) -> DigestMismatch:
    return DigestMismatch(f"a value of {segment.size:,} bytes has blobs of {found} bytes: it was stored damaged")
