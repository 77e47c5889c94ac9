"""Catch-up: pages of the version log for unsynced watchers, from this broker's replica or else from rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fluxmpi.errors import FluxmpiError, SnapshotCollected, decode_error
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import RootInfo, Since
from fluxmpi.message import ANY, OK, Body, Message

_decode_roots = Body(list[RootInfo])


class CatchUp:
    """``ask`` makes a request of this broker's kvs service to another service."""

    def __init__(
        self, replicas: Mapping[str, Replica], ask: Callable[[str, object, int], Message], limits: WatchLimits
    ) -> None:
        self._replicas = replicas
        self._ask = ask
        self._limits = limits
        self._asked: dict[int, Watcher] = {}
        """Tag of a request for versions → the watcher that reads them."""

    def read(self, watcher: Watcher) -> list[Message]:
        """Give a watcher its next versions; sync it if there are none. Return the request if rank 0 must be asked."""
        replica = self._replicas[watcher.watch.namespace]
        next_version = watcher.own.next_version
        if next_version > replica.version:
            watcher.catch_up(replica.version)
            return []
        limit = 1 if watcher.watch.latest else min(self._limits.page_versions, self._limits.queue_max)
        roots: list[RootInfo] = []
        while len(roots) < limit and (root := replica.at(next_version + len(roots))) is not None:
            roots.append(root)
        if roots:
            watcher.take_page(roots)
            return []
        ask = self._ask("roots.since", Since(replica.namespace, next_version, limit), ANY)
        self._asked[ask.tag] = watcher
        return [ask]

    def owns(self, tag: int) -> bool:
        return tag in self._asked

    def answered(self, msg: Message) -> tuple[Watcher, FluxmpiError | None]:
        """Give a watcher the versions that rank 0 answered. Return the error if there are none."""
        watcher = self._asked.pop(msg.tag)
        if watcher.ended:
            return watcher, None
        watcher.stop()
        namespace, next_version = watcher.watch.namespace, watcher.own.next_version
        if msg.status != OK:
            return watcher, decode_error(msg.status, msg.body)
        newest = self._replicas[namespace].version
        roots = [root for root in _decode_roots(msg) if root.version <= newest]
        if not roots or roots[0].version != next_version:
            return watcher, SnapshotCollected(f"version {next_version} of {namespace} is not kept any more")
        watcher.take_page(roots)
        return watcher, None
