"""Records of reads: ``kvs.get``, ``kvs.list``, ``kvs.getroot``, ``kvs.diff``, and ``kvs.path`` between brokers."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, At, Name, Record
from fluxmpi.kvs.wire.watches import KeyChange


class GetRoot(Record):
    """``kvs.getroot``, and ``roots.get`` at rank 0 → RootInfo, as soon as the broker has the version ``at_least``.

    ``fresh``: ask rank 0 for the newest version first (linearizable). ``at``: the root of that version. ``time``: of
    the version that was the newest then, seconds since 1970. ``ago_s``: as ``time``, in seconds before now. Both are by
    rank 0's clock.
    """

    namespace: Name = PRIMARY
    at_least: int = 0
    fresh: bool = False
    at: int | None = None
    time: float | None = None
    ago_s: float | None = None


class GetRequest(Record):
    """``kvs.get`` → Got. Links are followed, one at the end only if ``follow``.

    ``load``: return a value of one blob with its bytes, and refuse a directory (IsADirectory). Otherwise return the
    object alone.
    """

    key: str
    namespace: Name = PRIMARY
    at: At = None
    at_least: int = 0
    follow: bool = True
    load: bool = True


class Got(Record):
    """``data``: the value, if it is inline or one blob; None: load the blobs of ``object`` one by one."""

    version: int
    root: Ref
    object: Object
    data: bytes | None = None


class PathRequest(Record):
    """``kvs.path`` to the parent → list[bytes]: the blobs of the nodes from ``ref``, a directory's, down ``names``.

    The first blob is that of ``ref``; the path ends where a name is missing, or at a link. ``value``: the value at its
    end is included, if it is one blob.
    """

    ref: Ref
    names: list[str]
    value: bool = False


class ListRequest(Record):
    """``kvs.list`` → Listed: entries of a directory in order of name, after ``after``, that start with ``prefix``."""

    key: str
    namespace: Name = PRIMARY
    at: At = None
    at_least: int = 0
    prefix: str = ""
    after: str = ""
    limit: int = 1000


class Listed(Record):
    """``more``: the limit was reached. For the next page, list after the last name, at the same root."""

    version: int
    root: Ref
    entries: list[tuple[str, Object]]
    more: bool


class DiffRequest(Record):
    """``kvs.diff`` → Diffed: a page of the changes below ``key`` from ``a`` to ``b``, in order of key.

    For the next page, give ``after``, the last key of the page, and the answer's ``between``, which replaces ``a`` and
    ``b``. The broker keeps no state from one page to the next.
    """

    namespace: Name
    a: At
    b: At
    key: str = "."
    limit: int = 1000
    at_least: int = 0
    after: str | None = None
    between: tuple[Ref | None, Ref | None] | None = None


class Diffed(Record):
    """At most ``limit`` changes, fewer if they are long. ``more``: there may be others after the last one.

    ``between``: refs of the two directories that are compared, None where there is none.
    """

    changes: list[KeyChange]
    between: tuple[Ref | None, Ref | None]
    more: bool
