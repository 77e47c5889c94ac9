"""Snapshots: names of a namespace's state at one version, which any process of the instance can use; and all else that says
where to read.

``str(snapshot)`` is ``NAMESPACE@VERSION:DIGITS``, e.g. ``primary@12:9f86d081884c7d65``: the version, and the first DIGITS digits
of its root. Whoever reads at it asks for the root of that version, as a rule its own broker, and compares the digits: the text
of another instance, or one that was mistyped, never reads as something else. ``NAMESPACE@VERSION:BLOBREF``, with the whole root,
is taken as well, and needs nobody's knowledge of versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

import msgspec

from fluxmpi.blobref import Ref, from_text, to_text
from fluxmpi.errors import InvalidRequest, VersionUnknown
from fluxmpi.kvs.wire import PRIMARY, At, RootInfo

DIGITS = 16
"""Hexadecimal digits of a root in a snapshot's text: 64 bits. They are compared with those of one version, so a wrong one is
taken for the right one once in 2**64 cases."""

UNKNOWN = -1
"""The version of a snapshot that was made of a blobref alone."""

_TEXT = re.compile(rf"([^@:]+)@(\d+):(?:([0-9a-f]{{{DIGITS}}})|(sha\S+))")
MINUS = "\u2212"
"""Taken for a hyphen before a time: so it can stand where a hyphen would begin an option."""

_AGO = re.compile(rf"[-{MINUS}]((?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d))+)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\S+)?")

TIMES = "-5min, 2026-01-31T12:00 or @1700000000.5"

SHOWN_MAX = 64
"""Characters of a text that is no time, in the error's line."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version and its root. ``time``: of the commit, seconds since 1970; 0.0 when it was parsed from a text."""

    namespace: str
    version: int
    ref: Ref
    time: float = 0.0

    @property
    def root(self) -> str:
        """The root directory's blobref; equal for equal contents."""
        return to_text(self.ref)

    def __str__(self) -> str:
        if self.version == UNKNOWN:
            return self.root
        return f"{self.namespace}@{self.version}:{self.ref.hex()[:DIGITS]}"

    @classmethod
    def of(cls, info: RootInfo) -> Snapshot:
        return cls(info.namespace, info.version, info.ref, info.time)


@dataclass(frozen=True, slots=True)
class Named:
    """What a snapshot's text says: the version, and how its root begins."""

    namespace: str
    version: int
    digits: str

    def check(self, ref: Ref) -> None:
        """Raises VersionUnknown unless the version's root is the one that is named."""
        if not ref.hex().startswith(self.digits):
            raise another(self.namespace, self.version, self.digits, ref)


def another(namespace: str, version: int, digits: str, ref: Ref) -> VersionUnknown:
    return VersionUnknown(
        f"{namespace}@{version}:{digits[:DIGITS]} names no version of this instance: version {version} has the root"
        f" {ref.hex()[:DIGITS]}…; the snapshot is of another instance, or was mistyped"
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """A time by rank 0's clock: ``time``, seconds since 1970, or ``ago_s`` before now."""

    time: float | None = None
    ago_s: float | None = None


AtLike = Snapshot | str | int | datetime | None
"""Where to read: None is the newest that the broker knows; a Snapshot or its text, a version, a root's blobref, or a time: a
datetime, or a text as ``-5min``, ``2026-01-31T12:00`` (local time, unless it says otherwise), ``@1700000000.5``."""


def where(at: AtLike, namespace: str | None) -> tuple[str, At | Named | Moment]:
    """What a reader means by ``at``: the namespace, and the version or root to read, or what names it.

    A text may also be the JSON that ``kvs getroot`` prints.
    """
    if at is None or isinstance(at, int):
        return namespace or PRIMARY, at
    if isinstance(at, Snapshot):
        return namespace or at.namespace, at.ref
    if isinstance(at, datetime):
        return namespace or PRIMARY, Moment(time=at.timestamp())
    if not isinstance(at, str):
        raise InvalidRequest(
            f"{at!r} is no place to read at: give a snapshot, a version, a blobref, or a time as {TIMES}"
        )
    text = at.strip()
    if text.isdecimal():
        return namespace or PRIMARY, int(text)
    if text.startswith("{"):
        return namespace or PRIMARY, _dirref(text)
    moment = _moment(text)
    if moment is not None:
        return namespace or PRIMARY, moment
    if "@" in text:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InvalidRequest(f"'{text}' is not a snapshot: it must read like primary@12:9f86d081884c7d65")
        own, version, digits, blobref = match.groups()
        return namespace or own, Named(own, int(version), digits) if digits else from_text(blobref)
    if text.startswith("sha"):
        return namespace or PRIMARY, from_text(text)
    raise InvalidRequest(
        f"'{at.replace(MINUS, '-')}' is no place to read at: give a snapshot as 'kvs getroot -S' prints it, a version, a blobref,"
        f" or a time such as {TIMES}"
    )


def _moment(text: str) -> Moment | None:
    """The time that a text stands for; None if it does not read like one."""
    try:
        if text.startswith("@"):
            return Moment(time=_finite(float(text[1:])))
        ago = _AGO.fullmatch(text)
        if ago is not None:
            return Moment(ago_s=_finite(sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(ago[1]))))
        return Moment(time=datetime.fromisoformat(text).timestamp()) if _DATE.fullmatch(text) else None
    except (ValueError, OverflowError):
        shown = text.replace(MINUS, "-")[:SHOWN_MAX]
        raise InvalidRequest(f"'{shown}' is no time: it must read like {TIMES}") from None


def _finite(seconds: float) -> float:
    if not isfinite(seconds):
        raise ValueError
    return seconds


def moment(time: float | str | datetime) -> Moment:
    """The time that is meant, where only a time can be."""
    if isinstance(time, datetime):
        return Moment(time=time.timestamp())
    if isinstance(time, int | float):
        return Moment(time=float(time))
    found = _moment(time.strip())
    if found is None:
        raise InvalidRequest(f"'{time}' is no time: it must read like {TIMES}")
    return found


def is_ago(text: str) -> bool:
    """Whether it is a time before now, which begins as options do."""
    return _AGO.fullmatch(text) is not None


def version_in(at: AtLike, namespace: str) -> int:
    """The version of ``namespace`` that ``at`` says by itself; UNKNOWN if it says none."""
    if isinstance(at, Snapshot):
        return at.version if at.namespace == namespace else UNKNOWN
    match = _TEXT.fullmatch(at.strip()) if isinstance(at, str) else None
    return int(match[2]) if match is not None and match[1] == namespace else UNKNOWN


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
