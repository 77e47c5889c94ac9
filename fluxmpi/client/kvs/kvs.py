"""The key-value store of a handle, ``h.kvs``: one mixin for each concern.

    base           version, snapshot, wait_version; what every part shares
    reading        get, get_async, exists, get_object, readlink, ls, entries …
    writing        commit, put, txn, add, exchange, compare_and_swap, fence, mkdir, unlink, link
    transaction    Transaction, which every write goes through
    watch          watch, watch_key
    history        history, log, diff, retention, lease, gc
    directory      dir: a directory of one version as a mapping
    subtree        subtree: the values below a key as a mutable mapping
    large_values   open, view, get_file, put_file
    copying        copy, move
    namespaces     namespaces: create, remove, list

Sessions: every request carries the highest version of its namespace that this client has read or written, and the broker waits
for that version. So a client never reads an older version than it has seen, whatever broker answers.
"""

from __future__ import annotations

from copy import copy

from fluxmpi.client.kvs.copying import Copying
from fluxmpi.client.kvs.directory import Directories
from fluxmpi.client.kvs.history import Versions
from fluxmpi.client.kvs.large_values import LargeValues
from fluxmpi.client.kvs.namespaces import NamespaceManager
from fluxmpi.client.kvs.subtree import Subtrees
from fluxmpi.client.kvs.watch import Watching


class Kvs(Versions, LargeValues, Copying, Directories, Subtrees, Watching):
    """The key-value store: one namespace of it.

    ``h.kvs`` is the namespace ``primary``; ``h.kvs.namespace(name)`` is another one, with the same methods. Keys are
    names with dots between them, as paths have slashes; ``.`` alone is the root directory.

    Example:
        >>> snapshot = h.kvs.commit({"doc.config": {"steps": 100}, "doc.name": "trial"})
        >>> h.kvs.get("doc.config")
        {'steps': 100}
        >>> h.kvs.get("doc.name", at=snapshot)
        'trial'
    """

    def namespace(self, name: str) -> Kvs:
        """Return the namespace ``name``, with the same methods. It need not exist yet, and no request is sent.

        Args:
            name: as ``h.kvs.namespaces.create`` was given it.

        Example:
            >>> _ = h.kvs.namespaces.create("doc_other")
            >>> other = h.kvs.namespace("doc_other")
            >>> _ = other.put("doc.name", "another")
            >>> other.get("doc.name"), other.name
            ('another', 'doc_other')
        """
        other = copy(self)  # the cache, the session and the open watches are shared
        other._namespace = name
        return other

    @property
    def namespaces(self) -> NamespaceManager:
        """The namespaces of the instance: create, remove and list them."""
        return NamespaceManager(self)
