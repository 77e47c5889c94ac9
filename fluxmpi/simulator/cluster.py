"""The instance: N brokers under a virtual clock, each with a simulated loop.

A turn, as in ``drivers/loop``::

    something arrived, or the deadline came ─▶ drain: step each message ─▶ disconnects ─▶ tick if due ─▶ one batch per
    peer

A turn takes no virtual time, but the rank is busy for a while after it, so messages that arrive meanwhile share the
next turn, as in the real loop. A paused rank takes no turns, and its inbox waits. A killed rank neither takes turns nor
sends; its clients' sockets close.

Invariants: a broker's ``check()`` passes after its steps; ``now`` never goes backwards; a client's hop is used once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from fluxmpi.blobref import digest_function
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.failed import FailedBroker
from fluxmpi.broker.lifecycle import LifecycleState
from fluxmpi.broker.outbox import sort_outgoing
from fluxmpi.broker.wire import Hello, Rescued, Shutdown
from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT
from fluxmpi.kvs.mvcc.space import UNBOUNDED
from fluxmpi.kvs.wire import PIECE_OPS, SavedNamespace
from fluxmpi.message import (
    CLIENT_FIRST,
    DISK,
    LAUNCHER,
    LOOP,
    OK,
    PAGE,
    PROTOCOL,
    REQUEST,
    SEGMENTS,
    Message,
    control,
    decode_batch,
    encode_batch,
)
from fluxmpi.simulator.drivers.disk import SimulatedDisk
from fluxmpi.simulator.drivers.launcher import SimulatedLauncher
from fluxmpi.simulator.drivers.page import SimulatedPage
from fluxmpi.simulator.drivers.segments import SimulatedSegments
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.network import LinkDelays, Network
from fluxmpi.simulator.schedule import Schedule
from fluxmpi.simulator.trace import Trace

NEVER = float("inf")

CLIENT_DELAY_S = 0.0001
"""Between a client and its broker, at most."""

TURN_S = 0.00005
"""How long a turn keeps a rank busy, on average, and as much again for each ten messages."""


class StepObserver(Protocol):
    """Observes the steps of brokers: see ``inspection.monitor``."""

    def stepping(self, node: SimulatedRank, source: int, msg: Message) -> None: ...
    def stepped(self, node: SimulatedRank, source: int, msg: Message | None, out: list[Message]) -> None: ...
    def sending(self, node: SimulatedRank) -> None: ...
    def exited(self, node: SimulatedRank) -> None: ...


class ClientEnd(Protocol):
    """The client's end of a connection. Empty bytes: the broker closed it."""

    def receive(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """The size and configuration of a cluster. ``check_every``: rank 0 is checked after every so many steps."""

    ranks: int
    topology: str = "kary:2"
    algorithm: str = "sha256"
    cache_bytes_max: int = 64 << 20
    segments_bytes_max: int = 1 << 30
    nodes_max: int = 16384
    heartbeat_s: float = 2.0
    retention: int = RETENTION_COUNT
    history_bytes_max: int = HISTORY_BYTES_MAX
    store_bytes_max: int = UNBOUNDED
    kvs: KvsLimits = KVS_LIMITS
    command: tuple[str, ...] = ()
    checkpoint: str = ""
    checkpoint_every_s: float = 0.0
    disk_failures: float = 0.0
    """Share of checkpoint writes that fail; a third of it is the share of segments that cannot be created."""
    check_every: int = 8
    piece_ops: int = PIECE_OPS
    """Operations in each piece of a large transaction that clients send."""
    delays: LinkDelays = field(default_factory=LinkDelays)

    @property
    def small_store(self) -> bool:
        """The store may be full: commits are refused with StoreFull, and history may be dropped."""
        return self.store_bytes_max < UNBOUNDED

    @property
    def small_history(self) -> bool:
        """Versions may be dropped for their bytes: only the newest one and leased ones are certain."""
        return self.small_store or self.history_bytes_max < HISTORY_BYTES_MAX

    @property
    def retained_min(self) -> int:
        """Versions that are always kept."""
        return 1 if self.small_history else self.retention

    @property
    def grace_s(self) -> float:
        """How long a blob without a commit is kept at least."""
        gc = self.kvs.gc
        return min(gc.grace_s, gc.pressed_grace_s) if self.small_store else gc.grace_s


class SimulatedRank:
    """One rank: its broker, its simulated drivers, and the input of its next turn."""

    def __init__(
        self, broker: Broker, disk: SimulatedDisk, launcher: SimulatedLauncher, segments: SimulatedSegments
    ) -> None:
        self.broker = broker
        self.rank = broker.config.rank
        self.disk = disk
        self.launcher = launcher
        self.page = SimulatedPage(broker.config.instance, self.rank)
        self.segments = segments
        self.drivers = {PAGE: self.page.step, LAUNCHER: launcher.step, DISK: disk.step, SEGMENTS: segments.step}
        self.inbox: deque[tuple[int, bytes]] = deque()
        self.gone_clients: list[int] = []
        self.clients: dict[int, tuple[ClientEnd, float]] = {}
        """Hop to the client's end and the arrival time of the newest bytes to it."""
        self.hung_up: dict[int, None] = {}
        """Children that were ordered to end: nothing is sent to them any more."""
        self.alive = True
        self.paused = False
        self.stand_in: FailedBroker | None = None
        """Takes the broker's place when it has failed."""
        self.exit: Shutdown | None = None
        self.busy_until = 0.0
        self.turn_at = NEVER
        self.steps = 0

    @property
    def up(self) -> bool:
        """True if it was neither killed nor has ended."""
        return self.alive and self.exit is None


class Cluster:
    """``restored``, ``store``: the roots and store that rank 0 starts from, as after a restart from a checkpoint."""

    def __init__(
        self,
        shape: Shape,
        rng: Random,
        trace: Trace,
        restored: list[SavedNamespace] | None = None,
        store: ArchivingStore | None = None,
    ) -> None:
        self.shape = shape
        self.schedule = Schedule()
        self.trace = trace
        self.digest = digest_function(shape.algorithm)
        self.store = ArchivingStore() if store is None else store
        self.network = Network(self.schedule, rng, shape.delays, self._arrive, trace)
        self.observer: StepObserver | None = None
        self._rng = rng
        self._last_hop = CLIENT_FIRST + 1
        self._sent_at: dict[int, float] = {}
        """Hop to the arrival time of the newest bytes from that client."""
        hosts = tuple(f"node{rank}" for rank in range(shape.ranks))
        self.nodes: list[SimulatedRank] = []
        for rank in range(shape.ranks):
            config = Config(
                rank=rank,
                size=shape.ranks,
                hosts=hosts,
                instance="simulated",
                topology=shape.topology,
                algorithm=shape.algorithm,
                heartbeat_s=shape.heartbeat_s,
                cache_bytes_max=shape.cache_bytes_max,
                segments_bytes_max=shape.segments_bytes_max,
                nodes_max=shape.nodes_max,
                retention=shape.retention,
                history_bytes_max=shape.history_bytes_max,
                store_bytes_max=shape.store_bytes_max,
                kvs=shape.kvs,
                command=shape.command,
                checkpoint=shape.checkpoint,
                checkpoint_every_s=shape.checkpoint_every_s,
            )
            broker = Broker(config, self.now, *((restored, self.store) if rank == 0 else ()))
            disk = SimulatedDisk(
                self.schedule, rng, self._deliver_from(rank, DISK), self.store.get, shape.disk_failures
            )
            launcher = SimulatedLauncher(self.schedule, rng, self._deliver_from(rank, LAUNCHER))
            segments = SimulatedSegments(
                rng, self._deliver_from(rank, SEGMENTS), self._answer_from(rank), shape.disk_failures / 3
            )
            self.nodes.append(SimulatedRank(broker, disk, launcher, segments))

    @property
    def now(self) -> float:
        return self.schedule.now

    def start(self) -> None:
        """Start every broker. Set ``observer`` before."""
        for node in self.nodes:
            out = node.broker.start(self.now)
            self._after_step(node, -1, None, out)
            self._send(node, out)
            self._wake(node, node.broker.deadline)

    # ------------------------------------------------------------------------------------------------------- turns

    def _arrive(self, source: int, target: int, blob: bytes) -> None:
        node = self.nodes[target]
        if node.up:
            node.inbox.append((source, blob))
            self._wake(node, self.now)

    def _deliver_from(self, rank: int, driver: int) -> Callable[[Message], None]:
        def deliver(msg: Message) -> None:
            blob = encode_batch([msg])
            self.trace.wire(self.now, driver, rank, blob)
            self._arrive(driver, rank, blob)

        return deliver

    def _answer_from(self, rank: int) -> Callable[[int, Message], None]:
        return lambda hop, msg: self._to_client(self.nodes[rank], hop, [msg])

    def inject(self, rank: int, source: int, msg: Message) -> None:
        """Deliver a message at once, as if that neighbour had sent it."""
        self._arrive(source, rank, encode_batch([msg]))

    def _wake(self, node: SimulatedRank, when: float) -> None:
        """Schedule a turn at that time, or as soon as the rank is not busy."""
        when = max(when, node.busy_until)
        if when < node.turn_at:
            node.turn_at = when
            self.schedule.at(when, lambda: self._turn(node, when))

    def _turn(self, node: SimulatedRank, when: float) -> None:
        if node.turn_at != when or not node.up:
            return
        if node.paused:
            node.turn_at = NEVER
            return
        broker: Broker | FailedBroker = node.stand_in or node.broker
        now, after_step = self.now, self._after_step
        node.turn_at = NEVER
        out: list[Message] = []
        steps = node.steps
        while node.inbox:
            source, blob = node.inbox.popleft()
            for msg in decode_batch(blob):
                msg.hop = source
                if source <= CLIENT_FIRST:  # as its socket does
                    msg.status, msg.route = OK, []
                if self.observer is not None and node.stand_in is None:
                    self.observer.stepping(node, source, msg)
                result = broker.step(msg, now)
                after_step(node, source, msg, result)
                out += result
        while node.gone_clients:
            result = broker.disconnect(node.gone_clients.pop(0), now)
            after_step(node, -1, None, result)
            out += result
        if broker.deadline <= now:
            result = broker.tick(now)
            after_step(node, -1, None, result)
            out += result
        self._send(node, out)
        node.busy_until = now + self._rng.random() * TURN_S * (2 + (node.steps - steps) / 5)
        self._wake(node, broker.deadline)

    def _after_step(self, node: SimulatedRank, source: int, msg: Message | None, out: list[Message]) -> None:
        """Check the broker's invariants after a step, and call the observer."""
        node.steps += 1
        if node.stand_in is not None:
            node.stand_in.check()
            return
        if node.rank or node.steps % self.shape.check_every == 0:
            node.broker.check()
        if self.observer is not None:
            self.observer.stepped(node, source, msg, out)

    def _send(self, node: SimulatedRank, out: list[Message]) -> None:
        """Send a turn's messages: to the drivers, each peer one batch, each client one batch."""
        outgoing = sort_outgoing(out)
        for msg in outgoing.drivers:
            node.drivers[msg.hop](msg)
        for rank, batch in outgoing.peers.items():
            if rank in node.hung_up:
                continue
            other = self.nodes[rank]
            # MPICH over OFI ends a process that sends to a rank that has finished.
            clean = other.alive and not other.broker.router.lost
            assert other.exit is None or not clean, f"rank {node.rank} sends to {rank}, which has ended"
            self.network.send(node.rank, rank, batch)
        node.hung_up |= dict.fromkeys(outgoing.hang_up)
        for text in outgoing.told:
            self.trace.note(self.now, f"rank {node.rank} tells: {text}")
        node.page.flush()
        if outgoing.clients and self.observer is not None:
            self.observer.sending(node)
        for hop, batch in outgoing.clients.items():
            self._to_client(node, hop, batch)
        if outgoing.exit is not None:
            node.exit = outgoing.exit
            self.trace.note(self.now, f"rank {node.rank} ends: status {node.exit.status} {node.exit.reason}")
            self._hang_up(node)
            if self.observer is not None:
                self.observer.exited(node)

    # ------------------------------------------------------------------------------------------------------ clients

    def connect(self, rank: int, peer: ClientEnd) -> int:
        """Connect a client to the broker of ``rank``, which must be up; return the connection's hop."""
        node = self.nodes[rank]
        assert node.up
        self._last_hop -= 1
        hop = self._last_hop
        node.clients[hop] = (peer, self.now)
        config = node.broker.config
        hello = Hello(PROTOCOL, config.instance, rank, config.size, config.algorithm, 0)
        self._to_client(node, hop, [control("hello", hello)])
        return hop

    def write(self, rank: int, hop: int, frames: bytes) -> None:
        """Send bytes from a client: they arrive in order, one frame at a time."""
        node = self.nodes[rank]
        at = 0
        while at < len(frames):
            length = int.from_bytes(frames[at : at + 4], "little")
            blob = frames[at + 4 : at + 4 + length]
            at += 4 + length
            assert all(msg.kind == REQUEST for msg in decode_batch(blob))
            when = max(self.now + self._rng.random() * CLIENT_DELAY_S, self._sent_at.get(hop, 0.0))
            self._sent_at[hop] = when
            self.trace.wire(self.now, hop, rank, blob)
            self.schedule.at(when, lambda blob=blob: self._from_client(node, hop, blob))  # type: ignore[misc]

    def _from_client(self, node: SimulatedRank, hop: int, blob: bytes) -> None:
        if hop in node.clients:
            self._arrive(hop, node.rank, blob)

    def disconnect(self, rank: int, hop: int) -> None:
        """Close a client's socket: what it sent before is still read."""
        node = self.nodes[rank]

        def closed() -> None:
            if node.clients.pop(hop, None) is not None and node.up:
                node.gone_clients.append(hop)
                self._wake(node, self.now)

        self.schedule.at(max(self.now, self._sent_at.get(hop, 0.0)), closed)

    def _to_client(self, node: SimulatedRank, hop: int, batch: list[Message]) -> None:
        entry = node.clients.get(hop)
        if entry is None:
            return
        peer, last = entry
        blob = encode_batch(batch)
        frame = len(blob).to_bytes(4, "little") + blob
        self.trace.wire(self.now, node.rank, hop, blob)
        when = max(self.now + self._rng.random() * CLIENT_DELAY_S, last)
        node.clients[hop] = (peer, when)
        cut = self._rng.randrange(len(frame)) if self._rng.random() < 0.1 else 0
        for piece in (frame[:cut], frame[cut:]):
            if piece:
                self.schedule.at(when, lambda piece=piece: peer.receive(piece))  # type: ignore[misc]

    def _hang_up(self, node: SimulatedRank) -> None:
        """Close the sockets of a broker's clients, after what was written to them."""
        for peer, last in node.clients.values():
            self.schedule.at(last, lambda peer=peer: peer.receive(b""))  # type: ignore[misc]
        node.clients.clear()
        node.launcher.running.clear()

    # ------------------------------------------------------------------------------------------------------- faults

    def pause(self, rank: int, duration: float) -> None:
        """Stop a rank for a while: it takes no turns, and its input waits."""
        node = self.nodes[rank]
        if not node.up or node.paused:
            return
        self.trace.note(self.now, f"rank {rank} pauses for {duration:.3f} s")
        node.paused = True
        self.schedule.after(duration, lambda: self.resume(rank))

    def resume(self, rank: int) -> None:
        node = self.nodes[rank]
        if node.paused:
            node.paused = False
            self.trace.note(self.now, f"rank {rank} resumes")
            if node.up:
                self._wake(node, self.now)

    def fail(self, rank: int) -> None:
        """Have a machine of a broker raise: a stand-in takes its place, and rank 0's store is saved, after a while."""
        node = self.nodes[rank]
        if not node.up or node.stand_in is not None or node.broker.lifecycle.state >= LifecycleState.END:
            return
        self.trace.note(self.now, f"rank {rank} fails")
        failed = node.stand_in = FailedBroker(node.broker, "a machine has raised", self.now)
        node.inbox.clear()
        node.gone_clients.clear()
        self._hang_up(node)
        path, leader = self.shape.checkpoint, node.broker.leader
        rescuing = bool(path) and leader is not None
        out = failed.start(rescuing, self.now)
        self._after_step(node, -1, None, out)
        self._send(node, out)
        self._wake(node, failed.deadline)
        if rescuing and leader is not None:
            file = node.disk.rescue(
                path, leader.saved(), {ref: self.store.get(ref) or b"" for ref in self.store.refs()}, self.now
            )
            rescued = control("lifecycle.rescued", Rescued(file), LOOP)
            self.schedule.after(self._rng.random(), lambda: self._deliver_from(rank, LOOP)(rescued))

    def kill(self, rank: int) -> None:
        """End a rank as kill -9 does."""
        node = self.nodes[rank]
        if not node.up:
            return
        self.trace.note(self.now, f"rank {rank} is killed")
        node.alive = False
        node.inbox.clear()
        self.network.kill(rank)
        self._hang_up(node)

    @property
    def ended(self) -> bool:
        """True if no broker is running."""
        return not any(node.up for node in self.nodes)
