"""Copying and moving in the KVS: by reference, so a directory of a million keys costs what one key costs."""

from __future__ import annotations

from fluxmpi.client.base import AtLike
from fluxmpi.client.mapping import of_a_version
from fluxmpi.client.reading import Reading
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.writing import Writing
from fluxmpi.errors import Overloaded
from fluxmpi.kvs.wire import PRIMARY

TRIES_MAX = 100
"""Of a move whose source is changed each time between its being read and its being moved."""


class Copying(Reading, Writing):
    def copy(
        self,
        source: str,
        destination: str,
        *,
        at: AtLike = None,
        src_namespace: str | None = None,
        dst_namespace: str = PRIMARY,
    ) -> Snapshot:
        """Make ``destination`` what ``source`` is now, or was ``at`` that time: a value, a link, or a directory with all below.

        The two share what they hold until one of them is changed. Returns the destination's new version.
        """
        found = self.get_object(source, at=at, namespace=src_namespace)
        with of_a_version(), self.txn(namespace=dst_namespace) as txn:
            txn.put_object(destination, found)
        return txn.snapshot

    def move(
        self, source: str, destination: str, *, src_namespace: str = PRIMARY, dst_namespace: str = PRIMARY
    ) -> Snapshot:
        """As ``copy``, and ``source`` is removed: in the same version, within one namespace, and no change to it is lost.

        Between two namespaces there is a moment when both have it. Returns the destination's new version.
        """
        if src_namespace != dst_namespace:
            snapshot = self.copy(source, destination, src_namespace=src_namespace, dst_namespace=dst_namespace)
            self.unlink(source, namespace=src_namespace)
            return snapshot
        for _ in range(TRIES_MAX):
            snapshot = self.snapshot(src_namespace)
            found = self.get_object(source, at=snapshot)
            with self.txn(namespace=src_namespace) as txn:
                txn.when_version(source, "<=", snapshot.version)  # else somebody's change would be lost
                txn.unlink(source)  # first, since one of the two may lie below the other
                txn.put_object(destination, found)
            if txn.succeeded:
                return txn.snapshot
        raise Overloaded(
            f"'{source}' was changed {TRIES_MAX} times while it was to be moved: move it when it is left alone"
        )
