"""Watches: who must be told of which version, and when there is room for it.

    kvs.watch ──▶ Watcher ──▶ its queue ──▶ ready ──▶ look (see ``looking``) ──▶ Notification
    setroot   ──▶ Watches: whom does it concern? ──▶ the queue of each        └── no room: until kvs.watch-ack
                     └── changed keys not known: find them first, once for all watchers

Work is done in turns of TURN_LOOKS: what is left goes on in the next turn, after other messages. So neither ten thousand
watchers of one key, nor a directory of a million, nor a long replay keep this broker from serving.

A client that does not read is owed what its windows allow, WINDOW_MAX at most; then only versions queue, up to QUEUE_MAX for
each watch.

Invariants: a watcher or a namespace with something to do is in ``_ready`` once, busy with a walk, or waits for its client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from functools import partial

from fluxmpi.blobref import Ref
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    NoSuchNamespace,
    Overloaded,
    SnapshotCollected,
    VersionUnknown,
    decode_error,
)
from fluxmpi.kvs.diff import Diff
from fluxmpi.kvs.follower import Space
from fluxmpi.kvs.looking import Looking
from fluxmpi.kvs.nodes import NodeCache
from fluxmpi.kvs.objects import Link
from fluxmpi.kvs.reads import Reads
from fluxmpi.kvs.stall import Stalls, Walk
from fluxmpi.kvs.watch import QUEUE_MAX, State, Step, Watcher, Watches, is_touched, pattern_of
from fluxmpi.kvs.wire import NOTIFICATION_BYTES, WINDOW_MAX, Path, RootInfo, Since, Watch, WatchAck
from fluxmpi.message import ANY, OK, Body, Message, reply, reply_error

WATCHES_MAX = 100_000
"""At one broker."""

TURN_LOOKS = 300
"""Looks in one turn of the loop, each about 20 µs; a part of a long notification counts as PART_LOOKS."""

PART_LOOKS = 60
ASK_ALL_MAX = 16
"""So many watchers are all asked, where changed keys are not known; for more they are found, once for all."""

FIND_MAX = 1000
"""Versions that may wait until it is known whom they concern; past that all watchers are asked."""

PAGE_VERSIONS = 256
"""Versions that a replay takes from the history at a time."""

_decode_roots = Body(list[RootInfo])

Loads = Generator["Path | list[Ref]", dict[Ref, bytes], list[Message]]


class _Client:
    """``blocked``: watchers with room of their own, while the client has none for all of them together."""

    __slots__ = ("blocked", "unacknowledged", "watchers")

    def __init__(self) -> None:
        self.watchers: dict[int, Watcher] = {}
        self.blocked: dict[Watcher, None] = {}
        self.unacknowledged = 0


class Watching:
    """``ask`` makes a request of this broker's kvs service to another one."""

    def __init__(
        self,
        reads: Reads,
        stalls: Stalls,
        nodes: NodeCache,
        spaces: Mapping[str, Space],
        ask: Callable[[str, object, int], Message],
    ) -> None:
        self._stalls = stalls
        self._nodes = nodes
        self._spaces = spaces
        self._ask = ask
        self._looking = Looking(reads, nodes, spaces, self._through)
        self._of: dict[str, Watches] = {}
        """By namespace, known here or not."""
        self._clients: dict[int, _Client] = {}
        self._asked: dict[int, Watcher] = {}
        """Tag of a question for versions to the watcher that replays them."""
        self._ready: deque[Watcher | Watches] = deque()
        self._looks = 0
        """Done in this turn."""
        self._count = 0

    # ------------------------------------------------------------------------------------------------ from the client

    def begin(self, msg: Message, watch: Watch) -> list[Message]:
        """A new watcher; its request's tag must not be that of another one under way."""
        pattern = pattern_of(watch)
        client = self._clients.get(msg.route[0])
        if client is not None and msg.tag in client.watchers:
            raise InvalidRequest(f"a watch with tag {msg.tag} of this client is under way")
        if self._count >= WATCHES_MAX:
            raise Overloaded(f"this broker has {WATCHES_MAX:,} watches already: watch directories or patterns instead of keys")
        watcher = Watcher(msg, watch, pattern, pattern.key_of_prefix)
        if client is None:
            client = self._clients[msg.route[0]] = _Client()
        client.watchers[msg.tag] = watcher
        self._count += 1
        watches = self._watches(watch.namespace)
        watches.add(watcher)
        space = self._spaces.get(watch.namespace)
        if space is None or space.root is None or space.version < watch.at_least:
            watches.waiting[watcher] = None
            return []
        return self._start(watcher, space) + self.run()

    def _start(self, watcher: Watcher, space: Space) -> list[Message]:
        """Its namespace is here."""
        since = watcher.watch.since
        assert space.root is not None
        if since is None:
            watcher.state = State.LIVE
            self._push(watcher, Step(None, space.root))
        elif since > space.version:
            newest = f"the newest is {space.version}"
            return self._end(watcher, VersionUnknown(f"version {since} of {space.namespace} was not reached yet: {newest}"))
        else:
            watcher.state = State.REPLAYING
            watcher.next = since
        self._wake(watcher)
        return []

    def _find(self, msg: Message, tag: int) -> Watcher | None:
        """The watcher of the client that sent ``msg``."""
        client = self._clients.get(msg.route[0]) if len(msg.route) == 1 else None
        return None if client is None else client.watchers.get(tag)

    def cancel(self, msg: Message, tag: int) -> list[Message]:
        """Ends the watch of the same client with this tag; its stream's last response says so."""
        watcher = self._find(msg, tag)
        if watcher is None:
            return []
        self._remove(watcher)
        return [reply(watcher.msg)]

    def acknowledge(self, msg: Message, ack: WatchAck) -> list[Message]:
        watcher = self._find(msg, ack.tag)
        if watcher is None:
            return []
        if not 0 <= ack.bytes <= watcher.unacknowledged:
            on_the_way = f"{watcher.unacknowledged:,} are on their way"
            raise InvalidRequest(f"watch {ack.tag}: {ack.bytes:,} bytes are acknowledged, and {on_the_way}")
        client = self._clients[watcher.hop]
        watcher.unacknowledged -= ack.bytes
        client.unacknowledged -= ack.bytes
        self._wake(watcher)
        self._unblock(client)
        return self.run()

    def _unblock(self, client: _Client) -> None:
        """Those that waited for others of their client to be acknowledged, go on."""
        if client.blocked and client.unacknowledged < WINDOW_MAX:
            blocked, client.blocked = client.blocked, {}
            for watcher in blocked:
                self._wake(watcher)

    def progress(self, msg: Message, tag: int) -> list[Message]:
        """Have the watcher tell how far it has come, when it has come as far as this broker is now."""
        watcher = self._find(msg, tag)
        if watcher is None or watcher.state is State.WAITING:
            return []
        watcher.progress = self._spaces[watcher.watch.namespace].root
        self._wake(watcher)
        return self.run()

    def disconnect(self, hop: int) -> None:
        client = self._clients.get(hop)
        if client is not None:
            for watcher in list(client.watchers.values()):
                self._remove(watcher)

    def _remove(self, watcher: Watcher) -> None:
        """Nothing is kept of it but by a walk under way, which ends when it finds that it ``ended``."""
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
        client = self._clients[watcher.hop]
        client.blocked.pop(watcher, None)
        client.unacknowledged -= watcher.unacknowledged
        del client.watchers[watcher.tag]
        if not client.watchers:
            del self._clients[watcher.hop]
        self._unblock(client)

    def _watches(self, namespace: str) -> Watches:
        watches = self._of.get(namespace)
        if watches is None:
            watches = self._of[namespace] = Watches(namespace)
        return watches

    def _forget_idle(self, watches: Watches) -> None:
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
        space = self._spaces.get(namespace)
        if space is not None and space.version > root.version:
            return self._start(watcher, space)
        watcher.state = State.WAITING
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
        out = []
        if watches.waiting:
            space = self._spaces[root.namespace]
            for watcher in [watcher for watcher in watches.waiting if watcher.watch.at_least <= root.version]:
                del watches.waiting[watcher]
                out += self._start(watcher, space)
        if before is not None and before.version != root.version - 1:
            before = keys = None  # some were not seen here, so what changed is not known
        if watches.pending or (keys is None and before is not None and len(watches) > ASK_ALL_MAX):
            watches.pending.append((before, root, keys))
            if len(watches.pending) > FIND_MAX:
                out += self._give_up_finding(watches)
            self._wake_finder(watches)
        else:
            out += self._concern(watches, before, root, keys, None)
        return out + self.run()

    def _concern(
        self,
        watches: Watches,
        before: RootInfo | None,
        root: RootInfo,
        keys: list[str] | None,
        found: dict[Watcher, None] | None,
    ) -> list[Message]:
        """Put the version into the queues of those whom it concerns: ``found``, or who can be found by ``keys``, or all."""
        if found is None and keys is not None:
            found = watches.concerned(keys, partial(self._looking.was_directory, before, root))
        elif found is None:
            found = dict.fromkeys(watches)
        out = []
        for watcher in {**found, **watches.always}:
            own = root.namespace == watcher.watch.namespace
            if watcher.state is State.WAITING or (watcher.state is State.REPLAYING and own):
                continue
            touched = keys is not None and not watcher.watch.uniq and is_touched(watcher, root, keys)
            if not self._push(watcher, Step(before if own else None, root, touched)):
                out += self._end(watcher, _lags(watcher))
            else:
                self._wake(watcher)
        return out

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
        space = self._spaces.get(namespace)
        if namespace not in watcher.roots:
            root = space.root if space is not None else None
            watcher.roots[namespace] = root or RootInfo(namespace, -1, b"", 0.0)
            watcher.pushed[namespace] = watcher.roots[namespace].version

    def removed(self, root: RootInfo) -> list[Message]:
        """The namespace is gone; ``root`` has the version of its removal, and no ref. Its watches end; who came by a link finds
        nothing there.
        """
        watches = self._of.get(root.namespace)
        if watches is None:
            return []
        out = []
        text = f"namespace '{root.namespace}' was removed, at version {root.version}"
        for watcher in watches:
            if watcher not in watches.waiting:
                out += self._end(watcher, NoSuchNamespace(text))
        watches.pending.clear()
        watches.diff, watches.found = None, {}
        for watcher in watches.always:
            watcher.push(Step(None, root))
            self._wake(watcher)
        return out + self.run()

    # -------------------------------------------------------------------------------- whom a version concerns, by diff

    def _wake_finder(self, watches: Watches) -> None:
        if watches.pending and not watches.ready and not watches.busy:
            watches.ready = True
            self._ready.append(watches)

    def _find_concerned(self, watches: Watches) -> Loads:
        """Part of the first pending version: whom does it concern?"""
        entry = before, root, keys = watches.pending[0]
        found = None
        if keys is None and before is not None:
            watches.diff = watches.diff or Diff(self._nodes, before.ref, root.ref, "", watches)
            part = yield from self._looking.slice(watches.diff)
            if not watches.pending or watches.pending[0] is not entry:
                return []
            self._looks += PART_LOOKS
            for key, old, new in part.value:
                watches.met(key, type(old) is Link or type(new) is Link, watches.found)
            if part.more:
                return []
            found = watches.found
        out = self._concern(watches, before, root, keys, found)
        self._found_concerned(watches)
        return out

    def _found_concerned(self, watches: Watches) -> None:
        watches.pending.popleft()
        watches.diff, watches.found = None, {}
        progressing, watches.progressing = watches.progressing, {}
        for watcher in progressing:
            self._wake(watcher)

    def _give_up_finding(self, watches: Watches) -> list[Message]:
        """Ask all, at each of the pending versions."""
        out = []
        while watches.pending:
            before, root, keys = watches.pending[0]
            out += self._concern(watches, before, root, keys, dict.fromkeys(watches))
            self._found_concerned(watches)
        return out

    # ------------------------------------------------------------------------------------------------------- the work

    @property
    def behind(self) -> bool:
        """True when ``turn`` must be called at the end of this turn of the loop."""
        return self._looks >= TURN_LOOKS or bool(self._ready)

    def turn(self) -> list[Message]:
        """Another turn begins: go on."""
        self._looks = 0
        return self.run()

    def run(self) -> list[Message]:
        """Look, as long as this turn allows."""
        out: list[Message] = []
        ready = self._ready
        while ready and self._looks < TURN_LOOKS:
            self._looks += 1
            one = ready.popleft()
            one.ready = False
            if isinstance(one, Watches):
                if not one.pending:
                    self._forget_idle(one)
                else:
                    one.busy = True
                    out += self._stalls.start(self._finding(one), partial(self._finding_failed, one))
            elif not one.ended and self._has_room(one):
                one.busy = True
                out += self._stalls.start(self._work(one), partial(self._failed, one))
        return out

    def _has_room(self, watcher: Watcher) -> bool:
        client = self._clients[watcher.hop]
        if watcher.unacknowledged >= watcher.watch.window:
            return False
        if client.unacknowledged >= WINDOW_MAX:
            client.blocked[watcher] = None
            return False
        return True

    def _wake(self, watcher: Watcher) -> None:
        """It may have something to do."""
        if watcher.ready or watcher.busy or watcher.ended or not self._has_work(watcher):
            return
        watcher.ready = True
        self._ready.append(watcher)

    def _has_work(self, watcher: Watcher) -> bool:
        if watcher.diff is not None or watcher.queue or watcher.state is State.REPLAYING:
            return True
        return watcher.progress is not None and self._has_come(watcher)

    def _finding(self, watches: Watches) -> Walk:
        out = yield from self._find_concerned(watches)
        watches.busy = False
        self._wake_finder(watches)
        self._forget_idle(watches)
        return out

    def _finding_failed(self, watches: Watches, error: FluxmpiError) -> list[Message]:
        """The trees cannot be compared: the watchers will see for themselves."""
        watches.busy = False
        return self._give_up_finding(watches)

    def _work(self, watcher: Watcher) -> Walk:
        """One look, or one page of a replay."""
        out: list[Message] = []
        if watcher.diff is not None:
            self._looks += PART_LOOKS
            out = yield from self._looking.go_on(watcher)
        else:
            if watcher.state is State.REPLAYING and not watcher.page:
                asked = self._turn_page(watcher)
                if asked:
                    return asked  # it stays busy until the answer comes
            step = self._next(watcher)
            if step is not None:
                out = yield from self._looking.look(watcher, step)
        if watcher.ended:
            return []
        self._account(watcher, out)
        if watcher.progress is not None and self._has_come(watcher) and self._has_room(watcher):
            out.append(self._looking.tell_progress(watcher))
            self._account(watcher, out[-1:])
        watcher.busy = False
        if watcher.watch.count and watcher.counted >= watcher.watch.count:
            self._remove(watcher)
            out.append(reply(watcher.msg))
        self._wake(watcher)
        return out

    def _account(self, watcher: Watcher, sent: list[Message]) -> None:
        size = sum(len(notification.body) + NOTIFICATION_BYTES for notification in sent)
        watcher.unacknowledged += size
        self._clients[watcher.hop].unacknowledged += size

    def _next(self, watcher: Watcher) -> Step | None:
        if watcher.page:
            return Step(None, watcher.page.popleft())
        return watcher.queue.popleft() if watcher.queue else None

    def _has_come(self, watcher: Watcher) -> bool:
        """To the version that its client asked about."""
        assert watcher.progress is not None
        if watcher.diff is not None or watcher.state is not State.LIVE:
            return False
        version = watcher.progress.version
        if watcher.come >= version:
            return True
        watches = self._of[watcher.watch.namespace]
        if watches.pending and watches.pending[0][1].version <= version:
            watches.progressing[watcher] = None
            return False
        return not watcher.queue

    def _turn_page(self, watcher: Watcher) -> list[Message]:
        """The next versions to replay; if they are not here, the question for them. After the last one it is live."""
        space = self._spaces[watcher.watch.namespace]
        if watcher.next > space.version:
            watcher.state = State.LIVE
            watcher.pushed[space.namespace] = space.version
            return []
        while len(watcher.page) < PAGE_VERSIONS and (root := space.at(watcher.next)) is not None:
            watcher.page.append(root)
            watcher.next += 1
        if watcher.page:
            return []
        ask = self._ask("roots.since", Since(space.namespace, watcher.next, PAGE_VERSIONS), ANY)
        self._asked[ask.tag] = watcher
        return [ask]

    def owns(self, tag: int) -> bool:
        return tag in self._asked

    def answered(self, msg: Message) -> list[Message]:
        """The versions that a replay asked for."""
        watcher = self._asked.pop(msg.tag)
        if watcher.ended:
            return []
        watcher.busy = False
        try:
            if msg.status != OK:
                raise decode_error(msg.status, msg.body)
            roots = [root for root in _decode_roots(msg) if root.version <= self._spaces[root.namespace].version]
            if not roots or roots[0].version != watcher.next:
                raise SnapshotCollected(f"version {watcher.next} of {watcher.watch.namespace} is not kept any more")
        except FluxmpiError as error:
            return self._end(watcher, error)
        watcher.page.extend(roots)
        watcher.next = roots[-1].version + 1
        self._wake(watcher)
        return self.run()

    # --------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, float]:
        watchers = [watcher for client in self._clients.values() for watcher in client.watchers.values()]
        return {
            "watchers": self._count,
            "watch_queued": sum(watcher.queued for watcher in watchers),
            "watch_unacknowledged": sum(client.unacknowledged for client in self._clients.values()),
            "watch_pending": sum(len(watches.pending) for watches in self._of.values()),
            "watch_replays": sum(watcher.state is State.REPLAYING for watcher in watchers),
            "notified": self._looking.notified,
        }

    def check(self) -> None:
        for watches in self._of.values():
            watches.check()
        assert self._count == sum(map(len, self._of.values()))
        for client in self._clients.values():
            assert client.watchers, "a client without watches is kept"
            watchers = client.watchers.values()
            assert client.unacknowledged == sum(watcher.unacknowledged for watcher in watchers)
            for watcher in watchers:
                sleeps = not (watcher.ready or watcher.busy)
                room = watcher.unacknowledged < watcher.watch.window and watcher not in client.blocked
                if sleeps and room:
                    assert not watcher.queue, "a watcher sleeps while versions wait"
                    assert watcher.diff is None, "a watcher sleeps in the middle of a notification"
                    assert watcher.state is not State.REPLAYING, "a watcher sleeps in the middle of a replay"


def _lags(watcher: Watcher) -> Overloaded:
    again = f"all up to version {watcher.come} was told: watch again with since={watcher.come}"
    if watcher.come < 0:
        again = "nothing was told yet: watch again, and read faster"
    return Overloaded(f"the watch lags {QUEUE_MAX:,} versions behind; {again}")
