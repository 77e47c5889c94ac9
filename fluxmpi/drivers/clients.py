"""The broker's socket: clients come in, frames of messages go both ways.

    accept ─▶ check the peer's uid ─▶ hello ─▶ frames: 4 bytes length (little endian), a msgpack array of messages

A client may send requests only. One that breaks the protocol gets a response with tag 0 that says why, and is closed; one that
does not read is not read from either (OUT_BYTES_HIGH), and is closed when what it is owed passes OUT_BYTES_MAX. Long before, its
subscriptions end: when what it is owed of events passes EVENT_BYTES_MAX, the broker is told that it lags.

An answer may carry a descriptor. It goes with the first byte of its frame, so it is there before the answer can be understood;
a frame that waits keeps it open. What was passed and not read yet is counted by the kernel, for all processes of a user
together: so a client gets the next only while it reads (UNREAD_DESCRIPTORS_MAX).

Invariants: a hop belongs to one connection for ever; a closed one gets nothing more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from fluxmpi.drivers.descriptor import Descriptor
from fluxmpi.errors import FluxmpiError, Overloaded, PermissionDenied, ProtocolError, TooLarge
from fluxmpi.message import (
    CLIENT_FIRST,
    EVENT,
    FRAME_BYTES_MAX,
    REQUEST,
    Message,
    decode_batch,
    encode_batch,
    reply_error,
)

READ_BYTES = 256 << 10
OUT_BYTES_HIGH = 4 << 20
"""Owed to a client past this, its requests are left in the socket."""

OUT_BYTES_MAX = 256 << 20
EVENT_BYTES_MAX = 16 << 20
"""Of events that a client has not read; past that, ``event.lags``."""

CLIENTS_MAX = 10_000
"""Or what the limit of open files (``ulimit -n``) allows, if that is less; one more is told so and closed."""

FILES_RESERVED = 128
"""Descriptors that clients must leave for commands (four each), checkpoints and MPI."""

UNREAD_DESCRIPTORS_MAX = 64
"""Passed to a client that has read nothing of what was sent since the first of them. Past that it is closed."""

_LENGTH = struct.Struct("<I")
_UCRED = struct.Struct("3i")


class ClientLoop(Protocol):
    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...


class _Connection:
    __slots__ = (
        "carried", "closing", "event_bytes", "events", "fd", "hop", "inbox", "out", "out_bytes", "passed", "paused", "queued",
        "sock", "writing",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, hop: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.hop = hop
        self.inbox = bytearray()
        self.out: list[bytes | memoryview] = []
        self.out_bytes = self.queued = 0
        """What is there now, and what ever was."""
        self.events: deque[tuple[int, int]] = deque()
        """Of frames with events: ``queued`` at their end, and the bytes of the events; ``event_bytes`` is their sum."""
        self.event_bytes = 0
        self.carried: deque[tuple[bytes, Descriptor]] = deque()
        """Frames in ``out`` that carry a descriptor, in order."""
        self.passed = 0
        """Descriptors passed since all that was sent had been read."""
        self.writing = False
        self.paused = False
        self.closing = False


class ClientSockets:
    """``deliver`` takes each request, ``disconnected`` the hop of each client that is gone, ``lags`` that of one that leaves
    events unread.
    """

    def __init__(
        self,
        loop: ClientLoop,
        path: str,
        hello: Message,
        deliver: Callable[[Message], None],
        disconnected: Callable[[int], None],
        lags: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._hello = hello
        self._deliver = deliver
        self._disconnected = disconnected
        self._lags = lags
        self._uid = os.getuid()
        self._connections: dict[int, _Connection] = {}
        self._next_hop = CLIENT_FIRST
        self._held = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(1024)
        loop.watch(self._listener.fileno(), self._accept)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._clients_max = min(CLIENTS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_RESERVED)
        self.accepted = self.refused = 0

    # ------------------------------------------------------------------------------------------------------ coming

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._turn_away():
                    return
                continue
            connection = self._connect(sock)
            uid = peer_uid(sock)
            if uid != self._uid:
                self._refuse(connection, PermissionDenied(f"this instance belongs to uid {self._uid}, not to {uid}"))
            elif len(self._connections) > self._clients_max:
                self._refuse(connection, Overloaded(f"this broker has {self._clients_max} clients already"))
            else:
                self._loop.watch(connection.fd, partial(self._readable, connection))
                self._write(connection, [self._hello])

    def _connect(self, sock: socket.socket) -> _Connection:
        sock.setblocking(False)
        connection = _Connection(sock, self._next_hop)
        self._next_hop -= 1
        self._connections[connection.hop] = connection
        self.accepted += 1
        return connection

    def _turn_away(self) -> bool:
        """No descriptor is left: lend the spare one to refuse who waits. Else the listener is ready for ever, and we spin."""
        with contextlib.suppress(OSError):
            os.close(self._spare)
        self._spare = -1  # its number is soon another file's: it must not be closed once more
        try:
            sock, _ = self._listener.accept()
            self._refuse(self._connect(sock), Overloaded("this broker has no file descriptor left; try again"))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._spare >= 0

    def _refuse(self, connection: _Connection, error: FluxmpiError) -> None:
        """Tell why, then close once that is sent."""
        self.refused += 1
        answer = reply_error(Message(REQUEST, "refused"), error)
        connection.closing = True
        self._loop.unwatch(connection.fd)
        self._write(connection, [answer])
        if connection.hop in self._connections and not connection.out:
            self._close(connection)

    # ----------------------------------------------------------------------------------------------------- reading

    def _readable(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        inbox = connection.inbox
        inbox += data
        at, end = 0, len(inbox)
        hop, deliver = connection.hop, self._deliver
        try:
            while end - at >= 4:
                size = _LENGTH.unpack_from(inbox, at)[0]
                if size > FRAME_BYTES_MAX:
                    raise TooLarge(f"a frame of {size} bytes: the most is {FRAME_BYTES_MAX}")
                if end - at - 4 < size:
                    break
                for msg in _decode(memoryview(inbox)[at + 4 : at + 4 + size]):
                    msg.hop = hop
                    msg.route = []
                    deliver(msg)
                at += 4 + size
        except FluxmpiError as error:
            connection.inbox = bytearray()
            self._refuse(connection, error)
            return
        if at:
            connection.inbox = inbox[at:] if at < end else bytearray()

    # ----------------------------------------------------------------------------------------------------- writing

    def send(self, hop: int, batch: list[Message], descriptor: Descriptor | None = None) -> None:
        connection = self._connections.get(hop)
        if connection is not None and not connection.closing:
            self._write(connection, batch, descriptor)

    def _write(self, connection: _Connection, batch: list[Message], descriptor: Descriptor | None = None) -> None:
        payload = encode_batch(batch)
        frame = _LENGTH.pack(len(payload)) + payload
        rest: bytes | memoryview = frame
        if not connection.out:
            try:
                sent = connection.sock.send(frame) if descriptor is None else _carry(connection, frame, descriptor)
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
        if connection.out_bytes > OUT_BYTES_MAX:
            self._close(connection)
            return
        self._owe_events(connection, batch, len(rest))
        self._rewatch(connection)

    def _owe_events(self, connection: _Connection, batch: list[Message], queued: int) -> None:
        """The events in what was put into the queue just now are owed until all of it is sent."""
        size = min(sum(len(msg.body) + len(msg.topic) for msg in batch if msg.kind == EVENT), queued)
        if size:
            connection.events.append((connection.queued, size))
            connection.event_bytes += size
            if connection.event_bytes > EVENT_BYTES_MAX:
                self._lags(connection.hop)

    def _writable(self, connection: _Connection) -> None:
        out, carried = connection.out, connection.carried
        while out:
            try:
                if carried and carried[0][0] is out[0]:
                    sent = _carry(connection, *carried[0])
                    carried.popleft()
                else:
                    sent = connection.sock.send(out[0])
            except BlockingIOError:
                break
            except OSError:
                self._close(connection)
                return
            connection.out_bytes -= sent
            if sent < len(out[0]):
                out[0] = memoryview(out[0])[sent:]
                break
            del out[0]
        events, sent = connection.events, connection.queued - connection.out_bytes
        while events and events[0][0] <= sent:
            connection.event_bytes -= events.popleft()[1]
        if not out and connection.closing:
            self._close(connection)
            return
        self._rewatch(connection)

    def _rewatch(self, connection: _Connection) -> None:
        """Watch for what this connection may do now: write if it is owed something, read unless it is owed too much."""
        writing = bool(connection.out)
        paused = connection.closing or self._held or connection.out_bytes > OUT_BYTES_HIGH
        if writing == connection.writing and paused == connection.paused:
            return
        self._loop.unwatch(connection.fd)
        connection.writing, connection.paused = writing, paused
        if not paused:
            self._loop.watch(connection.fd, partial(self._readable, connection))
        if writing:
            self._loop.watch(connection.fd, partial(self._writable, connection), write=True)

    def hold(self, held: bool) -> None:
        """Read from nobody while the way to other brokers is congested."""
        if held != self._held:
            self._held = held
            for connection in list(self._connections.values()):
                self._rewatch(connection)

    # ----------------------------------------------------------------------------------------------------- leaving

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection.hop, None) is None:
            return
        self._loop.unwatch(connection.fd)
        connection.sock.close()
        connection.carried.clear()
        self._disconnected(connection.hop)

    def close(self) -> None:
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.close(self._spare)
        for connection in list(self._connections.values()):
            self._close(connection)

    def statistics(self) -> dict[str, float]:
        connections = self._connections.values()
        return {
            "clients": len(connections),
            "accepted": self.accepted,
            "refused": self.refused,
            "owed_bytes": sum(connection.out_bytes for connection in connections),
            "unread": sum(connection.paused for connection in connections),
        }


def peer_uid(sock: socket.socket) -> int:
    """Who is at the other end of a Unix socket, as the kernel says."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid


def _carry(connection: _Connection, frame: bytes, descriptor: Descriptor) -> int:
    """Send a frame, and with its first byte a descriptor; the bytes sent. Raises OSError for a client that hoards them."""
    sock = connection.sock
    if not _unread(sock):
        connection.passed = 0
    if connection.passed >= UNREAD_DESCRIPTORS_MAX:
        raise OSError(errno.ETOOMANYREFS, "this client does not take the descriptors that it asks for")
    sent = socket.send_fds(sock, [frame], [descriptor.fd])
    connection.passed += 1
    return sent


def _unread(sock: socket.socket) -> int:
    """What the other end has still to read, in the kernel's bytes."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]


def _decode(frame: memoryview) -> list[Message]:
    try:
        batch = decode_batch(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame that is no batch of messages: {error}") from None
    for msg in batch:
        if msg.kind != REQUEST:
            raise ProtocolError(f"a client may send requests only, not kind {msg.kind}")
        if not -(1 << 31) <= msg.target < 1 << 31:
            raise ProtocolError(f"target {msg.target} is no rank")
    return batch
