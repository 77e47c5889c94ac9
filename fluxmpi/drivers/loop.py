"""The loop: one thread that passes what arrives to the broker and sends what the broker returns.

A turn::

    wait ─▶ read clients, doorbells, MPI, processes, disk ─▶ step each message ─▶ tick if due ─▶ a batch per peer, client

Messages that arrive together share a turn; a single message is not delayed.

How the loop waits decides what an idle broker costs. In this order:

1. It does not wait while there is work.
2. For SPIN_S after a request or response, if those follow one another closely, it polls in a loop and yields the
   processor in between (``sched_yield``). A setroot or an event starts no spinning: few brokers that get one get
   another message soon. A broker does not spin on a host with as many brokers as cores either: it would take the core
   that the message needs.
3. It sleeps in epoll until a client writes, a doorbell rings, a process ends or a deadline passes. A lost doorbell is
   covered by a poll after FALLBACK_S, doubled up to FALLBACK_MAX_S while such polls find nothing, so an idle broker
   wakes about once a second.

An exception that leaves the broker or a driver is the failure of the broker. What the steps before it have returned is
still sent. Then a ``FailedBroker`` takes the broker's place, and the turns go on, without clients, until the instance
has ended in order; at rank 0, a thread saves the store meanwhile. A second exception ends this process at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from logging import ERROR, INFO
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.broker.broker import Broker, Congestion
from fluxmpi.broker.failed import FailedBroker
from fluxmpi.broker.lifecycle import LifecycleState
from fluxmpi.broker.outbox import sort_outgoing
from fluxmpi.broker.tracer import TRACE_LIMITS, Tracer
from fluxmpi.broker.wire import Hello, Shutdown
from fluxmpi.drivers import malloc
from fluxmpi.drivers.clients import LIMITS as CLIENT_LIMITS
from fluxmpi.drivers.clients import ClientLimits, ClientSockets
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.disk import Disk
from fluxmpi.drivers.launcher import Launcher
from fluxmpi.drivers.log import complain, failure_text, logger, tell_traceback
from fluxmpi.drivers.memory import AddressSpace
from fluxmpi.drivers.page import RootPageWriter
from fluxmpi.drivers.rescue import Rescuer
from fluxmpi.drivers.resume import newest_text
from fluxmpi.drivers.segments import Segments
from fluxmpi.kvs.replica.root_page import path_of
from fluxmpi.machine import shorten
from fluxmpi.message import DISK, LAUNCHER, LOOP, PAGE, PROTOCOL, RESPONSE, SEGMENTS, Message, control
from fluxmpi.overlay.wire import LostRank

log = logger("loop")

SPIN_S = 0.0005
GAP_MAX_S = 0.002
"""A longer pause between requests counts as this long, so that spinning begins a few messages after a quiet time."""

FINE_S = 0.002
"""epoll sleeps whole milliseconds, rounded up. For a shorter time, ``select`` waits on the epoll descriptor in
microseconds.
"""

FALLBACK_S = 0.1
FALLBACK_MAX_S = 1.0
TURN_USUAL_S = 0.05
"""A deadline further away than this allows the loop to skip a reading of the clock, unless a turn takes longer."""

LONG_TURN_S = 0.1
"""A turn that takes longer is logged: everything else at this broker waited that long."""

POLL_MAX_S = 0.01
"""With --wake=poll: the longest sleep between two polls of MPI."""

EVENTS_USUAL = 80
"""Descriptors that one call of epoll returns at most; if so many are ready, a second call returns all. Python allocates
memory for as many as it is asked for, and malloc has buffers of this size at hand.
"""

BACKLOG_HIGH = 64 << 20
"""Bytes queued for other brokers; above that, neither clients nor the output of commands are read."""

LINKS_HELD = 4
"""The links to other brokers have more than BACKLOG_HIGH."""

ALL_HELD = Congestion.BROKERS.value

RESERVE_BYTES = 64 << 20
"""Enough for a thread, and for saving some hundred thousand blobs."""

NOTHING: list[Message] = []
"""Never changed."""

READ, WRITE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR, select.EPOLLOUT


class Transport(Protocol):
    """Batches of messages to and from neighbours: ``MpiTransport``, or ``LocalTransport`` for one rank."""

    gone: list[tuple[int, str]]

    @property
    def expecting(self) -> bool: ...
    @property
    def sending(self) -> bool: ...
    @property
    def backlog(self) -> int: ...
    def send(self, rank: int, batch: list[Message]) -> None: ...
    def flush(self) -> None: ...
    def listen(self) -> None: ...
    def arrived(self) -> bool: ...
    def poll(self) -> list[Message]: ...
    def filenos(self) -> list[int]: ...
    def drop(self, rank: int) -> None: ...
    def hang_up(self, rank: int) -> None: ...
    def statistics(self) -> dict[str, float]: ...
    def close(self, clean: bool) -> None: ...


class Loop:
    """``run`` returns the exit status. ``socket``: the path that clients connect to."""

    def __init__(
        self,
        broker: Broker,
        transport: Transport,
        clock: Clock,
        socket: str,
        *,
        polling: bool = False,
        spinning: bool = True,
        client_limits: ClientLimits = CLIENT_LIMITS,
        report: Callable[[str], None] = complain,
    ) -> None:
        """``report``: prints why the instance has ended."""
        config = broker.config
        self._broker: Broker | FailedBroker = broker
        self._tracer = broker.tracer
        self._transport = transport
        self._clock = clock
        self._report = report
        self._polling = polling
        self._spin_s = SPIN_S if spinning else 0.0
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._inbox: deque[Message] = deque()
        self._gone_clients: list[int] = []
        self._from_threads: deque[Message] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake_fd, self._woken)
        for fd in transport.filenos():
            self.watch(fd, transport.listen)
        hello = Hello(PROTOCOL, config.instance, config.rank, config.size, config.algorithm, os.getpid())
        gone = self._gone_clients.append
        self._clients = ClientSockets(
            self, socket, control("hello", hello), self._inbox.append, gone, self._lags, client_limits, clock.now
        )
        environ = {"FLUXMPI_URI": f"local://{socket}", "FLUXMPI_RANK": str(config.rank)}
        self._page = RootPageWriter(path_of(socket), config.instance, config.rank)
        self._launcher = Launcher(self, environ)
        self._disk = Disk(
            self.post, _no_store if broker.store is None else broker.store.get, config.algorithm, config.instance
        )
        self._segments = Segments(self._clients, self._inbox.append)
        self._drivers: dict[int, Callable[[Message], None]] = {
            PAGE: self._page.step,
            LAUNCHER: self._launcher.step,
            DISK: self._disk.step,
            SEGMENTS: self._segments.step,
        }
        self._fallback_s = FALLBACK_S
        self._fallback = False
        """This turn is a fallback poll: no descriptor was ready."""
        self._fallback_hits = 0
        """Fallback polls that found messages: each is a lost doorbell."""
        self._last_call = clock.now()
        """When the last request or response was stepped; ``_gap_s`` is the usual time between two such turns."""
        self._gap_s = GAP_MAX_S
        self._now = self._last_call
        """When the turn began."""
        self._deadline = broker.deadline
        """As of the end of the last turn: nothing else changes it."""
        self._held = 0
        """What is not read, as flags: LINKS_HELD and those of ``Congestion``."""
        self._trims = 0
        self._longest_trim_s = 0.0
        self._longest_turn_s = self._usual_turn_s = 0.0
        """``_usual_turn_s``: a turn that takes longer is counted; the least of the longest one and LONG_TURN_S."""
        self._lost = broker.router.lost
        self._lost_logged = 0
        """How many of the lost ranks are in the log."""
        self._exit: Shutdown | None = None
        self._stepped: list[Message] = NOTHING
        """What this turn's steps have returned, until it is sent."""
        self._failure = ""
        """How this broker has failed, if it has."""
        self._rescuer: Rescuer | None = None
        self._reserve = AddressSpace(RESERVE_BYTES) if broker.store is not None and config.checkpoint else None
        """Released when the broker fails, perhaps for want of memory."""
        broker.outside = self.statistics
        self._told: dict[str, None] = {}
        """What failed by a defect, and the user was told of."""
        broker.on_drop = self._log_drop
        broker.on_internal_error = self._log_internal_error

    # ------------------------------------------------------------------------------------------- for the drivers

    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None:
        """Call back when ``fd`` is readable, or writable."""
        known = fd in self._readers or fd in self._writers
        (self._writers if write else self._readers)[fd] = callback
        mask = (READ if fd in self._readers else 0) | (WRITE if fd in self._writers else 0)
        (self._epoll.modify if known else self._epoll.register)(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``, for reading and writing; call it before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None or fd in self._writers:
            self._writers.pop(fd, None)
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def deliver(self, msg: Message) -> None:
        """Queue a message for the broker, from the loop's own thread."""
        self._inbox.append(msg)

    def post(self, msg: Message) -> None:
        """Queue a message for the broker, from any thread or a signal handler."""
        self._from_threads.append(msg)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _lags(self, hop: int) -> None:
        """Report a client that leaves its events unread."""
        self._inbox.append(control("event.lags", hop, LOOP))

    def _log_drop(self, msg: Message) -> None:
        """Log a message that its sender may not send: a peer has a defect."""
        log.warning("dropped %s of kind %d from hop %d: it may not send that", shorten(msg.topic), msg.kind, msg.hop)

    def _log_internal_error(self, what: str, error: Exception) -> None:
        """Log the traceback of an InternalError; tell the user once of each kind, who may have no log."""
        log.error("%s failed by a defect; the request was answered with InternalError", what, exc_info=error)
        if what not in self._told:
            self._told[what] = None
            complain(
                f"fluxmpi: broker {self._broker.config.rank}: {what} failed by a defect: {type(error).__name__}: {error}; "
                "the traceback is in the log, if there is one (--log-level=error)"
            )

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._from_threads:
            self._inbox.append(self._from_threads.popleft())

    # ---------------------------------------------------------------------------------------------------- running

    def run(self) -> int:
        """Run until the broker has ended; returns the exit status of this rank."""
        self._catch_signals()
        try:
            assert isinstance(self._broker, Broker)
            self._send(self._broker.start(self._clock.now()))
            self._deadline = self._broker.deadline
        except Exception as error:
            self._fail(error)
        while self._exit is None:
            try:
                while self._exit is None:
                    self._turn()
            except Exception as error:
                self._fail(error)
        return self._finish(self._exit)

    # ---------------------------------------------------------------------------------------------- a broker that fails

    def _fail(self, error: Exception) -> None:
        """Put a FailedBroker into the place of the broker. If that fails, too, have the loop exit."""
        if self._reserve is not None:
            self._reserve.release()
        broker, config = self._broker, self._broker.config
        where = f"broker {config.rank} ({config.hosts[config.rank]})"
        shutdown = Shutdown(1, f"{where} failed: {self._failure or type(error).__name__}", failed=True)
        try:
            tell_traceback(config.rank, error)
            first, self._failure = not self._failure, self._failure or failure_text(error)
            shutdown.reason = f"{where} failed: {self._failure}"
            if first and isinstance(broker, Broker) and broker.lifecycle.state < LifecycleState.END:
                self._stand_in(broker, where)
                return
        except Exception as second:
            with contextlib.suppress(Exception):
                tell_traceback(config.rank, second)
        self._failure = self._failure or type(error).__name__
        self._exit = shutdown

    def _stand_in(self, broker: Broker, where: str) -> None:
        """Send what the steps before the failure have returned, and go on with a FailedBroker and without clients."""
        stepped, self._stepped = self._stepped, NOTHING
        with contextlib.suppress(Exception):
            self._send(stepped)
        self._tracer = Tracer(TRACE_LIMITS)
        self._inbox.clear()
        for close in (self._clients.close, self._page.close, self._segments.close, self._launcher.terminate):
            with contextlib.suppress(Exception):
                close()
        self._gone_clients.clear()
        now, config = self._clock.now(), broker.config
        failed = self._broker = FailedBroker(broker, self._failure, now)
        if not config.checkpoint or broker.store is None or broker.leader is None:
            self._send(failed.start(False, now))
        else:
            complain(f"fluxmpi: {where} failed, and saves the store: {self._failure}")
            self._send(failed.start(True, now))
            self._rescuer = Rescuer(broker.leader.namespaces, broker.store, config, self._disk, self._clock, self.post)
            self._rescuer.start()
        self._deadline = failed.deadline

    # ----------------------------------------------------------------------------------------------------------- turns

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda caught, _: self.post(control("lifecycle.signal", caught, LOOP)))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _turn(self) -> None:
        ready = self._wait()
        now = self._now = self._clock.now()
        self._read(ready)
        inbox, transport = self._inbox, self._transport
        received = [] if self._held & ALL_HELD else transport.poll()
        if received:
            inbox += received
            if self._fallback:
                self._count_fallback(received)
        broker = self._broker
        out: list[Message] = []
        self._stepped = out
        if inbox:
            self._fallback_s = FALLBACK_S
            if inbox[0].kind <= RESPONSE or inbox[-1].kind <= RESPONSE:
                self._gap_s += (min(now - self._last_call, GAP_MAX_S) - self._gap_s) / 4
                self._last_call = now
            step = broker.step
            while inbox:
                msg = inbox.popleft()
                out += step(msg, now)
                if msg.hop == DISK:
                    self._disk.taken(msg)
        while self._gone_clients:
            out += broker.disconnect(self._gone_clients.pop(), now)
        while transport.gone:
            rank, reason = transport.gone.pop()
            out += broker.step(control("overlay.lost", LostRank(rank, reason), LOOP), now)
        deadline = broker.deadline
        if deadline <= now:
            out += broker.tick(now)
            deadline = broker.deadline
        clients = self._clients
        if clients.deadline <= now:
            clients.tick(now)
        self._deadline = deadline if deadline < clients.deadline else clients.deadline
        self._stepped = NOTHING
        if out:
            self._send(out)
        transport.flush()
        held = broker.congestion
        if transport.sending and transport.backlog > BACKLOG_HIGH:
            held |= LINKS_HELD
        if held != self._held:
            self._hold(held)
        if len(self._lost) != self._lost_logged:
            self._log_lost()
        took = self._clock.now() - now
        if took > self._usual_turn_s:
            self._count_turn(took, len(out))

    def _hold(self, held: int) -> None:
        """Read from all, or not from those that would add to what waits; see ``Congestion``."""
        self._held = held
        self._clients.hold(held != 0)
        self._launcher.hold(held & LINKS_HELD != 0)

    def _trim(self) -> None:
        """Give freed memory back to the kernel."""
        before = self._clock.now()
        malloc.trim()
        took = self._clock.now() - before
        self._trims += 1
        self._longest_trim_s = max(took, self._longest_trim_s)

    def _count_turn(self, took: float, sent: int) -> None:
        """Count a turn that took longer than all before, or than LONG_TURN_S, and log the latter."""
        self._longest_turn_s = max(took, self._longest_turn_s)
        self._usual_turn_s = min(self._longest_turn_s, LONG_TURN_S)
        if took > LONG_TURN_S:
            log.warning("a turn took %.0f ms and sent %d messages; everything else waited", took * 1000, sent)

    def _count_fallback(self, received: list[Message]) -> None:
        """Count a poll without a doorbell that found messages: the doorbell was lost, or MPI delivered them late."""
        self._fallback_hits += 1
        ranks = ", ".join(str(rank) for rank in dict.fromkeys(msg.hop for msg in received))
        log.info("a fallback poll found %d messages without a doorbell, from rank %s", len(received), ranks)

    def _log_lost(self) -> None:
        """Log the ranks that were lost since the last call."""
        lost, hosts = self._lost, self._broker.config.hosts
        for rank, reason in list(lost.items())[self._lost_logged :]:
            log.warning("lost rank %d (%s): %s", rank, hosts[rank], reason)
        self._lost_logged = len(lost)

    def _wait(self) -> list[tuple[int, int]]:
        """Wait until there is, or may be, something to do; returns the descriptors that are ready."""
        timeout = self.timeout()
        if timeout <= 0 and not self._inbox:
            ready = self._spin()
        elif 0 < timeout < FINE_S:
            select.select([self._epoll], [], [], timeout)
            ready = self._epoll.poll(0)
        else:
            ready = self._epoll.poll(timeout, EVENTS_USUAL)
            if len(ready) == EVENTS_USUAL:
                ready = self._epoll.poll(0)
        self._fallback = not ready and timeout >= self._fallback_s
        if self._fallback:
            self._fallback_s = min(2 * self._fallback_s, FALLBACK_MAX_S)
        return ready

    def _read(self, ready: list[tuple[int, int]]) -> None:
        """Call the drivers back whose descriptors are ready."""
        for fd, mask in ready:
            if mask & ~WRITE:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
            if mask & WRITE:
                writer = self._writers.get(fd)
                if writer is not None:
                    writer()

    def _spin(self) -> list[tuple[int, int]]:
        """Poll MPI and the descriptors in turn for SPIN_S, yielding the processor in between."""
        arrived, poll, now, sched_yield = self._transport.arrived, self._epoll.poll, self._clock.now, os.sched_yield
        end = min(now() + SPIN_S, self._broker.deadline)
        while not arrived():
            ready = poll(0)
            if ready:
                return ready
            sched_yield()
            if now() > end:
                return ready
        return poll(0)

    def timeout(self) -> float:
        """Return how long the next turn may sleep, in seconds; 0 means that it spins."""
        if self._inbox:
            return 0
        transport = self._transport
        if transport.expecting:
            return 0
        longest = self._fallback_s
        if transport.sending:
            longest = 0.001
        if self._spin_s or self._polling:
            idle = self._clock.now() - self._last_call
            if idle < self._spin_s and self._gap_s < SPIN_S:
                return 0
            if self._polling and not transport.sending:
                longest = min(max(idle / 10, 0.001), POLL_MAX_S)
        if self._deadline - self._now > longest + TURN_USUAL_S:
            return longest
        return max(min(self._deadline - self._clock.now(), longest), 0.0)

    def _send(self, out: list[Message]) -> None:
        """Send a turn's messages: to the drivers, each peer one batch, each client one batch."""
        if len(out) == 1 and out[0].hop >= 0 and not self._tracer.on:  # one message that is forwarded: the usual case
            self._transport.send(out[0].hop, out)
            return
        outgoing = sort_outgoing(out)
        drivers, transport = self._drivers, self._transport
        for msg in outgoing.drivers:
            drivers[msg.hop](msg)
        if self._tracer.on:
            self._tracer.mark(outgoing.peers)
        for rank, batch in outgoing.peers.items():
            transport.send(rank, batch)
        for rank in outgoing.hang_up:
            transport.hang_up(rank)
        for text in outgoing.told:
            log.warning("%s", text)
            complain(f"fluxmpi: {text}")
        self._page.flush()  # before the clients: a client that is notified of a version finds it in the page
        send = self._clients.send
        for hop, batch in outgoing.clients.items():
            send(hop, batch)
        if outgoing.trim:
            self._trim()
        if outgoing.exit is not None:
            self._exit = outgoing.exit

    def _finish(self, shutdown: Shutdown) -> int:
        """Release everything; returns the exit status of this rank."""
        lost = self._lost
        if self._rescuer is not None:
            self._rescuer.join()
        for rank in lost:
            self._transport.drop(rank)
        self._transport.flush()
        if len(lost) != self._lost_logged:
            self._log_lost()
        try:
            self.close()
        except Exception:
            if not self._failure:
                raise
        log.log(
            ERROR if shutdown.status else INFO,
            "ends with status %d%s",
            shutdown.status,
            f": {shutdown.reason}" if shutdown.reason else "",
        )
        lifecycle = self._broker.lifecycle
        if shutdown.reason and shutdown.status and (self._broker.config.rank == 0 or lifecycle.cut_off):
            text = shutdown.reason
            if shutdown.lost or shutdown.failed:
                text += f"; {newest_text(lifecycle.newest_checkpoint, lifecycle.version(), self._clock.now())}"
            self._report(f"fluxmpi: {text}")
        elif lost and self._broker.config.rank == 0:
            hosts = self._broker.config.hosts
            names = "; ".join(f"broker {rank} ({hosts[rank]}): {reason}" for rank, reason in lost.items())
            complain(f"fluxmpi: lost while the instance ended: {names}")
        self._transport.close(clean=self.clean)
        return shutdown.status

    def close(self) -> None:
        """Release the descriptors, processes and files of all drivers but the transport."""
        if not self._failure:  # else the guard ends the commands, after a grace time
            self._launcher.close()
        self._clients.close()
        self._page.close()
        self._segments.close()
        self._disk.close()
        self._epoll.close()
        os.close(self._wake_fd)

    @property
    def clean(self) -> bool:
        """True if all ranks were there to the end, so that MPI can be finalized."""
        left = self._exit is not None and self._exit.lost
        return not self._lost and not left and self._broker.lifecycle.state == LifecycleState.GONE

    @property
    def failed(self) -> bool:
        """True if the broker has failed."""
        return bool(self._failure)

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each driver."""
        return {
            "clients": self._clients.statistics(),
            "launcher": self._launcher.statistics(),
            "loop": {
                "longest_turn_s": self._longest_turn_s,
                "fallback_hits": self._fallback_hits,
                "trims": self._trims,
                "longest_trim_s": self._longest_trim_s,
            },
            "page": self._page.statistics(),
            "segments": self._segments.statistics(),
            "transport": self._transport.statistics(),
        }


def _no_store(ref: Ref) -> None:
    """Return that a broker other than rank 0's has no store."""
