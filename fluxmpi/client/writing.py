"""Writing to the KVS: the part of ``h.kvs`` that commits.

A value of up to 64 KiB travels in the commit. A longer one is cut into blobs of 1 MiB, which are stored first, several at a
time; the commit leaves when rank 0 has them all, so a key never points to what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fluxmpi.client.base import Base
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.txn import Result, Transaction, checked_add, send_once
from fluxmpi.errors import InvalidRequest, RequestTimeout
from fluxmpi.kvs.objects import Val, ValRef
from fluxmpi.kvs.wire import PRIMARY, AddTo, Cancel, CommitId, Committed
from fluxmpi.message import Message

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future

_decode_committed = decoder(Committed)


class Writing(Base):
    def commit(self, values: Mapping[str, Any], *, namespace: str = PRIMARY, timeout: float | None = None) -> Snapshot:
        """Put all of ``values`` in one version; returns that version's Snapshot. All of it happens or nothing."""
        return self.commit_async(values, namespace=namespace).get(timeout)

    def commit_async(self, values: Mapping[str, Any], *, namespace: str = PRIMARY) -> Future:
        """As ``commit``, without waiting: ``get`` the Snapshot from the Future. Many may be on the way."""
        txn = Transaction(self, namespace)
        for key, value in values.items():
            txn.put(key, value)
        return txn.commit_async()

    def put(self, key: str, value: Any, *, namespace: str = PRIMARY) -> Snapshot:
        return self.commit({key: value}, namespace=namespace)

    def txn(self, *, namespace: str = PRIMARY, durable: bool = False) -> Transaction:
        """A transaction: use it in a ``with`` block, which commits it at its end, or not at all if it raises."""
        if durable:
            raise InvalidRequest(
                "durable=True: this instance keeps no journal, so no commit can be on stable storage when it returns; leave it"
                " out, and save a checkpoint where one is needed"
            )
        return Transaction(self, namespace)

    def add(
        self,
        key: str,
        amount: int = 1,
        *,
        limit: int | None = None,
        namespace: str = PRIMARY,
        timeout: float | None = None,
    ) -> int | None:
        """Add to an integer, which starts at 0; returns it as it is then. Many clients may add to one key at a time: their
        additions are combined on the way, and each gets a sum of its own.

        With ``limit``: only if it is less than that before; None if it was not. Raises InvalidValue when something else is
        there, and when the sum has over 64 bits.
        """
        if limit is None:
            return self.add_async(key, amount, namespace=namespace).get(timeout)
        txn = Transaction(self, namespace)
        result = txn.add(key, amount, limit=limit)
        txn.commit(timeout)
        return result.number if result else None

    def add_async(self, key: str, amount: int = 1, *, namespace: str = PRIMARY) -> Future:
        """As ``add``, without waiting: ``get`` the integer from the Future."""
        checked_add(key, amount, None)

        def body(id_: CommitId, acked: int) -> bytes:
            return encode("kvs.add", AddTo(namespace, id_, acked, key, amount))

        def decode(message: Message) -> int:
            committed = _decode_committed(message)
            self._session.saw(namespace, committed.version)
            return committed.results[0].number

        return send_once(self._handle, "kvs.add", body, decode)

    def exchange(
        self, key: str, value: Any, default: Any = None, *, namespace: str = PRIMARY, timeout: float | None = None
    ) -> Any:
        """Put ``value``; returns what was there before, or ``default`` when there was no value."""
        txn = Transaction(self, namespace)
        result = txn.exchange(key, value)
        txn.commit(timeout)
        return result.value if isinstance(result.object, Val | ValRef) else default

    def swap(
        self, key: str, expected: Any, value: Any, *, namespace: str = PRIMARY, timeout: float | None = None
    ) -> Result:
        """Compare and swap: put ``value`` if ``expected`` is there; ABSENT stands for no such key. The Result is true if it
        was done, and its ``value`` is what was found.
        """
        txn = Transaction(self, namespace)
        result = txn.swap(key, expected, value)
        txn.commit(timeout)
        return result

    def fence(
        self,
        name: str,
        nprocs: int,
        values: Mapping[str, Any] | None = None,
        *,
        namespace: str = PRIMARY,
        timeout: float | None = None,
    ) -> Snapshot:
        """Commit with ``nprocs`` - 1 other callers of the same name, as one version: a barrier that carries data.

        Returns when all have come. Raises FenceMismatch when the callers disagree on ``nprocs``. When a caller that waits
        goes away, or reaches its ``timeout`` (RequestTimeout), all others get FenceBroken, those too that come later; nothing
        is committed. The name may be used again when all have been told.
        """
        if nprocs < 1:
            raise InvalidRequest(f"fence '{name}': nprocs is {nprocs}, and must be at least 1")
        txn = Transaction(self, namespace)
        for key, value in (values or {}).items():
            txn.put(key, value)
        future = txn.fence_async(name, nprocs)
        try:
            return future.get(timeout)
        except RequestTimeout:
            self._handle.post("kvs.cancel", Cancel(future.tag))
            raise RequestTimeout(
                f"fence '{name}' of {nprocs} was not complete within {timeout:g} s; the others get FenceBroken, unless the"
                " last one came just now"
            ) from None

    def mkdir(self, key: str, *, namespace: str = PRIMARY) -> Snapshot:
        """Make an empty directory, and those above it; one that exists stays as it is."""
        with self.txn(namespace=namespace) as txn:
            txn.mkdir(key)
        return txn.snapshot

    def unlink(self, key: str, *, namespace: str = PRIMARY) -> Snapshot:
        """Remove a value, a link, or a directory and all below; no such key is no error."""
        with self.txn(namespace=namespace) as txn:
            txn.unlink(key)
        return txn.snapshot

    def link(self, target: str, key: str, *, target_namespace: str | None = None, namespace: str = PRIMARY) -> Snapshot:
        """Make ``key`` a symbolic link to ``target``, which need not exist."""
        with self.txn(namespace=namespace) as txn:
            txn.link(target, key, target_namespace=target_namespace)
        return txn.snapshot
