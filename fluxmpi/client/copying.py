"""Copying and moving in the KVS: by reference, so a directory of a million keys costs what one key costs."""

from __future__ import annotations

from fluxmpi.client.reading import Reading
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.writing import Writing
from fluxmpi.kvs.wire import PRIMARY


class Copying(Reading, Writing):
    def copy(
        self, source: str, destination: str, *, src_namespace: str = PRIMARY, dst_namespace: str = PRIMARY
    ) -> Snapshot:
        """Make ``destination`` what ``source`` is now: a value, a link, or a directory with all below.

        The two share what they hold until one of them is changed. Returns the destination's new version.
        """
        found = self.get_object(source, namespace=src_namespace)
        with self.txn(namespace=dst_namespace) as txn:
            txn.put_object(destination, found)
        return txn.snapshot

    def move(
        self, source: str, destination: str, *, src_namespace: str = PRIMARY, dst_namespace: str = PRIMARY
    ) -> Snapshot:
        """As ``copy``, and ``source`` is removed: in the same version, within one namespace.

        Between two namespaces there is a moment when both have it. Returns the destination's new version.
        """
        if src_namespace != dst_namespace:
            snapshot = self.copy(source, destination, src_namespace=src_namespace, dst_namespace=dst_namespace)
            self.unlink(source, namespace=src_namespace)
            return snapshot
        found = self.get_object(source, namespace=src_namespace)
        with self.txn(namespace=src_namespace) as txn:
            txn.unlink(source)  # first, since one of the two may lie below the other
            txn.put_object(destination, found)
        return txn.snapshot
