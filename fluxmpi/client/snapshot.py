"""Snapshots: names of a namespace's state at one version, which any process of the instance can use.

``str(snapshot)`` is ``NAMESPACE@VERSION:BLOBREF``, e.g. ``primary@12:sha256-…``. The blobref alone says what is in it;
the rest says where it is from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from fluxmpi.blobref import Ref, from_text, to_text
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import PRIMARY, At, RootInfo

_TEXT = re.compile(r"([^@:]+)@(\d+):(\S+)")


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
        return f"{self.namespace}@{self.version}:{self.root}"

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """The snapshot of a ``str(snapshot)``. Raises InvalidRequest."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise InvalidRequest(f"'{text}' is not a snapshot: it must read like primary@12:sha256-…")
        namespace, version, ref = match.groups()
        return cls(namespace, int(version), from_text(ref))

    @classmethod
    def of(cls, info: RootInfo) -> Snapshot:
        return cls(info.namespace, info.version, info.ref, info.time)


def where(at: Snapshot | str | int | None, namespace: str | None) -> tuple[str, At]:
    """What a reader means by ``at``: the namespace and the version or root to read.

    A text is a snapshot, a version, a blobref, or the JSON that ``kvs getroot`` prints.
    """
    if at is None or isinstance(at, int):
        return namespace or PRIMARY, at
    if isinstance(at, Snapshot):
        return namespace or at.namespace, at.ref
    text = at.strip()
    if text.isdecimal():
        return namespace or PRIMARY, int(text)
    if text.startswith("{"):
        return namespace or PRIMARY, _dirref(text)
    if "@" in text:
        return where(Snapshot.parse(text), namespace)
    return namespace or PRIMARY, from_text(text)


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
