"""The key-value store of a handle, ``h.kvs``: its parts put together.

    base      versions, and what all parts share
    reading   get, exists, ls, entries …
    large     long values: open, view, get_file, put_file
    writing   commit, put, txn, fence, mkdir …
    copying   copy, move
    watch     the changes of keys

Sessions: every request carries the highest version of its namespace that this handle has read or written, and the
broker waits for it. So a handle never reads the past of what it knows, whatever broker answers.
"""

from __future__ import annotations

from fluxmpi.client.base import AtLike
from fluxmpi.client.copying import Copying
from fluxmpi.client.large import LargeValues
from fluxmpi.client.reading import MISSING, Entry, kind_of
from fluxmpi.client.watch import Watch
from fluxmpi.kvs.objects import SEPARATOR, split_key
from fluxmpi.kvs.wire import PRIMARY

__all__ = ["MISSING", "AtLike", "Entry", "Kvs", "kind_of"]


class Kvs(LargeValues, Copying):
    def watch(self, key: str, *, recursive: bool | None = None, namespace: str = PRIMARY, follow: bool = True) -> Watch:
        """Iterate over the changes of a key, or of all keys below a directory (``job.``, or ``recursive=True``).

        First comes what is there; then every version that changes it, none skipped, none twice.
        """
        split_key(key)
        if recursive is None:
            recursive = key.endswith(SEPARATOR)
        return Watch(self._handle, self, key, namespace, recursive, follow)
