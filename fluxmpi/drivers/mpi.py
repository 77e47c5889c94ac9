"""The transport: batches of messages over MPI. The only file that calls MPI, always from the loop's thread.

    send     batch ─▶ outbox of the peer ─▶ Isend while its window is open ─▶ in flight, buffer kept ─Testsome─▶ released
                                                                      └─▶ at the end of the turn, one bell
    receive  Improbe (any source) ─▶ Recv of a small message, Irecv of a large one ─▶ in order of each source ─▶ batch

One turn sends each peer one MPI message: a msgpack array of messages. A body of DETACH_BYTES or more is not copied into
it: the batch ends there, and the body is the next MPI message, sent from its own buffer. Tags distinguish the two, and
MPI keeps the order of messages between two ranks, so no further protocol is needed.

Invariants: a buffer is referenced until its request is complete; at most WINDOW_MESSAGES messages or WINDOW_BYTES are
in flight to a peer; nothing is sent to a dropped peer (with some MPIs, a send to a dead rank ends the sender).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from typing import Any

from fluxmpi.drivers import mpi_settings
from fluxmpi.drivers.bell import COUNT_MASK, Doorbell
from fluxmpi.drivers.log import complain
from fluxmpi.errors import LaunchError, ProtocolError
from fluxmpi.message import Message, decode_batch, encode_batch

DETACH_BYTES = 64 << 10
IRECV_BYTES = 64 << 10
WINDOW_MESSAGES = 64
WINDOW_BYTES = 8 << 20
UNACKED_MAX = 24
"""Messages to a peer that it has not acknowledged, at most. MPICH copies small messages into 64 cells of shared memory
that a rank has for all others together. Without this bound, a stopped peer, which reads nothing, would occupy all of
them, and the rank could send to no other rank.
"""

ACK_EVERY = 16
"""Messages received after which a peer gets an acknowledgement of its own, if nothing else goes to it."""

PEER_BYTES_MAX = 1 << 30
"""Bytes queued for one peer. One that leaves more unread is lost, as one that is silent: the instance ends."""

RECEIVES_PER_TURN = 256
CLOSE_S = 2.0
HALF = 1 << 31
"""Counts are mod 2**32: a count is ahead of another if the difference is less than this."""

_ACK, _BATCH, _BATCH_THEN_BODY, _BODY = 0, 1, 2, 3
"""Kinds of MPI messages. A tag has the kind in its low bits, and above it the number of messages received from the
addressee, mod 2**13: every message is an acknowledgement at no cost. An _ACK is nothing else, and is not counted.
"""

_KIND_BITS = 2
_ACK_MASK = (1 << 13) - 1


class _Peer:
    """The messages in transit to and from one rank."""

    __slots__ = (
        "ack_sent",
        "acked",
        "backlog",
        "bodiless",
        "closing",
        "flying",
        "flying_bytes",
        "inbound",
        "outbox",
        "received",
        "ring",
        "sent",
    )  # fmt: skip

    def __init__(self, count: int) -> None:
        self.outbox: deque[tuple[Any, int]] = deque()
        self.backlog = 0
        """Bytes in ``outbox``."""
        self.flying: list[tuple[Any, Any]] = []
        """(request, buffer) of each send in flight."""
        self.flying_bytes = 0
        self.sent = self.acked = count
        """``acked``: how many of those sent the peer has acknowledged."""
        self.received = self.ack_sent = count
        """``ack_sent``: how many of those received we have acknowledged."""
        self.ring = False
        """A bell is due: messages were sent since the last one."""
        self.closing = False
        """Nothing is queued any more; what is in the outbox is still sent."""
        self.inbound: deque[tuple[Any, bytearray, int]] = deque()
        """Receives in order: (request or None when complete, buffer, tag)."""
        self.bodiless: list[Message] | None = None
        """A batch whose last message lacks its body, which is the next MPI message."""


class MpiTransport:
    """Transport of one rank. ``comm`` is duplicated. Call ``connect`` before the first ``send``."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm.Dup()
        self._comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self._status = MPI.Status()
        self._byte = MPI.BYTE
        self._peers: dict[int, _Peer] = {}
        self._dropped: dict[int, None] = {}
        self._expected: dict[int, int] = {}
        """Rank to the count that its last bell announced, until that many are received."""
        self._buffer = memoryview(bytearray(IRECV_BYTES))
        """Small messages are received into this, one after another: decoded messages do not refer to it."""
        self._into = [self._buffer, self._byte]
        self._receiving = 0
        """Entries in the peers' ``inbound``."""
        self._bell: Doorbell | None = None
        self.gone: list[tuple[int, str]] = []
        """Ranks found to be dead, with the reason; the loop removes them."""
        self.messages_sent = self.messages_received = self.bytes_sent = self.bytes_received = 0

    def exchange(self, mine: Any) -> list[Any]:
        """Return what every rank passed, by rank. Collective."""
        return list(self._comm.allgather(mine))

    def connect(self, bell: Doorbell | None, near: list[int], count: int = 0) -> None:
        """Start to exchange messages with the ranks ``near``, which are all up. ``bell`` None means ``--wake=poll``.

        ``count``: the initial value of all message counters, the same on all ranks.
        """
        self._bell = bell
        self._peers = {rank: _Peer(count) for rank in near}

    @property
    def description(self) -> str:
        """The MPI library and its version, in one line."""
        lines = self._mpi.Get_library_version().strip("\0 \n").splitlines() or ["an MPI without a version"]
        return " ".join(lines[0].split())[:100]

    # --------------------------------------------------------------------------------------------------------- send

    def send(self, rank: int, batch: list[Message]) -> None:
        """Queue a batch; ``flush`` sends it."""
        peer = self._peers.get(rank)
        if peer is None or peer.closing or rank in self._dropped:
            return
        start = 0
        for index, msg in enumerate(batch):
            if len(msg.body) >= DETACH_BYTES:
                body, msg.body = msg.body, b""
                self._queue(peer, encode_batch(batch[start : index + 1]), _BATCH_THEN_BODY)
                self._queue(peer, body, _BODY)
                start = index + 1
        if start < len(batch):
            self._queue(peer, encode_batch(batch[start:] if start else batch), _BATCH)
        if peer.backlog > PEER_BYTES_MAX:
            self._lose(rank, f"it leaves {peer.backlog:,} bytes unread")

    def _queue(self, peer: _Peer, buffer: bytes, tag: int) -> None:
        peer.outbox.append((buffer, tag))
        peer.backlog += len(buffer)

    def flush(self) -> None:
        """Send what the windows allow, release the buffers of complete sends, and ring."""
        for rank, peer in self._peers.items():
            if peer.flying:
                self._retire(peer)
            if peer.outbox:
                self._send_some(rank, peer)
            if peer.received - peer.ack_sent >= ACK_EVERY:
                self._acknowledge(rank, peer)
            if peer.ring:
                self._ring(rank, peer)

    def _send_some(self, rank: int, peer: _Peer) -> None:
        isend, outbox, bell = self._comm.Isend, peer.outbox, self._bell is not None
        ack = (peer.received & _ACK_MASK) << _KIND_BITS
        while outbox and len(peer.flying) < WINDOW_MESSAGES and (peer.flying_bytes < WINDOW_BYTES or not peer.flying):
            if peer.sent - peer.acked >= UNACKED_MAX:
                return
            buffer, kind = outbox.popleft()
            try:
                request = isend([buffer, self._byte], rank, ack | kind)
            except self._mpi.Exception as error:
                self._lose(rank, f"MPI cannot send to it: {error}")
                return
            size = len(buffer)
            peer.backlog -= size
            peer.ack_sent = peer.received
            peer.sent += 1
            peer.ring = bell
            self.messages_sent += 1
            self.bytes_sent += size
            if not request.Test():  # MPI copies a small message at once, so its send is complete
                peer.flying.append((request, buffer))
                peer.flying_bytes += size

    def _acknowledge(self, rank: int, peer: _Peer) -> None:
        """Send an acknowledgement of its own. It rings no bell: a peer that waits for one polls."""
        if peer.closing or rank in self._dropped:
            return
        try:
            request = self._comm.Isend([b"", self._byte], rank, (peer.received & _ACK_MASK) << _KIND_BITS)
        except self._mpi.Exception as error:
            self._lose(rank, f"MPI cannot send to it: {error}")
            return
        peer.ack_sent = peer.received
        if not request.Test():
            peer.flying.append((request, b""))

    def _retire(self, peer: _Peer) -> None:
        if len(peer.flying) == 1:
            if peer.flying[0][0].Test():
                peer.flying.clear()
                peer.flying_bytes = 0
            return
        done = self._mpi.Request.Testsome([request for request, _ in peer.flying])
        if done:
            gone = set(done)
            peer.flying = [entry for index, entry in enumerate(peer.flying) if index not in gone]
            peer.flying_bytes = sum(len(buffer) for _, buffer in peer.flying)

    def _ring(self, rank: int, peer: _Peer) -> None:
        assert self._bell is not None
        try:
            peer.ring = not self._bell.ring(rank, peer.sent)
        except ConnectionRefusedError as error:
            self._lose(rank, str(error))

    # ------------------------------------------------------------------------------------------------------ receive

    def listen(self) -> None:
        """Read the bells. ``expecting`` is True from now on until the messages that they announce are received."""
        if self._bell is None:
            return
        for rank, count in self._bell.listen():
            peer = self._peers.get(rank)
            if peer is not None and 0 < (count - peer.received) & COUNT_MASK < HALF:
                self._expected[rank] = count

    def arrived(self) -> bool:
        """Return True if a message has arrived.

        The call also advances MPI, so a later call may find what this one does not.
        """
        return bool(self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG))

    def poll(self) -> list[Message]:
        """Return all messages that have arrived, ``hop`` set to the rank they came from."""
        messages: list[Message] = []
        improbe, status, byte, expected = self._comm.Improbe, self._status, self._byte, self._expected
        announced = bool(expected)
        any_source, any_tag = self._mpi.ANY_SOURCE, self._mpi.ANY_TAG
        for _ in range(RECEIVES_PER_TURN):
            found = improbe(any_source, any_tag, status)
            if found is None and expected:
                # MPICH probes first and makes progress then: only the next probe finds what that brought in.
                found = improbe(any_source, any_tag, status)
            if found is None:
                break
            rank, tag, size = status.source, status.tag, status.Get_count(byte)
            peer = self._peers.get(rank)
            if peer is None:
                raise ProtocolError(f"rank {rank} sent a message to rank {self.rank}, and is not its neighbour")
            request = None
            if size < IRECV_BYTES:
                found.Recv(self._into)
            else:
                buffer = bytearray(size)
                request = found.Irecv([buffer, byte])
            peer.acked = peer.sent - ((peer.sent - (tag >> _KIND_BITS)) & _ACK_MASK)
            tag &= _BODY
            if tag == _ACK:
                continue
            peer.received += 1
            if rank in expected and (peer.received - expected[rank]) & COUNT_MASK < HALF:
                del expected[rank]
            self.messages_received += 1
            self.bytes_received += size
            if request is None and tag == _BATCH and not peer.inbound:
                self._deliver(rank, peer, self._buffer[:size], tag, messages)
            else:
                if request is None:
                    buffer = bytearray(self._buffer[:size])
                peer.inbound.append((request, buffer, tag))
                self._receiving += 1
            if announced and not expected:
                break  # messages after this one have a bell of their own
        if self._receiving:
            self._complete(messages)
        return messages

    def _complete(self, messages: list[Message]) -> None:
        """Deliver what waited for large receives, of each source in order, up to the first that is not complete."""
        for rank, peer in self._peers.items():
            while peer.inbound and (peer.inbound[0][0] is None or peer.inbound[0][0].Test()):
                _, buffer, tag = peer.inbound.popleft()
                self._receiving -= 1
                self._deliver(rank, peer, buffer, tag, messages)

    def _deliver(
        self, rank: int, peer: _Peer, buffer: bytearray | memoryview, tag: int, messages: list[Message]
    ) -> None:
        if tag == _BODY:
            batch, peer.bodiless = peer.bodiless, None
            assert batch is not None, "a body arrived without its batch"
            batch[-1].body = buffer  # type: ignore[assignment]
        else:
            batch = decode_batch(buffer)
            if tag == _BATCH_THEN_BODY:
                peer.bodiless = batch
        for msg in batch:
            msg.hop = rank
        messages += batch[:-1] if tag == _BATCH_THEN_BODY else batch[-1:] if tag == _BODY else batch

    # ------------------------------------------------------------------------------------------------------- state

    @property
    def expecting(self) -> bool:
        """True if a bell announced messages that have not arrived, or a large one is being received."""
        return bool(self._expected) or self._receiving > 0

    @property
    def sending(self) -> bool:
        """True if messages are queued or in flight, or a bell is due: MPI needs further calls to advance them."""
        for peer in self._peers.values():  # noqa: SIM110 - called every turn, and a generator doubles its cost
            if peer.flying or peer.outbox or peer.ring:
                return True
        return False

    @property
    def backlog(self) -> int:
        """Bytes that are queued because the windows are full."""
        return sum(peer.backlog for peer in self._peers.values())

    def peer(self, rank: int) -> dict[str, int]:
        """Return the numbers of the link to a neighbour.

        ``in_flight`` and ``in_flight_bytes``: sends that are not complete; ``backlog``: queued bytes; ``sent`` and
        ``received``: MPI messages; ``bell_due``: 1 if a bell could not be queued and is rung again.
        """
        peer = self._peers[rank]
        return {
            "in_flight": len(peer.flying),
            "in_flight_bytes": peer.flying_bytes,
            "backlog": peer.backlog,
            "sent": peer.sent,
            "received": peer.received,
            "bell_due": int(peer.ring),
        }

    def filenos(self) -> list[int]:
        """Return the descriptors that are readable when a bell has rung."""
        return self._bell.filenos() if self._bell is not None else []

    def drop(self, rank: int) -> None:
        """Never send to ``rank`` again; discard what is queued for it."""
        peer = self._peers.get(rank)
        self._dropped[rank] = None
        self._expected.pop(rank, None)
        if peer is not None:
            peer.outbox.clear()
            peer.flying.clear()
            peer.backlog = peer.flying_bytes = 0
            peer.ring = False

    def hang_up(self, rank: int) -> None:
        """Send what is queued for ``rank`` and nothing after it: it may end as soon as it has read that."""
        self._peers[rank].closing = True

    def _lose(self, rank: int, reason: str) -> None:
        if rank not in self._dropped:
            self.drop(rank)
            self.gone.append((rank, reason))

    def statistics(self) -> dict[str, float]:
        bell = self._bell
        return {
            "messages_sent": self.messages_sent,
            "messages_received": self.messages_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "backlog": self.backlog,
            "bells_rung": bell.rung if bell else 0,
            "bells_heard": bell.heard if bell else 0,
            "bells_unsent": bell.unsent if bell else 0,
        }

    def close(self, clean: bool) -> None:
        """Complete the sends, for CLOSE_S at most.

        ``clean``: all ranks are up, so the communicator is freed and MPI finalized.

        Otherwise the caller must end the process with ``os._exit``: MPI_Finalize may wait for dead ranks for ever.
        """
        end = time.monotonic() + CLOSE_S
        while self.sending and time.monotonic() < end:
            self.flush()
            self.poll()
            time.sleep(0)
        if self._bell is not None:
            self._bell.close()
        if clean:
            with contextlib.suppress(self._mpi.Exception):
                self._comm.Free()


def world(environ: dict[str, str], interface: str = "") -> Any:
    """Return COMM_WORLD. Raises LaunchError unless its size is the number of ranks that the launcher started.

    ``interface``: the network interface for MPI, if not all; see ``mpi_settings``.

    A launcher with the wrong MPI starts N worlds of one rank each, and each would become an instance of its own. The
    error names the flag to use.
    """
    import mpi4py

    mpi4py.rc.threads = False
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        library = MPI.Get_library_version()
        _check_shared_memory(library, environ)
        os.environ.update(mpi_settings.prepare(library, environ, interface))
        MPI.Init()
    comm = MPI.COMM_WORLD
    expected, by = expected_size(environ)
    if expected > 1 and comm.size != expected:
        library = MPI.Get_library_version().splitlines()[0][:60].strip("\0 ")
        flag = "--mpi=pmix" if "Open MPI" in library else "--mpi=pmi2"
        advice = (
            f"start it as: srun {flag} fluxmpi start …" if by == "srun" else f"use the mpirun that belongs to {library}"
        )
        mpi_settings.remove_names()  # Open MPI leaves those of a world of one rank
        raise LaunchError(f"{by} started {expected} tasks, but MPI ({library}) sees a world of {comm.size}: {advice}")
    return comm


def _check_shared_memory(library: str, environ: dict[str, str]) -> None:
    """End this rank if MPI could not start with this /dev/shm; print a warning if MPI may run out of it later."""
    problem, starts = mpi_settings.shared_memory_problem(library, environ)
    if not problem:
        return
    first = mpi_settings.local_ranks(environ)[1] == 0
    if first:
        complain(f"fluxmpi{': warning' if starts else ' start'}: {problem}")
    if starts:
        return
    # Ranks of other hosts may wait in MPI_Init. A launcher ends them when a rank ends by a signal, not by a status. The
    # others of this host let the first one print: the launcher ends them with it.
    if not first:
        time.sleep(CLOSE_S)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def expected_size(environ: dict[str, str]) -> tuple[int, str]:
    """Return the number of ranks that the launcher started, and its name, from its variables.

    Without a launcher it is (1, "").
    """
    step = "SLURM_STEP_ID" in environ
    for variable, launcher in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("PMI_SIZE", "mpirun"),
    ):
        value = environ.get(variable, "")
        if value.isdigit() and (step or not variable.startswith("SLURM")):
            return int(value), "srun" if step else launcher
    return 1, ""
