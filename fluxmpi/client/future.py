"""What is still to come over a handle: one answer, a ``Future``, or many, a ``Stream``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fluxmpi.client.protocol import Call
from fluxmpi.errors import ConnectionLost, FluxmpiError
from fluxmpi.message import Message

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle


class Future:
    """The answer to one request, some day."""

    __slots__ = ("_call", "_decode", "_handle", "_result")

    def __init__(self, handle: Handle, call: Call, decode: Callable[[Message], Any]) -> None:
        self._handle = handle
        self._call = call
        self._decode = decode
        self._result: list[Any] | None = None

    @property
    def tag(self) -> int:
        """The request's, by which a service may be told that it is given up."""
        return self._call.tag

    @property
    def done(self) -> bool:
        """True when ``get`` returns or raises at once."""
        return self._result is not None or self._call.ready

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the answer and return it, as often as you like; also again after RequestTimeout."""
        if self._result is None:
            call = self._call
            (call.carrier or self._handle).wait_call(call, timeout)
            message = call.take()
            assert message is not None, "a call that ended without a response has an error"
            self._result = [self._decode(message)]
        return self._result[0]

    def cancel(self) -> None:
        """Do not wait for it any more. The request may be carried out all the same."""
        self._handle._protocol.abandon(self._call)


class Settled(Future):
    """An answer that needed no request: a result, or an error to raise."""

    __slots__ = ("_error",)

    def __init__(self, result: Any, error: FluxmpiError | None = None) -> None:
        self._result = [result]
        self._error = error

    def get(self, timeout: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return super().get(timeout)

    def cancel(self) -> None:
        pass


class Stream:
    """The answers to one request, in order. ``last`` is the final one, which is not part of the iteration."""

    def __init__(
        self, handle: Handle, call: Call, decode: Callable[[Message], Any], decode_last: Callable[[Message], Any]
    ) -> None:
        self._handle = handle
        self._call = call
        self._decode = decode
        self._decode_last = decode_last
        self.last: Any = None

    @property
    def tag(self) -> int:
        """The request's, by which a service may be told to end the stream."""
        return self._call.tag

    @property
    def ready(self) -> bool:
        """True when ``get`` returns or raises at once."""
        return self._call.ready

    @property
    def over(self) -> bool:
        """True when nothing more will come."""
        return self._call.ended

    @property
    def ended(self) -> bool:
        """True when everything has been read, the last answer included."""
        return self._call.ended and not self._call.responses

    @property
    def lost(self) -> bool:
        """True when the connection ended before the stream did."""
        return isinstance(self._call.error, ConnectionLost)

    def get(self, timeout: float | None = None) -> Any:
        """The next answer; None when the stream is over. Raises the service's error or RequestTimeout."""
        self._handle.wait_call(self._call, timeout)
        message = self._call.take()
        if message is None:
            return None
        if self.ended and message.status == 0:
            self.last = self._decode_last(message)
            return None
        return self._decode(message)

    def __iter__(self) -> Iterator[Any]:
        while (item := self.get()) is not None:
            yield item

    def close(self) -> None:
        """Read no more of it."""
        self._handle._protocol.abandon(self._call)


def first_ready(handle: Handle, streams: list[Stream], timeout: float | None = None) -> Stream:
    """Wait until one of ``streams`` has something to get, and return it. Raises RequestTimeout."""
    ready: list[Stream] = []

    def found() -> bool:
        ready.extend(stream for stream in streams if stream.ready)
        return bool(ready)

    handle._wait(found, timeout, "streams")
    return ready[0]
