"""Copying and moving in the key-value store, by reference: a directory of a million keys takes no more requests than one key."""

from __future__ import annotations

from fluxmpi.client.kvs.reading import Reading
from fluxmpi.client.kvs.stored_value import of_a_version
from fluxmpi.client.kvs.transaction import Transaction
from fluxmpi.client.kvs.writing import Writing
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.errors import FluxmpiError, Overloaded, indefinite

TRIES_MAX = 100
"""Attempts of a move whose source changes each time between being read and being moved."""


class Copying(Reading, Writing):
    """The copies of ``h.kvs``."""

    def copy(
        self, source: str, destination: str, *, at: AtLike = None, source_namespace: str | None = None
    ) -> Snapshot:
        """Make ``destination`` what ``source`` is: a value, a link, or a directory with everything below.

        The two share their contents until one of them is changed; no value is sent or stored again.

        Args:
            source: the key to copy.
            destination: the key to write, in this namespace; what was there is replaced.
            at: the state of ``source`` to copy, see ``snapshot``; None is the newest.
            source_namespace: the namespace of ``source``; None is this one. An ``at`` that is a snapshot names it
                itself.

        Returns:
            The new version of this namespace.

        Raises:
            NoSuchKey: there is no key ``source``.
            SnapshotCollected: ``at`` is not kept any more.

        Example:
            >>> before = h.kvs.put("doc.run.steps", 100)
            >>> _ = h.kvs.put("doc.run.steps", 200)
            >>> _ = h.kvs.copy("doc.run", "doc.saved", at=before)
            >>> h.kvs.get("doc.saved.steps")
            100
        """
        namespace, root = source_namespace or self._namespace, None
        if at is not None:
            snapshot = self._snapshot(at, namespace)
            namespace, root = snapshot.namespace, snapshot.ref
        found = self._object(source, False, namespace, root)
        with of_a_version(), self.txn() as txn:
            txn.put_object(destination, found)
        return txn.snapshot

    def move(self, source: str, destination: str, *, source_namespace: str | None = None) -> Snapshot:
        """Copy like ``copy``, and remove ``source``.

        Within a namespace both happen in one version, and no change to the source is lost. Between two namespaces there
        is a moment at which both have it.

        Args:
            source: the key to move.
            destination: the key to write, in this namespace; what was there is replaced.
            source_namespace: the namespace of ``source``; None is this one.

        Returns:
            The new version of this namespace.

        Raises:
            NoSuchKey: there is no key ``source``.
            Overloaded: the source was changed during each of many attempts; nothing was moved.
            FluxmpiError: between two namespaces, also if it was copied and could not be removed. The error says so, and
                is not ``definite``.

        Example:
            >>> _ = h.kvs.put("doc.new", 1)
            >>> _ = h.kvs.move("doc.new", "doc.current")
            >>> h.kvs.exists("doc.new"), h.kvs.get("doc.current")
            (False, 1)
        """
        if source_namespace not in (None, self._namespace):
            assert source_namespace is not None
            snapshot = self.copy(source, destination, source_namespace=source_namespace)
            removal = Transaction(self._channel, source_namespace)
            removal.unlink(source)
            try:
                removal.commit()
            except FluxmpiError as error:
                text = f"'{source}' was copied to '{destination}' in version {snapshot.version}, but not removed: {error.text}"
                raise indefinite(error, text) from None
            return snapshot
        for _ in range(TRIES_MAX):
            snapshot = self.snapshot()
            found = self.get_object(source, at=snapshot)
            with self.txn() as txn:
                txn.when_version(source, "<=", snapshot.version)  # else another client's change would be lost
                txn.unlink(source)  # first, since one of the two may lie below the other
                txn.put_object(destination, found)
            if txn.succeeded:
                return txn.snapshot
        raise Overloaded(
            f"'{source}' was changed {TRIES_MAX} times while it was to be moved: move it when it is left alone"
        )
