"""One connection to a broker, blocking: a ``protocol.Connection`` on a socket (``socket_io``).

``Handle`` and its services send through a channel; programs do not use it themselves. A request leaves at once, unless
the channel is in a batch. Buffers that are full cannot deadlock: a send that the socket refuses is retried while the
channel reads what arrives.

The channel survives a reconnection: it replaces its socket and protocol, resends the session's unanswered requests, and
calls what was registered with ``on_reconnect``.

*One thread at a time.* ``use`` is held for a whole call: from before its request is encoded until it has its result. A
second thread is refused before it has queued anything. A thread that waits for the result of an earlier request
(``Future.get``) can be refused, too; that error is indefinite, since the request was sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from fluxmpi.blobref import digest_function
from fluxmpi.broker.wire import Hello
from fluxmpi.client.future import Future, Stream
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.client.protocol import Call, Connection, EventQueue, decoder, encode
from fluxmpi.client.session import Session
from fluxmpi.client.socket_io import SocketIo, TimeLimit, time_limit
from fluxmpi.client.sockets import HINT, DescriptorQueue, open_root_page, open_socket
from fluxmpi.client.use import OneThread, two_threads
from fluxmpi.errors import (
    ConnectionLost,
    FluxmpiError,
    InvalidRequest,
    NoInstance,
    RequestTimeout,
    indefinite,
    unsent,
)
from fluxmpi.kvs.replica.root_page import RootPage, path_of
from fluxmpi.kvs.wire import Cancel, CommitId
from fluxmpi.message import ANY, Message
from fluxmpi.overlay.wire import Subscribe

URI_VARIABLE = "FLUXMPI_URI"
SCHEME = "local://"

ALIVE_CHECK_S = 0.01
"""A read that sends no request checks the connection at most once in this time."""

END_S = 1.0
"""A handle that is closed waits so long for the broker to read what was sent before."""

CLOSED = "this handle was closed: connect again"

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
        io: the current socket.
        connection: the protocol core of the current socket.
        hello: the broker's greeting.
        digest: the instance's digest function.
        use: held by the thread that uses the channel.
        forgotten: streams of watches that were collected without being closed; the next flush cancels them.
        on_reconnect: called after a reconnection.
    """

    def __init__(
        self, sock: socket.socket, session: Session | None = None, limits: HandleLimits = DEFAULT_LIMITS
    ) -> None:
        self.session = session or Session(new_client())
        self.limits = limits
        self.connection = Connection(self.session.unanswered, limits)
        self.io = SocketIo(sock, self.connection)
        self.use = OneThread()
        self._limit: TimeLimit | None = None
        """The limit of the call that is under way, if it has one."""
        self._alive_check_at = 0.0
        self.forgotten: deque[Stream[Any]] = deque()
        self.on_reconnect: list[Callable[[Channel], None]] = []
        _channels.add(self)
        path = sock.getpeername()
        self._path = path if isinstance(path, str) else ""
        self._batches = 0
        self._greeted(limits.greeting_s)
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

    def _greeted(self, greeting_s: float) -> None:
        """Wait for the broker's greeting. Nothing has been sent yet, so every error is definite."""
        try:
            self.wait(lambda: self.connection.hello is not None, greeting_s, "the broker's greeting")
        except ConnectionLost:
            self.io.close()
            raise NoInstance(
                f"no instance at {self._path or 'the socket'}: its broker closed the connection before it greeted; {HINT}"
            ) from None
        except RequestTimeout:
            self.io.close()
            text = f"no greeting of the broker at {self._path or 'the socket'} within {greeting_s:g} s: it does not run"
            raise unsent(RequestTimeout(text)) from None
        except FluxmpiError as error:
            self.io.close()
            raise unsent(error) from None
        except BaseException:
            self.io.close()
            raise

    def _resend(self) -> None:
        for call in self.connection.resend():
            call.carrier = self
        if self.connection.outgoing:
            self.flush()

    def reconnect(self, uri: str | None) -> None:
        """Continue the session at the broker at ``uri``, by default the same; see ``Handle.reconnect``."""
        with self.use:
            if uri is None:
                uri = f"{SCHEME}{self._path}"
            old = self.connection
            if old.error is None:  # a request that leaves twice is applied once
                self._flush_before_end()
            fresh = open_channel(uri, self.session, self.limits)
            old.close(ConnectionLost("this handle reconnected to another broker"))
            if self.io.output >= 0:
                fresh.io.watch_output(self.io.output)
            for name in ("_path", "connection", "hello", "io"):
                ours, theirs = getattr(self, name), getattr(fresh, name)
                setattr(self, name, theirs)
                setattr(fresh, name, ours)
            fresh.close()
            self._resend()  # requests that were not lost before
            for call in self.session.unanswered.values():
                call.carrier = self
            for prefix in self.connection.adopt_subscriptions(old):
                self.rpc("event.subscribe", Subscribe(prefix))
            for resume in self.on_reconnect:
                resume(self)

    # --------------------------------------------------------------------------------------------------------- requests

    def call(self, send: Callable[[], Future[T]], timeout: float | None) -> T:
        """Send one request or several, and return the result: one use of the channel, with one time limit."""
        use = self.use
        if not use.acquire(False):
            raise two_threads()
        try:
            if timeout is None:
                return send().get()
            before, self._limit = self._limit, time_limit(timeout)
            try:
                return send().get()
            finally:
                self._limit = before
        finally:
            use.release()

    def rpc(
        self, topic: str, body: Any = None, *, target: int = ANY, timeout: float | None = None, reply: Any = Any
    ) -> Any:
        """Send a request and return its response, decoded as ``reply``; see ``Handle.rpc``."""
        decode = decode_any if reply is Any else decoder(reply)
        data = encode(topic, body)
        use = self.use
        if not use.acquire(False):
            raise two_threads()
        try:
            if timeout is not None:
                return self.call(lambda: self.send(topic, data, target, decode), timeout)
            call = self._request(topic, data, target)
            if self._limit is not None:
                self.wait_call(call, None)
            else:
                self._wait(call)
            message = call.take()
            assert message is not None, "a call that ended without a response has an error"
            return decode(message)
        finally:
            use.release()

    def _request(self, topic: str, body: bytes, target: int, on_end: Callable[[Message], None] | None = None) -> Call:
        """Queue a request, and send it unless this is a batch. The caller holds ``use``."""
        connection = self.connection
        call = connection.request(topic, body, target)
        call.on_end = on_end
        if not self._batches or connection.outgoing >= BATCH_REQUESTS_MAX:
            if self.forgotten:
                self._flush()
            else:
                self.io.flush(self._limit)
        return call

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
        use = self.use
        if not use.acquire(False):
            raise two_threads()
        try:
            return Future(self, self._request(topic, body, target, on_end), decode)
        finally:
            use.release()

    def send_once(
        self, topic: str, body: Callable[[CommitId, int], bytes], decode: Callable[[Message], T]
    ) -> Future[T]:
        """Send a request that is applied once however often it is sent: with an id that its answer acknowledges."""
        session, use = self.session, self.use
        if not use.acquire(False):
            raise two_threads()
        try:
            id_ = session.commit_id()
            serial = id_.serial
            try:
                data = body(id_, session.acked)
                self.connection.check_open(topic)
            except BaseException:  # no request has this id
                session.answered(serial)
                raise
            return Future(self, self._request(topic, data, ANY, lambda message: session.answered(serial)), decode)
        finally:
            use.release()

    def send_stream(
        self,
        topic: str,
        body: bytes,
        target: int,
        decode: Callable[[Message], T],
        decode_last: Callable[[Message], Any],
    ) -> Stream[T]:
        """Send an encoded request that has many responses."""
        with self.use:
            return Stream(self, self._request(topic, body, target), decode, decode_last)

    def post(self, topic: str, body: Any = None, *, target: int = ANY) -> None:
        """Send a request and drop its response. It does not wait for a broker that does not read."""
        data = encode(topic, body)
        with self.use:
            self.connection.post(topic, data, target)
            many = self.connection.outgoing >= BATCH_REQUESTS_MAX
            if many or not self._batches:
                self._flush(wait=many)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Gather the requests of this block; they leave together at the first wait, or at the end."""
        with self.use:
            self._batches += 1
            try:
                yield
            finally:
                self._batches -= 1
                if not self._batches and not self.closed:
                    self._flush()

    def abandon(self, call: Call) -> None:
        """Drop every response to ``call`` that arrives from now on."""
        self.connection.abandon(call)

    @property
    def descriptors(self) -> DescriptorQueue | None:
        """Set while a response may carry a descriptor."""
        return self.io.descriptors

    @descriptors.setter
    def descriptors(self, queue: DescriptorQueue | None) -> None:
        self.io.descriptors = queue

    # ------------------------------------------------------------------------------------------------------- the socket

    def flush(self) -> None:
        """Write what is queued. Blocks while the broker does not read it, and meanwhile reads what the broker sends."""
        with self.use:
            self._flush()

    def _flush(self, *, wait: bool = True) -> None:
        while self.forgotten:
            stream = self.forgotten.popleft()
            if not stream.over:  # else its tag may be another request's, of a new connection
                self.connection.post("kvs.cancel", encode("kvs.cancel", Cancel(stream.tag)), ANY)
                stream.close()
        self.io.flush(self._limit, wait)

    def _flush_before_end(self) -> None:
        """Write what is queued, before this connection ends; not if the broker does not read it."""
        with suppress(FluxmpiError):
            self.io.flush(time_limit(END_S))

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Read until ``ready()`` is true. Raises RequestTimeout, or the error that ended the connection."""
        self._begin_wait(what)
        try:
            if self.io.has_output:
                self._flush()
            limit = self._limit if timeout is None else time_limit(timeout)
            while not ready():
                if self.connection.error is not None:
                    raise indefinite(self.connection.error)
                if limit is not None and not self.io.wait_for_input(limit):
                    raise RequestTimeout(
                        f"{what}: no answer within {limit[1]:g} s; a request may still be carried out: wait again, or ask again"
                    )
                self.io.receive()
        finally:
            self.use.release()

    def _begin_wait(self, what: str) -> None:
        """Begin a use for what was requested before; the caller ends it."""
        if not self.use.acquire(False):
            error = two_threads()
            raise indefinite(error, f"{what}: {error.text}; what was requested before may be carried out")

    def wait_call(self, call: Call, timeout: float | None) -> None:
        """Return when ``call.take()`` has something to return or raise. Raises RequestTimeout."""
        if call.responses or call.ended:
            return
        if call.abandoned:
            raise indefinite(InvalidRequest(f"{call.topic}: this request was cancelled, and its result dropped"))
        if timeout is not None or self._limit is not None:
            self.wait(lambda: call.ready, timeout, call.topic)
            return
        self._begin_wait(call.topic)
        try:
            self._wait(call)
        finally:
            self.use.release()

    def _wait(self, call: Call) -> None:
        """Wait without a limit: the hot path. The caller holds ``use``."""
        io = self.io
        if io.has_output:
            self._flush()
        while not (call.responses or call.ended):
            io.receive()

    def wait_events(self, queue: EventQueue, timeout: float | None) -> None:
        """Return when ``queue.take()`` has something to return or raise. Raises RequestTimeout."""
        if not queue.ready:
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
        with self.use:
            if self.io.has_output:
                self._flush()
            while self.connection.error is None and self.io.has_input():
                self.io.receive()

    def check_alive(self) -> None:
        """Raise the error that ended the connection, if it ended; noticed within ALIVE_CHECK_S.

        For reads that send no request: a client must not read on from a dead broker's root page.
        """
        now = time.monotonic()
        if now >= self._alive_check_at:
            self._alive_check_at = now + ALIVE_CHECK_S
            if self.io.is_hung_up() and self.use.acquire(False):  # a thread that uses the channel notices by itself
                try:
                    while self.connection.error is None and self.io.is_hung_up():
                        self.io.receive()  # responses that were sent before the end
                finally:
                    self.use.release()
        if self.connection.error is not None:
            raise unsent(self.connection.error)

    def root_page(self) -> RootPage | None:
        """Map the broker's root page; None if it has none."""
        hello, path = self.hello, self._path
        return open_root_page(path_of(path), hello.instance, hello.rank, hello.pid) if path else None

    def wait_closed(self) -> None:
        """Return when the broker has closed the connection."""
        with self.use:
            while self.connection.error is None:
                with suppress(ConnectionLost):
                    self.io.receive()

    def statistics(self) -> dict[str, int]:
        """Return the protocol's counts, and whether a thread is reading from the socket."""
        return {**self.connection.statistics(), "receiving": int(self.io.is_receiving)}

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.io.fileno()

    # ------------------------------------------------------------------------------------------------------- its end

    @property
    def closed(self) -> bool:
        """True if the connection has ended."""
        return self.connection.error is not None

    def close(self) -> None:
        """Close the connection. Pending requests fail with ConnectionLost, also one that another thread waits for."""
        if not self.closed:
            if not self.use.acquire(False):
                self.io.shut_down(ConnectionLost(CLOSED))
                return
            try:
                self._flush_before_end()
                self.connection.close(ConnectionLost(CLOSED))
            finally:
                self.use.release()
        self.io.close()

    def forked(self) -> None:
        """Close the copy in a child process: the connection and the session's name belong to the parent."""
        self.session.forked(new_client())
        self.forgotten.clear()
        self.use = OneThread()  # a thread that held it does not exist here
        self._limit = None
        self.connection.close(
            ConnectionLost(
                "this handle was made before a fork, and is its parent's: connect in the child, or reconnect()"
            )
        )
        self.io.close()

    def __del__(self) -> None:
        self.io.close()
