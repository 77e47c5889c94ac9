"""``kvs.get``, ``kvs.list``, ``kvs.getroot``, ``kvs.diff``: what reads it, and ``kvs.path`` between brokers."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, At, Record
from fluxmpi.kvs.wire.watches import KeyChange


class GetRoot(Record):
    """``kvs.getroot`` → RootInfo, as soon as the broker knows a version of at least ``at_least``.

    ``fresh``: ask rank 0 for the newest version first (linearizable). ``at``: the root of that version. ``time``: of the
    version that was the newest then, seconds since 1970; ``ago_s``: so many seconds before now; both by rank 0's clock.
    ``roots.get`` is the same question to rank 0.
    """

    namespace: str = PRIMARY
    at_least: int = 0
    fresh: bool = False
    at: int | None = None
    time: float | None = None
    ago_s: float | None = None


class GetRequest(Record):
    """``kvs.get`` → Got. Links are followed, the last one only if ``follow``.

    ``load``: a value of one blob comes with its bytes, and a directory is an error (IsADirectory); else the object alone.
    """

    key: str
    namespace: str = PRIMARY
    at: At = None
    at_least: int = 0
    follow: bool = True
    load: bool = True


class Got(Record):
    """``data`` is the value when it is inline or one blob, else None: load the blobs of ``object`` one by one."""

    version: int
    root: Ref
    object: Object
    data: bytes | None = None


class PathRequest(Record):
    """``kvs.path`` to the parent → list[bytes]: the blobs of the nodes on the way from the directory's node ``ref`` down the
    components ``names``, as far as they lead, the first one ``ref``'s. ``value``: and that of a value of one blob at the end.
    """

    ref: Ref
    names: list[str]
    value: bool = False


class ListRequest(Record):
    """``kvs.list`` → Listed: entries of a directory in order of name, after ``after``, that start with ``prefix``."""

    key: str
    namespace: str = PRIMARY
    at: At = None
    at_least: int = 0
    prefix: str = ""
    after: str = ""
    limit: int = 1000


class Listed(Record):
    """``more``: the limit was reached; ask again after the last name, at the same root."""

    version: int
    root: Ref
    entries: list[tuple[str, Object]]
    more: bool


class DiffRequest(Record):
    """``kvs.diff`` → Diffed: what changed below ``key`` from ``a`` to ``b``, a page of it, in order of key.

    For the next page ask again with ``after``, the last key that was told, and ``between`` of the answer, which takes the place
    of ``a`` and ``b``. The broker keeps nothing from one page to the next: who does not ask costs it nothing.
    """

    namespace: str
    a: At
    b: At
    key: str = "."
    limit: int = 1000
    at_least: int = 0
    after: str | None = None
    between: tuple[Ref | None, Ref | None] | None = None


class Diffed(Record):
    """At most ``limit`` changes, and fewer where they are long. ``between``: the directories at the key that are compared, None
    where there is none. ``more``: there may be others after the last one.
    """

    changes: list[KeyChange]
    between: tuple[Ref | None, Ref | None]
    more: bool
