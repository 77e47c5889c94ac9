"""Watches: who must be told of which version, and when there is room for it.

    kvs.watch ──▶ Watcher ──▶ its queue ──▶ ready ──▶ look (see ``looking``) ──▶ Notification
    setroot   ──▶ Watches: whom does it concern? ──▶ the queue of each        └── no room: until kvs.watch-ack
                     └── found and told in slices (see ``finding``)

Work is done in turns of TURN_LOOKS: what is left goes on in the next turn, after other messages. So neither ten thousand
watchers of one key, nor a directory of a million, nor a long replay keep this broker from serving; nor does the end of ten
thousand watches at once: they are told nothing more from then on, and are cleared away in *chores*, bit by bit.

A client that does not read is owed what its windows allow, WINDOW_MAX at most; then only versions queue, up to QUEUE_MAX for
each watch.

Invariants: a watcher or a namespace with something to do is in ``_ready`` or ``_first`` once, busy with a walk, or waits for its
client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice

from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    NoSuchNamespace,
    Overloaded,
    SnapshotCollected,
    VersionUnknown,
)
from fluxmpi.kvs.replica.fault_in import FaultIn, Walk
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.watch.catch_up import CatchUp, CatchUpFailed
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.flow_control import Chore, FlowControl
from fluxmpi.kvs.watch.index import Arrival, WatchIndex
from fluxmpi.kvs.watch.notifier import Notifier
from fluxmpi.kvs.watch.watcher import Step, Watcher, WatcherState, is_touched, pattern_of
from fluxmpi.kvs.wire import RootInfo, WatchAck, WatchRequest
from fluxmpi.message import Message, reply, reply_error

WATCHES_MAX = 100_000
"""At one broker."""

TURN_LOOKS = 300
"""Looks in one turn of the loop, each about 20 µs, or as much as LOOK_STEPS of finding; a part of a long notification counts as
PART_LOOKS.
"""

LOOK_STEPS, PART_LOOKS = 20, 60
FIRST_LOOKS = TURN_LOOKS // 2
"""What finding and chores may take of a turn while watchers wait to look."""

CHORE_STEPS, CHORE_LOOKS = 400, 100
"""Steps of a chore that are made together, and what they weigh."""


class WatchService:
    """``ask`` makes a request of this broker's kvs service to another one."""

    def __init__(
        self,
        reads: Reads,
        stalls: FaultIn,
        nodes: NodeCache,
        replicas: Mapping[str, Replica],
        ask: Callable[[str, object, int], Message],
    ) -> None:
        self._stalls = stalls
        self._replicas = replicas
        self._looking = Evaluator(reads, nodes, replicas, self._through)
        self._replays = CatchUp(replicas, ask)
        self._finder = Notifier(self._looking, nodes, self._concern)
        self._of: dict[str, WatchIndex] = {}
        """By namespace, known here or not."""
        self._ready: deque[Watcher] = deque()
        self._first: deque[WatchIndex | Chore] = deque()
        self._windows = FlowControl(self._wake, self._first.append)
        self._looks = 0
        """Done in this turn."""
        self._count = 0

    # ------------------------------------------------------------------------------------------------ from the client

    def begin(self, msg: Message, watch: WatchRequest) -> list[Message]:
        """A new watcher; its request's tag must not be that of another one under way."""
        pattern = pattern_of(watch)
        if self._windows.find(msg.route, msg.tag) is not None:
            raise InvalidRequest(f"a watch with tag {msg.tag} of this client is under way")
        if self._count >= WATCHES_MAX:
            raise Overloaded(
                f"this broker has {WATCHES_MAX:,} watches already: watch directories or patterns instead of keys"
            )
        watcher = Watcher(msg, watch, pattern, pattern.key_of_prefix)
        self._windows.add(watcher)
        self._count += 1
        watches = self._watches(watch.namespace)
        watches.add(watcher)
        replica = self._replicas.get(watch.namespace)
        if replica is None or replica.root is None or replica.version < watch.at_least:
            watches.waiting[watcher] = None
            return []
        return self._start(watcher, replica) + self.run()

    def _start(self, watcher: Watcher, replica: Replica) -> list[Message]:
        """Its namespace is here."""
        since = watcher.watch.since
        assert replica.root is not None
        if since is None:
            watcher.state = WatcherState.LIVE
            self._push(watcher, Step(None, replica.root))
        elif since > replica.version:
            newest = f"the newest is {replica.version}"
            return self._end(
                watcher, VersionUnknown(f"version {since} of {replica.namespace} was not reached yet: {newest}")
            )
        else:
            watcher.state = WatcherState.REPLAYING
            watcher.next = since
        self._wake(watcher)
        return []

    def cancel(self, msg: Message, tag: int) -> list[Message]:
        """Ends the watch of the same client with this tag; its stream's last response says so."""
        watcher = self._windows.find(msg.route, tag)
        if watcher is None:
            return []
        self._remove(watcher)
        return [reply(watcher.msg)]

    def acknowledge(self, msg: Message, ack: WatchAck) -> list[Message]:
        watcher = self._windows.find(msg.route, ack.tag)
        if watcher is None:
            return []
        self._windows.acknowledge(watcher, ack)
        return self.run()

    def progress(self, msg: Message, tag: int) -> list[Message]:
        """Have the watcher tell how far it has come, when it has come as far as this broker is now."""
        watcher = self._windows.find(msg.route, tag)
        if watcher is None or watcher.ended or watcher.state is WatcherState.WAITING:
            return []
        watcher.progress = self._replicas[watcher.watch.namespace].root
        self._wake(watcher)
        return self.run()

    def disconnect(self, hop: int) -> list[Message]:
        watchers = self._windows.leave(hop)
        for watcher in watchers:
            watcher.ended = True
        if watchers:
            self._first.append(self._left(watchers))
        return self.run()

    def _left(self, watchers: list[Watcher]) -> Chore:
        for watcher in watchers:
            self._clear(watcher)
            yield []

    def _remove(self, watcher: Watcher) -> None:
        """Nothing is kept of it but by a walk under way, which ends when it finds that it ``ended``."""
        self._clear(watcher)
        self._windows.remove(watcher)

    def _clear(self, watcher: Watcher) -> None:
        watcher.ended = True
        watcher.queue.clear()
        watcher.page.clear()
        watcher.diff = watcher.telling = None
        self._count -= 1
        for namespace in {watcher.watch.namespace: None, **watcher.roots}:
            watches = self._of.get(namespace)
            if watches is not None:
                watches.remove(watcher)
                self._forget_idle(watches)

    def _watches(self, namespace: str) -> WatchIndex:
        watches = self._of.get(namespace)
        if watches is None:
            watches = self._of[namespace] = WatchIndex(namespace)
        return watches

    def _forget_idle(self, watches: WatchIndex) -> None:
        if watches.idle:
            self._of.pop(watches.namespace, None)

    def _end(self, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        if watcher.ended:
            return []
        self._remove(watcher)
        return [reply_error(watcher.msg, error)]

    def _failed(self, watcher: Watcher, error: FluxmpiError) -> list[Message]:
        """A look ended with an error. What is missing are nodes of a version that was collected: no other can be missing."""
        if isinstance(error, NoSuchBlob):
            if not watcher.begun and watcher.watch.since is None:
                return self._begin_later(watcher)
            root = watcher.telling or watcher.roots.get(watcher.watch.namespace)
            version = f"version {root.version} of {root.namespace}" if root is not None else "a version"
            resume = f"all up to version {watcher.come} was told" if watcher.come >= 0 else "nothing was told"
            error = SnapshotCollected(f"{version}, which this watch has still to tell, is not kept any more; {resume}")
        return self._end(watcher, error)

    def _begin_later(self, watcher: Watcher) -> list[Message]:
        """The version that it was to begin with was collected, and nothing was told of it: a later one is as good. If this broker
        has none yet, rank 0 has, since it has forgotten this one.
        """
        namespace = watcher.watch.namespace
        root = watcher.roots.pop(namespace)
        watcher.pushed.pop(namespace, None)
        for step in [step for step in watcher.queue if step.root.namespace == namespace]:
            watcher.queue.remove(step)
        watcher.diff = watcher.telling = watcher.object = None
        watcher.busy = False
        watcher.watch.at_least = root.version + 1
        replica = self._replicas.get(namespace)
        if replica is not None and replica.version > root.version:
            return self._start(watcher, replica)
        watcher.state = WatcherState.WAITING
        self._of[namespace].waiting[watcher] = None
        return []

    # --------------------------------------------------------------------------------------------------- new versions

    def new_version(self, before: RootInfo | None, root: RootInfo, keys: list[str] | None) -> list[Message]:
        """``root`` is now its namespace's; ``keys`` are what it changed, None if that is not known. ``before``: the version
        that this broker had, None if there was none.
        """
        watches = self._of.get(root.namespace)
        if watches is None:
            return []
        if before is not None and before.version != root.version - 1:
            before = keys = None  # some were not seen here, so what changed is not known
        if watches.waiting and not watches.starting:
            watches.starting = True
            self._first.append(self._starting(watches))
        out = self._finder.arrived(watches, before, root, keys)
        self._wake_finder(watches)
        return out + self.run()

    def _starting(self, watches: WatchIndex) -> Chore:
        """Those that waited for this version begin."""
        while True:
            replica = self._replicas.get(watches.namespace)
            version = -1 if replica is None else replica.version
            here = [watcher for watcher in watches.waiting if watcher.watch.at_least <= version]
            for watcher in here:
                replica = self._replicas.get(watches.namespace)
                if replica is not None and replica.root is not None and watches.waiting.pop(watcher, self) is None:
                    yield self._start(watcher, replica)
            if not here or replica is None:
                watches.starting = False
                return

    def _concern(self, watcher: Watcher, arrival: Arrival) -> list[Message]:
        """A version concerns this watcher, as it seems."""
        root = arrival.root
        own = root.namespace == watcher.watch.namespace
        if watcher.ended or watcher.state is WatcherState.WAITING or (watcher.state is WatcherState.REPLAYING and own):
            return []
        if arrival.history:
            return self._concern_all(watcher, root, own)
        keys = arrival.keys
        touched = keys is not None and not watcher.watch.uniq and is_touched(watcher, root, keys)
        if not self._push(watcher, Step(arrival.before if own else None, root, touched)):
            return self._end(watcher, watcher.lags())
        self._wake(watcher)
        return []

    def _concern_all(self, watcher: Watcher, root: RootInfo, own: bool) -> list[Message]:
        """All versions from this one on may concern it."""
        newest = self._replicas[root.namespace].root
        assert newest is not None
        if newest.version <= watcher.pushed.get(root.namespace, -1):
            return []
        if watcher.watch.latest:
            self._push(watcher, Step(None, newest))
        elif own:
            watcher.from_history(max(root.version, watcher.pushed[root.namespace] + 1))
        else:
            return self._end(watcher, watcher.lags())
        self._wake(watcher)
        return []

    def _push(self, watcher: Watcher, step: Step) -> bool:
        """False: its queue is full. What it has, or will get, already is not put there again."""
        root = step.root
        if root.version <= watcher.pushed.get(root.namespace, -1):
            return True
        watcher.pushed[root.namespace] = root.version
        return watcher.push(step)

    def _through(self, watcher: Watcher, namespace: str) -> None:
        """A link leads the watcher to this namespace: it is asked at every version of that from now on."""
        if watcher.ended:
            return
        watcher.through_link = True
        self._watches(namespace).always[watcher] = None
        replica = self._replicas.get(namespace)
        if namespace not in watcher.roots:
            root = replica.root if replica is not None else None
            watcher.roots[namespace] = root or RootInfo(namespace, -1, b"", 0.0)
            watcher.pushed[namespace] = watcher.roots[namespace].version

    def removed(self, root: RootInfo) -> list[Message]:
        """The namespace is gone; ``root`` has the version of its removal, and no ref. Its watches end; who came by a link finds
        nothing there.
        """
        watches = self._of.get(root.namespace)
        if watches is None:
            return []
        watches.pending.clear()
        watches.pending_keys = 0
        over = [watcher for watcher in watches if watcher not in watches.waiting and not watcher.ended]
        for watcher in over:
            watcher.ended = True
        text = f"namespace '{root.namespace}' was removed, at version {root.version}"
        self._first.append(self._over(over, NoSuchNamespace(text)))
        self._first.append(self._gone(list(watches.always), root))
        return self.run()

    def _over(self, watchers: list[Watcher], error: FluxmpiError) -> Chore:
        for watcher in watchers:
            if watcher in self._windows:  # else its client has left, or cancelled it
                self._remove(watcher)
                yield [reply_error(watcher.msg, error)]

    def _gone(self, watchers: list[Watcher], root: RootInfo) -> Chore:
        for watcher in watchers:
            if not watcher.ended and root.version >= watcher.pushed.get(
                root.namespace, -1
            ):  # else it came again meanwhile
                watcher.push(Step(None, root))
                self._wake(watcher)
                yield []

    # ------------------------------------------------------------------------------------------------------- the work

    @property
    def behind(self) -> bool:
        """True when ``turn`` must be called at the end of this turn of the loop."""
        return self._looks >= TURN_LOOKS or bool(self._ready or self._first)

    def turn(self) -> list[Message]:
        """Another turn begins: go on."""
        self._looks = 0
        return self.run()

    def run(self) -> list[Message]:
        """Look, as long as this turn allows."""
        out: list[Message] = []
        ready, first = self._ready, self._first
        while (ready or first) and self._looks < TURN_LOOKS:
            self._looks += 1
            if first and (self._looks <= FIRST_LOOKS or not ready):
                begun = self._finder.steps
                out += self._work_first(first.popleft())
                self._looks += (self._finder.steps - begun) // LOOK_STEPS
                continue
            watcher = ready.popleft()
            watcher.ready = False
            if not watcher.ended and self._windows.has_room(watcher):
                watcher.busy = True
                out += self._stalls.start(self._work(watcher), partial(self._failed, watcher))
        return out

    def _work_first(self, what: WatchIndex | Chore) -> list[Message]:
        """A part of a chore, or of finding whom a version concerns."""
        if isinstance(what, WatchIndex):
            what.ready = False
            what.busy = True
            return self._stalls.start(self._finding(what), partial(self._finding_failed, what))
        out: list[Message] = []
        steps = 0
        for sent in islice(what, CHORE_STEPS):
            out += sent
            steps += 1
        self._looks += steps * CHORE_LOOKS // CHORE_STEPS
        if steps == CHORE_STEPS:
            self._first.append(what)
        return out

    def _wake(self, watcher: Watcher) -> None:
        """It may have something to do."""
        if watcher.ready or watcher.busy or watcher.ended or not self._has_work(watcher):
            return
        watcher.ready = True
        self._ready.append(watcher)

    def _has_work(self, watcher: Watcher) -> bool:
        if watcher.diff is not None or watcher.queue or watcher.state is WatcherState.REPLAYING:
            return True
        return watcher.progress is not None and self._has_come(watcher)

    def _wake_finder(self, watches: WatchIndex) -> None:
        if watches.pending and not watches.ready and not watches.busy:
            watches.ready = True
            self._first.append(watches)

    def _finding(self, watches: WatchIndex) -> Walk:
        out: list[Message] = []
        if watches.pending:
            out = yield from self._finder.part(watches)
        self._found(watches)
        return out

    def _finding_failed(self, watches: WatchIndex, error: FluxmpiError) -> list[Message]:
        """The trees cannot be compared: the watchers will see for themselves."""
        if watches.pending:
            self._finder.give_up(watches)
        self._found(watches)
        return []

    def _found(self, watches: WatchIndex) -> None:
        """A part is done."""
        watches.busy = False
        progressing, watches.progressing = watches.progressing, {}
        for watcher in progressing:
            self._wake(watcher)
        self._wake_finder(watches)
        self._forget_idle(watches)

    def _work(self, watcher: Watcher) -> Walk:
        """One look, or one page of a replay."""
        out: list[Message] = []
        if watcher.diff is not None:
            self._looks += PART_LOOKS
            out = yield from self._looking.go_on(watcher)
        else:
            if watcher.state is WatcherState.REPLAYING and not watcher.page:
                asked = self._replays.turn_page(watcher)
                if asked:
                    return asked  # it stays busy until the answer comes
            step = watcher.take()
            if step is not None:
                out = yield from self._looking.look(watcher, step)
        if watcher.ended:
            return []
        self._windows.account(watcher, out)
        if watcher.progress is not None and self._has_come(watcher) and self._windows.has_room(watcher):
            out.append(self._looking.tell_progress(watcher))
            self._windows.account(watcher, out[-1:])
        watcher.busy = False
        if watcher.watch.count and watcher.counted >= watcher.watch.count:
            self._remove(watcher)
            out.append(reply(watcher.msg))
        self._wake(watcher)
        return out

    def _has_come(self, watcher: Watcher) -> bool:
        """To the version that its client asked about."""
        assert watcher.progress is not None
        if watcher.diff is not None or watcher.state is not WatcherState.LIVE:
            return False
        version = watcher.progress.version
        if watcher.come >= version:
            return True
        watches = self._of[watcher.watch.namespace]
        if watches.pending and watches.pending[0].root.version <= version:
            watches.progressing[watcher] = None
            return False
        return not watcher.queue

    def owns(self, tag: int) -> bool:
        return self._replays.owns(tag)

    def answered(self, msg: Message) -> list[Message]:
        """The versions that a replay asked for."""
        try:
            watcher = self._replays.answered(msg)
        except CatchUpFailed as lost:
            return self._end(lost.watcher, lost.error)
        self._wake(watcher)
        return self.run()

    # --------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, float]:
        watchers = self._windows.watchers()
        return {
            "watchers": self._count,
            "watch_queued": sum(watcher.queued for watcher in watchers),
            "watch_unacknowledged": self._windows.unacknowledged,
            "watch_pending": sum(len(watches.pending) for watches in self._of.values()) + len(self._first),
            "watch_replays": sum(watcher.state is WatcherState.REPLAYING for watcher in watchers),
            "notified": self._looking.notified,
        }

    def check(self) -> None:
        for watches in self._of.values():
            watches.check()
        assert self._count == sum(map(len, self._of.values()))
        self._windows.check()
        for watcher in self._windows.watchers():
            if not (watcher.ready or watcher.busy or watcher.ended) and self._windows.sees_room(watcher):
                assert not watcher.queue, "a watcher sleeps while versions wait"
                assert watcher.diff is None, "a watcher sleeps in the middle of a notification"
                assert watcher.state is not WatcherState.REPLAYING, "a watcher sleeps in the middle of a replay"
