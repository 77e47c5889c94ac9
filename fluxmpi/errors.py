"""All errors of fluxmpi, and their codes on the wire.

The classes, by cause:

    FluxmpiError
    ├── UsageError               the request is not possible
    │   ├── InvalidKey           1   the key breaks the rules for keys
    │   ├── InvalidRequest       2   the body does not decode, or an argument is out of range
    │   ├── NoSuchKey            3   the key does not exist; also a KeyError
    │   ├── NotADirectory        4   the key has a value where a directory is needed
    │   ├── IsADirectory         5   the key is a directory where a value is needed
    │   ├── LinkLoop             6   the path has more links than LINKS_MAX
    │   ├── NoSuchNamespace      7   the namespace does not exist
    │   ├── NoSuchBlob           8   the instance has no blob with that digest
    │   ├── NoSuchService        9   no broker on the way to rank 0 has the service
    │   ├── NoSuchRank          10   the instance has no such rank
    │   ├── FenceMismatch       11   contributors disagree on the size or the namespace of a fence
    │   ├── VersionUnknown      12   the version or time has not been reached, or the snapshot is of another instance
    │   │   └── SnapshotCollected 19 the version is not retained any more
    │   ├── TooLarge            13   a frame, value, key or transaction exceeds its limit
    │   ├── PermissionDenied    14   only the user that started the instance has access; also a PermissionError
    │   ├── CheckpointError     15   the file is not a checkpoint, truncated, damaged or of a later format
    │   ├── NoInstance          16   no broker listens at that address
    │   ├── CommandNotFound     17   a rank could not start the program
    │   ├── LaunchError         18   the launcher did not start one instance
    │   ├── InvalidValue        20   the operation is not defined for the value: add to a string, a sum past 64 bits
    │   ├── LeaseExpired        21   the lease has expired, or its holder has disconnected
    │   └── NamespaceExists     22   the namespace exists already
    ├── ProtocolError           30   the peer violated the protocol
    └── RemoteError              the instance could not carry out the request
        ├── RankLost            40   the rank that had to respond is lost
        ├── RequestTimeout      41   no response in time; also a TimeoutError
        ├── ConnectionLost      42   the connection to the broker was closed; also a ConnectionError
        ├── InstanceEnding      43   the instance is shutting down
        ├── DigestMismatch      44   the bytes of a blob do not have its digest
        ├── StorageError        45   the disk failed: full, read-only, missing
        ├── Overloaded          46   a bounded queue is full; try again
        ├── FenceBroken         47   a member left the fence before it was complete
        ├── StoreFull           48   the store has reached its limit (--store-bytes); what is there can be read
        ├── InternalError       49   a defect of fluxmpi: the broker could not carry out this request, and goes on
        └── OutOfMemory         50   a broker could not allocate memory for the request

``error.definite`` is True if it is certain that the request changed nothing, and False if it may have been carried out
(a parent lost during a commit, a time-out). Once a byte of a request has been sent, only a response of the broker makes
its error definite. A class says what is usual; the place that raises an error may know better (``indefinite``). A read
changes nothing, so for reads it makes no difference. To send a commit again with the same id is always safe.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec


class FluxmpiError(Exception):
    """Base of all errors. A response has ``code`` in its status and ``text`` in its body.

    Attributes:
        definite: True if it is certain that the request changed nothing; see the module.
    """

    code: ClassVar[int] = 99
    definite: bool = True

    @property
    def text(self) -> str:
        """The message: what was wrong, the value, what to do."""
        return str(self.args[0]) if self.args else type(self).__name__


class UsageError(FluxmpiError):
    """The request is not possible."""


class InvalidKey(UsageError):
    """The key breaks the rules for keys."""

    code = 1


class InvalidRequest(UsageError):
    """The body does not decode, or an argument is out of range."""

    code = 2


class NoSuchKey(UsageError, KeyError):
    """The key does not exist.

    It is a KeyError, too, because the client has mappings.
    """

    code = 3

    def __str__(self) -> str:
        return self.text  # a KeyError would quote it


class NotADirectory(UsageError):
    """The key has a value where a directory is needed."""

    code = 4


class IsADirectory(UsageError):
    """The key is a directory where a value is needed."""

    code = 5


class LinkLoop(UsageError):
    """The path has more links than LINKS_MAX."""

    code = 6


class NoSuchNamespace(UsageError):
    """The namespace does not exist."""

    code = 7


class NoSuchBlob(UsageError):
    """The instance has no blob with that digest."""

    code = 8


class NoSuchService(UsageError):
    """No broker on the way to rank 0 has the service."""

    code = 9


class NoSuchRank(UsageError):
    """The instance has no such rank."""

    code = 10


class FenceMismatch(UsageError):
    """Contributors disagree on the size or the namespace of a fence."""

    code = 11


class VersionUnknown(UsageError):
    """The version or time has not been reached, or the snapshot is of another instance."""

    code = 12


class SnapshotCollected(VersionUnknown):
    """The version is not retained any more."""

    code = 19


class TooLarge(UsageError):
    """A frame, value, key or transaction exceeds its limit."""

    code = 13


class PermissionDenied(UsageError, PermissionError):
    """Only the user that started the instance has access.

    It is a PermissionError, too.
    """

    code = 14


class CheckpointError(UsageError):
    """The file is not a checkpoint, truncated, damaged or of a later format."""

    code = 15


class NoInstance(UsageError):
    """No broker listens at that address."""

    code = 16


class CommandNotFound(UsageError):
    """A rank could not start the program."""

    code = 17


class LaunchError(UsageError):
    """The launcher did not start one instance."""

    code = 18


class InvalidValue(UsageError):
    """The operation is not defined for the value: add to a string, a sum past 64 bits."""

    code = 20


class LeaseExpired(UsageError):
    """The lease has expired, or its holder has disconnected."""

    code = 21


class NamespaceExists(UsageError):
    """The namespace exists already."""

    code = 22


class ProtocolError(FluxmpiError):
    """The peer violated the protocol."""

    code = 30


class RemoteError(FluxmpiError):
    """The instance could not carry out the request."""


class RankLost(RemoteError):
    """The rank that had to respond is lost."""

    code = 40
    definite = False


class RequestTimeout(RemoteError, TimeoutError):
    """No response in time.

    It is a TimeoutError, too.
    """

    code = 41
    definite = False


class ConnectionLost(RemoteError, ConnectionError):
    """The connection to the broker was closed.

    It is a ConnectionError, too.
    """

    code = 42
    definite = False


class InstanceEnding(RemoteError):
    """The instance is shutting down."""

    code = 43
    definite = False


class DigestMismatch(RemoteError):
    """The bytes of a blob do not have its digest."""

    code = 44


class StorageError(RemoteError):
    """The disk failed: full, read-only, missing."""

    code = 45


class Overloaded(RemoteError):
    """A bounded queue is full; try again."""

    code = 46


class FenceBroken(RemoteError):
    """A member left the fence before it was complete."""

    code = 47


class StoreFull(RemoteError):
    """The store has reached its limit (``--store-bytes``). Everything in it can be read, unlinked and saved."""

    code = 48


class InternalError(RemoteError):
    """A defect of fluxmpi: the broker could not carry out this request, and goes on.

    The text names the exception; the broker's log has the traceback, which a report should contain.
    """

    code = 49
    definite = False


class OutOfMemory(RemoteError):
    """A broker could not allocate memory for the request. It was refused, and nothing has changed."""

    code = 50


def _by_code(base: type[FluxmpiError]) -> dict[int, type[FluxmpiError]]:
    found = {base.code: base} if "code" in vars(base) else {}
    for child in base.__subclasses__():
        found.update(_by_code(child))
    return found


BY_CODE: dict[int, type[FluxmpiError]] = _by_code(FluxmpiError)

E = TypeVar("E", bound=FluxmpiError)


def indefinite(error: E, text: str | None = None) -> E:
    """Return a copy of ``error`` that says: the request may have been carried out. ``text`` replaces its message."""
    return _copy(error, text, definite=False)


def unsent(error: E, text: str | None = None) -> E:
    """Return a copy of ``error`` that says: nothing of the request was sent. ``text`` replaces its message."""
    return _copy(error, text, definite=True)


def _copy(error: E, text: str | None, *, definite: bool) -> E:
    copy = type(error)(error.text if text is None else text)
    copy.definite = definite
    return copy


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(str | tuple[str, bool]).decode


def encode_error(error: FluxmpiError) -> tuple[int, bytes]:
    """Return (status, body) of a response with ``error``: its text, with ``definite`` if its class says otherwise."""
    if error.definite is type(error).definite:
        return error.code, _encode(error.text)
    return error.code, _encode((error.text, error.definite))


def decode_error(status: int, body: bytes) -> FluxmpiError:
    """Return the error of a response."""
    try:
        content: Any = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = f"error {status} without a text"
    return error_of(status, content) if isinstance(content, str) else error_of(status, *content)


def error_of(status: int, text: str, definite: bool | None = None) -> FluxmpiError:
    """Return the error with that code; ``definite`` None is what its class says.

    An unknown code gives the base class, and is indefinite: a later version of fluxmpi knows what it says.
    """
    kind = BY_CODE.get(status, FluxmpiError)
    error = kind(text)
    if definite is None:
        definite = kind.definite and status in BY_CODE
    if definite is not kind.definite:
        error.definite = definite
    return error
