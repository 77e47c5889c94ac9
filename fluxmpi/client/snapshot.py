"""Snapshots: names of a namespace's state at one version, usable by every process of the instance; and what ``at=`` takes.

``str(snapshot)`` is ``NAMESPACE@VERSION:DIGITS``, e.g. ``primary@12:9f86d081884c7d65``: the version, and the first
DIGITS digits of its root. A reader asks for the root of that version, usually its own broker, and compares the digits:
the text of another instance, or one that was mistyped, is refused, and never reads as another state.
``NAMESPACE@VERSION:BLOBREF``, with the whole root, is accepted too, and needs no request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

import msgspec

from fluxmpi.blobref import Ref, from_text, to_text
from fluxmpi.errors import InvalidRequest, VersionUnknown
from fluxmpi.kvs.wire import PRIMARY, RootInfo

DIGITS = 16
"""Hexadecimal digits of a root in a snapshot's text: 64 bits. They are compared with one version's root, so a wrong
text is accepted once in 2**64 cases."""

UNKNOWN = -1
"""The version of a snapshot that was made from a blobref alone."""

_TEXT = re.compile(rf"([^@:]+)@(\d+):(?:([0-9a-f]{{{DIGITS}}})|(sha\S+))")
MINUS = "\u2212"
"""Accepted in place of the hyphen of a time, where a hyphen would begin an option."""

_AGO = re.compile(rf"[-{MINUS}]((?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d))+)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\S+)?")

TIMES = "-5min, 2026-01-31T12:00 or @1700000000.5"

SHOWN_MAX = 64
"""Characters of an invalid time that its error message shows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a namespace and its root. Pass it, or its text, as ``at=`` to read that state.

    Attributes:
        namespace: the namespace's name.
        version: the version's number; -1 if the snapshot was made from a blobref alone.
        ref: the digest of the root directory.
        time: when the version was committed, by rank 0's clock, in seconds since 1970; 0.0 if it was parsed from a
            text.

    Example:
        >>> snapshot = h.kvs.put("doc.x", 1)
        >>> there.kvs.get("doc.x", at=str(snapshot))
        1
    """

    namespace: str
    version: int
    ref: Ref
    time: float = 0.0

    @property
    def root(self) -> str:
        """The root directory's blobref; equal for equal contents."""
        return to_text(self.ref)

    def __str__(self) -> str:
        """Return the text that names this snapshot in every process of the instance."""
        if self.version == UNKNOWN:
            return self.root
        return f"{self.namespace}@{self.version}:{self.ref.hex()[:DIGITS]}"

    @classmethod
    def of(cls, info: RootInfo) -> Snapshot:
        """Return the snapshot of a root as brokers describe it."""
        return cls(info.namespace, info.version, info.ref, info.time)


@dataclass(frozen=True, slots=True)
class Named:
    """What a snapshot's text says: the version, and the first digits of its root."""

    namespace: str
    version: int
    digits: str

    def check(self, ref: Ref) -> None:
        """Raise VersionUnknown unless ``ref``, the version's root, begins with the digits."""
        if not ref.hex().startswith(self.digits):
            raise other_root(self.namespace, self.version, self.digits, ref)


def other_root(namespace: str, version: int, digits: str, ref: Ref) -> VersionUnknown:
    """Return the error for a snapshot whose version has another root in this instance."""
    return VersionUnknown(
        f"{namespace}@{version}:{digits[:DIGITS]} names no version of this instance: version {version} has the root"
        f" {ref.hex()[:DIGITS]}…; the snapshot is of another instance, or was mistyped"
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """A time by rank 0's clock: ``time`` in seconds since 1970, or ``ago_s`` seconds before now."""

    time: float | None = None
    ago_s: float | None = None


AtLike = Snapshot | str | int | datetime | None
"""What ``at=`` takes. None: the newest state. Otherwise a Snapshot or its text, a version, a root's blobref, or a time:
a datetime, or a text such as ``-5min``, ``2026-01-31T12:00`` (local time, unless it names a zone),
``@1700000000.5``."""


def parse_at(at: AtLike, namespace: str = PRIMARY) -> tuple[str, Snapshot | int | Named | Moment]:
    """Return the namespace and the state that ``at``, not None, names.

    A Snapshot, or its text, names its own namespace; anything else is of ``namespace``. A text may also be the JSON
    that ``kvs getroot`` prints. Raises InvalidRequest.
    """
    if isinstance(at, Snapshot):
        return at.namespace, at
    if isinstance(at, int):
        return namespace, at
    if isinstance(at, datetime):
        return namespace, Moment(time=at.timestamp())
    if not isinstance(at, str):
        raise InvalidRequest(
            f"{at!r} names no version: give a snapshot, a version, a blobref, or a time such as {TIMES}"
        )
    text = at.strip()
    if text.isdecimal():
        return namespace, int(text)
    if text.startswith("{"):
        return namespace, Snapshot(namespace, UNKNOWN, _dirref(text))
    moment = _moment(text)
    if moment is not None:
        return namespace, moment
    if "@" in text:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InvalidRequest(f"'{text}' is not a snapshot: it must read like primary@12:9f86d081884c7d65")
        own, version, digits, blobref = match.groups()
        return own, Named(own, int(version), digits) if digits else Snapshot(own, int(version), from_text(blobref))
    if text.startswith("sha"):
        return namespace, Snapshot(namespace, UNKNOWN, from_text(text))
    raise InvalidRequest(
        f"'{at.replace(MINUS, '-')}' names no version: give a snapshot as 'kvs getroot -S' prints it, a version, a blobref,"
        f" or a time such as {TIMES}"
    )


def _moment(text: str) -> Moment | None:
    """Parse a time; None if the text does not look like one. Raises InvalidRequest for one that is out of range."""
    try:
        if text.startswith("@"):
            return Moment(time=_finite(float(text[1:])))
        ago = _AGO.fullmatch(text)
        if ago is not None:
            return Moment(ago_s=_finite(sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(ago[1]))))
        return Moment(time=datetime.fromisoformat(text).timestamp()) if _DATE.fullmatch(text) else None
    except (ValueError, OverflowError):
        shown = text.replace(MINUS, "-")[:SHOWN_MAX]
        raise InvalidRequest(f"'{shown}' is not a time: it must read like {TIMES}") from None


def _finite(seconds: float) -> float:
    if not isfinite(seconds):
        raise ValueError
    return seconds


def moment(time: float | str | datetime) -> Moment:
    """Return the time that a ``time=`` argument names. Raises InvalidRequest."""
    if isinstance(time, datetime):
        return Moment(time=time.timestamp())
    if isinstance(time, int | float):
        return Moment(time=float(time))
    found = _moment(time.strip())
    if found is None:
        raise InvalidRequest(f"'{time}' is not a time: it must read like {TIMES}")
    return found


def is_ago(text: str) -> bool:
    """Return whether ``text`` is a time before now, which begins like an option."""
    return _AGO.fullmatch(text) is not None


def _dirref(text: str) -> Ref:
    try:
        treeobj = msgspec.json.decode(text)
        (ref,) = treeobj["data"]
        if treeobj["type"] != "dirref":
            raise ValueError
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        raise InvalidRequest(
            f"'{text}' is not a directory's treeobj: it must read like the output of 'kvs getroot'"
        ) from None
    return from_text(ref)
