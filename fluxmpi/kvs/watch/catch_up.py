"""Replays: watchers that take their versions from the history, a page at a time; rank 0 has what this broker has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fluxmpi.errors import FluxmpiError, SnapshotCollected, decode_error
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.watch.watcher import Watcher, WatcherState
from fluxmpi.kvs.wire import RootInfo, Since
from fluxmpi.message import ANY, OK, Body, Message

PAGE_VERSIONS = 256
"""Versions that a replay takes from the history at a time."""

_decode_roots = Body(list[RootInfo])


class CatchUpFailed(Exception):
    """A replay cannot go on."""

    def __init__(self, watcher: Watcher, error: FluxmpiError) -> None:
        super().__init__(error.text)
        self.watcher = watcher
        self.error = error


class CatchUp:
    """``ask`` makes a request of this broker's kvs service to another one."""

    def __init__(self, replicas: Mapping[str, Replica], ask: Callable[[str, object, int], Message]) -> None:
        self._replicas = replicas
        self._ask = ask
        self._asked: dict[int, Watcher] = {}
        """Tag of a question for versions to the watcher that replays them."""

    def turn_page(self, watcher: Watcher) -> list[Message]:
        """The next versions to replay; if they are not here, the question for them. After the last one it is live."""
        replica = self._replicas[watcher.watch.namespace]
        if watcher.next > replica.version:
            watcher.state = WatcherState.LIVE
            watcher.pushed[replica.namespace] = replica.version
            return []
        while len(watcher.page) < PAGE_VERSIONS and (root := replica.at(watcher.next)) is not None:
            watcher.page.append(root)
            watcher.next += 1
        if watcher.page:
            return []
        ask = self._ask("roots.since", Since(replica.namespace, watcher.next, PAGE_VERSIONS), ANY)
        self._asked[ask.tag] = watcher
        return [ask]

    def owns(self, tag: int) -> bool:
        return tag in self._asked

    def answered(self, msg: Message) -> Watcher:
        """Whose question it was; its page is filled, unless it has ended. Raises Lost."""
        watcher = self._asked.pop(msg.tag)
        if watcher.ended:
            return watcher
        watcher.busy = False
        try:
            if msg.status != OK:
                raise decode_error(msg.status, msg.body)
            roots = [root for root in _decode_roots(msg) if root.version <= self._replicas[root.namespace].version]
            if not roots or roots[0].version != watcher.next:
                raise SnapshotCollected(f"version {watcher.next} of {watcher.watch.namespace} is not kept any more")
        except FluxmpiError as error:
            raise CatchUpFailed(watcher, error) from None
        watcher.page.extend(roots)
        watcher.next = roots[-1].version + 1
        return watcher
