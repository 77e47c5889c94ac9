"""Writes of the key-value store; every write is a ``Transaction``, but ``add``, which brokers combine on the way to rank 0.

A value of up to 64 KiB travels in the commit. A longer one is cut into blobs of 1 MiB, which are stored first, several
at a time; the commit leaves when rank 0 has them all, so a key never refers to a blob that is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxmpi.client.future import Future
from fluxmpi.client.kvs.base import Base
from fluxmpi.client.kvs.result import Result
from fluxmpi.client.kvs.transaction import Transaction, checked_add
from fluxmpi.client.protocol import decoder, encode, undecodable
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.errors import FluxmpiError, InvalidRequest, RequestTimeout, indefinite
from fluxmpi.kvs.objects import Val, ValRef
from fluxmpi.kvs.wire import AddTo, Cancel, CommitId, Committed
from fluxmpi.message import Message

_decode_committed = decoder(Committed)


class Writing(Base):
    """The writes of ``h.kvs``."""

    def commit(self, values: Mapping[str, Any], *, timeout: float | None = None) -> Snapshot:
        """Put several values in one version: all of them, or none.

        Args:
            values: the values by key. A value is str, int, float, bool, None, a list or dict of those, bytes, or a
                numpy array. Directories above a key are made as needed.
            timeout: seconds to wait for the commit; None waits without a limit.

        Returns:
            The version that the commit became.

        Raises:
            NotADirectory: a value is in the way of a key.
            InvalidRequest: a value cannot be stored.
            InvalidKey: a key breaks the rules for keys.
            TooLarge: more than 64 MiB in one transaction, long values not counted.
            RequestTimeout: no answer within ``timeout``; the commit may still happen, once.

        Example:
            >>> snapshot = h.kvs.commit({"doc.state": "ready", "doc.ranks": [0, 1, 2]})
            >>> h.kvs.get("doc.ranks", at=snapshot)
            [0, 1, 2]
        """
        return self._channel.call(lambda: self.commit_async(values), timeout)

    def commit_async(self, values: Mapping[str, Any]) -> Future[Snapshot]:
        """Commit like ``commit``, without waiting. Many commits may be pending.

        Args:
            values: the values by key.

        Returns:
            The future version.

        Example:
            >>> futures = [h.kvs.commit_async({f"doc.n{n}": n}) for n in range(3)]
            >>> [future.get().namespace for future in futures]
            ['primary', 'primary', 'primary']
        """
        txn = Transaction(self._channel, self._namespace)
        for key, value in values.items():
            txn.put(key, value)
        return txn.commit_async()

    def put(self, key: str, value: Any, *, timeout: float | None = None) -> Snapshot:
        """Put one value; see ``commit`` for what it raises.

        Args:
            key: the key.
            value: the value.
            timeout: seconds to wait for the commit; None waits without a limit.

        Returns:
            The version that the commit became.

        Example:
            >>> h.kvs.put("doc.x", 1).version == h.kvs.version()
            True
        """
        return self._channel.call(lambda: self.commit_async({key: value}), timeout)

    def txn(self, *, durable: bool = False) -> Transaction:
        """Begin a transaction: operations, guards and events that are committed as one version.

        Use it in a ``with`` block. It is committed when the block ends; if the block raises, nothing is sent.

        Args:
            durable: refused: no instance keeps a journal yet.

        Example:
            >>> with h.kvs.txn() as t:
            ...     t.put("doc.queue.next", 7)
            ...     t.append("doc.queue.log", "queued 7\\n")
            ...     t.unlink("doc.queue.old")
            >>> t.version == h.kvs.version()
            True
        """
        if durable:
            raise InvalidRequest(
                "durable=True: this instance keeps no journal, so no commit can be on stable storage when it returns; leave it"
                " out, and save a checkpoint where one is needed"
            )
        return Transaction(self._channel, self._namespace)

    def add(self, key: str, amount: int = 1, *, limit: int | None = None, timeout: float | None = None) -> int | None:
        """Add to an integer, and return the sum. A key that does not exist starts at 0.

        Additions of many clients to one key are combined on their way to rank 0; each gets a sum of its own. The sums
        in between are in no version. To see each in the history, add in a transaction.

        Args:
            key: the key.
            amount: what to add; it may be negative.
            limit: add only if the integer is less than this.
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The sum; None if the integer was not less than ``limit``.

        Raises:
            InvalidValue: the key has another value than an integer, or the sum has more than 64 bits.
            IsADirectory: the key is a directory.

        Example:
            >>> _ = h.kvs.put("doc.count", 10)
            >>> h.kvs.add("doc.count", 5), h.kvs.add("doc.count", limit=15)
            (15, None)
        """
        if limit is None:
            return self._channel.call(lambda: self.add_async(key, amount), timeout)
        txn = Transaction(self._channel, self._namespace)
        result = txn.add(key, amount, limit=limit)
        txn.commit(timeout)
        return result.number if result else None

    def add_async(self, key: str, amount: int = 1) -> Future[int]:
        """Add like ``add``, without waiting and without a limit.

        Args:
            key: the key.
            amount: what to add; it may be negative.

        Returns:
            The future sum.

        Example:
            >>> _ = h.kvs.put("doc.sum", 0)
            >>> futures = [h.kvs.add_async("doc.sum", 2) for _ in range(3)]
            >>> [future.get() for future in futures]
            [2, 4, 6]
        """
        checked_add(key, amount, None)
        namespace = self._namespace

        def body(id_: CommitId, acked: int) -> bytes:
            return encode("kvs.add", AddTo(namespace, id_, acked, key, amount))

        def decode(message: Message) -> int:
            committed = _decode_committed(message)
            self._session.saw(namespace, committed.version)
            number = committed.results[0].number if committed.results else None
            if number is None:
                raise undecodable(message.topic, "it has no sum")
            return number

        return self._channel.send_once("kvs.add", body, decode)

    def exchange(self, key: str, value: Any, default: Any = None, *, timeout: float | None = None) -> Any:
        """Put a value, and return the one before.

        Args:
            key: the key.
            value: the new value.
            default: what to return if there was no value.
            timeout: seconds to wait; None waits without a limit.

        Raises:
            FluxmpiError: as ``commit`` does. If the value was put, but the one before cannot be read (a long one that
                was collected, a lost connection), the error says so, and is not ``definite``.

        Example:
            >>> _ = h.kvs.put("doc.turn", "left")
            >>> h.kvs.exchange("doc.turn", "right")
            'left'
        """
        txn = Transaction(self._channel, self._namespace)
        result = txn.exchange(key, value)
        version = txn.commit(timeout).version
        try:
            return result.value if isinstance(result.object, Val | ValRef) else default
        except FluxmpiError as error:
            text = f"'{key}' was put in version {version}, but the value before it cannot be read: {error.text}"
            raise indefinite(error, text) from None

    def compare_and_swap(self, key: str, expected: Any, value: Any, *, timeout: float | None = None) -> Result:
        """Put a value if the key has the expected one.

        Args:
            key: the key.
            expected: the value that the key must have: of the same type and with the same bytes, so 1 is not 1.0.
                ABSENT: the key must not exist.
            value: the new value. ABSENT: remove the key.
            timeout: seconds to wait; None waits without a limit.

        Returns:
            A result that is true if the value was put. Its ``value`` is the one that was found.

        Example:
            >>> _ = h.kvs.put("doc.lock", 0)
            >>> bool(h.kvs.compare_and_swap("doc.lock", 0, 1)), bool(h.kvs.compare_and_swap("doc.lock", 0, 2))
            (True, False)
            >>> h.kvs.compare_and_swap("doc.lock", 0, 2).value
            1
        """
        txn = Transaction(self._channel, self._namespace)
        result = txn.compare_and_swap(key, expected, value)
        txn.commit(timeout)
        return result

    def fence(
        self, name: str, nprocs: int, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Snapshot:
        """Commit together with ``nprocs`` - 1 other callers of the same name, as one version: a barrier that carries data.

        Args:
            name: the fence's name; it may be used again after every member has its answer.
            nprocs: the number of members, at least 1.
            values: what this member contributes, by key.
            timeout: seconds to wait for the others; None waits without a limit.

        Returns:
            The version that has the values of all members.

        Raises:
            FenceMismatch: the members disagree on ``nprocs``.
            FenceBroken: a member left, or reached its ``timeout``; nothing was committed. Later members get it too.
            RequestTimeout: the fence was not complete within ``timeout``. It breaks for the other members.

        Example:
            >>> h.kvs.fence("doc.fence", 1, {"doc.cards.0": "address"}).version == h.kvs.version()
            True
        """
        if nprocs < 1:
            raise InvalidRequest(f"fence '{name}': nprocs is {nprocs}, and must be at least 1")
        txn = Transaction(self._channel, self._namespace)
        for key, value in (values or {}).items():
            txn.put(key, value)
        before = self._channel.connection.last_tag
        try:
            return self._channel.call(lambda: txn.fence_async(name, nprocs), timeout)
        except RequestTimeout:
            if timeout is None:  # the broker says so
                raise
            tag = self._channel.connection.last_tag
            if tag > before:
                self._channel.post("kvs.cancel", Cancel(tag))
            raise RequestTimeout(
                f"fence '{name}' of {nprocs} was not complete within {timeout:g} s; the others get FenceBroken, unless the"
                " last one came just now"
            ) from None

    def mkdir(self, key: str) -> Snapshot:
        """Make an empty directory, and those above it. A directory that exists is not changed.

        Args:
            key: the directory.

        Returns:
            The version that the commit became.

        Raises:
            NotADirectory: a value is in the way.

        Example:
            >>> _ = h.kvs.mkdir("doc.empty")
            >>> list(h.kvs.ls("doc.empty"))
            []
        """
        with self.txn() as txn:
            txn.mkdir(key)
        return txn.snapshot

    def unlink(self, key: str) -> Snapshot:
        """Remove a value, a link, or a directory with everything below. A key that does not exist is no error.

        Args:
            key: the key.

        Returns:
            The version that the commit became.

        Example:
            >>> _ = h.kvs.put("doc.old", 1)
            >>> _ = h.kvs.unlink("doc.old")
            >>> h.kvs.exists("doc.old")
            False
        """
        with self.txn() as txn:
            txn.unlink(key)
        return txn.snapshot

    def link(self, target: str, key: str, *, target_namespace: str | None = None) -> Snapshot:
        """Make a symbolic link at ``key``.

        Args:
            target: the key that it leads to, which need not exist.
            key: the link; what was there is replaced.
            target_namespace: the namespace of ``target``; None is this one.

        Example:
            >>> _ = h.kvs.put("doc.run.12", "twelve")
            >>> _ = h.kvs.link("doc.run.12", "doc.run.latest")
            >>> h.kvs.get("doc.run.latest")
            'twelve'
        """
        with self.txn() as txn:
            txn.link(target, key, target_namespace=target_namespace)
        return txn.snapshot
