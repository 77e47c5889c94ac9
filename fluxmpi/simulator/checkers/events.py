"""Events: one order for all subscribers, numbered without a gap, none missed between the subscription and its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fluxmpi.overlay.wire import Origin
from fluxmpi.simulator.checkers.versions import VersionStates

PublishedEvents = dict[tuple[str, int], list[tuple[str, bytes]]]
"""Namespace and version to the events (topic, payload) that its commits published."""


@dataclass(slots=True)
class ReceivedEvent:
    """``origin``: the version whose commit published it."""

    topic: str
    seq: int
    payload: bytes
    origin: Origin | None = None


@dataclass(slots=True)
class EventStream:
    """What one subscription received. ``started``: the number after which it began, None without an answer.

    ``ended``: it was cancelled, or its connection closed.
    """

    client: str
    prefix: str
    started: int | None
    events: list[ReceivedEvent] = field(default_factory=list)
    ended: bool = False


def violations(
    answered: list[ReceivedEvent],
    streams: list[EventStream],
    states: VersionStates | None = None,
    published: PublishedEvents | None = None,
) -> Iterator[str]:
    """``answered``: events with the numbers that their publishers were answered.

    ``published``: see ``PublishedEvents``.
    """
    known: dict[int, tuple[str, bytes]] = {}
    for event in answered:
        if event.seq in known:
            yield f"events: two have the number {event.seq}"
        known[event.seq] = event.topic, event.payload
    for stream in streams:
        for event in stream.events:
            what = event.topic, event.payload
            if known.setdefault(event.seq, what) != what:
                yield f"events: {stream.client} got {event.topic} as number {event.seq}, which is {known[event.seq][0]}"
            if states is not None and published is not None:
                yield from _wrong_origin(event, states, published)
    yield from _numbers(streams)
    for stream in streams:
        if stream.started is not None:
            yield from _missed(stream, stream.started, known)


def _missed(stream: EventStream, started: int, known: dict[int, tuple[str, bytes]]) -> Iterator[str]:
    numbers = [event.seq for event in stream.events]
    last = (numbers[-1] if numbers else 0) if stream.ended else max(known, default=0)
    right = [seq for seq in sorted(known) if started < seq <= last and known[seq][0].startswith(stream.prefix)]
    if numbers != right:
        yield f"events: {stream.client} subscribed to '{stream.prefix}' after {started} and got {numbers}, which must be {right}"


def _wrong_origin(event: ReceivedEvent, states: VersionStates, published: PublishedEvents) -> Iterator[str]:
    """Yield a violation if an event with a snapshot was not published by a commit of that version."""
    if event.origin is None:
        return
    namespace, version, ref, _ = event.origin
    state = states.at(namespace, version)
    what = event.topic, event.payload
    if state is None or state.ref != ref.hex() or what not in published.get((namespace, version), []):
        yield f"events: {what} names version {version} of {namespace}, which did not publish it"


def _numbers(streams: list[EventStream]) -> Iterator[str]:
    """Each event has one number, and a subscriber to all events gets all numbers."""
    numbers: dict[tuple[str, bytes], int] = {}
    for stream in streams:
        received = [event.seq for event in stream.events]
        if not stream.prefix and received != list(range(received[0], received[0] + len(received)) if received else ()):
            yield f"events: {stream.client} subscribed to all events, and received {received}"
        for event in stream.events:
            if numbers.setdefault((event.topic, event.payload), event.seq) != event.seq:
                seqs = f"number {event.seq}, and as {numbers[event.topic, event.payload]}"
                yield f"events: {event.topic} {event.payload!r} arrived as {seqs}"
