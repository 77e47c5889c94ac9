"""Fences at rank 0: contributions are deduplicated and gathered until a fence is complete, or breaks.

    leader.fence ──▶ in the table?   its outcome again
                     fence broken?   FenceBroken
                     else            Gathering ── complete ──▶ FenceEntry, for the queue of its namespace
    leader.fence-break (a member has left) ──▶ the Gathering breaks; FenceBroken for all contributors

Outcomes leave as ``kvs.fence-done``; that of a fence that is committed, in the setroot of its version.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, decode_error, encode_error
from fluxmpi.kvs.fence.broken import BrokenFences
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.leader.dedup import DeduplicationTable, Response
from fluxmpi.kvs.leader.entries import Counters, FenceEntry
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.wire import CommitId, Fence, FenceDone, FenceMember, RootInfo
from fluxmpi.message import OK, Message, control

_decode_root = msgspec.msgpack.Decoder(RootInfo).decode


class FenceGatherer:
    """The incomplete fences of all namespaces. The leader owns ``table`` and ``counters``."""

    def __init__(
        self, namespaces: Namespaces, table: DeduplicationTable, counters: Counters, limits: FenceLimits
    ) -> None:
        self._namespaces = namespaces
        self._table = table
        self._counters = counters
        self._limits = limits
        self._gatherings: dict[tuple[str, str], Gathering] = {}
        self._broken = BrokenFences(limits)

    def __len__(self) -> int:
        return len(self._gatherings)

    def contribute(self, fence: Fence, hop: int, now: float) -> tuple[list[Message], FenceEntry | None]:
        """Take contributions.

        Return the outcomes of those that are answered at once, and the fence if it is complete now.
        """
        out = self._answer_known(fence)
        ids = [part.id for part in fence.parts]
        if not ids:
            return out, None
        broken = self._broken.error(fence, now)
        if broken is not None:
            return [*out, self._break(fence.namespace, fence.name, ids, broken)], None
        key = fence.namespace, fence.name
        try:
            self._namespaces.find(fence.namespace)
            gathering = self._gatherings.get(key) or Gathering(fence, self._limits)
            gathering.add(fence, hop)
        except FluxmpiError as error:
            return [*out, self._failed(fence.namespace, fence.name, ids, error)], None
        self._gatherings[key] = gathering
        if not gathering.complete:
            return out, None
        del self._gatherings[key]
        self._table.under_way.update(dict.fromkeys(gathering.parts))
        return out, FenceEntry(gathering, self._table)

    def member_left(self, member: FenceMember, now: float) -> list[Message]:
        """Break the fence that ``member`` contributed to, unless it is complete, or a later one of that name."""
        key = member.namespace, member.name
        gathering = self._gatherings.get(key)
        if gathering is None or member.id not in gathering.parts:
            return []
        del self._gatherings[key]
        error = self._broken.add(gathering, member.id, now)
        return [self._break(*key, list(gathering.parts), error)]

    def remove(self, namespace: str) -> list[FenceEntry]:
        """Take out the incomplete fences of a namespace, which was removed."""
        keys = [key for key in self._gatherings if key[0] == namespace]
        return [FenceEntry(self._gatherings.pop(key), self._table) for key in keys]

    def refs(self) -> Iterator[Ref]:
        """Yield the directories and blobs that incomplete fences name."""
        for gathering in self._gatherings.values():
            yield from gathering.refs()

    def _answer_known(self, fence: Fence) -> list[Message]:
        """Remove from ``fence`` the contributions that are not new, and return the outcomes of those that have one.

        The others belong to a fence that is complete: its setroot answers them.
        """
        table = self._table
        known: dict[Response, list[CommitId]] = {}
        fresh = []
        for part in fence.parts:
            client = table.client(part.id.client)  # a contribution that waits is not new: the fence has its id
            client.acknowledge(part.acked)
            response = client.response(part.id)
            if response is not None:
                known.setdefault(response, []).append(part.id)
            elif part.id not in table.under_way:
                fresh.append(part)
        fence.parts = fresh
        out = []
        for (status, body), ids in known.items():
            if status:
                done = FenceDone.failed(fence.namespace, fence.name, ids, decode_error(status, body))
            else:
                root = _decode_root(body)
                done = FenceDone(fence.namespace, fence.name, ids, root.version, OK, "", root.ref, root.time)
            out.append(control("kvs.fence-done", done))
            self._counters.resent += len(ids)
        return out

    def _break(self, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> Message:
        """Fail these contributions for good: sent again, they do not count for the next fence of that name."""
        self._table.remember_all(ids, *encode_error(error))
        return self._failed(namespace, name, ids, error)

    def _failed(self, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> Message:
        self._counters.failed += 1
        return control("kvs.fence-done", FenceDone.failed(namespace, name, ids, error))

    def check(self) -> None:
        self._broken.check()
        assert not any(gathering.complete for gathering in self._gatherings.values())
