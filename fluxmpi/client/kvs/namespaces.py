"""The namespaces of the instance, ``h.kvs.namespaces``: create, remove, list."""

from __future__ import annotations

from fluxmpi.blobref import to_text
from fluxmpi.client.kvs.base import Base
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.errors import NoSuchBlob, SnapshotCollected
from fluxmpi.kvs.wire import NamespaceInfo, NewNamespace, OldNamespace, RootInfo


class NamespaceManager:
    """The namespaces of the instance, ``h.kvs.namespaces``.

    A namespace is a key space of its own, with its own versions. ``primary`` always exists.
    """

    def __init__(self, kvs: Base) -> None:
        self._kvs = kvs

    def create(self, name: str, *, at: AtLike = None, owner: int | None = None) -> Snapshot:
        """Create a namespace. The versions of one whose name was used before continue where the old one ended.

        Args:
            name: its name.
            at: the state that it starts with, of any namespace (see ``Kvs.snapshot``); None starts it empty. No value
                is copied.
            owner: the uid of its owner; None is your own.

        Returns:
            Its first version.

        Raises:
            NamespaceExists: there is one of this name.
            SnapshotCollected: ``at`` is not kept any more.

        Example:
            >>> first = h.kvs.namespaces.create("doc_trial", at=h.kvs.snapshot())
            >>> first.namespace
            'doc_trial'
        """
        ref = None if at is None else self._kvs.snapshot(at).ref
        request = NewNamespace(name, -1 if owner is None else owner, ref)
        try:
            root = self._kvs._channel.rpc("roots.create", request, reply=RootInfo)
        except NoSuchBlob as error:
            if ref is None or not error.definite:
                raise
            raise SnapshotCollected(
                f"not all of root {to_text(ref)} is stored in this instance: its version is not kept any more, or it is of"
                " another instance; 'fluxmpi kvs log' lists the versions that are kept"
            ) from None
        return self._kvs._saw(name, root)

    def remove(self, name: str) -> None:
        """Remove a namespace with everything in it. Its watches and waiting reads get NoSuchNamespace.

        Args:
            name: its name.

        Raises:
            NoSuchNamespace: there is none of this name.
            InvalidRequest: it is ``primary``.

        Example:
            >>> _ = h.kvs.namespaces.create("doc_scratch")
            >>> h.kvs.namespaces.remove("doc_scratch")
        """
        self._kvs._channel.rpc("roots.remove", OldNamespace(name))

    def list(self) -> list[NamespaceInfo]:
        """Return all namespaces, in order of name.

        Example:
            >>> "primary" in [info.name for info in h.kvs.namespaces.list()]
            True
        """
        found: list[NamespaceInfo] = self._kvs._channel.rpc("roots.list", reply=list[NamespaceInfo])
        return found
