"""Watches of this broker's clients: from a new version to the notifications.

    kvs.watch      ─▶ begin: a Watcher, in the WatchIndex of its namespace
    kvs.setroot    ─▶ new_version: the WatchIndex finds the watchers that the version may match
                   ─▶ _hand: each of them accepts the version, and is queued
                   ─▶ run, _evaluate: the Evaluator finds what changed, the Watcher makes the Notification
    kvs.watch-ack  ─▶ acknowledge: the watcher has credit again, and is queued

Work is bounded per turn of the loop (``turn_evaluations``); the rest follows in the next turn, after other messages. So
the broker serves while ten thousand watchers of one key are notified, a directory of a million keys is compared, or a
long history is read. A version that matches few watchers is handled at once. Two kinds of work are done before
evaluations, in slices: matching, and *chores*, generators that begin, wake, or remove many watchers.

Invariant: an index or a watcher with work is queued once (``_first``, ``_ready``), busy, or waits for credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import islice

from fluxmpi.blobref import Ref
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    NoSuchNamespace,
    Overloaded,
    SnapshotCollected,
    VersionUnknown,
)
from fluxmpi.kvs.replica.fault_in import FaultIn, OnFailure
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.watch.catch_up import CatchUp
from fluxmpi.kvs.watch.clients import WatchClients
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.index import PendingVersion, WatchIndex
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.needs import Parent, WatchNeeds
from fluxmpi.kvs.watch.request import pattern_of
from fluxmpi.kvs.watch.watcher import WatchClient, Watcher, WatcherState
from fluxmpi.kvs.wire import PathRequest, RootInfo, WatchAck, WatchRequest
from fluxmpi.message import Message, reply, reply_error
from fluxmpi.shares import Pool, take_both

Chore = Iterator[list[Message]]
"""Work in small steps; yields what to send after each."""

WatchWalk = Generator[list[Ref] | PathRequest, dict[Ref, bytes] | None, list[Message]]
"""Yields what is missing, is sent what was loaded, returns what to send."""


class WatchService:
    """``ask`` makes a request of this broker's kvs service to another service."""

    def __init__(
        self,
        reads: Reads,
        fault_in: FaultIn,
        nodes: NodeCache,
        replicas: Mapping[str, Replica],
        ask: Callable[[str, object, int], Message],
        limits: WatchLimits,
        tree: Parent,
    ) -> None:
        self._fault_in = fault_in
        self._replicas = replicas
        self._limits = limits
        self._evaluator = Evaluator(reads, nodes, replicas, self._follow, limits)
        self._catch_up = CatchUp(replicas, ask, limits)
        self._indexes: dict[str, WatchIndex] = {}
        """By namespace, whether it exists or not."""
        self.needs = WatchNeeds(tree, replicas, self._indexes, ask)
        self._clients = WatchClients(limits)
        self._ready: deque[Watcher] = deque()
        """Watchers to evaluate."""
        self._first: deque[WatchIndex | Chore] = deque()
        """Indexes with versions to match, and chores."""
        self._watches = Pool("watches", limits.watches_max, limits.watches_client_max)
        self._key_bytes = Pool("bytes of watches' keys", limits.key_bytes_max, limits.key_bytes_client_max)
        self._spent = 0
        """Evaluations made in this turn, and work that counts as such."""
        self._notified = self._evaluated = self._matched = 0

    # --------------------------------------------------------------------------------------------- requests of clients

    def begin(self, msg: Message, watch: WatchRequest) -> list[Message]:
        """Start a watch. Raises InvalidRequest, also if another watch of the client has this tag, and Overloaded."""
        pattern = pattern_of(watch)
        if self._clients.find(msg.route, msg.tag) is not None:
            raise InvalidRequest(f"tag {msg.tag} is in use by another watch of this client: use another tag")
        limit = self._limits.watches_max
        if self._watches.taken >= limit:
            raise Overloaded(
                f"this broker has {limit:,} watches already: watch directories or patterns instead of keys"
            )
        hop = msg.route[0]
        take_both(hop, self._watches, self._key_bytes, len(watch.key))
        msg.body = b""
        client = self._clients.get(hop)
        watcher = Watcher(msg, watch, pattern, client)
        client.add(watcher)
        index = self._index(watch.namespace)
        index.add(watcher)
        if len(index) == 1:
            self.needs.touch(watch.namespace)
        newest = self._newest(watch.namespace)
        if newest is None or newest.version < watch.at_least:
            index.wait(watcher)
            return []
        return self._start(watcher, newest) + self.run()

    def _start(self, watcher: Watcher, newest: RootInfo) -> list[Message]:
        """Begin a watch whose namespace exists."""
        after = watcher.watch.after
        if after is not None and after > newest.version:
            text = f"version {after} of {newest.namespace} was not reached yet: the newest is {newest.version}"
            return self._end(watcher, VersionUnknown(text))
        watcher.begin(newest)
        self._wake(watcher)
        return []

    def cancel(self, msg: Message, tag: int) -> list[Message]:
        """End the client's watch with this tag; the last response of its stream reports it."""
        watcher = self._clients.find(msg.route, tag)
        if watcher is None:
            return []
        self._remove(watcher)
        return [reply(watcher.msg)]

    def acknowledge(self, msg: Message, ack: WatchAck) -> list[Message]:
        """Return credit to a watcher."""
        watcher = self._clients.find(msg.route, ack.tag)
        if watcher is None:
            return []
        if watcher.acknowledge(ack.bytes):
            self.needs.changed(watcher)
            failure = watcher.failure
            if failure is not None and not watcher.fail_later(failure):
                return self._end(watcher, failure) + self.run()
        self._wake(watcher)
        self._unblock(watcher.client)
        return self.run()

    def progress(self, msg: Message, tag: int) -> list[Message]:
        """Notify the client when its watch has reached the version that this broker has now."""
        watcher = self._clients.find(msg.route, tag)
        if watcher is None or not watcher.is_following:
            return []
        newest = self._newest(watcher.watch.namespace)
        assert newest is not None
        watcher.ask_progress(newest)
        self._wake(watcher)
        return self.run()

    def _newest(self, namespace: str) -> RootInfo | None:
        replica = self._replicas.get(namespace)
        return None if replica is None else replica.root

    # ---------------------------------------------------------------------------------------------------- new versions

    def new_version(
        self,
        before: RootInfo | None,
        root: RootInfo,
        keys: list[str] | None,
        appends: dict[str, list[int]] | None = None,
        by_reference: bool = True,
    ) -> list[Message]:
        """Match a namespace's new version, and notify. ``keys``: those that it changed, None if unknown.

        ``before``: the version that this broker had, None if it had none. ``appends`` and ``by_reference`` as in
        ``Setroot``.
        """
        index = self._indexes.get(root.namespace)
        if index is None:
            return []
        if before is not None and before.version != root.version - 1:
            before = keys = None  # versions in between were not seen here, so the changed keys are not known
        if index.start_waiting():
            self._first.append(self._start_waiting(index))
        version = PendingVersion(before, root, keys, appends, by_reference)
        if by_reference or before is None:
            self.needs.touch(root.namespace)
        out: list[Message] = []
        watchers = index.match_at_once(version, self._evaluator)
        if watchers is None:
            index.append(version)
            self._wake_index(index)
        else:
            for watcher in watchers:
                out += self._hand(version, watcher)
        return out + self.run()

    def _hand(self, version: PendingVersion, watcher: Watcher) -> list[Message]:
        """Hand a version to a watcher that it may match, and queue the watcher."""
        self._matched += 1
        root = version.root
        if version.all_later:
            newest = self._newest(root.namespace)
            assert newest is not None
            accepted = watcher.fall_behind(root.version, newest)
        else:
            accepted = watcher.accept(root, version.before, version.keys, version.appends, version.by_reference)
        if not accepted:
            return self._end(watcher, watcher.lag_error())
        if watcher.by_reference:
            self.needs.changed(watcher)
        self._wake(watcher)
        return []

    def _match(self, index: WatchIndex) -> WatchWalk:
        """Match pending versions, ``match_steps`` or a little more, and hand them to their watchers."""
        out: list[Message] = []
        end = index.steps + self._limits.match_steps
        while index.pending and index.steps < end:
            version = index.pending[0]
            if version.watchers is None and (out or not (yield from index.match(self._evaluator))):
                break  # with messages to send: they would be lost if matching failed
            if version.watchers is not None:
                for watcher in index.take():
                    out += self._hand(version, watcher)
        self._match_ended(index)
        return out

    def _match_failed(self, index: WatchIndex, error: FluxmpiError) -> list[Message]:
        """Let the watchers read the versions from the log: two trees cannot be compared."""
        if index.pending:
            index.give_up()
        self._match_ended(index)
        return []

    def _match_ended(self, index: WatchIndex) -> None:
        """Queue the index for its next slice."""
        for watcher in index.stop():
            self._wake(watcher)
        self._wake_index(index)
        self._drop_idle(index)

    def _follow(self, watcher: Watcher, namespace: str) -> None:
        """Let each version of this namespace match a watcher from now on: a link leads into it."""
        if watcher.ended:
            return
        self._index(namespace).link(watcher)
        self.needs.touch(namespace)
        if namespace == watcher.watch.namespace:
            watcher.link()
        else:
            watcher.add_cursor(self._newest(namespace) or RootInfo(namespace, -1, b"", 0.0))

    # --------------------------------------------------------------------------------------------------------- the turn

    @property
    def behind(self) -> bool:
        """True when ``turn`` must be called at the end of this turn of the loop."""
        return self._spent >= self._limits.turn_evaluations or bool(self._ready or self._first or self.needs.dirty)

    def turn(self) -> list[Message]:
        """Begin another turn."""
        self._spent = 0
        out = self.run()
        return out + self.needs.report() if self.needs.dirty else out

    def run(self) -> list[Message]:
        """Match, and evaluate watchers, as much as this turn allows."""
        out: list[Message] = []
        ready, first, limits = self._ready, self._first, self._limits
        while (ready or first) and self._spent < limits.turn_evaluations:
            self._spent += 1
            if first and (self._spent <= limits.first_evaluations or not ready):
                out += self._run_first(first.popleft())
                continue
            watcher = ready.popleft()
            if watcher.start():
                out += self._run_walk(self._evaluate(watcher), partial(self._evaluation_failed, watcher), "kvs.watch")
        return out

    def _run_first(self, work: WatchIndex | Chore) -> list[Message]:
        """Make some steps of matching, or of a chore."""
        limits = self._limits
        if isinstance(work, WatchIndex):
            work.start()
            begun = work.steps
            out = self._run_walk(self._match(work), partial(self._match_failed, work))
            self._spent += (work.steps - begun) // limits.evaluation_steps
            return out
        out = []
        steps = 0
        for sent in islice(work, limits.chore_steps):
            out += sent
            steps += 1
        self._spent += steps * limits.chore_evaluations // limits.chore_steps
        if steps == limits.chore_steps:
            self._first.append(work)
        return out

    def _run_walk(self, walk: WatchWalk, fail: OnFailure, what: str = "") -> list[Message]:
        """Run a walk; suspend it if a node is missing. ``what``: as FaultIn's, for one that concerns a watcher alone."""
        try:
            missing = next(walk)
        except StopIteration as done:
            sent: list[Message] = done.value
            return sent
        except FluxmpiError as error:
            return fail(error)
        except Exception as error:
            if not what:
                raise
            return fail(self._fault_in.report(what, error))
        return self._fault_in.suspend(walk, missing, fail, what)

    def _wake(self, watcher: Watcher) -> None:
        """Queue a watcher if it has work."""
        if watcher.queue(watcher.progress is not None and self._has_reached_progress(watcher)):
            self._ready.append(watcher)

    def _wake_index(self, index: WatchIndex) -> None:
        """Queue an index if it has versions to match."""
        if index.queue():
            self._first.append(index)

    def _evaluate(self, watcher: Watcher) -> WatchWalk:
        """Evaluate a watcher's next version, or send the next part of one."""
        self._evaluated += 1
        out: list[Message] = []
        watcher.refers = False
        root = watcher.sending
        if watcher.diff is not None:
            self._spent += self._limits.part_evaluations
            out = yield from self._evaluator.next_part(watcher)
        else:
            match = watcher.take()
            if match is None and watcher.state is WatcherState.UNSYNCED:
                asked = self._catch_up.read(watcher)
                if asked:
                    return asked  # the watcher stays busy until the answer arrives
                match = watcher.take()
            if match is not None:
                root = match.root
                watcher.keep_state()
                out = yield from self._evaluator.evaluate(watcher, match)
        if watcher.ended:
            return []
        if watcher.refers and root is not None:
            if not self.needs.covers(watcher, root):
                watcher.unsent = out
                return self.needs.confirm(watcher, root)  # the watcher stays busy until the answer arrives
            self.needs.changed(watcher)
        return self._evaluation_ended(watcher, out)

    def _evaluation_ended(self, watcher: Watcher, out: list[Message]) -> list[Message]:
        """End an evaluation with the notifications that it made; queue the watcher for the next one."""
        if watcher.progress is not None and self._has_reached_progress(watcher) and watcher.may_send():
            out.append(watcher.notify_progress())
        self._notified += len(out)
        if watcher.stop():
            self._remove(watcher)
            out.append(reply(watcher.msg))
        elif watcher.by_reference:
            self.needs.changed(watcher)
        self._wake(watcher)
        return out

    def _version_gone(self, watcher: Watcher) -> list[Message]:
        """Withdraw a notification: rank 0 does not keep its version. Go on with the newest one, if the watch may skip."""
        gone = watcher.own.root
        watcher.withdraw()
        if not watcher.begun and watcher.watch.after is None:
            return self._restart(watcher)
        newest = self._newest(watcher.watch.namespace)
        if not watcher.watch.latest or newest is None or not watcher.begun:
            error = watcher.collected_error(gone)
            return self._fail(watcher, error)
        watcher.stop()
        watcher.skip_to(newest)
        self._wake(watcher)
        return []

    def _evaluation_failed(self, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        """End a watch whose evaluation raised.

        NoSuchBlob means that the version was collected: rank 0 has all other nodes.
        """
        if watcher.ended:
            return []
        if isinstance(error, NoSuchBlob):
            if not watcher.begun and watcher.watch.after is None:
                return self._restart(watcher)
            newest = self._newest(watcher.watch.namespace)
            failed = watcher.own.root
            may_skip = watcher.watch.latest and not (watcher.sending is not None and watcher.has_changes)
            if may_skip and newest is not None and failed is not None and newest.version > failed.version:
                return self._version_gone(watcher)
            return self._fail(watcher, watcher.collected_error())
        return self._end(watcher, error)

    def _fail(self, watcher: Watcher, error: SnapshotCollected) -> list[Message]:
        """End a watch, but not before its client has read the versions that it was notified of."""
        if not watcher.fail_later(error):
            return self._end(watcher, error)
        self.needs.changed(watcher)
        return []

    def _restart(self, watcher: Watcher) -> list[Message]:
        """Begin again with a later version: the first was collected before anything was sent.

        Rank 0 has a later one, else it had kept this one.
        """
        namespace = watcher.watch.namespace
        watcher.stop()
        watcher.restart()
        newest = self._newest(namespace)
        if newest is not None and newest.version >= watcher.watch.at_least:
            return self._start(watcher, newest)
        self._indexes[namespace].wait(watcher)
        return []

    def _has_reached_progress(self, watcher: Watcher) -> bool:
        """Whether a watcher has evaluated every match up to the version that its client asked about."""
        assert watcher.progress is not None
        if watcher.diff is not None or watcher.state is not WatcherState.SYNCED:
            return False
        version = watcher.progress.version
        if watcher.notified_version >= version:
            return True
        index = self._indexes[watcher.watch.namespace]
        if index.is_pending(version):
            index.wait_for_progress(watcher)
            return False
        return not watcher.pending

    def owns(self, tag: int) -> bool:
        return self._catch_up.owns(tag) or self.needs.owns(tag)

    def answered(self, msg: Message) -> list[Message]:
        """Take rank 0's answer to a request for versions, or whether it keeps one."""
        if self.needs.owns(msg.tag):
            waiting, kept = self.needs.answered(msg)
            if waiting is None or waiting.ended:
                return self.run()
            out = self._evaluation_ended(waiting, waiting.confirmed()) if kept else self._version_gone(waiting)
            return out + self.run()
        watcher, error = self._catch_up.answered(msg)
        if error is not None:
            return self._end(watcher, error)
        self._wake(watcher)
        return self.run()

    # ---------------------------------------------------------------------------------------------- many watchers, ends

    def _start_waiting(self, index: WatchIndex) -> Chore:
        """Begin the watchers that waited for this version."""
        while True:
            newest = self._newest(index.namespace)
            version = -1 if newest is None else newest.version
            waiting = index.waiting_for(version)
            for watcher in waiting:
                newest = self._newest(index.namespace)
                if newest is not None and index.stop_waiting(watcher):
                    yield self._start(watcher, newest)
            if not waiting or newest is None:
                index.all_started()
                return

    def _unblock(self, client: WatchClient) -> None:
        """Wake the watchers that waited for their client's credit."""
        if client.start_unblocking():
            self._first.append(self._unblocking(client))

    def _unblocking(self, client: WatchClient) -> Chore:
        while (watcher := client.unblock()) is not None:
            self._wake(watcher)
            yield []

    def disconnect(self, hop: int) -> list[Message]:
        """End a disconnected client's watches now; remove them in slices."""
        watchers = self._clients.disconnect(hop)
        for watcher in watchers:
            watcher.end()
        if watchers:
            self._first.append(self._clear_all(watchers))
        return self.run()

    def _clear_all(self, watchers: list[Watcher]) -> Chore:
        for watcher in watchers:
            self._clear(watcher)
            yield []

    def removed(self, root: RootInfo) -> list[Message]:
        """End the watches of a removed namespace, and evaluate those that a link leads into it.

        Nothing is stored there now. ``root`` has the last version of the namespace, and no ref.
        """
        out = self.needs.removed(root.namespace)
        index = self._indexes.get(root.namespace)
        if index is None:
            return out
        index.clear_pending()
        ended = [watcher for watcher in index if watcher.is_following]
        for watcher in ended:
            watcher.end()
        error = NoSuchNamespace(f"namespace '{root.namespace}' was removed after version {root.version}")
        self._first.append(self._end_all(ended, error))
        linked = [watcher for watcher in index.linked if watcher.watch.namespace != root.namespace]
        self._first.append(self._unlink_all(linked, root))
        return out + self.run()

    def _end_all(self, watchers: list[Watcher], error: FluxmpiError) -> Chore:
        for watcher in watchers:
            if self._clients.find([watcher.hop], watcher.tag) is watcher:  # else its client left, or cancelled it
                self._remove(watcher)
                yield [reply_error(watcher.msg, error)]

    def _unlink_all(self, watchers: list[Watcher], removed: RootInfo) -> Chore:
        for watcher in watchers:
            if watcher.unlink(removed):
                self._wake(watcher)
                yield []

    def _end(self, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        """End a watch with an error."""
        if watcher.ended:
            return []
        self._remove(watcher)
        return [reply_error(watcher.msg, error)]

    def _remove(self, watcher: Watcher) -> None:
        """Forget a watcher. An evaluation under way ends when it finds that the watcher has ended."""
        self._clear(watcher)
        self._clients.remove(watcher)
        self._unblock(watcher.client)

    def _clear(self, watcher: Watcher) -> None:
        """Remove a watcher from the indexes, and free its memory."""
        watcher.end()
        watcher.clear()
        if watcher.by_reference:
            self.needs.remove(watcher)
        self._watches.give(watcher.hop)
        self._key_bytes.give(watcher.hop, len(watcher.watch.key))
        for namespace in watcher.cursors:
            index = self._indexes.get(namespace)
            if index is not None:
                index.remove(watcher)
                self._drop_idle(index)

    def _index(self, namespace: str) -> WatchIndex:
        index = self._indexes.get(namespace)
        if index is None:
            index = self._indexes[namespace] = WatchIndex(namespace, self._limits)
        return index

    def _drop_idle(self, index: WatchIndex) -> None:
        if index.idle and self._indexes.pop(index.namespace, None) is not None:
            self.needs.touch(index.namespace)

    # ---------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, float]:
        """Since the start, ``matched``: versions handed to watchers; ``evaluated``; ``notified``: notifications sent."""
        watchers = list(self._clients.watchers())
        return {
            "watchers": self._watches.taken,
            "watch_clients": len(self._clients),
            "watch_namespaces": len(self._indexes),
            "watch_key_bytes": self._key_bytes.taken,
            "watch_queued": sum(len(watcher.pending) for watcher in watchers),
            "watch_unacknowledged": self._clients.unacknowledged,
            "watch_pending": sum(len(index.pending) for index in self._indexes.values()) + len(self._first),
            "watch_unsynced": sum(watcher.state is WatcherState.UNSYNCED for watcher in watchers),
            **self.needs.statistics(),
            "matched": self._matched,
            "evaluated": self._evaluated,
            "notified": self._notified,
        }

    def check(self) -> None:
        for index in self._indexes.values():
            index.check()
        assert self._watches.taken == sum(map(len, self._indexes.values()))
        self._watches.check()
        self._key_bytes.check()
        self._clients.check()
        self.needs.check()
        for watcher in self._clients.watchers():
            idle = not (watcher.ready or watcher.busy or watcher.ended or watcher.client.is_blocked(watcher))
            if idle and watcher.has_credit:
                assert not watcher.has_work, "a watcher with work is not queued"
