"""Reads at one broker: ``kvs.get``, ``kvs.list``, ``kvs.diff``, ``kvs.getroot``, and a child's ``kvs.path``.

A read passes these steps; each may suspend it, and none blocks:

1. Wait until this broker has the version ``at_least`` (``pending``): monotonic reads.
2. Find the root to read at: here, or at rank 0 (OnAnswer.READ_AT).
3. Walk down from the root (``reads``), faulting in missing nodes (``fault_in``).
"""

from __future__ import annotations

from functools import partial

from fluxmpi.errors import FluxmpiError, NoSuchBlob, Overloaded, SnapshotCollected
from fluxmpi.kvs.objects import KEY_BYTES_MAX, split_key
from fluxmpi.kvs.replica.fault_in import FaultIn, OnFailure, Walk
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.replica.pending import OnAnswer, PendingRequests
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.store.lookup import MissingNamespace
from fluxmpi.kvs.store.node import ref_text
from fluxmpi.kvs.wire import DiffRequest, GetRequest, GetRoot, Got, Listed, ListRequest, PathRequest, RootInfo
from fluxmpi.message import Body, Message, encode_body, reply, reply_error

_decode_get = Body(GetRequest)
_decode_list = Body(ListRequest)
_decode_diff = Body(DiffRequest)
_decode_path = Body(PathRequest)
_decode_getroot = Body(GetRoot)
_decode_read = {"kvs.get": _decode_get, "kvs.list": _decode_list}
_decode_result = {"kvs.get": Body(Got), "kvs.list": Body(Listed)}


class ReadService:
    """``rank``: of this broker. Rank 0 has all blobs, and all roots that are kept."""

    def __init__(
        self, reads: Reads, fault_in: FaultIn, pending: PendingRequests, rank: int, limits: ReplicaLimits
    ) -> None:
        self._reads = reads
        self._fault_in = fault_in
        self._pending = pending
        self._rank = rank
        self._limits = limits
        self._count = 0

    # --------------------------------------------------------------------------------------------------------- requests

    def get(self, msg: Message, now: float) -> list[Message]:
        return self._read(msg, _decode_get(msg))

    def list_entries(self, msg: Message, now: float) -> list[Message]:
        return self._read(msg, _decode_list(msg))

    def diff(self, msg: Message, now: float) -> list[Message]:
        return self._diff(msg, _decode_diff(msg))

    def path(self, msg: Message, now: float) -> list[Message]:
        return self._start(msg, self._reads.path(msg, _decode_path(msg)), lambda error: [reply_error(msg, error)])

    def getroot(self, msg: Message, now: float) -> list[Message]:
        getroot = _decode_getroot(msg)
        if getroot.fresh:
            return self._pending.ask_root(msg, GetRoot(getroot.namespace), OnAnswer.REPLY)
        waits = self._pending.wait_for_version(msg, getroot.namespace, getroot.at_least)
        if waits is not None:
            return waits
        root = None
        if getroot.time is None and getroot.ago_s is None:
            root = self._reads.root_at(getroot.namespace, getroot.at)
        return [reply(msg, root)] if root is not None else self._pending.ask_root(msg, getroot, OnAnswer.REPLY)

    def resume_at(self, msg: Message, root: RootInfo) -> list[Message]:
        """Continue a ``kvs.get`` or ``kvs.list`` at the root that rank 0 was asked for."""
        return self._read(msg, _decode_read[msg.topic](msg), root)

    def resume_diff(self, msg: Message, root: RootInfo) -> list[Message]:
        """Continue a ``kvs.diff`` with the root of one of its versions."""
        diff = _decode_diff(msg)
        diff.a, diff.b = (root.ref if at == root.version else at for at in (diff.a, diff.b))
        msg.body = encode_body(diff)
        return self._diff(msg, diff)

    @staticmethod
    def version_read(request: Message, answer: Message) -> tuple[str, int]:
        """Return the namespace and the version that a forwarded read was answered from."""
        return _decode_read[request.topic](request).namespace, _decode_result[request.topic](answer).version

    # ------------------------------------------------------------------------------------------------------------ steps

    def _read(self, msg: Message, read: GetRequest | ListRequest, root: RootInfo | None = None) -> list[Message]:
        if len(read.key) > KEY_BYTES_MAX:
            split_key(read.key)  # raises InvalidKey: nothing is parked
        waits = self._pending.wait_for_version(msg, read.namespace, read.at_least)
        if waits is not None:
            return waits
        if root is None:
            root = self._reads.root_at(read.namespace, read.at)
        if root is None:
            assert isinstance(read.at, int)
            return self._pending.ask_root(msg, GetRoot(read.namespace, at=read.at), OnAnswer.READ_AT)
        walk = self._reads.get(msg, read, root) if isinstance(read, GetRequest) else self._reads.list(msg, read, root)
        return self._start(msg, walk, partial(self._failed, msg, read))

    def _diff(self, msg: Message, diff: DiffRequest) -> list[Message]:
        if len(diff.key) > KEY_BYTES_MAX:
            split_key(diff.key)
        waits = self._pending.wait_for_version(msg, diff.namespace, diff.at_least)
        if waits is not None:
            return waits
        fail = partial(self._failed, msg, diff)
        if diff.between is not None:
            return self._start(msg, self._reads.diff(msg, diff, None, None), fail)
        a, b = self._reads.root_at(diff.namespace, diff.a), self._reads.root_at(diff.namespace, diff.b)
        if a is None or b is None:
            at = diff.a if a is None else diff.b
            assert isinstance(at, int)
            return self._pending.ask_root(msg, GetRoot(diff.namespace, at=at), OnAnswer.DIFF_AT)
        return self._start(msg, self._reads.diff(msg, diff, a, b), fail)

    def _start(self, msg: Message, walk: Walk, fail: OnFailure) -> list[Message]:
        self._count += 1
        limits, count = self._limits, self._fault_in.count
        if count >= limits.reads_suspended_max:
            text = f"{limits.reads_suspended_max:,} reads wait for blobs at this broker already; try again"
            return [reply_error(msg, Overloaded(text))]
        share = limits.reads_suspended_client_max
        if count >= share and self._fault_in.held(msg.route) >= share:
            text = f"{share:,} reads of this client wait for blobs already, its share of this broker's; try again"
            return [reply_error(msg, Overloaded(text))]
        return self._fault_in.start(walk, fail, msg)

    def _failed(self, msg: Message, read: GetRequest | ListRequest | DiffRequest, error: FluxmpiError) -> list[Message]:
        """Reply with the error that ended a walk, or ask rank 0 where it has only shown what this broker lacks."""
        if isinstance(error, MissingNamespace) and not self._reads.knows(error.namespace):
            return self._pending.ask_root(msg, GetRoot(error.namespace), OnAnswer.RETRY)
        if isinstance(error, NoSuchBlob):
            if isinstance(read, DiffRequest):
                error = SnapshotCollected(f"one of the two versions of {read.namespace} is not kept any more")
            elif read.at is not None:
                what = f"version {read.at}" if isinstance(read.at, int) else f"the state with root {ref_text(read.at)}"
                error = SnapshotCollected(f"{what} of {read.namespace} is not kept any more")
            elif self._rank:
                # 1. Rank 0 has made so many versions that it has compacted the newest one of this broker. 2. A node of
                # that one was requested, and had been collected. So rank 0 executes the read, at its newest version.
                return self._pending.forward(msg, msg.topic, OnAnswer.FORWARDED, 0)
        return [reply_error(msg, error)]

    def statistics(self) -> dict[str, float]:
        return {"reads": self._count, "suspended": self._fault_in.count}
