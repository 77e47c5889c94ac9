"""The ``roots`` service: rank 0's versions and namespaces, for all brokers and their clients.

    roots.get log history        what there was, as far as it is kept
    roots.retention              how much that is; versions that are too many or too old are forgotten
    roots.lease renew release    a version that is kept all the same
    roots.create remove list     namespaces

A namespace's making reaches the brokers as its first setroot, its removal as ``kvs.removed``, on the same links and in order; so
whoever has the answer to ``create`` finds it at every broker that has heard as much.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from math import isfinite
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, Overloaded
from fluxmpi.kvs.mvcc.key_history import KeyHistory
from fluxmpi.kvs.mvcc.lease import Leases
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT_MAX, Namespace, Namespaces
from fluxmpi.kvs.store.edit import Steps
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import (
    GetRoot,
    HistoryRequest,
    Lease,
    Log,
    LogEntry,
    NamespaceInfo,
    NewNamespace,
    OldNamespace,
    Release,
    Retention,
    RootInfo,
    Since,
)
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import REQUEST, Body, Message, control, reply, reply_error

_decode_getroot = Body(GetRoot)
_decode_since = Body(Since)
_decode_log = Body(Log)
_decode_history = Body(HistoryRequest)
_decode_retention = Body(Retention)
_decode_lease = Body(Lease)
_decode_release = Body(Release)
_decode_new = Body(NewNamespace)
_decode_old = Body(OldNamespace)


class NamespaceWriter(Protocol):
    """The leader: it alone makes versions."""

    def checking(self, ref: Ref) -> Steps[None]: ...
    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]: ...
    def drop(self, name: str) -> list[Message]: ...


class MvccService(Machine):
    name = "roots"

    def __init__(
        self, namespaces: Namespaces, nodes: NodeCache, maker: NamespaceWriter, limits: MvccLimits = MVCC_LIMITS
    ) -> None:
        super().__init__()
        self._namespaces = namespaces
        self._nodes = nodes
        self._maker = maker
        self._limits = limits
        self.leases = Leases(limits.leases_max)
        self._searches: dict[int, tuple[Message, KeyHistory]] = {}
        """Under way, in order of arrival."""
        self._creations: deque[tuple[Message, NewNamespace, Steps[None]]] = deque()
        """Namespaces that are to be made, while the directories that they begin with are looked through."""
        self._searched = 0
        self._aged: dict[str, None] = {}
        """Namespaces with a retention by age, or with more to forget."""

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind != REQUEST:
            return []
        try:
            return self._request(msg, now)
        except FluxmpiError as error:
            return [reply_error(msg, error)]
        finally:
            self._plan(now)

    def _request(self, msg: Message, now: float) -> list[Message]:
        match msg.topic:
            case "roots.get":
                return [reply(msg, self._get(_decode_getroot(msg), now))]
            case "roots.since":
                return [reply(msg, self._since(_decode_since(msg), now))]
            case "roots.log":
                return [reply(msg, self._log(_decode_log(msg), now))]
            case "roots.history":
                return self._history(msg, _decode_history(msg), now)
            case "roots.retention":
                return [reply(msg, self._retain(_decode_retention(msg), now))]
            case "roots.lease":
                lease = _decode_lease(msg)
                return [reply(msg, self.leases.take(self._find(lease.namespace, now), lease, msg.route, now))]
            case "roots.renew":
                self.leases.expire(now)
                return [reply(msg, self.leases.renew(_decode_release(msg).id, now))]
            case "roots.release":
                self.leases.expire(now)
                self.leases.release(_decode_release(msg).id)
                return [reply(msg)]
            case "roots.disconnect":
                self._forget(msg.route)
                return []
            case "roots.create":
                return self._create(msg, _decode_new(msg), now)
            case "roots.remove":
                return [*self._remove(_decode_old(msg).name), reply(msg)]
            case "roots.list":
                return [reply(msg, self._list())]
        raise InvalidRequest(f"service roots has no method {msg.topic!r}")

    def _find(self, name: str, now: float) -> Namespace:
        """The namespace, without what retention does not keep at this moment."""
        namespace = self._namespaces.find(name)
        self.leases.expire(now)
        namespace.compact(now)
        return namespace

    # ------------------------------------------------------------------------------------------------------ reading

    def _get(self, getroot: GetRoot, now: float) -> RootInfo:
        namespace = self._find(getroot.namespace, now)
        if getroot.ago_s is not None:
            return namespace.at_time(now - getroot.ago_s, now)
        if getroot.time is not None:
            return namespace.at_time(getroot.time, now)
        return namespace.root if getroot.at is None else namespace.at(getroot.at)

    def _since(self, since: Since, now: float) -> list[RootInfo]:
        namespace = self._find(since.namespace, now)
        first = namespace.at(since.version)
        end = min(since.version + min(_limit(since.limit), self._limits.since_versions_max), namespace.root.version + 1)
        return [first, *(namespace.at(version) for version in range(since.version + 1, end))]

    def _log(self, log: Log, now: float) -> list[LogEntry]:
        namespace = self._find(log.namespace, now)
        found: list[LogEntry] = []
        left = self._limits.log_keys_max
        for version in range(_first(namespace, log.before), namespace.oldest - 1, -1):
            if left <= 0 or len(found) >= min(_limit(log.limit), self._limits.log_entries_max):
                break
            root, keys = namespace.history[version], namespace.key_index.keys(version)
            found.append(LogEntry(version, root.ref, root.time, keys, namespace.history.commits(version)))
            left -= len(keys or ())
        return found

    def _history(self, msg: Message, history: HistoryRequest, now: float) -> list[Message]:
        if len(self._searches) >= self._limits.searches_max:
            raise Overloaded(f"{self._limits.searches_max} searches in the history are under way already; try again")
        namespace = self._find(history.namespace, now)
        limit = min(_limit(history.limit), self._limits.log_entries_max)
        search = KeyHistory(namespace, self._nodes, history.key, history.before, limit)
        search.advance(self._limits.search_versions_per_turn)
        if search.done:
            return [reply(msg, search.found)]
        self._searched += 1
        self._searches[self._searched] = msg, search
        return []

    def _list(self) -> list[NamespaceInfo]:
        namespaces = sorted(self._namespaces, key=lambda namespace: namespace.root.namespace)
        return [
            NamespaceInfo(
                namespace.root.namespace,
                namespace.owner,
                namespace.root.version,
                namespace.root.ref,
                namespace.root.time,
            )
            for namespace in namespaces
        ]

    # ----------------------------------------------------------------------------------------------------- changing

    def _retain(self, wanted: Retention, now: float) -> Retention:
        namespace = self._namespaces.find(wanted.namespace)
        count, age_s = wanted.count, wanted.age_s
        if count is not None and not 1 <= count <= RETENTION_COUNT_MAX:
            raise InvalidRequest(f"{count} versions cannot be kept: 1 to {RETENTION_COUNT_MAX} can")
        if age_s is not None and not (age_s >= 0 and isfinite(age_s)):
            raise InvalidRequest(f"an age of {age_s} s is none: give seconds, or 0 for no bound")
        namespace.count = namespace.count if count is None else count
        namespace.age_s = namespace.age_s if age_s is None else age_s
        namespace.on_advance = partial(self._plan, now) if namespace.age_s else None
        self._aged[wanted.namespace] = None
        namespace.compact(now)
        return namespace.retention

    def _create(self, msg: Message, new: NewNamespace, now: float) -> list[Message]:
        self._namespaces.require_free_name(new.name)
        if new.ref is not None:
            if len(self._creations) >= self._limits.creations_max:
                raise Overloaded(f"{self._limits.creations_max} namespaces are being made already; try again")
            return self._creating(msg, new, self._maker.checking(new.ref), now)
        root, out = self._maker.create(new.name, new.owner, None, now)
        return [*out, reply(msg, root)]

    def _creating(self, msg: Message, new: NewNamespace, work: Steps[None], now: float) -> list[Message]:
        """Go on looking through what it begins with; when all of it is there, the namespace is made, unless another was."""
        steps = 0
        for done in work:
            steps += done
            if steps >= self._limits.creation_steps_per_turn:
                self._creations.append((msg, new, work))
                return []
        root, out = self._maker.create(new.name, new.owner, new.ref, now)
        return [*out, reply(msg, root)]

    def _remove(self, name: str) -> list[Message]:
        namespace = self._namespaces.find(name)
        last = self._namespaces.remove(name)
        self.leases.removed(namespace)
        self._aged.pop(name, None)
        return [control("kvs.removed", OldNamespace(name, last)), *self._maker.drop(name)]

    def _forget(self, holder: list[int]) -> None:
        self.leases.forget(holder)
        for number in [number for number, (msg, _) in self._searches.items() if msg.route == holder]:
            del self._searches[number]
        for creation in [creation for creation in self._creations if creation[0].route == holder]:
            self._creations.remove(creation)
            creation[2].close()

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._forget([hop])
        self._plan(now)
        return []

    # -------------------------------------------------------------------------------------------------- in its time

    def tick(self, now: float) -> list[Message]:
        """Leases expire, versions are forgotten that are too old, searches and creations go on, one slice of one each a turn."""
        out: list[Message] = []
        self.leases.expire(now)
        for name in list(self._aged):
            namespace = self._namespaces.find(name)
            if not namespace.compact(now) and not namespace.age_s:
                del self._aged[name]
        for number in list(self._searches)[:1]:
            msg, search = self._searches[number]
            try:
                search.advance(self._limits.search_versions_per_turn)
                answer = reply(msg, search.found) if search.done else None
            except FluxmpiError as error:
                answer = reply_error(msg, error)
            del self._searches[number]
            if answer is None:
                self._searches[number] = msg, search
            else:
                out.append(answer)
        if self._creations:
            creation = self._creations.popleft()
            try:
                out += self._creating(*creation, now)
            except FluxmpiError as error:
                out.append(reply_error(creation[0], error))
        self._plan(now)
        return out

    def _plan(self, now: float) -> None:
        busy = self._searches or self._creations
        self.deadline = now if busy else min([NEVER, self.leases.deadline, *map(self._next_trim, self._aged)])

    def _next_trim(self, name: str) -> float:
        namespace = self._namespaces.find(name)
        if namespace.behind:
            return 0.0
        return NEVER if namespace.expires is None else namespace.expires

    def statistics(self) -> dict[str, float]:
        return {
            "namespaces": len(self._namespaces),
            "versions": sum(namespace.root.version - namespace.oldest + 1 for namespace in self._namespaces),
            "leases": len(self.leases),
            "searches": len(self._searches),
            "creations": len(self._creations),
        }

    def check(self) -> None:
        self._namespaces.check()
        self.leases.check()
        assert not (self._searches or self._creations) or self.deadline < NEVER


def _limit(limit: int) -> int:
    if limit < 1:
        raise InvalidRequest(f"a limit of {limit} shows nothing: give 1 or more")
    return limit


def _first(namespace: Namespace, before: int | None) -> int:
    """The newest version to tell of."""
    return namespace.root.version if before is None else min(before - 1, namespace.root.version)
