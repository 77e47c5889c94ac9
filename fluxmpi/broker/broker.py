"""The broker: one object that takes a message and gives messages, whatever carries them.

It owns the machines of one rank and the routing between them, their neighbours and clients:

    request   to the machine here, if the target is this rank, or ANY and there is one; else towards the target
    response  back to the hop that the request came from; LOCAL means one of our own machines
    event     to the event machine, which spreads it
    control   to the machine that the topic names; what has a hop goes out to it

A message that a machine sends to LOCAL is stepped at once, before the machine's later messages: so a ``setroot`` has reached
the children before the answers that depend on it, on the same links.

Nothing in this file or below knows of MPI, sockets, threads or clocks.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.broker.config import Config
from fluxmpi.broker.lifecycle import Lifecycle, LifecycleState
from fluxmpi.broker.registry import Registry
from fluxmpi.broker.statistics import Statistics
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentService
from fluxmpi.content.store import Store
from fluxmpi.content.values import ValueService
from fluxmpi.content.wire import BlobPlace
from fluxmpi.errors import FluxmpiError, NoSuchService, ProtocolError
from fluxmpi.jobs.exec import ExecService
from fluxmpi.kvs.fence.membership import FenceMembership
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService
from fluxmpi.kvs.mvcc.gc import Collector
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.machine import Machine
from fluxmpi.message import ANY, CLIENT_FIRST, CONTROL, EVENT, LOCAL, REQUEST, RESPONSE, Message, reply_error, request
from fluxmpi.overlay.events import EventService
from fluxmpi.overlay.health import Health
from fluxmpi.overlay.router import Router

STREAMING = ("exec", "kvs", "roots")
"""Services that keep something for a client of another broker, and so must hear when it disconnects."""


class Broker:
    def __init__(
        self, config: Config, now: float, restored: list[RootInfo] | None = None, store: Store | None = None
    ) -> None:
        """``restored``, ``store``: on rank 0, the roots and blobs of a checkpoint to go on from."""
        self.config = config
        self.router = Router(config.rank, config.size, config.topology)
        digest = digest_function(config.algorithm)
        blobs: Store | Cache = (
            (Store() if store is None else store) if config.rank == 0 else Cache(config.cache_bytes_max)
        )
        nodes = NodeCache(blobs, digest, config.nodes_max)
        self.lifecycle = Lifecycle(config, self.router)
        self.kvs = KvsService(self.router, nodes, blobs, digest, config.kvs)
        placed: dict[Ref, BlobPlace] = {}
        machines: list[Machine] = [
            self.kvs,
            ContentService(blobs, digest, self.router.parent, placed),
            ValueService(placed, config.segments_bytes_max),
            EventService(self.router),
            Health(self.router, list(config.hosts), config.heartbeat_s, now),
            self.lifecycle,
            ExecService(),
        ]
        self.leader: Leader | None = None
        if isinstance(blobs, Store):
            limits = config.kvs
            namespaces = Namespaces(config.retention, config.owner, limits.mvcc)
            self.leader = Leader(namespaces, nodes, blobs, digest, now, restored or [])
            self.roots = MvccService(namespaces, nodes, self.leader, limits.mvcc)
            checkpoint = CheckpointService(self.leader, nodes, blobs, digest, config.checkpoint, limits.mvcc)
            collector = Collector(blobs, nodes, namespaces, self.leader, [checkpoint], limits.gc)
            blobs.on_full = collector.wake
            machines += [self.leader, FenceMembership(), self.roots, checkpoint, collector]
        self.registry = Registry([*machines, Statistics(self)])
        self.outside: Callable[[], dict[str, dict[str, float]]] = dict
        """The drivers' numbers, where there are drivers."""
        self._events = self.registry.find("event")
        self._touched: dict[int, dict[tuple[str, int], None]] = {}
        """Client hop to the (service, rank) that keep something for it."""

    # ----------------------------------------------------------------------------------------------------- the seam

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
        """Take one message; the ones that result, each with the ``hop`` to send it to."""
        out: list[Message] = []
        kind = msg.kind
        if kind == REQUEST:
            self._request(msg, now, out)
        elif kind == RESPONSE:
            self._response(msg, now, out)
        elif kind == EVENT:
            self._emit(self._events.step(msg, now), now, out)  # type: ignore[union-attr]
        else:
            machine = self.registry.find(msg.topic)
            if machine is not None:
                self._emit(machine.step(msg, now), now, out)
        return out

    def tick(self, now: float) -> list[Message]:
        """Call when ``deadline`` has come, and all input that is there has been stepped."""
        out: list[Message] = []
        for machine in self.registry.machines:
            if machine.deadline <= now:
                self._emit(machine.tick(now), now, out)
        return out

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """The client with this hop is gone."""
        out: list[Message] = []
        for machine in self.registry.machines:
            self._emit(machine.disconnect(hop, now), now, out)
        for service, rank in self._touched.pop(hop, {}):
            farewell = request(f"{service}.disconnect", target=rank)
            farewell.route.append(hop)
            self._forward(farewell, rank, now, out)
        return out

    # ------------------------------------------------------------------------------------------------------ routing

    def _request(self, msg: Message, now: float, out: list[Message]) -> None:
        msg.route.append(msg.hop)
        target = msg.target
        rank = self.config.rank
        if target in (rank, ANY):
            machine = self.registry.find(msg.topic)
            if machine is not None:
                self._emit(machine.step(msg, now), now, out)
                return
            if target == rank or rank == 0:
                where = f" on rank {rank}" if target == rank else ": no broker on the way to rank 0 has it"
                text = f"no service '{msg.topic.partition('.')[0]}'{where}"
                self._emit([reply_error(msg, NoSuchService(text))], now, out)
                return
            target = 0
        if msg.hop <= CLIENT_FIRST and 0 <= target < self.config.size:
            service = msg.topic.partition(".")[0]
            if service in STREAMING:
                self._touched.setdefault(msg.hop, {})[service, target] = None
        self._forward(msg, target, now, out)

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
        if machine is not None:
            msg.hop = LOCAL
            self._emit(machine.step(msg, now), now, out)

    def _emit(self, messages: list[Message], now: float, out: list[Message]) -> None:
        """Send on what a machine gave; what is for LOCAL is stepped at once."""
        for msg in messages:
            kind = msg.kind
            if kind == RESPONSE:
                self._response(msg, now, out)
            elif kind == REQUEST:
                self._request(msg, now, out)
            elif msg.hop != LOCAL:
                out.append(msg)
            elif kind == CONTROL:
                machine = self.registry.find(msg.topic)
                if machine is None:
                    raise ProtocolError(f"no machine for the control message {msg.topic}")
                self._emit(machine.step(msg, now), now, out)
            else:
                self._emit(self._events.step(msg, now), now, out)  # type: ignore[union-attr]

    # ------------------------------------------------------------------------------------------------- housekeeping

    @property
    def gone(self) -> bool:
        return self.lifecycle.state == LifecycleState.GONE

    def statistics(self) -> dict[str, dict[str, float]]:
        return {machine.name: machine.statistics() for machine in self.registry.machines} | self.outside()

    def check(self) -> None:
        """Assert the invariants of every machine."""
        for machine in self.registry.machines:
            machine.check()
