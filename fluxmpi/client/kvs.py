"""The key-value store of a handle, ``h.kvs``: its parts put together.

    base      versions, and what all parts share
    reading   get, exists, ls, entries …
    large     long values: open, view, get_file, put_file
    writing   commit, put, txn, fence, mkdir …
    copying   copy, move
    directory, subtree   directories and values as mappings
    history   versions over time: history, log, diff, leases, retention, namespaces, gc
    watch     the changes of keys

Sessions: every request carries the highest version of its namespace that this handle has read or written, and the
broker waits for it. So a handle never reads the past of what it knows, whatever broker answers.
"""

from __future__ import annotations

from fluxmpi.client.base import AtLike
from fluxmpi.client.copying import Copying
from fluxmpi.client.directory import Directories, Directory
from fluxmpi.client.history import Versions
from fluxmpi.client.large import LargeValues
from fluxmpi.client.reading import MISSING, Entry, kind_of
from fluxmpi.client.subtree import Subtree
from fluxmpi.client.watch import Watching
from fluxmpi.kvs.objects import ROOT_KEY
from fluxmpi.kvs.wire import PRIMARY

__all__ = ["MISSING", "AtLike", "Directory", "Entry", "Kvs", "Subtree", "kind_of"]


class Kvs(Versions, LargeValues, Copying, Directories, Watching, Subtree):
    """Also a mutable mapping of all values of the primary namespace: ``h.kvs["run.config"] = …``. What that costs is told in
    ``Subtree``: ``len(h.kvs)`` walks over everything. ``get`` raises NoSuchKey unless it is given a default.
    """

    _key = ROOT_KEY
    _namespace = PRIMARY

    @property
    def _kvs(self) -> Kvs:  # type: ignore[override]
        return self

    def subtree(self, key: str, *, namespace: str = PRIMARY) -> Subtree:
        """The values below ``key``, which need not exist yet, as a mutable mapping with keys relative to it."""
        return Subtree(self, key, namespace)
