"""The broker's socket: connections of clients, and frames of messages in both directions.

    accept ─▶ check the peer's uid ─▶ hello ─▶ frames: 4 bytes length (little endian), a msgpack array of messages

A client may send requests only. One that breaks the protocol gets a response with tag 0 and the error, and is closed. A
client that does not read has a queue: above ``out_bytes_high`` its requests are not read, above ``out_bytes_max`` it is
closed. Its subscriptions end much earlier: when its queued events exceed ``event_bytes_max``, the broker is notified
(``event.lags``).

All clients together are bounded as well: unfinished frames by a ``FramePool``, what is queued for them by
``out_bytes_all_high`` and ``out_bytes_all_max``.

A response may carry a descriptor. The descriptor is sent with the first byte of the frame, so the client has it when
the response is complete; a queued frame keeps it open. The kernel counts descriptors that are sent and not read, for
all processes of a user together: so a client gets further ones only while it reads (``unread_descriptors_max``).

Invariants: a hop belongs to one connection for ever; nothing is sent to a closed connection.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from fluxmpi.drivers.descriptor import Descriptor
from fluxmpi.drivers.frame_pool import NEVER, FramePool
from fluxmpi.drivers.log import logger
from fluxmpi.errors import FluxmpiError, OutOfMemory, Overloaded, PermissionDenied, ProtocolError, TooLarge
from fluxmpi.message import (
    CLIENT_FIRST,
    EVENT,
    FRAME_BYTES_MAX,
    OK,
    REQUEST,
    Message,
    decode_batch,
    encode_batch,
    reply_error,
)

log = logger("clients")

READ_BYTES = 256 << 10
SMALL_FRAME_BYTES = 4 << 10
"""An unfinished frame up to this length needs no reservation; and what is read at a time of a client that has none, while
others wait for one.
"""

MEDIUM_FRAME_BYTES = 1 << 20
"""Longer frames share three quarters of the pool, shorter ones the last quarter: most requests are short, and do not wait
for long ones.
"""

FILES_RESERVED = 128
"""Descriptors that clients must leave for commands (four each), checkpoints and MPI."""


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of what a broker does and stores for its clients."""

    out_bytes_high: int = 4 << 20
    """Bytes queued for one client; above that, its requests are left in the socket."""
    out_bytes_max: int = 256 << 20
    """Bytes queued for one client; above that, it is closed."""
    event_bytes_max: int = 16 << 20
    """Bytes of queued events for one client; above that, ``event.lags`` ends its subscriptions."""
    out_bytes_all_high: int = 128 << 20
    """Bytes queued for all clients; above that, no requests are read of a client that leaves anything unread."""
    out_bytes_all_max: int = 512 << 20
    """Bytes queued for all clients; above that, the client with the most is closed."""
    event_bytes_all_max: int = 128 << 20
    """Bytes of queued events for all clients; above that, a client has ``event_bytes_share``."""
    event_bytes_share: int = 1 << 20
    """What ``event_bytes_max`` is then."""
    frame_bytes_all_max: int = 256 << 20
    """Bytes of the unfinished frames of all clients; a frame that finds no room waits in its socket."""
    frame_s: float = 30.0
    """Time to finish a frame while others wait for its room; a client that takes longer is closed."""
    clients_max: int = 10_000
    """Connections, or what the limit of open files (``ulimit -n``) allows, if that is less; a further one is
    refused.
    """
    unread_descriptors_max: int = 64
    """Descriptors sent to a client that has read nothing since the first of them; a further one closes it."""


LIMITS = ClientLimits()
_LENGTH = struct.Struct("<I")
_UCRED = struct.Struct("3i")


class ClientLoop(Protocol):
    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...


class _Connection:
    """Equal to itself only."""

    __slots__ = (
        "carried", "closing", "event_bytes", "events", "fd", "frames", "hop", "inbox", "out", "out_bytes", "paused", "queued",
        "sock", "unread_descriptors", "writing",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, hop: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.hop = hop
        self.inbox = bytearray()
        self.out: list[bytes | memoryview] = []
        self.out_bytes = self.queued = 0
        """``out_bytes``: bytes in ``out`` now; ``queued``: all bytes that were ever put there."""
        self.events: deque[tuple[int, int]] = deque()
        """For each queued frame with events: ``queued`` at its end, and the bytes of its events; ``event_bytes`` is
        their sum.
        """
        self.event_bytes = 0
        self.carried: deque[tuple[bytes, Descriptor]] = deque()
        """Frames in ``out`` that carry a descriptor, in order."""
        self.unread_descriptors = 0
        """Descriptors sent since the client had last read everything."""
        self.frames: FramePool[_Connection] | None = None
        """The pool in which it has reserved the length of its unfinished frame, or waits to."""
        self.writing = False
        self.paused = False
        self.closing = False


class ClientSockets:
    """All connections of one broker.

    ``deliver`` is called with each request, ``disconnected`` with the hop of each client that has disconnected,
    ``lags`` with the hop of each client that leaves its events unread.
    """

    def __init__(
        self,
        loop: ClientLoop,
        path: str,
        hello: Message,
        deliver: Callable[[Message], None],
        disconnected: Callable[[int], None],
        lags: Callable[[int], None],
        limits: ClientLimits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._loop = loop
        self._hello = hello
        self._deliver = deliver
        self._disconnected = disconnected
        self._lags = lags
        self._uid = os.getuid()
        self._connections: dict[int, _Connection] = {}
        self._next_hop = CLIENT_FIRST
        self._held = False
        self._clock = clock
        large = limits.frame_bytes_all_max * 3 // 4
        self._large_frames = FramePool[_Connection](large, limits.frame_s)
        self._medium_frames = FramePool[_Connection](limits.frame_bytes_all_max - large, limits.frame_s)
        self._out_bytes = self._event_bytes = 0
        """Of all connections."""
        self._crowded = False
        """Above ``out_bytes_all_high``, and not below half of it since."""
        self._frames_wait = False
        """Some frames wait for a reservation."""
        self.deadline = NEVER
        """When ``tick`` must be called."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)  # whatever the umask
        self._listener.listen(1024)
        loop.watch(self._listener.fileno(), self._accept)
        self.spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        """A descriptor that is closed to refuse a client when no other is left."""
        self._clients_max = min(limits.clients_max, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_RESERVED)
        self.accepted = self.refused = 0

    # --------------------------------------------------------------------------------------------------- connecting

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.refuse_without_descriptor():
                    return
                continue
            connection = self._connect(sock)
            pid, uid = peer_process(sock)
            if uid != self._uid:
                self._refuse(connection, PermissionDenied(f"this instance belongs to uid {self._uid}, not to {uid}"))
            elif len(self._connections) > self._clients_max:
                self._refuse(connection, Overloaded(f"this broker has {self._clients_max} clients already"))
            else:
                log.info("client%d connects: pid %d", connection.hop, pid)
                self._loop.watch(connection.fd, partial(self._readable, connection))
                self._write(connection, [self._hello])

    def _connect(self, sock: socket.socket) -> _Connection:
        sock.setblocking(False)
        connection = _Connection(sock, self._next_hop)
        self._next_hop -= 1
        self._connections[connection.hop] = connection
        self.accepted += 1
        return connection

    def refuse_without_descriptor(self) -> bool:
        """Refuse one client with the spare descriptor, when no other is left.

        Else the listener stays readable, and the loop spins.
        """
        with contextlib.suppress(OSError):
            os.close(self.spare)
        self.spare = -1  # another file may get its number now, so it must not be closed again
        try:
            sock, _ = self._listener.accept()
            self._refuse(self._connect(sock), Overloaded("this broker has no file descriptor left; try again"))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self.spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self.spare >= 0

    def _refuse(self, connection: _Connection, error: FluxmpiError) -> None:
        """Send the error, and close the connection when that is sent."""
        self.refused += 1
        self._release(connection)
        log.warning("client%d is refused: %s", connection.hop, error.text)
        answer = reply_error(Message(REQUEST, "refused"), error)
        connection.closing = True
        self._loop.unwatch(connection.fd)
        self._write(connection, [answer])
        if connection.hop in self._connections and not connection.out:
            self._close(connection)

    # ----------------------------------------------------------------------------------------------------- reading

    def _readable(self, connection: _Connection) -> None:
        holds = connection.frames is not None
        try:
            data = connection.sock.recv(SMALL_FRAME_BYTES if self._frames_wait and not holds else READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        hop, deliver = connection.hop, self._deliver
        try:
            inbox = connection.inbox
            inbox += data
            at, end = 0, len(inbox)
            while end - at >= 4:
                size = _LENGTH.unpack_from(inbox, at)[0]
                if size > FRAME_BYTES_MAX:
                    raise TooLarge(f"a frame of {size} bytes: the most is {FRAME_BYTES_MAX}")
                if end - at - 4 < size:
                    break
                for msg in _decode(memoryview(inbox)[at + 4 : at + 4 + size]):
                    msg.hop = hop
                    msg.status = OK
                    msg.route = []
                    deliver(msg)
                at += 4 + size
            if at:
                connection.inbox = inbox[at:] if at < end else bytearray()
        except FluxmpiError as error:
            connection.inbox = bytearray()
            self._refuse(connection, error)
            return
        except MemoryError:
            inbox = connection.inbox = bytearray()
            text = "this broker has no memory to read a request; it may accept smaller ones"
            self._refuse(connection, OutOfMemory(text))
            return
        if at and holds:
            self._release(connection)
        if end - at > SMALL_FRAME_BYTES and connection.frames is None:
            self._reserve(connection, _LENGTH.unpack_from(connection.inbox, 0)[0])

    def _reserve(self, connection: _Connection, size: int) -> None:
        """Reserve the length of an unfinished frame, or stop reading until there is room."""
        connection.frames = self._large_frames if size > MEDIUM_FRAME_BYTES else self._medium_frames
        if not connection.frames.reserve(connection, size, self._clock()):
            self._rewatch(connection)
            self._plan()

    def _release(self, connection: _Connection) -> None:
        """Free the reservation of a finished frame, and read from those that have one now."""
        frames, connection.frames = connection.frames, None
        if frames is not None:
            for granted in frames.release(connection, self._clock()):
                self._rewatch(granted)
            self._plan()

    def _plan(self) -> None:
        large, medium = self._large_frames, self._medium_frames
        self.deadline = min(large.deadline, medium.deadline)
        self._frames_wait = bool(large.waiting or medium.waiting)

    def tick(self, now: float) -> None:
        """Close the clients whose frames have been unfinished too long while others wait."""
        for frames in (self._large_frames, self._medium_frames):
            while (stale := frames.stale(now)) is not None:
                connection, size = stale
                text = (
                    f"a frame of {size:,} bytes was unfinished for {self._limits.frame_s:g} s while other clients waited"
                    " for the memory that it had reserved: connect again, and send it in one go"
                )
                connection.inbox = bytearray()
                self._refuse(connection, Overloaded(text))
        self._plan()

    # ----------------------------------------------------------------------------------------------------- writing

    def send(self, hop: int, batch: list[Message], descriptor: Descriptor | None = None) -> None:
        connection = self._connections.get(hop)
        if connection is not None and not connection.closing:
            self._write(connection, batch, descriptor)

    def _write(self, connection: _Connection, batch: list[Message], descriptor: Descriptor | None = None) -> None:
        try:
            payload = encode_batch(batch)
            frame = _LENGTH.pack(len(payload)) + payload
        except MemoryError:
            log.warning("client%d is closed: there is no memory for what it is sent", connection.hop)
            self._close(connection)
            return
        rest: bytes | memoryview = frame
        if not connection.out:
            try:
                sent = (
                    connection.sock.send(frame)
                    if descriptor is None
                    else self._send_with(connection, frame, descriptor)
                )
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(connection)
                return
            if sent == len(frame):
                return
            if sent:
                rest, descriptor = memoryview(frame)[sent:], None
        connection.out.append(rest)
        if descriptor is not None:
            connection.carried.append((frame, descriptor))
        connection.out_bytes += len(rest)
        connection.queued += len(rest)
        self._out_bytes += len(rest)
        if connection.out_bytes > self._limits.out_bytes_max:
            self._close_unread(connection)
            return
        if self._out_bytes > self._limits.out_bytes_all_high:
            self._crowd()
            if connection.hop not in self._connections:
                return
        self._count_events(connection, batch, len(rest))
        self._rewatch(connection)

    def _count_events(self, connection: _Connection, batch: list[Message], queued: int) -> None:
        """Count the bytes of events in the frame that was queued just now, until all of it is sent."""
        size = min(sum(len(msg.body) + len(msg.topic) for msg in batch if msg.kind == EVENT), queued)
        if size:
            connection.events.append((connection.queued, size))
            connection.event_bytes += size
            self._event_bytes += size
            limits = self._limits
            alone = self._event_bytes <= limits.event_bytes_all_max
            if connection.event_bytes > (limits.event_bytes_max if alone else limits.event_bytes_share):
                self._lags(connection.hop)

    def _close_unread(self, connection: _Connection) -> None:
        log.warning("client%d is closed: it leaves %d bytes unread", connection.hop, connection.out_bytes)
        self._close(connection)

    def _crowd(self) -> None:
        """Read only from clients that read everything; close the one with the most unread past the limit of all."""
        if not self._crowded:
            self._crowded = True
            for connection in list(self._connections.values()):
                self._rewatch(connection)
        while self._out_bytes > self._limits.out_bytes_all_max:
            self._close_unread(max(self._connections.values(), key=lambda connection: connection.out_bytes))

    def _thin(self) -> None:
        """Read from all clients again, when little enough is unread."""
        if self._out_bytes <= self._limits.out_bytes_all_high // 2:
            self._crowded = False
            for connection in list(self._connections.values()):
                self._rewatch(connection)

    def _writable(self, connection: _Connection) -> None:
        out, carried = connection.out, connection.carried
        while out:
            try:
                if carried and carried[0][0] is out[0]:
                    sent = self._send_with(connection, *carried[0])
                    carried.popleft()
                else:
                    sent = connection.sock.send(out[0])
            except BlockingIOError:
                break
            except OSError:
                self._close(connection)
                return
            connection.out_bytes -= sent
            self._out_bytes -= sent
            if sent < len(out[0]):
                out[0] = memoryview(out[0])[sent:]
                break
            del out[0]
        events, sent = connection.events, connection.queued - connection.out_bytes
        while events and events[0][0] <= sent:
            size = events.popleft()[1]
            connection.event_bytes -= size
            self._event_bytes -= size
        if self._crowded:
            self._thin()
        if not out and connection.closing:
            self._close(connection)
            return
        self._rewatch(connection)

    def _rewatch(self, connection: _Connection) -> None:
        """Watch for writing if something is queued, and for reading unless too much is."""
        writing = bool(connection.out)
        out_bytes, frames = connection.out_bytes, connection.frames
        paused = (
            connection.closing
            or self._held
            or out_bytes > self._limits.out_bytes_high
            or (self._crowded and out_bytes > 0)
            or (frames is not None and frames.waits(connection))
        )
        if writing == connection.writing and paused == connection.paused:
            return
        self._loop.unwatch(connection.fd)
        connection.writing, connection.paused = writing, paused
        if not paused:
            self._loop.watch(connection.fd, partial(self._readable, connection))
        if writing:
            self._loop.watch(connection.fd, partial(self._writable, connection), write=True)

    def hold(self, held: bool) -> None:
        """Read from no client while the links to other brokers are congested."""
        if held != self._held:
            self._held = held
            for connection in list(self._connections.values()):
                self._rewatch(connection)

    def _send_with(self, connection: _Connection, frame: bytes, descriptor: Descriptor) -> int:
        """Send a frame, and a descriptor with its first byte; returns the bytes sent.

        Raises OSError for a client that requests descriptors and does not read them.
        """
        sock = connection.sock
        if not _unread_bytes(sock):
            connection.unread_descriptors = 0
        if connection.unread_descriptors >= self._limits.unread_descriptors_max:
            raise OSError(errno.ETOOMANYREFS, "this client does not read the descriptors that it requests")
        sent = socket.send_fds(sock, [frame], [descriptor.fd])
        connection.unread_descriptors += 1
        return sent

    # ----------------------------------------------------------------------------------------------- disconnecting

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection.hop, None) is None:
            return
        self._out_bytes -= connection.out_bytes
        self._event_bytes -= connection.event_bytes
        self._release(connection)
        if self._crowded:
            self._thin()
        self._loop.unwatch(connection.fd)
        connection.sock.close()
        connection.carried.clear()
        log.info("client%d disconnects", connection.hop)
        self._disconnected(connection.hop)

    def close(self) -> None:
        """Close the socket and all connections."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.close(self.spare)
        for connection in list(self._connections.values()):
            self._close(connection)

    def statistics(self) -> dict[str, float]:
        connections = self._connections.values()
        return {
            "clients": len(connections),
            "accepted": self.accepted,
            "refused": self.refused,
            "queued_bytes": self._out_bytes,
            "queued_event_bytes": self._event_bytes,
            "unfinished_bytes": self._large_frames.bytes + self._medium_frames.bytes,
            "waiting_frames": self._large_frames.waiting + self._medium_frames.waiting,
            "paused": sum(connection.paused for connection in connections),
        }


def peer_process(sock: socket.socket) -> tuple[int, int]:
    """Return the pid and the uid of the process at the other end of a Unix socket, as the kernel knows them."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _unread_bytes(sock: socket.socket) -> int:
    """Return how much the other end has not read, in the kernel's count."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _decode(frame: memoryview) -> list[Message]:
    try:
        batch = decode_batch(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame does not decode to messages: {error}") from None
    for msg in batch:
        if msg.kind != REQUEST:
            raise ProtocolError(f"a client may send requests only, not kind {msg.kind}")
        if not -(1 << 31) <= msg.target < 1 << 31:
            raise ProtocolError(f"invalid target {msg.target}: a rank has 32 bits")
    return batch
