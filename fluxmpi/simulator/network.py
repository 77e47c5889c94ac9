"""The links between ranks, with MPI's fault model: a link keeps the order of its batches and loses none.

The seed decides the delays: each batch has its own, some links are always slow, and any link may be slow for a while.
Nothing arrives at a killed rank. Of what it had sent, each link delivers what arrives before a random moment, and
nothing after it.

Invariant: the times of arrival on one link never decrease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fluxmpi.message import Message, encode_batch
from fluxmpi.simulator.schedule import Schedule
from fluxmpi.simulator.trace import Trace

Arrive = Callable[[int, int, bytes], None]


@dataclass(frozen=True, slots=True)
class LinkDelays:
    """Times in seconds. A batch takes at most ``delay_s``; a share of ``spikes`` of them takes up to ``spike_s``."""

    delay_s: float = 0.0002
    spikes: float = 0.02
    spike_s: float = 0.02
    slow_links: float = 0.1
    """Share of the links that are always slow."""
    slow_factor: float = 30.0
    worst_s: float = 0.5
    """The longest delay: much shorter than what makes a neighbour report a lost rank."""


class _Link:
    __slots__ = ("blocked_until", "cut_at", "factor", "last", "slow_until")

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.last = 0.0
        """When the newest batch arrives."""
        self.slow_until = self.blocked_until = 0.0
        self.cut_at = float("inf")


class Network:
    """``arrive(source, target, batch)`` is called when a batch arrives."""

    def __init__(self, schedule: Schedule, rng: Random, delays: LinkDelays, arrive: Arrive, trace: Trace) -> None:
        self._schedule = schedule
        self._rng = rng
        self._delays = delays
        self._arrive = arrive
        self._trace = trace
        self._links: dict[tuple[int, int], _Link] = {}
        self._dead: dict[int, None] = {}
        self.batches = self.messages = 0

    def send(self, source: int, target: int, batch: list[Message]) -> None:
        """Encode the batch and schedule its arrival."""
        self.batches += 1
        self.messages += len(batch)
        blob = encode_batch(batch)
        schedule, link = self._schedule, self._link(source, target)
        now = schedule.now
        delay = self._delay() * link.factor
        if now < link.slow_until:
            delay *= self._delays.slow_factor
        when = link.last = max(now + min(delay, self._delays.worst_s), link.last, link.blocked_until)
        self._trace.wire(now, source, target, blob)
        schedule.at(when, lambda: self._arrived(link, source, target, blob))

    def _arrived(self, link: _Link, source: int, target: int, blob: bytes) -> None:
        if self._schedule.now <= link.cut_at and target not in self._dead:
            self._arrive(source, target, blob)

    def _delay(self) -> float:
        rng, delays = self._rng, self._delays
        if rng.random() < delays.spikes:
            return rng.random() * delays.spike_s
        return rng.uniform(0.1, 1.0) * delays.delay_s

    def _link(self, source: int, target: int) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            slow = self._rng.random() < self._delays.slow_links
            link = self._links[source, target] = _Link(self._delays.slow_factor if slow else 1.0)
        return link

    def slow(self, source: int, target: int, duration: float) -> None:
        """Make a link slow for a while."""
        self._link(source, target).slow_until = self._schedule.now + duration

    def block(self, source: int, target: int, duration: float) -> None:
        """Delay everything that is sent from now on until that time is over."""
        self._link(source, target).blocked_until = self._schedule.now + duration

    def kill(self, rank: int) -> None:
        """Deliver nothing to a rank any more, and only a part of what it has sent."""
        self._dead[rank] = None
        now = self._schedule.now
        for (source, _), link in self._links.items():
            if source == rank:
                link.cut_at = now + self._rng.random() * max(0.0, link.last - now)
