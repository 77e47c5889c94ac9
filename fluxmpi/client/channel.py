"""One connection to a broker, blocking: a socket with a ``protocol.Connection`` on it.

``Handle`` and its services send through a channel; programs do not use it themselves. A request leaves at once, unless
the channel is in a batch. Buffers that are full cannot deadlock: a send that the socket refuses is retried while the
channel reads what arrives.

The channel survives a reconnection: it replaces its socket and protocol, resends the session's unanswered requests, and
calls what was registered with ``on_reconnect``.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from fluxmpi.blobref import digest_function
from fluxmpi.broker.wire import Hello
from fluxmpi.client.future import Future, Stream
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.client.protocol import Call, Connection, EventQueue, decoder, encode
from fluxmpi.client.session import Session
from fluxmpi.client.sockets import HINT, DescriptorQueue, open_root_page, open_socket
from fluxmpi.errors import (
    ConnectionLost,
    FluxmpiError,
    InvalidRequest,
    NoInstance,
    RequestTimeout,
)
from fluxmpi.kvs.replica.root_page import RootPage, path_of
from fluxmpi.kvs.wire import Cancel, CommitId
from fluxmpi.message import ANY, Message
from fluxmpi.overlay.wire import Subscribe

URI_VARIABLE = "FLUXMPI_URI"
SCHEME = "local://"

ALIVE_CHECK_S = 0.01
"""A read that sends no request checks the connection at most once in this time."""

RECEIVE_BYTES = 1 << 18
BATCH_REQUESTS_MAX = 1000
"""In a batch, this many requests leave without waiting for more."""


T = TypeVar("T")

decode_any = decoder(Any)


class Ready(Protocol):
    """What can be waited for with others: a Future, Stream, Watch or Subscription."""

    @property
    def ready(self) -> bool:
        """True if its ``get`` returns or raises at once."""


R = TypeVar("R", bound=Ready)


def open_channel(uri: str | None, session: Session | None = None, limits: HandleLimits = DEFAULT_LIMITS) -> Channel:
    """Return a channel to the broker at ``uri``, by default FLUXMPI_URI's; see ``fluxmpi.connect`` for the errors."""
    uri = uri or os.environ.get(URI_VARIABLE)
    if not uri:
        raise NoInstance(f"no instance: {URI_VARIABLE} is not set; {HINT}")
    path = uri.removeprefix(SCHEME)
    if path == uri or not path.startswith("/"):
        raise InvalidRequest(f"'{uri}' is not an instance's address: it must read {SCHEME}/path/of/broker.0.sock")
    return Channel(open_socket(path), session, limits)


def new_client() -> str:
    """Return a client name that no other client of the instance has."""
    return f"{os.getpid()}-{os.urandom(8).hex()}"


_channels: WeakSet[Channel] = WeakSet()


def _after_fork() -> None:
    for channel in list(_channels):
        channel.forked()


os.register_at_fork(after_in_child=_after_fork)


class Channel:
    """One connection to a broker; see the module's docstring.

    Attributes:
        session: the client's identity, kept across reconnections.
        limits: the client's bounds.
        connection: the protocol core of the current socket.
        hello: the broker's greeting.
        digest: the instance's digest function.
        descriptors: set while a response may carry a descriptor, which a plain ``recv`` would lose.
        forgotten: streams of watches that were collected without being closed; the next flush cancels them.
        on_reconnect: called after a reconnection.
    """

    def __init__(
        self, sock: socket.socket, session: Session | None = None, limits: HandleLimits = DEFAULT_LIMITS
    ) -> None:
        self._sock = sock
        self.session = session or Session(new_client())
        self.limits = limits
        self.connection = Connection(self.session.unanswered, limits)
        # One buffer for all reads: a fresh one of this size would be mapped, shrunk and unmapped for each.
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._hangup = select.poll()
        self._hangup.register(sock, select.POLLRDHUP)
        self._alive_check_at = 0.0
        self._receiving = 0
        """The thread that reads from the socket, while one does."""
        self.forgotten: deque[Stream[Any]] = deque()
        self.on_reconnect: list[Callable[[Channel], None]] = []
        self.descriptors: DescriptorQueue | None = None
        _channels.add(self)
        path = sock.getpeername()
        self._path = path if isinstance(path, str) else ""
        self._batches = 0
        try:
            self.wait(lambda: self.connection.hello is not None, limits.greeting_s, "the broker's greeting")
        except ConnectionLost:
            sock.close()
            raise NoInstance(
                f"no instance at {self._path or 'the socket'}: its broker closed the connection before it greeted; {HINT}"
            ) from None
        except BaseException:
            sock.close()
            raise
        hello = self.connection.hello
        assert hello is not None
        self.hello: Hello = hello
        self.digest = digest_function(hello.algorithm)
        known = self.session.instance or hello.instance
        if known != hello.instance:
            self.close()
            raise InvalidRequest(f"the session is of instance {known}, and this broker of instance {hello.instance}")
        self.session.instance = known
        self._resend()

    def _resend(self) -> None:
        for call in self.connection.resend():
            call.carrier = self
        if self.connection.outgoing:
            self.flush()

    def reconnect(self, uri: str | None) -> None:
        """Continue the session at the broker at ``uri``, by default the same; see ``Handle.reconnect``."""
        if uri is None:
            uri = f"{SCHEME}{self._path}"
        old = self.connection
        if old.error is None:  # a request that leaves twice is applied once
            with suppress(FluxmpiError):
                self.flush()
        fresh = open_channel(uri, self.session, self.limits)
        old.close(
            ConnectionLost(
                "this handle reconnected to another broker; pending requests may or may not have been carried out"
            )
        )
        for name in ("_sock", "_path", "connection", "_poll", "_hangup", "hello"):
            ours, theirs = getattr(self, name), getattr(fresh, name)
            setattr(self, name, theirs)
            setattr(fresh, name, ours)
        fresh.close()
        self.descriptors = None  # no descriptor arrives for a lost request
        self._resend()  # requests that were not lost before
        for call in self.session.unanswered.values():
            call.carrier = self
        for prefix in self.connection.adopt_subscriptions(old):
            self.rpc("event.subscribe", Subscribe(prefix))
        for resume in self.on_reconnect:
            resume(self)

    # --------------------------------------------------------------------------------------------------------- requests

    def rpc(
        self, topic: str, body: Any = None, *, target: int = ANY, timeout: float | None = None, reply: Any = Any
    ) -> Any:
        """Send a request and return its response, decoded as ``reply``; see ``Handle.rpc``."""
        decode = decode_any if reply is Any else decoder(reply)
        return self.send(topic, encode(topic, body), target, decode).get(timeout)

    def send(
        self,
        topic: str,
        body: bytes,
        target: int,
        decode: Callable[[Message], T],
        on_end: Callable[[Message], None] | None = None,
    ) -> Future[T]:
        """Send an encoded request; ``decode`` turns its response into the result.

        ``on_end`` is called with the last response, also after the future was cancelled.
        """
        call = self.connection.request(topic, body, target)
        call.on_end = on_end
        self._sent()
        return Future(self, call, decode)

    def send_once(
        self, topic: str, body: Callable[[CommitId, int], bytes], decode: Callable[[Message], T]
    ) -> Future[T]:
        """Send a request that is applied once however often it is sent: with an id that its answer acknowledges."""
        session = self.session
        id_ = session.commit_id()
        serial = id_.serial
        try:
            data = body(id_, session.acked)
        except FluxmpiError:
            session.answered(serial)
            raise
        return self.send(topic, data, ANY, decode, lambda message: session.answered(serial))

    def send_stream(
        self,
        topic: str,
        body: bytes,
        target: int,
        decode: Callable[[Message], T],
        decode_last: Callable[[Message], Any],
    ) -> Stream[T]:
        """Send an encoded request that has many responses."""
        call = self.connection.request(topic, body, target)
        self._sent()
        return Stream(self, call, decode, decode_last)

    def post(self, topic: str, body: Any = None, *, target: int = ANY) -> None:
        """Send a request and drop its response."""
        self.connection.post(topic, encode(topic, body), target)
        self._sent()

    def _sent(self) -> None:
        if not self._batches or self.connection.outgoing >= BATCH_REQUESTS_MAX:
            self.flush()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Gather the requests of this block; they leave together at the first wait, or at the end."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches and not self.closed:
                self.flush()

    def abandon(self, call: Call) -> None:
        """Drop every response to ``call`` that arrives from now on."""
        self.connection.abandon(call)

    # ------------------------------------------------------------------------------------------------------- the socket

    def flush(self) -> None:
        """Write what is queued. Blocks while the broker does not read it, and meanwhile reads what the broker sends."""
        while self.forgotten:
            stream = self.forgotten.popleft()
            if not stream.over:  # else its tag may be another request's, of a new connection
                self.connection.post("kvs.cancel", encode("kvs.cancel", Cancel(stream.tag)), ANY)
                stream.close()
        data = self.connection.data_to_send()
        if not data:
            return
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
            if sent == len(data):
                return
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(error)
        self._flush_slowly(memoryview(data)[sent:])

    def _flush_slowly(self, rest: memoryview) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLOUT)
        while rest:
            for _, events in poll.poll():
                if events & select.POLLOUT:
                    try:
                        rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT) :]
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        self._lost(error)
                if events & ~select.POLLOUT:
                    self._receive()
            if self.connection.error is not None:
                raise self.connection.error

    def _receive(self) -> None:
        """Read once; block until there is something to read."""
        data: bytes | memoryview
        thread = get_ident()
        if self._receiving and self._receiving != thread:
            raise InvalidRequest("two threads use this handle at the same time: connect in each thread")
        self._receiving = thread
        try:
            if self.descriptors is None:
                data = self._buffer[: self._sock.recv_into(self._buffer)]
            else:
                data = self.descriptors.receive(self._sock, RECEIVE_BYTES)
        except OSError as error:
            self._lost(error)
        else:
            self.connection.receive(data)
        finally:
            self._receiving = 0

    def _lost(self, error: OSError) -> None:
        self.connection.receive(b"")
        assert self.connection.error is not None
        raise self.connection.error from error

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Read until ``ready()`` is true. Raises RequestTimeout, or the error that ended the connection."""
        if self.connection.outgoing:
            self.flush()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            if self.connection.error is not None:
                raise self.connection.error
            if deadline is not None:
                left_s = deadline - time.monotonic()
                if not self._poll.poll(max(0.0, left_s * 1000)):
                    if left_s > 0:
                        continue
                    raise RequestTimeout(
                        f"{what}: no answer within {timeout:g} s; a request may still be carried out: wait again, or ask again"
                    )
            self._receive()

    def wait_call(self, call: Call, timeout: float | None) -> None:
        """Return when ``call.take()`` has something to return or raise. Raises RequestTimeout."""
        if timeout is None:  # the hot path
            if call.responses:
                return
            if self.connection.outgoing:
                self.flush()
            while not (call.responses or call.ended):
                self._receive()
        else:
            self.wait(lambda: call.ready, timeout, call.topic)

    def wait_events(self, queue: EventQueue, timeout: float | None) -> None:
        """Return when ``queue.take()`` has something to return or raise. Raises RequestTimeout."""
        self.wait(lambda: queue.ready, timeout, f"events of '{queue.prefix}'")

    def wait_any(self, sources: Sequence[R], timeout: float | None) -> R:
        """Return the first of ``sources`` that is ready, in their order. Raises RequestTimeout."""
        found: list[R] = []

        def ready() -> bool:
            found.extend(source for source in sources if source.ready)
            return bool(found)

        self.wait(ready, timeout, f"{len(sources)} pending requests")
        return found[0]

    def poll_input(self) -> None:
        """Read what has arrived, without waiting."""
        if self.connection.outgoing:
            self.flush()
        while self.connection.error is None and self._poll.poll(0):
            self._receive()

    def check_alive(self) -> None:
        """Raise the error that ended the connection, if it ended; noticed within ALIVE_CHECK_S.

        For reads that send no request: a client must not read on from a dead broker's root page.
        """
        now = time.monotonic()
        if now >= self._alive_check_at:
            self._alive_check_at = now + ALIVE_CHECK_S
            while self.connection.error is None and self._hangup.poll(0):
                self._receive()  # responses that were sent before the end
        if self.connection.error is not None:
            raise self.connection.error

    def root_page(self) -> RootPage | None:
        """Map the broker's root page; None if it has none."""
        hello, path = self.hello, self._path
        return open_root_page(path_of(path), hello.instance, hello.rank, hello.pid) if path else None

    def wait_closed(self) -> None:
        """Return when the broker has closed the connection."""
        while self.connection.error is None:
            with suppress(ConnectionLost):
                self._receive()

    def statistics(self) -> dict[str, int]:
        """Return the protocol's counts, and whether a thread is reading from the socket."""
        return {**self.connection.statistics(), "receiving": int(self._receiving != 0)}

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    # ------------------------------------------------------------------------------------------------------- its end

    @property
    def closed(self) -> bool:
        """True if the connection has ended."""
        return self.connection.error is not None

    def close(self) -> None:
        """Close the connection. Pending requests fail with ConnectionLost."""
        if not self.closed:
            with suppress(FluxmpiError):
                self.flush()
            self.connection.close(ConnectionLost("this handle was closed: connect again"))
        self._sock.close()

    def forked(self) -> None:
        """Close the copy in a child process: the connection and the session's name belong to the parent."""
        self.session.forked(new_client())
        self.forgotten.clear()
        self._receiving = 0
        self.connection.close(
            ConnectionLost(
                "this handle was made before a fork, and is its parent's: connect in the child, or reconnect()"
            )
        )
        self._sock.close()

    def __del__(self) -> None:
        self._sock.close()
