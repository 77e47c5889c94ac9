"""The blocking handle: a socket and a ``protocol.Connection`` on it.

``fluxmpi.connect()`` makes one. All of its services hang off it: ``h.kvs``, ``h.event``, ``h.eventlog``, ``h.exec``,
``h.content``, and ``h.rpc`` for any other. A handle belongs to one thread at a time: a program with several threads
connects once in each, and a child process after a fork once more. Any number of requests, streams and subscriptions may
be open on one handle; while it waits for one, it takes in what comes for all.

A request leaves at once, unless in a ``with h.batch():`` block, where requests gather until something is waited for, or
the block ends: one system call, and one turn of the broker's loop, for many.

Nothing here can deadlock on full buffers: a send that the socket refuses is retried while what arrives is read.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fluxmpi.broker.wire import Hello
from fluxmpi.client.future import Future as Future
from fluxmpi.client.future import Stream as Stream
from fluxmpi.client.future import first_ready as first_ready
from fluxmpi.client.page import open_page
from fluxmpi.client.protocol import Call, Connection, Subscription, bare, decoder, encode
from fluxmpi.client.session import Session
from fluxmpi.errors import (
    ConnectionLost,
    FluxmpiError,
    InvalidRequest,
    NoInstance,
    PermissionDenied,
    RequestTimeout,
)
from fluxmpi.kvs.replica.root_page import RootPage, path_of
from fluxmpi.kvs.wire import Cancel
from fluxmpi.message import ANY, Message
from fluxmpi.overlay.wire import Subscribe

if TYPE_CHECKING:
    from fluxmpi.client.content import Content
    from fluxmpi.client.event import Events
    from fluxmpi.client.eventlog import Eventlog
    from fluxmpi.client.exec import Exec
    from fluxmpi.client.kvs import Kvs
    from fluxmpi.client.mapping import Passing

URI_VARIABLE = "FLUXMPI_URI"
SCHEME = "local://"
CONNECT_S = 10.0
"""Time that a broker has to greet a new client."""

LOOK_S = 0.01
"""Reads that ask nobody look so often at most whether the broker is still there."""

RECEIVE_BYTES = 1 << 18
BATCH_REQUESTS_MAX = 1000
"""In a batch, so many requests leave without waiting for more."""

_HINT = "start one with 'fluxmpi start -n N -- COMMAND', or run inside of it"

decode_any = decoder(Any)


def connect(uri: str | None = None, *, session: Session | None = None) -> Handle:
    """A handle on the instance at ``uri``, by default FLUXMPI_URI's.

    ``session``: of another handle, ``old.session``: this one goes on where that one was, at whatever broker. It reads nothing
    older than that one has read or written, and what that one left unanswered when it was closed or lost its broker, commits,
    fences and adds, is sent again with the same ids: it happens once, and its Futures get their answers.

    Raises NoInstance when there is none, PermissionDenied when it is another user's, ProtocolError when what answers is
    not a broker of this version. Close the handle, or use it in a ``with`` block.
    """
    uri = uri or os.environ.get(URI_VARIABLE)
    if not uri:
        raise NoInstance(f"no instance: {URI_VARIABLE} is not set; {_HINT}")
    path = uri.removeprefix(SCHEME)
    if path == uri or not path.startswith("/"):
        raise InvalidRequest(f"'{uri}' is not an instance's address: it must read {SCHEME}/path/of/broker.0.sock")
    return Handle(_open(path), session)


def _open(path: str) -> socket.socket:
    """A connected socket whose other end is known to be our own user's."""
    uid = os.geteuid()
    folder = os.path.dirname(path)
    try:
        owner = os.stat(folder).st_uid
    except OSError as error:
        raise NoInstance(
            f"no instance at {path}: {error.strerror}; it has ended, or runs on another node; {_HINT}"
        ) from None
    if owner != uid:
        raise PermissionDenied(
            f"{folder} belongs to uid {owner}, and you are uid {uid}: only who started an instance may use it"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
        peer = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]
        if peer != uid:
            raise PermissionDenied(f"the process that listens at {path} is uid {peer}'s, and you are uid {uid}")
    except FluxmpiError:
        sock.close()
        raise
    except ConnectionRefusedError:
        sock.close()
        raise NoInstance(f"nobody listens at {path}: its broker was killed; {_HINT}") from None
    except OSError as error:
        sock.close()
        raise NoInstance(f"no instance at {path}: {error.strerror or error}; it has ended; {_HINT}") from None
    return sock


def _new_client() -> str:
    return f"{os.getpid()}-{os.urandom(8).hex()}"


_handles: WeakSet[Handle] = WeakSet()


def _after_fork() -> None:
    for handle in list(_handles):
        handle._forked()


os.register_at_fork(after_in_child=_after_fork)


class Handle:
    """See the module's text. ``rank``, ``size`` and ``instance`` are those of the broker at the other end."""

    def __init__(self, sock: socket.socket, session: Session | None = None) -> None:
        self._sock = sock
        self.session = session or Session(_new_client())
        self._protocol = Connection(self.session.unanswered)
        # One for all reads: a fresh buffer of this size would be mapped, shrunk and unmapped for each.
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._hangup = select.poll()
        self._hangup.register(sock, select.POLLRDHUP)
        self._look_at = 0.0
        self._receiving = 0
        """The thread that reads from the socket, while one does."""
        self.left: deque[Stream] = deque()
        """Streams of watches that were forgotten without being closed."""
        _handles.add(self)
        path = sock.getpeername()
        self._path = path if isinstance(path, str) else ""
        self._batches = 0
        self.passing: Passing | None = None
        """Set while answers may carry a descriptor, which a plain ``recv`` would lose; see ``mapping``."""
        try:
            self._wait(lambda: self._protocol.hello is not None, CONNECT_S, "the broker's greeting")
        except BaseException:
            sock.close()
            raise
        hello = self._protocol.hello
        assert hello is not None
        self.hello: Hello = hello
        self.rank = hello.rank
        self.size = hello.size
        self.instance = hello.instance
        known = self.session.instance or hello.instance
        if known != hello.instance:
            self.close()
            raise InvalidRequest(f"the session is of instance {known}, and this broker of instance {hello.instance}")
        self.session.instance = known
        self._resend()

    def _resend(self) -> None:
        for call in self._protocol.resend():
            call.carrier = self
        if self._protocol.outgoing:
            self.flush()

    def reconnect(self, uri: str | None = None) -> None:
        """Go on at another broker, or at the same one again when its connection was lost; the session goes along.

        Commits, fences and adds without an answer are sent again with the same ids: they happen once, and their Futures get
        their answers, also those that raised ConnectionLost. Watches go on where they came to. Subscriptions get what is
        published from now on; what was published since the connection was lost is missed. All else that is under way fails
        with ConnectionLost. Raises what ``connect`` raises, and then nothing has changed.
        """
        if uri is None:
            uri = f"{SCHEME}{self._path}"
        old = self._protocol
        if old.error is None:  # what leaves twice happens once
            with suppress(FluxmpiError):
                self.flush()
        fresh = connect(uri, session=self.session)
        old.close(ConnectionLost("this handle went to another broker; what was in flight may or may not have happened"))
        for name in ("_sock", "_path", "_protocol", "_poll", "_hangup", "hello", "rank"):
            ours, theirs = getattr(self, name), getattr(fresh, name)
            setattr(self, name, theirs)
            setattr(fresh, name, ours)
        fresh.close()
        self.passing = None  # no descriptor comes for what was lost
        self._resend()  # what was not lost before
        for call in self.session.unanswered.values():
            call.carrier = self
        for prefix in self._protocol.go_on_from(old):
            self.rpc("event.subscribe", Subscribe(prefix))
        if "kvs" in self.__dict__:
            self.kvs.moved()

    # --------------------------------------------------------------------------------------------------------- services

    @cached_property
    def kvs(self) -> Kvs:
        from fluxmpi.client.kvs import Kvs

        return Kvs(self)

    @cached_property
    def eventlog(self) -> Eventlog:
        from fluxmpi.client.eventlog import Eventlog

        return Eventlog(self)

    @cached_property
    def event(self) -> Events:
        from fluxmpi.client.event import Events

        return Events(self)

    @cached_property
    def exec(self) -> Exec:
        from fluxmpi.client.exec import Exec

        return Exec(self)

    @cached_property
    def content(self) -> Content:
        from fluxmpi.client.content import Content

        return Content(self)

    # --------------------------------------------------------------------------------------------------------- requests

    def rpc(
        self, topic: str, body: Any = None, *, target: int = ANY, timeout: float | None = None, reply: Any = Any
    ) -> Any:
        """Ask a service and return its answer, decoded as the record type ``reply``.

        ``target`` is a rank, or ANY: the nearest broker on the way to rank 0 that has the service. Raises the service's
        error, or RequestTimeout after ``timeout`` seconds; the request may have been carried out then.
        """
        return self.rpc_async(topic, body, target=target, reply=reply).get(timeout)

    def rpc_async(self, topic: str, body: Any = None, *, target: int = ANY, reply: Any = Any) -> Future:
        """As ``rpc``, without waiting: ``get`` the answer from the Future."""
        return self.send(topic, encode(topic, body), target, decode_any if reply is Any else decoder(reply))

    def stream(self, topic: str, body: Any = None, *, target: int = ANY, reply: Any = Any, last: Any = Any) -> Stream:
        """Ask a service that answers more than once: iterate over the Stream."""
        return self.send_stream(topic, encode(topic, body), target, decoder(reply), decoder(last))

    def send(
        self, topic: str, body: bytes, target: int = ANY, decode: Callable[[Message], Any] = bare, on_end: Any = None
    ) -> Future:
        """The fast way under ``rpc_async``: an encoded body, and a function from the response message to the result."""
        call = self._protocol.request(topic, body, target)
        call.on_end = on_end
        self._sent()
        return Future(self, call, decode)

    def send_stream(
        self,
        topic: str,
        body: bytes,
        target: int,
        decode: Callable[[Message], Any],
        decode_last: Callable[[Message], Any],
    ) -> Stream:
        call = self._protocol.request(topic, body, target)
        self._sent()
        return Stream(self, call, decode, decode_last)

    def post(self, topic: str, body: Any = None, *, target: int = ANY) -> None:
        """Send a request whose answer does not matter."""
        self._protocol.post(topic, encode(topic, body), target)
        self._sent()

    def _sent(self) -> None:
        if not self._batches or self._protocol.outgoing >= BATCH_REQUESTS_MAX:
            self.flush()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """In this block requests gather, and leave together when something is waited for, or at the end."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches and not self.closed:
                self.flush()

    # ------------------------------------------------------------------------------------------------------- the socket

    def flush(self) -> None:
        """Write what is queued. Blocks while the broker does not take it, and meanwhile reads what it sends."""
        while self.left:
            stream = self.left.popleft()
            if not stream.over:  # else its tag may be another request's, of a new connection
                self._protocol.post("kvs.cancel", encode("kvs.cancel", Cancel(stream.tag)), ANY)
                stream.close()
        data = self._protocol.data_to_send()
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
                try:
                    if events & select.POLLOUT:
                        rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT) :]
                    if events & ~select.POLLOUT:
                        self._receive()
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._lost(error)
            if self._protocol.error is not None:
                raise self._protocol.error

    def _receive(self) -> None:
        """One read, blocking until there is something."""
        data: bytes | memoryview
        thread = get_ident()
        if self._receiving and self._receiving != thread:
            raise InvalidRequest(
                "two threads use this handle at a time, and would mix their answers: connect in each thread"
            )
        self._receiving = thread
        try:
            if self.passing is None:
                data = self._buffer[: self._sock.recv_into(self._buffer)]
            else:
                data = self.passing.receive(self._sock, RECEIVE_BYTES)
        except OSError as error:
            self._lost(error)
        else:
            self._protocol.receive(data)
        finally:
            self._receiving = 0

    def _lost(self, error: OSError) -> None:
        self._protocol.receive(b"")
        assert self._protocol.error is not None
        raise self._protocol.error from error

    def _wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Read until ``ready()``, or the connection ends. Raises RequestTimeout."""
        if self._protocol.outgoing:
            self.flush()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            if self._protocol.error is not None:
                raise self._protocol.error
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
        """Return when ``call.take()`` has something to give."""
        if timeout is None:  # the hot path
            if call.responses:
                return
            if self._protocol.outgoing:
                self.flush()
            while not (call.responses or call.ended):
                self._receive()
        else:
            self._wait(lambda: call.ready, timeout, f"{call.topic}")

    def wait_events(self, subscription: Subscription, timeout: float | None) -> None:
        self._wait(lambda: subscription.ready, timeout, f"events of '{subscription.prefix}'")

    def poll_input(self) -> None:
        """Take in what has arrived, without waiting: for programs whose own loop watches ``fileno()``."""
        if self._protocol.outgoing:
            self.flush()
        while self._protocol.error is None and self._poll.poll(0):
            self._receive()

    def look(self) -> None:
        """For who answers without a request: raise what ended the connection, as a request would; noticed within LOOK_S."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            while self._protocol.error is None and self._hangup.poll(0):
                self._receive()  # what came before the end
        if self._protocol.error is not None:
            raise self._protocol.error

    def page(self) -> RootPage | None:
        """The broker's page of roots; None if it has none."""
        hello, path = self.hello, self._path
        return open_page(path_of(path), hello.instance, hello.rank, hello.pid) if path else None

    def wait_closed(self) -> None:
        """Return when the broker has closed the connection, as it does when the instance ends."""
        while self._protocol.error is None:
            with suppress(ConnectionLost):
                self._receive()

    def fileno(self) -> int:
        return self._sock.fileno()

    # ------------------------------------------------------------------------------------------------------- its end

    @property
    def closed(self) -> bool:
        return self._protocol.error is not None

    def close(self) -> None:
        """Leave the instance. What is still awaited on this handle fails with ConnectionLost."""
        if not self.closed:
            with suppress(FluxmpiError):
                self.flush()
            self._protocol.close(ConnectionLost("this handle was closed: connect again"))
        self._sock.close()

    def _forked(self) -> None:
        """In a child process: the parent's connection is not ours, nor is its session's name."""
        self.session.forked(_new_client())
        self.left.clear()
        self._receiving = 0
        self._protocol.close(
            ConnectionLost(
                "this handle was made before a fork, and is its parent's: connect in the child, or reconnect()"
            )
        )
        self._sock.close()

    def __del__(self) -> None:
        self._sock.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<fluxmpi.Handle rank {self.rank} of {self.size}, instance {self.instance}{state}>"

    def statistics(self) -> dict[str, int]:
        return self._protocol.statistics()
