"""The key-value store of a handle, ``h.kvs``: its parts put together.

    base      versions, and what all parts share
    reading   get, exists, ls, entries …
    large     long values: open, view, get_file, put_file
    writing   commit, put, txn, fence, mkdir …
    copying   copy, move
    directory, subtree   directories and values as mappings
    watch     the changes of keys

Sessions: every request carries the highest version of its namespace that this handle has read or written, and the
broker waits for it. So a handle never reads the past of what it knows, whatever broker answers.
"""

from __future__ import annotations

from fluxmpi.client.base import AtLike
from fluxmpi.client.copying import Copying
from fluxmpi.client.directory import Directories, Directory
from fluxmpi.client.large import LargeValues
from fluxmpi.client.reading import MISSING, Entry, kind_of
from fluxmpi.client.subtree import Subtree
from fluxmpi.client.watch import Watch
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, split_key
from fluxmpi.kvs.wire import PRIMARY

__all__ = ["MISSING", "AtLike", "Directory", "Entry", "Kvs", "Subtree", "kind_of"]


class Kvs(LargeValues, Copying, Directories, Subtree):
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

    def watch(self, key: str, *, recursive: bool | None = None, namespace: str = PRIMARY, follow: bool = True) -> Watch:
        """Iterate over the changes of a key, or of all keys below a directory (``job.``, or ``recursive=True``).

        First comes what is there; then every version that changes it, none skipped, none twice.
        """
        split_key(key)
        if recursive is None:
            recursive = key.endswith(SEPARATOR)
        return Watch(self._handle, self, key, namespace, recursive, follow)
