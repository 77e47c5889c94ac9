"""The broker: one object that takes a message and returns messages, whatever transports them.

It owns the machines of one rank, and routes messages between them, its neighbours and its clients:

    request   deliver it to this broker's machine if the target is this rank, or ANY and there is one; else forward it
    response  forward it to the hop that the request came from; LOCAL is a machine of this broker
    event     deliver it to the event machine, which forwards it
    control   deliver it to the machine that the topic names; one from a machine, with a hop, goes out to that hop

Before a delivery, the kind and the sender are compared with the topic's row in the machine's table (``admission``).

A message that a machine sends to LOCAL is stepped at once, before the machine's later messages. So a ``setroot`` goes
to the children before the responses that depend on it, on the same links.

Nothing in this file or below knows MPI, sockets, threads or clocks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from fluxmpi.blobref import Digest, Ref, digest_function
from fluxmpi.broker.admission import Admission
from fluxmpi.broker.config import Config
from fluxmpi.broker.lifecycle import Lifecycle, LifecycleState
from fluxmpi.broker.registry import Registry
from fluxmpi.broker.statistics import Statistics
from fluxmpi.broker.tracer import Tracer
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentService
from fluxmpi.content.store import Store
from fluxmpi.content.values import ValueService
from fluxmpi.content.wire import BlobPlace
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchService, ProtocolError
from fluxmpi.jobs.exec import ExecService
from fluxmpi.kvs.fence.membership import FenceMembership
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService
from fluxmpi.kvs.mvcc.gc import Collector
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.mvcc.space import StoreSpace
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import Retention, SavedFile, SavedNamespace
from fluxmpi.machine import ANY_TOPIC, Machine, no_such_method, shorten
from fluxmpi.message import ANY, CLIENT_FIRST, EVENT, LOCAL, REQUEST, RESPONSE, Message, reply_error, request
from fluxmpi.overlay.events import EventService
from fluxmpi.overlay.health import Health
from fluxmpi.overlay.router import Router

STATEFUL = ("exec", "kvs", "roots", "trace")
"""Services that keep state for a client of another broker, and therefore get ``SERVICE.disconnect`` when it
disconnects. It is a request of that client's broker; its body is the client's hop there.
"""


class Congestion(enum.Flag):
    """What a broker should not read while too much waits."""

    CLIENTS = 1
    """Clients: too many of their requests have no answer of rank 0."""
    BROKERS = 2
    """Brokers neither: the leader has to apply what it has first, for which it needs no message."""


CLIENTS_HELD = Congestion.CLIENTS.value
CONGESTED = (Congestion.CLIENTS | Congestion.BROKERS).value


class Broker:
    def __init__(
        self,
        config: Config,
        now: float,
        restored: list[SavedNamespace] | None = None,
        store: Store | None = None,
        restored_from: SavedFile | None = None,
    ) -> None:
        """``restored``, ``store``, ``restored_from``: on rank 0, a checkpoint to continue from, and its file."""
        self.config = config
        self.router = Router(config.rank, config.size, config.topology)
        digest = digest_function(config.algorithm)
        blobs: Store | Cache = (
            (Store() if store is None else store) if config.rank == 0 else Cache(config.cache_bytes_max)
        )
        nodes = NodeCache(blobs, digest, config.nodes_max)
        self.kvs = KvsService(self.router, nodes, blobs, digest, config.kvs)
        self.lifecycle = Lifecycle(config, self.router, self.kvs.primary_version, restored_from)
        placed: dict[Ref, BlobPlace] = {}
        content = ContentService(blobs, digest, self.router.parent, placed, config.content)
        machines: list[Machine] = [
            self.kvs,
            content,
            ValueService(placed, config.segments_bytes_max, config.values),
            EventService(self.router, config.events),
            Health(self.router, list(config.hosts), config.heartbeat_s, now),
            self.lifecycle,
            ExecService(config.exec),
        ]
        self.leader: Leader | None = None
        self.store = blobs if isinstance(blobs, Store) else None
        """At rank 0, all blobs."""
        if isinstance(blobs, Store):
            machines += self._rank_0(blobs, nodes, digest, now, restored or [], content)
        self.tracer = Tracer(config.trace)
        self.registry = Registry([*machines, Statistics(self), self.tracer])
        self.tracer.attach(self.registry)
        self._rank = config.rank
        self._topics = self.registry.topics
        self._admission = Admission(self.router)
        self._sender_of = self._admission.hops
        self.on_drop: Callable[[Message], None] = _ignore
        """Called with each message from a peer or a driver that is dropped; the loop logs it."""
        self.on_internal_error: Callable[[str, Exception], None] = _ignore_error
        """Called with what failed and the exception, for each InternalError; the loop logs it."""
        for machine in self.registry.machines:
            machine.on_internal_error = self._count_internal_error
        self._refused = self._dropped = self._internal_errors = 0
        self.outside: Callable[[], dict[str, dict[str, float]]] = dict
        """The drivers' numbers, where there are drivers."""
        self._remote_state: dict[int, dict[tuple[str, int], None]] = {}
        """Client hop to the (service, rank) that may keep state for it."""

    def _rank_0(
        self,
        store: Store,
        nodes: NodeCache,
        digest: Digest,
        now: float,
        restored: list[SavedNamespace],
        content: ContentService,
    ) -> list[Machine]:
        """Make the machines of rank 0, around its store."""
        config, limits = self.config, self.config.kvs
        defaults = Retention(age_s=config.retention_age_s, bytes=config.history_bytes_max)
        namespaces = Namespaces(config.retention, config.owner, limits.mvcc, defaults, config.retention_chosen)
        space = StoreSpace(store, namespaces, config.store_bytes_max, limits.space)
        self.leader = leader = Leader(
            namespaces, nodes, store, digest, now, restored, limits.leader, limits.fence, space
        )
        self.roots = MvccService(namespaces, nodes, leader, limits.mvcc)
        checkpoint = CheckpointService(leader, nodes, store, digest, config.checkpoint, limits.mvcc)
        checkpoint.start(config.checkpoint_every_s, now)
        collector = Collector(store, nodes, namespaces, leader, [checkpoint, self.roots], limits.gc, space)
        store.has_room = space.has_room
        store.on_full = self.roots.on_lowered = space.on_wanted = collector.wake
        space.on_end = [leader.resume, content.resume]
        return [leader, FenceMembership(limits.fence), self.roots, checkpoint, collector]

    # ---------------------------------------------------------------------------------------------------- interface

    def start(self, now: float) -> list[Message]:
        """Call once, when every rank can be reached, before the first ``step``."""
        out: list[Message] = []
        if self.leader is not None:
            self._emit(self.leader.start(now), now, out)
        self._emit(self.lifecycle.start(now), now, out)
        return out

    @property
    def deadline(self) -> float:
        """When ``tick`` must be called next; read it when all input of a turn has been stepped."""
        return self.registry.deadline()

    def step(self, msg: Message, now: float) -> list[Message]:
        """Take one message; return the resulting ones, each with the ``hop`` to send it to."""
        out: list[Message] = []
        tracing = self.tracer.on
        if tracing:
            self.tracer.enter(msg, now)
        kind = msg.kind
        if kind == REQUEST:
            self._request(msg, now, out)
        elif kind == RESPONSE:
            self._response(msg, now, out)
        else:
            self._notice(msg, now, out)
        if tracing:
            self.tracer.leave(out)
        return out

    def tick(self, now: float) -> list[Message]:
        """Call when ``deadline`` has passed and all input of the turn has been stepped."""
        out: list[Message] = []
        tracing = self.tracer.on
        if tracing:
            self.tracer.enter(None, now)
        for machine in self.registry.machines:
            if machine.deadline <= now:
                made = machine.tick(now)
                if tracing:
                    self.tracer.made(machine.name, made)
                self._emit(made, now, out)
        if tracing:
            self.tracer.leave(out)
        return out

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """Discard the state that is kept for the client with this hop, which has disconnected."""
        out: list[Message] = []
        tracing = self.tracer.on
        if tracing:
            self.tracer.enter(None, now)
        for machine in self.registry.machines:
            made = machine.disconnect(hop, now)
            if tracing:
                self.tracer.made(machine.name, made)
            self._emit(made, now, out)
        for service, rank in self._remote_state.pop(hop, {}):
            self._request(request(f"{service}.disconnect", hop, target=rank), now, out)
        if tracing:
            self.tracer.leave(out)
        return out

    # ------------------------------------------------------------------------------------------------------ routing

    def _request(self, msg: Message, now: float, out: list[Message]) -> None:
        route = msg.route
        route.append(msg.hop)
        target = msg.target
        rank = self._rank
        if target == ANY or target == rank:  # noqa: SIM109 - a tuple costs 30 ns
            entry = self._topics.get(msg.topic)
            if entry is not None:
                origin = route[0]
                if not (entry.any_client if origin <= CLIENT_FIRST else origin == LOCAL and entry.any_machine):
                    refusal = self._admission.refusal(entry, msg)
                    if refusal is not None:
                        self._refuse(msg, refusal, now, out)
                        return
                try:
                    made = entry.stepper.step(msg, now)
                except Exception as error:
                    if not entry.isolated:
                        raise
                    made = [reply_error(msg, entry.machine.failed(msg.topic, error))]
                self._emit(made, now, out)
                return
            unknown = self._unknown(msg)
            if unknown is not None:
                self._refuse(msg, unknown, now, out)
                return
            target = 0
        if msg.hop <= CLIENT_FIRST and 0 <= target < self.config.size:
            service = msg.topic.partition(".")[0]
            if service in STATEFUL:
                self._remote_state.setdefault(msg.hop, {})[service, target] = None
        self._forward(msg, target, now, out)

    def _refuse(self, msg: Message, error: FluxmpiError, now: float, out: list[Message]) -> None:
        self._refused += 1
        self._response(reply_error(msg, error), now, out)

    def _unknown(self, msg: Message) -> InvalidRequest | NoSuchService | None:
        """Return the error for a topic that no machine here has; None if rank 0 may have it."""
        service = msg.topic.partition(".")[0]
        machine = self.registry.service(service)
        if machine is not None:
            return no_such_method(msg.topic, machine.topics)
        if msg.target == ANY and self._rank:
            return None
        where = f" on rank {self._rank}" if msg.target != ANY else ": no broker on the way to rank 0 has it"
        return NoSuchService(f"no service '{shorten(service)}'{where}")

    def _notice(self, msg: Message, now: float, out: list[Message]) -> None:
        """Deliver a control message or an event; drop one that its sender may not send.

        Raises ProtocolError if its handler refuses it. It then comes from a broker with a defect, or of another version;
        nobody would send again what it said (a version, the outcome of a fence), so this broker ends.
        """
        kind = msg.kind
        entry = self._topics.get(msg.topic if kind != EVENT else ANY_TOPIC)
        if entry is None or entry.kind != kind or not entry.senders & self._sender_of.get(msg.hop, 0):
            if msg.hop == LOCAL:
                raise ProtocolError(f"no machine takes the message {shorten(msg.topic)} from a machine of this broker")
            self._dropped += 1
            self.on_drop(msg)
            return
        try:
            made = entry.stepper.step(msg, now)
        except FluxmpiError as error:
            raise ProtocolError(f"{_source(msg.hop)} sent {shorten(msg.topic)}: {error.text}") from error
        self._emit(made, now, out)

    def _forward(self, msg: Message, target: int, now: float, out: list[Message]) -> None:
        try:
            msg.hop = self.router.next_hop(target)
        except FluxmpiError as error:
            self._emit([reply_error(msg, error)], now, out)
            return
        out.append(msg)

    def _response(self, msg: Message, now: float, out: list[Message]) -> None:
        if not msg.route:
            return
        hop = msg.route.pop()
        if hop != LOCAL:
            if hop not in self.router.lost:
                msg.hop = hop
                out.append(msg)
            return
        machine = self.registry.owner(msg.tag)
        if machine is None:
            return
        source, msg.hop = msg.hop, LOCAL
        try:
            made = machine.step(msg, now)
        except FluxmpiError as error:
            raise ProtocolError(f"{_source(source)} answered {shorten(msg.topic)}: {error.text}") from error
        self._emit(made, now, out)

    def _emit(self, messages: list[Message], now: float, out: list[Message]) -> None:
        """Route what a machine returned; messages for LOCAL are stepped at once."""
        for msg in messages:
            kind = msg.kind
            if kind == RESPONSE:
                self._response(msg, now, out)
            elif kind == REQUEST:
                self._request(msg, now, out)
            elif msg.hop != LOCAL:
                out.append(msg)
            else:
                self._notice(msg, now, out)

    # ------------------------------------------------------------------------------------------------- housekeeping

    @property
    def congestion(self) -> int:
        """What should not be read now, as flags of ``Congestion``; 0 as a rule."""
        leader = self.leader
        if leader is not None and leader.congested:
            return CONGESTED
        return CLIENTS_HELD if self.kvs.congested else 0

    @property
    def gone(self) -> bool:
        """True when the broker has ended."""
        return self.lifecycle.state == LifecycleState.GONE

    @property
    def remote_state(self) -> dict[int, list[tuple[str, int]]]:
        """Client hop to the (service, rank) of other brokers that may keep state for it."""
        return {hop: list(kept) for hop, kept in self._remote_state.items()}

    def _count_internal_error(self, what: str, error: Exception) -> None:
        self._internal_errors += 1
        self.on_internal_error(what, error)

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the numbers of every machine and driver, by its name."""
        broker: dict[str, float] = {
            "refused": self._refused,
            "dropped": self._dropped,
            "internal_errors": self._internal_errors,
        }
        return {"broker": broker} | self.registry.statistics() | self.outside()

    def check(self) -> None:
        """Assert the invariants of every machine."""
        for machine in self.registry.machines:
            machine.check()


def _ignore(msg: Message) -> None: ...
def _ignore_error(what: str, error: Exception) -> None: ...


def _source(hop: int) -> str:
    return f"rank {hop}" if hop >= 0 else "a driver or a machine of this broker"
