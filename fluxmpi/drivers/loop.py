"""The loop: one thread that gives the broker what arrives and sends on what it answers.

A turn::

    wait ─▶ drain: clients, doorbells, MPI, processes, disk ─▶ step each message ─▶ tick if due ─▶ one batch per peer and client

Bursts batch themselves, and a lone message waits for nothing.

Waiting is what makes a broker quiet. In order: nothing at all while there is work; for SPIN_S after a request or response, if
those follow one another closely, looking again and again with the processor offered to others in between (``sched_yield``);
then sleep in epoll until a client writes, a bell rings, a process ends or a deadline comes. A setroot or an event starts no
spinning: of those that get one, few get another message soon. Nor does a broker spin on a host with as many brokers as cores:
it would take the core that the message needs. A bell that was lost is covered by a poll after FALLBACK_S, doubled up to
FALLBACK_MAX_S while such polls find nothing, so that a broker without work wakes about once a second.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fluxmpi.broker.broker import Broker
from fluxmpi.broker.wire import Hello, Shutdown
from fluxmpi.drivers.clients import ClientSockets
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.disk import Disk
from fluxmpi.drivers.launcher import Launcher
from fluxmpi.drivers.page import RootPageWriter
from fluxmpi.drivers.segments import Segments
from fluxmpi.kvs.replica.root_page import path_of
from fluxmpi.message import (
    CLIENT_FIRST,
    DISK,
    LAUNCHER,
    LOOP,
    PAGE,
    PROTOCOL,
    RESPONSE,
    SEGMENTS,
    Body,
    Message,
    control,
)
from fluxmpi.overlay.wire import LostRank

SPIN_S = 0.0005
GAP_MAX_S = 0.002
"""A longer pause between requests counts as this long, so that spinning begins a few messages after a quiet time."""

FINE_S = 0.002
"""epoll sleeps whole milliseconds, rounded up. For less than this, ``select`` waits on the epoll descriptor: microseconds."""

FALLBACK_S = 0.1
FALLBACK_MAX_S = 1.0
TURN_USUAL_S = 0.05
"""No deadline is missed for a look at the clock that was saved, unless a turn takes longer."""

POLL_MAX_S = 0.01
"""With --wake=poll: the longest sleep between two looks at MPI."""

EVENTS_USUAL = 80
"""Descriptors that one look is made for; if so many are ready, there is a second look for all. Python takes memory for as many
as it is asked for, and malloc has this much at hand.
"""

BACKLOG_HIGH = 64 << 20
"""Bytes that wait to be sent to other brokers; past that, clients are not read from."""

READ, WRITE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR, select.EPOLLOUT

_decode_shutdown = Body(Shutdown)
_decode_rank = Body(int)


class Transport(Protocol):
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
    ) -> None:
        config = broker.config
        self._broker = broker
        self._transport = transport
        self._clock = clock
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
        self._clients = ClientSockets(self, socket, control("hello", hello), self._inbox.append, gone, self._lags)
        environ = {"FLUXMPI_URI": f"local://{socket}", "FLUXMPI_RANK": str(config.rank)}
        self._page = RootPageWriter(path_of(socket), config.instance, config.rank)
        self._launcher = Launcher(self, environ)
        self._disk = Disk(self.post, config.algorithm, config.instance)
        self._segments = Segments(self._clients, self._inbox.append)
        self._fallback_s = FALLBACK_S
        self._last_call = clock.now()
        """When the last request or response was stepped; ``_gap_s`` is the usual time between two such turns."""
        self._gap_s = GAP_MAX_S
        self._now = self._last_call
        """When the turn began."""
        self._deadline = broker.deadline
        """As of the end of the last turn: nothing else moves it."""
        self._longest_turn_s = 0.0
        """So long all else has waited, at the most."""
        self._exit: Shutdown | None = None
        broker.outside = self.statistics

    # ------------------------------------------------------------------------------------------- for the drivers

    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None:
        """Call back when ``fd`` is readable, or writable."""
        known = fd in self._readers or fd in self._writers
        (self._writers if write else self._readers)[fd] = callback
        mask = (READ if fd in self._readers else 0) | (WRITE if fd in self._writers else 0)
        (self._epoll.modify if known else self._epoll.register)(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``, for reading and writing; call it before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None or fd in self._writers:
            self._writers.pop(fd, None)
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def deliver(self, msg: Message) -> None:
        """A message for the broker, from the loop's own thread."""
        self._inbox.append(msg)

    def post(self, msg: Message) -> None:
        """A message for the broker, from any thread or a signal handler."""
        self._from_threads.append(msg)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _lags(self, hop: int) -> None:
        """A client leaves its events unread."""
        self._inbox.append(control("event.lags", hop))

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._from_threads:
            self._inbox.append(self._from_threads.popleft())

    # ---------------------------------------------------------------------------------------------------- running

    def run(self) -> int:
        self._catch_signals()
        self._send(self._broker.start(self._clock.now()))
        self._deadline = self._broker.deadline
        while self._exit is None:
            self._turn()
        return self._finish(self._exit)

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda caught, _: self.post(control("lifecycle.signal", caught)))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _turn(self) -> None:
        ready = self._wait()
        now = self._now = self._clock.now()
        self._listen(ready)
        inbox, transport = self._inbox, self._transport
        inbox += transport.poll()
        broker = self._broker
        out: list[Message] = []
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
            out += broker.step(control("overlay.lost", LostRank(rank, reason)), now)
        deadline = broker.deadline
        if deadline <= now:
            out += broker.tick(now)
            deadline = broker.deadline
        self._deadline = deadline
        if out:
            self._send(out)
        transport.flush()
        self._clients.hold(transport.sending and transport.backlog > BACKLOG_HIGH)
        took = self._clock.now() - now
        if took > self._longest_turn_s:
            self._longest_turn_s = took

    def _wait(self) -> list[tuple[int, int]]:
        """Until something is there, or may be; the descriptors that are ready."""
        timeout = self._timeout()
        if timeout <= 0 and not self._inbox:
            ready = self._spin()
        elif 0 < timeout < FINE_S:
            select.select([self._epoll], [], [], timeout)
            ready = self._epoll.poll(0)
        else:
            ready = self._epoll.poll(timeout, EVENTS_USUAL)
            if len(ready) == EVENTS_USUAL:
                ready = self._epoll.poll(0)
        if not ready and timeout >= self._fallback_s:
            self._fallback_s = min(2 * self._fallback_s, FALLBACK_MAX_S)
        return ready

    def _listen(self, ready: list[tuple[int, int]]) -> None:
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
        """Look at MPI and the descriptors in turn, with the processor offered to others in between, for SPIN_S."""
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

    def _timeout(self) -> float:
        """How long to sleep; 0: spin."""
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
        """Each peer one batch, each client one batch, in the order in which the broker gave the messages."""
        if len(out) == 1 and out[0].hop >= 0:  # what passes by
            self._transport.send(out[0].hop, out)
            return
        peers: dict[int, list[Message]] = {}
        clients: dict[int, list[Message]] = {}
        hang_up: list[int] = []
        for msg in out:
            hop = msg.hop
            if hop >= 0:
                batch = peers.get(hop)
                if batch is None:
                    peers[hop] = [msg]
                else:
                    batch.append(msg)
            elif hop <= CLIENT_FIRST:
                batch = clients.get(hop)
                if batch is None:
                    clients[hop] = [msg]
                else:
                    batch.append(msg)
            elif hop == PAGE:
                self._page.step(msg)
            elif hop == LAUNCHER:
                self._launcher.step(msg)
            elif hop == DISK:
                self._disk.step(msg)
            elif hop == SEGMENTS:
                self._segments.step(msg)
            elif hop == LOOP and msg.topic == "loop.hang-up":
                hang_up.append(_decode_rank(msg))
            elif hop == LOOP:
                self._exit = _decode_shutdown(msg)
        for rank, batch in peers.items():
            self._transport.send(rank, batch)
        for rank in hang_up:
            self._transport.hang_up(rank)
        self._page.flush()  # before the clients: who is told of a version finds it there
        for hop, batch in clients.items():
            self._clients.send(hop, batch)

    def _finish(self, shutdown: Shutdown) -> int:
        """Give back everything; then what this rank exits with."""
        lost = self._broker.router.lost
        for rank in lost:
            self._transport.drop(rank)
        self._transport.flush()
        self._launcher.close()
        self._clients.close()
        self._page.close()
        self._segments.close()
        self._disk.close()
        if shutdown.reason and shutdown.status and (self._broker.config.rank == 0 or lost):
            complain(f"fluxmpi: {shutdown.reason}")
        elif lost and self._broker.config.rank == 0:
            hosts = self._broker.config.hosts
            names = "; ".join(f"broker {rank} ({hosts[rank]}): {reason}" for rank, reason in lost.items())
            complain(f"fluxmpi: lost while the instance ended: {names}")
        self._transport.close(clean=not lost)
        self._epoll.close()
        os.close(self._wake_fd)
        return shutdown.status

    @property
    def clean(self) -> bool:
        """All ranks were there to the end, so that MPI can be finalized."""
        return not self._broker.router.lost

    def statistics(self) -> dict[str, dict[str, float]]:
        return {
            "clients": self._clients.statistics(),
            "launcher": self._launcher.statistics(),
            "loop": {"longest_turn_s": self._longest_turn_s},
            "page": self._page.statistics(),
            "segments": self._segments.statistics(),
            "transport": self._transport.statistics(),
        }


def complain(text: str) -> None:
    """A line on stderr, in one write: other ranks write there too."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())
