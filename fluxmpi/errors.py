"""Every error that fluxmpi raises, and its code on the wire.

The tree, by whose fault it is::

    FluxmpiError
    ├── UsageError               the caller asked for something that cannot be
    │   ├── InvalidKey           1   a key that breaks the rules of keys
    │   ├── InvalidRequest       2   a request body that does not decode, or an argument out of range
    │   ├── NoSuchKey            3
    │   ├── NotADirectory        4   a value stands where the path needs a directory
    │   ├── IsADirectory         5   a directory stands where a value is asked for
    │   ├── LinkLoop             6   more links than LINKS_MAX on one path
    │   ├── NoSuchNamespace      7
    │   ├── NoSuchBlob           8   no blob of that digest in the instance
    │   ├── NoSuchService        9   no broker on the way up offers it
    │   ├── NoSuchRank          10   a rank outside the instance
    │   ├── FenceMismatch       11   contributors disagree on a fence's size or namespace
    │   ├── VersionUnknown      12   a version or time that was not reached yet, or a snapshot of another instance
    │   │   └── SnapshotCollected 19 a version or snapshot that is not kept any more
    │   ├── TooLarge            13   a frame, value, key or transaction over its limit
    │   ├── PermissionDenied    14   not the uid that started the instance
    │   ├── CheckpointError     15   a file that is foreign, truncated, damaged or too new
    │   ├── NoInstance          16   no broker answers at that address
    │   ├── CommandNotFound     17   a program that a rank could not start
    │   ├── LaunchError         18   the launcher started something that is not one instance
    │   ├── InvalidValue        20   a value that the operation cannot work on: an add to a text, a sum past 64 bits
    │   ├── LeaseExpired        21   a lease that has ended, by its time or with its holder
    │   └── NamespaceExists     22
    ├── ProtocolError           30   the other side broke the protocol
    └── RemoteError              the other side could not
        ├── RankLost            40   the rank that was to answer is gone
        ├── RequestTimeout      41   no answer in time
        ├── ConnectionLost      42   the broker's socket closed
        ├── InstanceEnding      43   the instance shuts down
        ├── DigestMismatch      44   a blob that is not what its name says
        ├── StorageError        45   the disk refused: full, read-only, gone
        ├── Overloaded          46   a bounded queue is full; try again
        └── FenceBroken         47   a member left the fence before it was complete

Second axis, ``error.definite``: True when it is certain that the request had no effect (or, for reads, that the answer
is final); False when it may have happened (a parent lost in mid-commit, a time-out). Resending a commit with the same
id is always safe.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class FluxmpiError(Exception):
    """Base of all. ``code`` travels in a response's ``status``; the text in its body."""

    code: ClassVar[int] = 99
    definite: bool = True

    @property
    def text(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class UsageError(FluxmpiError): ...


class InvalidKey(UsageError):
    code = 1


class InvalidRequest(UsageError):
    code = 2


class NoSuchKey(UsageError, KeyError):
    """A KeyError as well, so that the mappings of the client are mappings."""

    code = 3

    def __str__(self) -> str:
        return self.text  # a KeyError would quote it


class NotADirectory(UsageError):
    code = 4


class IsADirectory(UsageError):
    code = 5


class LinkLoop(UsageError):
    code = 6


class NoSuchNamespace(UsageError):
    code = 7


class NoSuchBlob(UsageError):
    code = 8


class NoSuchService(UsageError):
    code = 9


class NoSuchRank(UsageError):
    code = 10


class FenceMismatch(UsageError):
    code = 11


class VersionUnknown(UsageError):
    code = 12


class SnapshotCollected(VersionUnknown):
    code = 19


class TooLarge(UsageError):
    code = 13


class PermissionDenied(UsageError, PermissionError):
    """It is a PermissionError too."""

    code = 14


class CheckpointError(UsageError):
    code = 15


class NoInstance(UsageError):
    code = 16


class CommandNotFound(UsageError):
    code = 17


class LaunchError(UsageError):
    code = 18


class InvalidValue(UsageError):
    code = 20


class LeaseExpired(UsageError):
    code = 21


class NamespaceExists(UsageError):
    code = 22


class ProtocolError(FluxmpiError):
    code = 30


class RemoteError(FluxmpiError): ...


class RankLost(RemoteError):
    code = 40
    definite = False


class RequestTimeout(RemoteError, TimeoutError):
    """It is a TimeoutError too."""

    code = 41
    definite = False


class ConnectionLost(RemoteError, ConnectionError):
    """It is a ConnectionError too."""

    code = 42
    definite = False


class InstanceEnding(RemoteError):
    code = 43
    definite = False


class DigestMismatch(RemoteError):
    code = 44


class StorageError(RemoteError):
    code = 45


class Overloaded(RemoteError):
    code = 46


class FenceBroken(RemoteError):
    code = 47


def _by_code(base: type[FluxmpiError]) -> dict[int, type[FluxmpiError]]:
    found = {base.code: base} if "code" in vars(base) else {}
    for child in base.__subclasses__():
        found.update(_by_code(child))
    return found


BY_CODE: dict[int, type[FluxmpiError]] = _by_code(FluxmpiError)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(str).decode


def encode_error(error: FluxmpiError) -> tuple[int, bytes]:
    """The (status, body) of the response that carries ``error``."""
    return error.code, _encode(error.text)


def decode_error(status: int, body: bytes) -> FluxmpiError:
    """The error that a response with this status and body stands for; a code that is not known gives the base class."""
    try:
        text = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = f"error {status} without a text"
    return BY_CODE.get(status, FluxmpiError)(text)
