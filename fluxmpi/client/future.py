"""Results of pending requests: a ``Future`` has one response, a ``Stream`` has many, in order.

Both wait on a ``Carrier``, the channel that sent the request; after a reconnection, the channel that sent it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from fluxmpi.client.protocol import Call
from fluxmpi.errors import ConnectionLost, FluxmpiError
from fluxmpi.message import Message

T = TypeVar("T")


class Carrier(Protocol):
    """What a pending request waits on."""

    def wait_call(self, call: Call, timeout: float | None) -> None:
        """Return when ``call.take()`` has something to return or raise. Raise RequestTimeout."""

    def abandon(self, call: Call) -> None:
        """Drop every response to ``call`` that arrives from now on."""


class Future(Generic[T]):
    """The result of a pending request: ``get()`` waits for it.

    The request has been sent already. Many may be pending; wait for them in any order.

    Example:
        >>> futures = [h.kvs.commit_async({f"doc.step.{n}": n}) for n in range(3)]
        >>> versions = [future.get().version for future in futures]
        >>> versions == sorted(versions)
        True
    """

    __slots__ = ("_call", "_carrier", "_decode", "_result")

    def __init__(self, carrier: Carrier, call: Call, decode: Callable[[Message], T]) -> None:
        self._carrier = carrier
        self._call = call
        self._decode = decode
        self._result: list[T] | None = None

    @property
    def tag(self) -> int:
        """The request's number on its connection. A service that can cancel a request is given this number."""
        return self._call.tag

    @property
    def ready(self) -> bool:
        """True if ``get`` returns or raises at once."""
        return self._result is not None or self._call.ready

    def get(self, timeout: float | None = None) -> T:
        """Wait for the result and return it. It may be called again, also after RequestTimeout.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Raises:
            RequestTimeout: no response within ``timeout``. The request may still be carried out.
            ConnectionLost: the connection ended first.
            FluxmpiError: the error that the service answered with.
        """
        if self._result is None:
            call = self._call
            (call.carrier or self._carrier).wait_call(call, timeout)
            message = call.take()
            assert message is not None, "a call that ended without a response has an error"
            try:
                self._result = [self._decode(message)]
            except FluxmpiError as error:
                call.error = error  # it is raised again by the next ``get``
                raise
        return self._result[0]

    def cancel(self) -> None:
        """Drop the response. The request may be carried out all the same."""
        self._carrier.abandon(self._call)


class Settled(Future[T]):
    """A future that needed no request: it has a result, or an error to raise."""

    __slots__ = ("_error",)

    def __init__(self, result: T, error: FluxmpiError | None = None) -> None:
        self._result = [result]
        self._error = error

    def get(self, timeout: float | None = None) -> T:
        """Return the result at once, or raise the error."""
        if self._error is not None:
            raise self._error
        return super().get(timeout)

    def cancel(self) -> None:
        """Do nothing: the result is known."""


class Stream(Generic[T]):
    """The responses to one request, in order: iterate, or call ``get``.

    Attributes:
        last: the final response, which the iteration does not include; None until it has arrived.
    """

    def __init__(
        self, carrier: Carrier, call: Call, decode: Callable[[Message], T], decode_last: Callable[[Message], Any]
    ) -> None:
        self._carrier = carrier
        self._call = call
        self._decode = decode
        self._decode_last = decode_last
        self.last: Any = None

    @property
    def tag(self) -> int:
        """The request's number on its connection. A service that can end the stream is given this number."""
        return self._call.tag

    @property
    def ready(self) -> bool:
        """True if ``get`` returns or raises at once."""
        return self._call.ready

    @property
    def over(self) -> bool:
        """True if no further response will arrive; some may be unread."""
        return self._call.ended

    @property
    def ended(self) -> bool:
        """True if every response was read, the last one included."""
        return self._call.ended and not self._call.responses

    @property
    def lost(self) -> bool:
        """True if the connection ended before the stream did."""
        return isinstance(self._call.error, ConnectionLost)

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for the next response and return it; None at the end of the stream.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Raises:
            RequestTimeout: no response within ``timeout``; the stream continues.
            Overloaded: more than ``HandleLimits.stream_messages_max`` responses were unread.
            ConnectionLost: the connection ended first.
            FluxmpiError: the error that the service answered with.
        """
        self._carrier.wait_call(self._call, timeout)
        message = self._call.take()
        if message is None:
            return None
        if self.ended and message.status == 0:
            self.last = self._decode_last(message)
            return None
        return self._decode(message)

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item

    def close(self) -> None:
        """Drop what is unread and what still arrives. The service is not notified."""
        self._carrier.abandon(self._call)
