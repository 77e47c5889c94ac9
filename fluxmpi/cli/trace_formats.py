"""Traces of several brokers: merged, in causal order, as lines, as JSON lines, and for Perfetto.

``Merger`` takes the records of each broker as they are read and releases them in the order of their hybrid logical
clocks (see ``broker/tracer``): a record is released when no broker can still produce an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from fluxmpi.broker.trace_line import KINDS, hop_name, trace_line
from fluxmpi.broker.wire import TraceRecord
from fluxmpi.message import CLIENT_FIRST, MORE, REQUEST, RESPONSE

Traced = tuple[int, TraceRecord]
"""A record and the rank of its broker."""

SLICE_US = 1
"""Length of one record in Perfetto's time, in microseconds: a record has no duration, and Perfetto draws none without
one.
"""


class Merger:
    """Records of ``ranks``, released in causal order."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._clocks: dict[int, tuple[float, int]] = dict.fromkeys(ranks, (0.0, -1))
        """By rank: no later record of it has an earlier time."""
        self._heap: list[tuple[float, int, int, int, TraceRecord]] = []
        self._added = 0

    def add(self, rank: int, records: Iterable[TraceRecord], clock: tuple[float, int] | None) -> None:
        """Add the next records of ``rank``. ``clock``: its clock, if these are all that it has now."""
        for record in records:
            self._added += 1
            heappush(self._heap, (record.time, record.count, rank, self._added, record))
        if clock is not None:
            self._clocks[rank] = clock

    def leave_out(self, rank: int) -> None:
        """Do not wait for ``rank`` any more: it does not answer."""
        self._clocks.pop(rank, None)

    def released(self, *, all_of_them: bool = False) -> Iterator[Traced]:
        """Yield the records whose order is certain; with ``all_of_them`` also the rest, which end the trace."""
        certain = min(self._clocks.values(), default=(float("inf"), 0))
        while self._heap and (all_of_them or self._heap[0][:2] <= certain):
            _, _, rank, _, record = heappop(self._heap)
            yield rank, record


def ends(record: TraceRecord) -> tuple[str, str]:
    """Return the names of where a message came from and where it went."""
    return hop_name(record.source, record.maker), hop_name(record.target, record.handler)


def as_line(rank: int, record: TraceRecord) -> str:
    """Return one record as text, in the simulator's format."""
    return trace_line(
        record.time, *ends(record), record.kind, record.topic, record.tag, record.status, record.to, record.route,
        record.bytes, rank,
    )  # fmt: skip


def as_json(rank: int, record: TraceRecord) -> dict[str, Any]:
    """Return one record as a JSON object.

    ``received`` and ``sent`` name the message on its link (``FROM>TO:NUMBER``): the record of the other end has the
    same name.
    """
    source, target = ends(record)
    return {
        "time": record.time,
        "count": record.count,
        "clock": record.clock,
        "rank": rank,
        "source": source,
        "target": target,
        "kind": KINDS.get(record.kind, str(record.kind)),
        "topic": record.topic,
        "tag": record.tag,
        "status": record.status,
        "to": record.to,
        "route": record.route,
        "bytes": record.bytes,
        "received": f"{record.source}>{rank}:{record.received}" if record.received >= 0 else None,
        "sent": f"{rank}>{record.target}:{record.sent}" if record.sent >= 0 else None,
    }


class Unanswered:
    """Clients' requests that have no response yet."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int, int], Traced] = {}

    def add(self, rank: int, record: TraceRecord) -> None:
        """Take the next record, in order."""
        if record.kind == REQUEST and record.source <= CLIENT_FIRST:
            self._open.setdefault((rank, record.source, record.tag), (rank, record))
        elif record.kind == RESPONSE and record.target <= CLIENT_FIRST:
            self._open.pop((rank, record.target, record.tag), None)

    def rest(self) -> list[Traced]:
        """Return the records of the requests that were not answered, oldest first."""
        return list(self._open.values())


class Chrome:
    """Events of the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    One process per rank; in it, one track per machine, client and driver, and ``forwarded`` for messages that only
    pass. A record is a slice on the track of each of its ends at that broker. Arrows join the two slices of a record,
    and the sending with the receipt of a message. A client's request is also a bar from the request to its last
    response, which stays open if there is none.
    """

    def __init__(self, hosts: dict[int, str]) -> None:
        self._hosts = hosts
        self._tracks: dict[tuple[int, str], int] = {}
        self._ranks: dict[int, float] = {}
        """Rank to the time of its last slice."""
        self._sent: dict[str, float] = {}
        """Name of a message that was sent and not received yet, to the time of its slice."""
        self._open: dict[tuple[int, int, int], str] = {}
        self._flows = 0

    def events(self, rank: int, record: TraceRecord) -> list[dict[str, Any]]:
        """Return the events of the next record, in order."""
        out: list[dict[str, Any]] = []
        if rank not in self._ranks:
            name = f"rank {rank} ({self._hosts.get(rank, '?')})"
            out.append({"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}})
            out.append({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}})
        as_object = as_json(rank, record)
        received, sent = as_object["received"], as_object["sent"]
        begin = max(record.time * 1e6, self._ranks.get(rank, 0.0) + 2 * SLICE_US)
        if received in self._sent:
            begin = max(begin, self._sent[received] + 2 * SLICE_US)
        self._ranks[rank] = begin + SLICE_US
        source, target = ends(record)
        names = [name for name, hop in ((source, record.source), (target, record.target)) if hop < 0] or ["forwarded"]
        slices = []
        for index, name in enumerate(names):
            at = begin + index * SLICE_US
            event = {"name": record.topic, "cat": as_object["kind"], "pid": rank, "tid": self._track(rank, name, out)}
            slices.append({**event, "ts": at})
            out.append({**event, "ph": "X", "ts": at, "dur": SLICE_US, "args": as_object})
        if received is not None and self._sent.pop(received, None) is not None:
            out.append({**slices[0], "ph": "f", "bp": "e", "id": received})
        if len(slices) == 2:
            self._flows += 1
            out.append({**slices[0], "ph": "s", "id": f"{rank}.{self._flows}"})
            out.append({**slices[1], "ph": "f", "bp": "e", "id": f"{rank}.{self._flows}"})
        if sent is not None:
            self._sent[sent] = slices[-1]["ts"]
            out.append({**slices[-1], "ph": "s", "id": sent})
        return out + self._bar(rank, record, begin)

    def _track(self, rank: int, name: str, out: list[dict[str, Any]]) -> int:
        track = self._tracks.get((rank, name))
        if track is None:
            track = self._tracks[rank, name] = len(self._tracks) + 1
            out.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": track, "args": {"name": name}})
        return track

    def _bar(self, rank: int, record: TraceRecord, at: float) -> list[dict[str, Any]]:
        """Return the begin or the end of a client's request."""
        hop = record.source if record.kind == REQUEST else record.target
        if hop > CLIENT_FIRST or record.kind not in (REQUEST, RESPONSE) or record.status == MORE:
            return []
        key = rank, hop, record.tag
        name = self._open.setdefault(key, record.topic) if record.kind == REQUEST else self._open.pop(key, None)
        if name is None:
            return []
        phase = "b" if record.kind == REQUEST else "e"
        ident = f"{rank}.{hop}.{record.tag}"
        return [{"ph": phase, "name": name, "cat": "client", "id": ident, "pid": rank, "tid": 0, "ts": at}]
