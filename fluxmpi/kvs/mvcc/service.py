"""The ``roots`` service: versions and namespaces at rank 0, for all brokers and their clients.

    roots.get since log history   kept versions: one, several, what each wrote, what changed a key
    roots.past                    what a key was in a version, also if only its past values are kept
    roots.need held               what watches need of versions (``watch_hold``)
    roots.retention               how many versions are kept, and for how long; the past values of single keys
    roots.lease renew release     versions that are kept beyond retention
    roots.create remove list      namespaces

The brokers learn of a new namespace by its first setroot, and of a removed one by ``kvs.removed``: both go down the
same links, in order. So a client that has the answer to ``create`` finds the namespace at every broker that has
processed as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, Overloaded
from fluxmpi.kvs.mvcc.key_history import KeyHistory
from fluxmpi.kvs.mvcc.lease import Leases
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.mvcc.namespace import FULL_END, FULL_WAIT, RETENTION_COUNT_MAX, Namespace, Namespaces
from fluxmpi.kvs.mvcc.past import past_value
from fluxmpi.kvs.store.edit import Steps
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import (
    GetRoot,
    Held,
    HeldRequest,
    HistoryRequest,
    Lease,
    Log,
    LogEntry,
    NamespaceInfo,
    NewNamespace,
    OldNamespace,
    PastRequest,
    Release,
    Retention,
    RootInfo,
    Since,
    WatchNeed,
)
from fluxmpi.machine import NEVER, Answers, Machine, Sender, Topic, client_of
from fluxmpi.message import CONTROL, REQUEST, Body, Message, control, reply, reply_error
from fluxmpi.shares import count_of_client

_decode_getroot = Body(GetRoot)
_decode_since = Body(Since)
_decode_log = Body(Log)
_decode_history = Body(HistoryRequest)
_decode_past = Body(PastRequest)
_decode_retention = Body(Retention)
_decode_need = Body(WatchNeed)
_decode_held = Body(HeldRequest)
_decode_lease = Body(Lease)
_decode_release = Body(Release)
_decode_new = Body(NewNamespace)
_decode_old = Body(OldNamespace)


PAST_STATISTICS = ("past_keys", "past_values", "past_bytes")
"""The numbers of past values, see ``ValueHistory.statistics``."""


class NamespaceWriter(Protocol):
    """The leader, which alone makes versions."""

    def check_directory(self, ref: Ref) -> Steps[None]:
        """Verify that a directory is complete, in slices."""

    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]: ...
    def drop(self, name: str) -> list[Message]: ...
    def resume(self) -> None:
        """Go on with the commits that wait."""


class MvccService(Machine):
    name = "roots"

    def __init__(
        self, namespaces: Namespaces, nodes: NodeCache, leader: NamespaceWriter, limits: MvccLimits = MVCC_LIMITS
    ) -> None:
        super().__init__()
        self._namespaces = namespaces
        self._nodes = nodes
        self._leader = leader
        self._limits = limits
        self.leases = Leases(limits.leases_max, limits.leases_client_max)
        self.on_lowered: Callable[[], None] = lambda: None
        """Called when a namespace shall have less history: a collection frees it, and sees to the bound in bytes."""
        self._searches: dict[int, tuple[Message, KeyHistory]] = {}
        """Searches in histories, in order of their turn."""
        self._last_search = 0
        self._creations: deque[tuple[Message, NewNamespace, Steps[None]]] = deque()
        """Namespaces whose initial directory is being verified."""
        self._compacting: dict[str, None] = {}
        """Namespaces with a retention by age or rules for past values, or with more to compact."""
        for namespace in namespaces:
            if namespace.age_s or namespace.values is not None:
                self._follow(namespace, namespace.root.time)
        client, machine = Sender.CLIENT, Sender.MACHINE
        self.topics = {
            "roots.get": Topic(REQUEST, machine, self._get, GetRoot, isolated=True),
            "roots.since": Topic(REQUEST, machine, self._since, Since, isolated=True),
            "roots.log": Topic(REQUEST, client, self._log, Log, isolated=True),
            "roots.history": Topic(REQUEST, client, self._history, HistoryRequest, isolated=True),
            "roots.past": Topic(REQUEST, client, self._past, PastRequest, isolated=True),
            "roots.retention": Topic(REQUEST, client, self._retain, Retention),
            "roots.lease": Topic(REQUEST, client, self._lease, Lease),
            "roots.renew": Topic(REQUEST, client, self._renew, Release),
            "roots.release": Topic(REQUEST, client, self._release, Release),
            "roots.create": Topic(REQUEST, client, self._create, NewNamespace),
            "roots.remove": Topic(REQUEST, client, self._remove, OldNamespace),
            "roots.list": Topic(REQUEST, client, self._list, isolated=True),
            "roots.need": Topic(CONTROL, machine, self._need, WatchNeed),
            "roots.held": Topic(REQUEST, machine, self._held, HeldRequest),
            "roots.disconnect": Topic(REQUEST, machine, self._client_left, int, Answers.NONE),
        }

    def step(self, msg: Message, now: float) -> list[Message]:
        out = super().step(msg, now)
        self._plan(now)
        return out

    def _find(self, name: str, now: float) -> Namespace:
        """Return the namespace, compacted to what retention keeps now."""
        namespace = self._namespaces.find(name)
        self.leases.expire(now)
        namespace.compact(now)
        return namespace

    # --------------------------------------------------------------------------------------------------------- versions

    def _get(self, msg: Message, now: float) -> list[Message]:
        getroot = _decode_getroot(msg)
        namespace = self._find(getroot.namespace, now)
        clock = namespace.clock(now)
        if getroot.ago_s is not None:
            root = namespace.at_time(clock - getroot.ago_s, clock)
        elif getroot.time is not None:
            root = namespace.at_time(getroot.time, clock)
        else:
            root = namespace.root if getroot.at is None else namespace.at(getroot.at)
        return [reply(msg, root)]

    def _since(self, msg: Message, now: float) -> list[Message]:
        since = _decode_since(msg)
        namespace = self._find(since.namespace, now)
        first = namespace.at(since.version)
        count = min(_positive(since.limit), self._limits.since_versions_max)
        end = min(since.version + count, namespace.root.version + 1)
        return [reply(msg, [first, *(namespace.at(version) for version in range(since.version + 1, end))])]

    def _log(self, msg: Message, now: float) -> list[Message]:
        log = _decode_log(msg)
        namespace = self._find(log.namespace, now)
        entries: list[LogEntry] = []
        limit = min(_positive(log.limit), self._limits.log_entries_max)
        keys_left = self._limits.log_keys_max
        newest = namespace.root.version
        first = newest if log.before is None else min(log.before - 1, newest)
        for version in range(first, namespace.oldest - 1, -1):
            if keys_left <= 0 or len(entries) >= limit:
                break
            root, keys = namespace.history[version], namespace.key_index.keys(version)
            entries.append(LogEntry(version, root.ref, root.time, keys, namespace.history.commits(version)))
            keys_left -= len(keys or ())
        return [reply(msg, entries)]

    def _history(self, msg: Message, now: float) -> list[Message]:
        history = _decode_history(msg)
        limits = self._limits
        if len(self._searches) >= limits.searches_max:
            raise Overloaded(f"{limits.searches_max} searches in histories run already; try again")
        if count_of_client([search for search, _ in self._searches.values()], msg) >= limits.searches_client_max:
            raise Overloaded(f"{limits.searches_client_max} searches of this client run already; try again")
        namespace = self._find(history.namespace, now)
        limit = min(_positive(history.limit), limits.log_entries_max)
        search = KeyHistory(namespace, self._nodes, history.key, history.before, limit)
        search.advance(limits.search_versions_per_turn)
        if search.done:
            return [reply(msg, search.found)]
        self._last_search += 1
        self._searches[self._last_search] = msg, search
        return []

    def _continue_search(self) -> list[Message]:
        """One slice of the search whose turn it is."""
        if not self._searches:
            return []
        number, (msg, search) = next(iter(self._searches.items()))
        del self._searches[number]
        try:
            search.advance(self._limits.search_versions_per_turn)
        except FluxmpiError as error:
            return [reply_error(msg, error)]
        except Exception as error:
            return [reply_error(msg, self.failed(msg.topic, error))]
        if search.done:
            return [reply(msg, search.found)]
        self._searches[number] = msg, search
        return []

    def _past(self, msg: Message, now: float) -> list[Message]:
        past = _decode_past(msg)
        return [reply(msg, past_value(self._find(past.namespace, now), self._nodes, past, now))]

    # --------------------------------------------------------------------------------------------- retention and leases

    def _retain(self, msg: Message, now: float) -> list[Message]:
        wanted = _decode_retention(msg)
        namespace = self._namespaces.find(wanted.namespace)
        count, age_s, size = wanted.count, wanted.age_s, wanted.bytes
        if count is not None and not 1 <= count <= RETENTION_COUNT_MAX:
            raise InvalidRequest(f"invalid retention of {count} versions: give 1 to {RETENTION_COUNT_MAX}")
        if age_s is not None and not (age_s >= 0 and isfinite(age_s)):
            raise InvalidRequest(f"invalid retention of {age_s} s: give a time of 0 (no bound) or more")
        if size is not None and size < 1:
            raise InvalidRequest(
                f"invalid retention of {size} bytes: give 1 or more; a count of 1 keeps no older version"
            )
        if wanted.full is not None and wanted.full not in (FULL_END, FULL_WAIT):
            raise InvalidRequest(f"invalid full '{wanted.full}': give '{FULL_END}' or '{FULL_WAIT}'")
        namespace.keep_values(wanted.values, self._nodes)
        count_before, size_before = namespace.count, namespace.history_bytes_max
        namespace.retain(wanted)
        self._follow(namespace, now)
        namespace.compact(now)
        if age_s or namespace.count < count_before or namespace.history_bytes_max < size_before:
            self.on_lowered()
        return [reply(msg, namespace.retention)]

    def _follow(self, namespace: Namespace, now: float) -> None:
        """Compact the namespace when its versions expire, and as long as there is more to compact."""
        timed = namespace.age_s or namespace.values is not None
        namespace.on_advance = partial(self._plan, now) if timed else None
        self._compacting[namespace.root.namespace] = None

    def _need(self, msg: Message, now: float) -> list[Message]:
        """Take what the watches of all brokers need of a namespace's versions."""
        need = _decode_need(msg)
        namespace = self._namespaces.get(need.namespace)
        if namespace is not None:
            was_full = namespace.hold is not None and namespace.hold.is_full(now)
            namespace.take_need(need)
            namespace.compact(now)
            if namespace.compaction_due:
                self._compacting[need.namespace] = None
            if was_full:
                self._leader.resume()
        return []

    def _held(self, msg: Message, now: float) -> list[Message]:
        held = _decode_held(msg)
        namespace = self._find(held.namespace, now)
        kept = namespace.held <= held.version or namespace.leases(held.version) > 0
        return [reply(msg, Held(namespace.root.version, kept))]

    def _lease(self, msg: Message, now: float) -> list[Message]:
        lease = _decode_lease(msg)
        return [reply(msg, self.leases.grant(self._find(lease.namespace, now), lease, msg.route, now))]

    def _renew(self, msg: Message, now: float) -> list[Message]:
        self.leases.expire(now)
        return [reply(msg, self.leases.renew(_decode_release(msg).id, now))]

    def _release(self, msg: Message, now: float) -> list[Message]:
        self.leases.expire(now)
        self.leases.release(_decode_release(msg).id)
        return [reply(msg)]

    # ------------------------------------------------------------------------------------------------------- namespaces

    def _create(self, msg: Message, now: float) -> list[Message]:
        new = _decode_new(msg)
        self._namespaces.require_free_name(new.name)
        if new.ref is not None:
            creations_max = self._limits.creations_max
            if len(self._creations) >= creations_max:
                raise Overloaded(f"{creations_max} namespaces are being created already; try again")
            share = self._limits.creations_client_max
            if count_of_client([creation for creation, _, _ in self._creations], msg) >= share:
                raise Overloaded(f"{share} namespaces are being created for this client already; try again")
            return self._continue_creation(msg, new, self._leader.check_directory(new.ref), now)
        root, out = self._leader.create(new.name, new.owner, None, now)
        return [*out, reply(msg, root)]

    def _continue_creation(self, msg: Message, new: NewNamespace, work: Steps[None], now: float) -> list[Message]:
        """Verify a slice of the initial directory. At its end, create the namespace, if its name is still free."""
        steps = 0
        for done in work:
            steps += done
            if steps >= self._limits.creation_steps_per_turn:
                self._creations.append((msg, new, work))
                return []
        root, out = self._leader.create(new.name, new.owner, new.ref, now)
        return [*out, reply(msg, root)]

    def _remove(self, msg: Message, now: float) -> list[Message]:
        name = _decode_old(msg).name
        namespace = self._namespaces.find(name)
        last = self._namespaces.remove(name)
        self.leases.release_in(namespace)
        self._compacting.pop(name, None)
        return [control("kvs.removed", OldNamespace(name, last)), *self._leader.drop(name), reply(msg)]

    def _list(self, msg: Message, now: float) -> list[Message]:
        roots = sorted((namespace.root.namespace, namespace.owner, namespace.root) for namespace in self._namespaces)
        infos = [NamespaceInfo(name, owner, root.version, root.ref, root.time) for name, owner, root in roots]
        return [reply(msg, infos)]

    # ---------------------------------------------------------------------------------------------------------- clients

    def _client_left(self, msg: Message, now: float) -> list[Message]:
        """Handle the disconnection of a client of another broker."""
        self._drop(client_of(msg))
        return []

    def _drop(self, client: list[int]) -> None:
        """Drop a disconnected client's leases, searches and creations."""
        self.leases.release_of(client)
        for number in [number for number, (msg, _) in self._searches.items() if msg.route == client]:
            del self._searches[number]
        for creation in [creation for creation in self._creations if creation[0].route == client]:
            self._creations.remove(creation)
            creation[2].close()

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._drop([hop])
        self._plan(now)
        return []

    # ------------------------------------------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[Message]:
        """Expire leases, compact versions, and continue one search and one creation."""
        self.leases.expire(now)
        for name in list(self._compacting):
            namespace = self._namespaces.find(name)
            if not namespace.compact(now) and not namespace.age_s and namespace.values is None:
                del self._compacting[name]
        out = self._continue_search()
        if self._creations:
            msg, new, work = self._creations.popleft()
            try:
                out += self._continue_creation(msg, new, work, now)
            except FluxmpiError as error:
                out.append(reply_error(msg, error))
        self._plan(now)
        return out

    def _plan(self, now: float) -> None:
        """Set the deadline of the next tick."""
        if self._searches or self._creations:
            self.deadline = now
        else:
            self.deadline = min([NEVER, self.leases.deadline, *map(self._next_compaction, self._compacting)])

    def _next_compaction(self, name: str) -> float:
        namespace = self._namespaces.find(name)
        if namespace.compaction_due:
            return 0.0
        return NEVER if namespace.oldest_expires is None else namespace.oldest_expires

    def statistics(self) -> dict[str, float]:
        return {
            "namespaces": len(self._namespaces),
            "versions": sum(namespace.root.version - namespace.oldest + 1 for namespace in self._namespaces),
            "leases": len(self.leases),
            **self._past_statistics(),
            "searches": len(self._searches),
            "creations": len(self._creations),
        }

    def _past_statistics(self) -> dict[str, int]:
        total = dict.fromkeys(PAST_STATISTICS, 0)
        for namespace in self._namespaces:
            if namespace.values is not None:
                for name, number in namespace.values.statistics().items():
                    total[name] += number
        return total

    def pinned(self) -> Iterator[Ref]:
        """Yield the blobs of past values."""
        for namespace in self._namespaces:
            if namespace.values is not None:
                yield from namespace.values.pinned()

    def check(self) -> None:
        self._namespaces.check()
        self.leases.check()
        assert not (self._searches or self._creations) or self.deadline < NEVER


def _positive(limit: int) -> int:
    if limit < 1:
        raise InvalidRequest(f"invalid limit of {limit}: give 1 or more")
    return limit
