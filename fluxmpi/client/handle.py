"""``fluxmpi.connect()`` and the handle that it returns: one connection to an instance, with its services.

    h.kvs        the key-value store                      kvs/kvs.py: which file has which method
    h.event      publish and subscribe                    event.py
    h.eventlog   logs of events under a key               eventlog.py
    h.exec       commands on nodes                        exec.py
    h.content    blobs by digest                          content.py
    h.rpc        any other service                        channel.py: the socket; protocol.py: its rules, without I/O

A handle belongs to one thread at a time: a program with several threads connects once in each, and a child process
after a fork once more. A second thread is refused (InvalidRequest) before it has sent anything. Any number of requests,
streams and subscriptions may be open on one handle; while it waits for one, it reads what arrives for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fluxmpi.client.channel import Channel, R, decode_any, open_channel
from fluxmpi.client.future import Future, Stream
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.session import Session
from fluxmpi.message import ANY

if TYPE_CHECKING:
    from fluxmpi.client.content import Content
    from fluxmpi.client.event import Events
    from fluxmpi.client.eventlog import Eventlog
    from fluxmpi.client.exec import Exec
    from fluxmpi.client.kvs.kvs import Kvs


def connect(uri: str | None = None, *, session: Session | None = None, limits: HandleLimits = DEFAULT_LIMITS) -> Handle:
    """Connect to a broker of an instance. Close the handle, or use it in a ``with`` block.

    Args:
        uri: the broker's address, ``local:///path/of/broker.0.sock``; by default the environment's FLUXMPI_URI, which
            ``fluxmpi start`` sets for its command.
        session: ``old.session`` of another handle, to continue that session, at any broker. The new handle reads
            nothing older than the old one has read or written. Commits, fences and adds that the old one left
            unanswered are sent again with the same ids: each is applied once, and its Future gets the answer.
        limits: bounds of what this client buffers and caches.

    Returns:
        A handle on the instance.

    Raises:
        NoInstance: no broker answers at that address, or FLUXMPI_URI is not set.
        PermissionDenied: another user started the instance.
        ProtocolError: the process at that address is not a broker of this version.
        InvalidRequest: ``uri`` is not an address, or ``session`` is of another instance.

    Example:
        >>> import fluxmpi
        >>> with fluxmpi.connect() as h:
        ...     h.size
        3
    """
    return Handle(open_channel(uri, session, limits))


class Handle:
    """A connection to one broker of an instance, and the services that it reaches; made by ``connect``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def rank(self) -> int:
        """The rank of the broker that this handle is connected to."""
        return self._channel.hello.rank

    @property
    def size(self) -> int:
        """The number of brokers in the instance; their ranks are 0 to ``size`` - 1."""
        return self._channel.hello.size

    @property
    def instance(self) -> str:
        """The instance's name, unique to each start."""
        return self._channel.hello.instance

    @property
    def broker_pid(self) -> int:
        """The process id of the broker, on this node."""
        return self._channel.hello.pid

    @property
    def session(self) -> Session:
        """This client's identity; pass it to ``connect`` to continue the session on another handle."""
        return self._channel.session

    # --------------------------------------------------------------------------------------------------------- services

    @cached_property
    def kvs(self) -> Kvs:
        """The key-value store."""
        from fluxmpi.client.kvs.kvs import Kvs

        return Kvs(self._channel)

    @cached_property
    def eventlog(self) -> Eventlog:
        """Logs of events, each under a key of the key-value store."""
        from fluxmpi.client.eventlog import Eventlog

        return Eventlog(self.kvs)

    @cached_property
    def event(self) -> Events:
        """Publish and subscribe."""
        from fluxmpi.client.event import Events

        return Events(self._channel)

    @cached_property
    def exec(self) -> Exec:
        """Commands on nodes."""
        from fluxmpi.client.exec import Exec

        return Exec(self._channel)

    @cached_property
    def content(self) -> Content:
        """Blobs by digest."""
        from fluxmpi.client.content import Content

        return Content(self._channel)

    # --------------------------------------------------------------------------------------------------------- requests

    def rpc(
        self, topic: str, body: Any = None, *, target: int = ANY, timeout: float | None = None, reply: Any = Any
    ) -> Any:
        """Send a request to a service and return its response.

        Args:
            topic: the service and its method, ``service.method``.
            body: what msgpack can encode: numbers, texts, bytes, lists, dicts, msgspec records.
            target: a rank, or ANY: the nearest broker on the way to rank 0 that has the service.
            timeout: seconds to wait; None waits without a limit.
            reply: the type that the response is decoded as.

        Raises:
            RequestTimeout: no response within ``timeout``. The request may still be carried out.
            NoSuchService: no broker on the way has the service.
            NoSuchRank: ``target`` is not a rank of the instance.
            FluxmpiError: the error that the service answered with.

        Example:
            >>> h.rpc("ping.ping", [1, b"payload"], target=2)[0]
            1
        """
        return self._channel.rpc(topic, body, target=target, timeout=timeout, reply=reply)

    def rpc_async(self, topic: str, body: Any = None, *, target: int = ANY, reply: Any = Any) -> Future[Any]:
        """Send a request like ``rpc``, without waiting.

        Args:
            topic: the service and its method.
            body: as for ``rpc``.
            target: as for ``rpc``.
            reply: as for ``rpc``.

        Returns:
            The future response: ``get()`` waits for it.

        Example:
            >>> pings = [h.rpc_async("ping.ping", [n, b""], target=n) for n in range(h.size)]
            >>> [ping.get()[0] for ping in pings]
            [0, 1, 2]
        """
        decode = decode_any if reply is Any else decoder(reply)
        return self._channel.send(topic, encode(topic, body), target, decode)

    def stream(
        self, topic: str, body: Any = None, *, target: int = ANY, reply: Any = Any, last: Any = Any
    ) -> Stream[Any]:
        """Send a request to a service that responds more than once.

        Args:
            topic: the service and its method.
            body: as for ``rpc``.
            target: as for ``rpc``.
            reply: the type of each response but the last.
            last: the type of the last response, ``Stream.last``.
        """
        return self._channel.send_stream(topic, encode(topic, body), target, decoder(reply), decoder(last))

    def post(self, topic: str, body: Any = None, *, target: int = ANY) -> None:
        """Send a request and drop its response, also an error.

        Args:
            topic: the service and its method.
            body: as for ``rpc``.
            target: as for ``rpc``.
        """
        self._channel.post(topic, body, target=target)

    def batch(self) -> AbstractContextManager[None]:
        """Gather the requests of a ``with`` block.

        They leave together at the first wait, or at the end: one system call, and one turn of the broker's loop, for
        many.

        Example:
            >>> with h.batch():
            ...     futures = [h.kvs.commit_async({f"doc.batch.{n}": n}) for n in range(100)]
            >>> len({future.get().version for future in futures}) <= 100
            True
        """
        return self._channel.batch()

    def flush(self) -> None:
        """Send what a batch has gathered so far."""
        self._channel.flush()

    def wait_any(self, sources: Sequence[R], timeout: float | None = None) -> R:
        """Wait until one of several Futures, Streams, Watches or Subscriptions is ready.

        Args:
            sources: what to wait for; all are of this handle.
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The first that is ready, in the order of ``sources``: its ``get`` returns or raises at once.

        Raises:
            RequestTimeout: none was ready within ``timeout``.

        Example:
            >>> watches = [h.kvs.watch(key) for key in ("doc.left", "doc.right")]
            >>> for watch in watches:
            ...     _ = watch.update()                      # the values now
            >>> _ = h.kvs.put("doc.right", 1)
            >>> h.wait_any(watches, timeout=10).get().key
            'doc.right'
        """
        return self._channel.wait_any(sources, timeout)

    # --------------------------------------------------------------------------------------------------- the connection

    def reconnect(self, uri: str | None = None) -> None:
        """Continue at another broker, or again at the same one after its connection was lost. The session continues.

        Unanswered commits, fences and adds are sent again with the same ids: each is applied once, and its Future gets
        the answer, also one that raised ConnectionLost. Watches continue after their last version. Subscriptions
        receive what is published from now on; events between the loss and this call are missed. Everything else that
        was pending fails with ConnectionLost.

        Args:
            uri: the other broker's address; by default the address of this handle.

        Raises:
            NoInstance: as ``connect`` does, and so for its other errors; the handle is then unchanged.
        """
        self._channel.reconnect(uri)

    def watch_output(self, fd: int) -> None:
        """From now on, have this handle's waits raise BrokenPipeError as soon as the reader of ``fd`` has gone.

        For programs that print what they wait for: without it, ``program | head -1`` waits for something more to print.

        Args:
            fd: the descriptor that the program writes to, such as ``sys.stdout.fileno()``: a pipe or a socket. Files
                and terminals have no effect.
        """
        self._channel.io.watch_output(fd)

    def poll_input(self) -> None:
        """Read what has arrived, without waiting: for programs whose own event loop watches ``fileno()``."""
        self._channel.poll_input()

    def fileno(self) -> int:
        """Return the descriptor of the connection, for ``select`` and event loops."""
        return self._channel.fileno()

    def wait_closed(self) -> None:
        """Return when the broker has closed the connection, as it does when the instance ends."""
        self._channel.wait_closed()

    @property
    def closed(self) -> bool:
        """True if the connection has ended, by ``close`` or because it was lost."""
        return self._channel.closed

    def close(self) -> None:
        """Leave the instance. Pending requests fail with ConnectionLost."""
        self._channel.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<fluxmpi.Handle rank {self.rank} of {self.size}, instance {self.instance}{state}>"

    def statistics(self) -> dict[str, int]:
        """Return counts of what was sent and what is pending on this connection."""
        return self._channel.statistics()
