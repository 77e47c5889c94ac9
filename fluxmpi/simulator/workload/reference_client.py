"""The reference client: it creates namespaces that only it writes, so it knows every version of them.

It leases versions, changes retention, runs collections, reads old versions at any broker, and judges every answer itself::

    commit ──▶ the values of this version
    read at a version  ──▶ its values; SnapshotCollected only if neither retention nor a lease kept it
    blob, a wait within the grace period, commit ──▶ the blob is still there
    log, history ──▶ exactly the versions that are kept
    remove, create ──▶ versions continue; watches end with an error

It sends one request after another, so at each answer it knows what must be.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from random import Random
from typing import Any

import msgspec

from fluxmpi.errors import (
    InstanceEnding,
    LeaseExpired,
    NoSuchBlob,
    NoSuchKey,
    NoSuchNamespace,
    RankLost,
    SnapshotCollected,
    StoreFull,
)
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef
from fluxmpi.kvs.wire import (
    At,
    GcStatus,
    GetRequest,
    HistoryRequest,
    KeyVersion,
    Lease,
    Leased,
    Log,
    LogEntry,
    NewNamespace,
    OldNamespace,
    Op,
    Put,
    Release,
    Retention,
    RootInfo,
    Unlink,
)
from fluxmpi.message import OK
from fluxmpi.simulator.plan import REFERENCE_CHANCE, Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.own_namespace import OwnNamespace, OwnValues, OwnVersion
from fluxmpi.simulator.workload.transcript import Answer, ClientCall

KEYS = ("k0", "k1", "d.a", "d.b", "e.a", "e.b")
NAMES = ("own0", "own1")
UNCERTAIN = (RankLost.code, InstanceEnding.code)

Script = Iterator[ClientCall | float]


class ReferenceClient:
    """Drives two clients, ``writer`` and ``reader``.

    All checkers judge the calls of ``writer``; those of ``reader`` are judged here only.
    """

    def __init__(self, writer: Client, reader: Client, plan: Plan, steps: int) -> None:
        self.client = writer
        self.steps = steps
        self.violations: list[str] = []
        self._reader = reader
        self._plan = plan
        self._full = (StoreFull.code,) if plan.shape.small_store else ()
        """What a commit, or a blob, may be refused with at any time."""
        self._rng: Random = plan.rng(REFERENCE_CHANCE)
        self._namespaces: dict[str, OwnNamespace] = {}
        self._last: dict[str, int] = {}
        """Removed namespaces to their last version."""
        self._watches: list[tuple[str, ClientCall]] = []
        self._serial = 0
        self._over = self._lost = False
        self._directories: list[tuple[Dir, OwnValues]] = []
        """Directories of some version, with their values."""
        self._script = self._run()
        self._waiting: ClientCall | None = None
        writer.on_idle = reader.on_idle = self._wake

    @property
    def done(self) -> bool:
        return self._over

    def act(self) -> None:
        self._next()

    def _next(self) -> None:
        """Start the next step when the one before is done."""
        if self._reader.gone or self.client.gone or self._lost:
            self._over = True
            return
        wait = next(self._script, None)
        if wait is None:
            self._over = True
            self._reader.quit()
        elif isinstance(wait, float):
            self._reader.cluster.schedule.after(wait, self._next)
        else:
            self._waiting = wait
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and (self._waiting.done or self._waiting.cut):
            self._waiting = None
            self._reader.cluster.schedule.after(self._rng.random() * 0.001, self._next)

    @property
    def _now(self) -> float:
        return self._reader.cluster.now

    def _report(self, text: str) -> None:
        self.violations.append(f"reference: at {self._now:.6f}: {text}")

    # ------------------------------------------------------------------------------------------------------- asking

    def _ask(self, topic: str, body: Any) -> ClientCall:
        rank = self._rng.randrange(self._plan.shape.ranks)
        if self._rng.random() < 0.2 and self._reader.cluster.nodes[rank].up:
            self._reader.move(rank, leave=False)
        return self._reader.call(topic, body)

    def _answer(self, call: ClientCall, record: Any, *errors: int) -> Any:
        """Return the answer, decoded; None for an error. Report an error that is not among ``errors``."""
        answer = self._certain(call)
        if answer is None:
            return None
        if answer.status == OK:
            return msgspec.convert(answer.body, record, strict=False) if record is not None else None
        if answer.status not in errors:
            self._report(f"{call.topic} {call.body} ended with error {answer.status} {answer.body}")
        return None

    def _certain(self, call: ClientCall) -> Answer | None:
        """Return the answer; None if a broker died: then the state is unknown from here on."""
        answer = call.answers[0] if call.answers else None
        if answer is None or answer.status in UNCERTAIN:
            self._lost = True
            return None
        return answer

    # ------------------------------------------------------------------------------------------------------ the script

    def _run(self) -> Script:
        actions = {
            self._create: 2, self._commit: 30, self._read: 20, self._retain: 3, self._lease: 6, self._release: 4,
            self._collect: 6, self._store: 5, self._copy: 4, self._log: 5, self._history: 5, self._remove: 1,
            self._link: 3, self._watch: 2,
        }  # fmt: skip
        while self.steps:
            self.steps -= 1
            if not self._namespaces:
                yield from self._create()
            yield from self._rng.choices(list(actions), list(actions.values()))[0]()
            yield self._rng.expovariate(1 / self._plan.think_s)
        yield from self._end()

    def _namespace(self) -> OwnNamespace | None:
        return self._rng.choice(list(self._namespaces.values())) if self._namespaces else None

    def _create(self) -> Script:
        free = [name for name in NAMES if name not in self._namespaces]
        if not free:
            return
        name, old = self._rng.choice(free), self._namespace()
        content: OwnValues = {}
        ref = None
        errors: list[int] = []
        if old is not None and self._rng.random() < 0.5:
            version = self._rng.choice(list(old.made))
            ref, content = old.made[version].root.ref, old.made[version].content
            errors = [NoSuchBlob.code]
        call = self._ask("roots.create", NewNamespace(name, 7, ref))
        yield call
        root = self._answer(call, RootInfo, *errors)
        if root is None:
            if (
                call.answers
                and call.answers[0].status == NoSuchBlob.code
                and old is not None
                and old.kept(version, self._now)
            ):
                self._report(f"{name} cannot begin with version {version} of {old.name}, which is kept")
            return
        last = self._last.get(name, -1)
        if root.version != last + 1:
            self._report(f"{name} begins with version {root.version}, and ended with {last}")
        bounded = self._plan.shape.small_history
        made = {root.version: OwnVersion(root, content)}
        self._namespaces[name] = OwnNamespace(
            name, made, self._plan.shape.retention, floor=root.version, aged=bounded, bounded=bounded
        )

    def _commit_to(self, space: OwnNamespace, ops: list[Op], content: OwnValues, *errors: int) -> Script:
        call = self.client.commit(ops, space.name)
        yield call
        answer = self._certain(call)
        if answer is not None and answer.status == OK:
            root = answer.body
            space.made[root.version] = OwnVersion(root, content)
            space.trim(root.time)
        elif answer is not None and answer.status not in (*errors, *self._full):
            self._report(f"{ops} ended with {answer.status} {answer.body}")

    def _commit(self) -> Script:
        space = self._namespace()
        if space is None:
            return
        content = dict(space.newest.content)
        key = self._rng.choice(KEYS)
        self._serial += 1
        if self._rng.random() < 0.2:
            content.pop(key, None)
            ops: list[Op] = [Unlink(key)]
        else:
            content[key] = (b"%d" % (self._serial % 7)) * self._rng.choice((1, 300))
            ops = [Put(key, Val("raw", content[key]))]
        yield from self._commit_to(space, ops, content)

    def _read(self) -> Script:
        """Read any version, by number or root; or the newest."""
        space = self._namespace()
        if space is None:
            return
        version = self._rng.choice(
            [*list(space.made)[-6:], *list(space.made), *(at for at, _ in space.leases.values())]
        )
        made, key = space.made[version], self._rng.choice(KEYS)
        at: At = self._rng.choice((version, made.root.ref, None))
        began = self._now
        if at is None:
            made = space.newest
        same = [each for each, other in space.made.items() if other.root.ref == at] or [version]
        call = self._ask("kvs.get", GetRequest(key, space.name, at, made.root.version if at is None else 0))
        yield call
        answer = self._certain(call)
        if answer is None:
            return
        may_be_gone = at is not None and not any(space.kept(each, self._now) for each in same)
        if answer.status == SnapshotCollected.code and may_be_gone:
            return
        expected = made.content.get(key)
        found = yield from self._data(answer)
        may_be_gone = at is not None and not any(space.kept(each, self._now) for each in same)
        if found is None and answer.status == OK and (may_be_gone or self._lost):
            return
        if (answer.status not in (OK, NoSuchKey.code)) or found != expected:
            what = f"{key} at {at!r} (version {made.root.version}) of {space.name}, asked at {began:.6f}"
            self._report(f"{what}: {answer.status} {found!r} {answer.body}, and must be {expected!r}")

    def _data(self, answer: Answer) -> Generator[ClientCall | float, None, bytes | None]:
        """Return the value that was read; None if there is none, or a blob is missing."""
        if answer.status != OK or answer.body.data is not None or not isinstance(answer.body.object, ValRef):
            return answer.body.data if answer.status == OK else None
        pieces = []
        for ref in answer.body.object.refs:
            call = self._reader.load(ref)
            yield call
            piece = self._certain(call)
            if piece is None or piece.status != OK:
                return None
            pieces.append(piece.body)
        return b"".join(pieces)

    def _retain(self) -> Script:
        space = self._namespace()
        if space is None:
            return
        count, age_s = self._rng.choice((1, 2, 5, 50)), self._rng.choice((0.0, 0.0, 0.05, 1.0))
        # It takes effect before the answer: a longer retention counts from the answer, a shorter one from now on.
        space.aged |= age_s > 0
        space.count, space.age_s = min(count, space.count), min(filter(None, (age_s, space.age_s)), default=0.0)
        call = self._ask("roots.retention", Retention(space.name, count, age_s))
        yield call
        space.trim(self._now)
        answer = self._answer(call, Retention)
        if answer is not None:
            space.count, space.age_s = answer.count, answer.age_s
            if (answer.namespace, answer.count, answer.age_s) != (space.name, count, age_s):
                self._report(f"retention {count} {age_s} was answered with {answer}")

    def _lease(self) -> Script:
        space = self._namespace()
        if space is None or len(space.leases) > 4:
            return
        version = self._rng.choice(list(space.made)[-5:])
        ttl_s = self._rng.choice((None, 0.05, 1.0))
        call = self._ask(
            "roots.lease", Lease(space.name, self._rng.choice((version, space.made[version].root.ref)), ttl_s)
        )
        kept = space.kept(version, self._now)
        yield call
        lease = self._answer(call, Leased, SnapshotCollected.code)
        if lease is not None:
            space.leases[lease.id] = lease.root.version, lease.expires or float("inf")
        elif kept and space.kept(version, self._now) and self._certain(call) is not None:
            self._report(f"version {version} of {space.name} is kept, and cannot be leased")

    def _release(self) -> Script:
        space = self._namespace()
        if space is None or not space.leases:
            return
        number = self._rng.choice(list(space.leases))
        version, ends = space.leases[number]
        if self._rng.random() < 0.5 and ends < float("inf"):
            call = self._ask("roots.renew", Release(number))
            yield call
            renewed = self._answer(call, Leased, LeaseExpired.code)
            if renewed is not None:
                space.leases[number] = version, renewed.expires or float("inf")
                return
            if self._now < ends and self._certain(call) is not None:
                self._report(f"lease {number} has ended before its time")
            space.leases.pop(number)
            return
        del space.leases[number]
        call = self._ask("roots.release", Release(number))
        yield call
        self._answer(call, None, *(() if self._now < ends else (LeaseExpired.code,)))

    def _collect(self) -> Script:
        call = self._ask("gc.run", None)
        yield call
        status = self._answer(call, GcStatus)
        if status is not None and status.live_blobs <= 0:
            self._report(f"a collection found nothing live: {status}")

    def _store(self) -> Script:
        """Store a blob, and refer to it within its grace period."""
        space = self._namespace()
        if space is None:
            return
        self._serial += 1
        blob = (b"blob %d" % self._serial).ljust(300, b".")
        ref = self._reader.cluster.digest(blob)
        self.client.transcript.blobs[ref] = blob
        stored = self._now  # not before at rank 0; the answer may take long
        call = self.client.store(blob)
        yield call
        answer = self._certain(call)
        if answer is None or answer.status in self._full:
            return
        yield self._rng.random() * min(self._plan.shape.grace_s, 2.0) * 0.9
        if space.name not in self._namespaces:
            return
        key = self._rng.choice(KEYS)
        ops: list[Op] = [Put(key, ValRef("raw", len(blob), (ref,)))]
        yield from self._commit_to(space, ops, {**space.newest.content, key: blob}, NoSuchBlob.code)
        if self._now - stored < self._plan.shape.grace_s:
            calls = reversed(self.client.transcript.calls)
            own = next(call for call in calls if call.client == self.client.name and call.topic == "kvs.commit")
            if any(answer.status == NoSuchBlob.code for answer in own.answers):
                self._report(f"a blob of {stored:.6f} was gone at {self._now:.6f}")

    def _copy(self) -> Script:
        """Put a directory of an old version again: it may be collected, but not a part of it."""
        space = self._namespace()
        if space is None:
            return
        if self._directories and self._rng.random() < 0.7:
            yield from self._put_again(space)
            return
        version = self._rng.choice(list(space.made))
        call = self._ask("kvs.get", GetRequest("d", space.name, version, 0, load=False))
        yield call
        answer = self._certain(call)
        if answer is None or answer.status != OK or not isinstance(answer.body.object, Dir):
            return
        old = {key[2:]: value for key, value in space.made[version].content.items() if key.startswith("d.")}
        self._directories = [*self._directories[-5:], (answer.body.object, old)]

    def _put_again(self, space: OwnNamespace) -> Script:
        """Put it, perhaps during a collection that began before."""
        directory, old = self._rng.choice(self._directories)
        if self._rng.random() < 0.5:
            self._ask("gc.run", None)
            yield self._rng.random() * 0.005
        content = {key: value for key, value in space.newest.content.items() if not key.startswith("e.")}
        content |= {f"e.{key}": value for key, value in old.items()}
        yield from self._commit_to(space, [Put("e", directory)], content, NoSuchBlob.code)

    def _log(self) -> Script:
        space = self._namespace()
        if space is None:
            return
        call = self._ask("roots.log", Log(space.name, None, 1000))
        space.trim(self._now)
        least = min(space.made) if space.aged else space.floor
        yield call
        entries = self._answer(call, list[LogEntry])
        if entries is None:
            return
        space.trim(self._now)
        versions = [entry.version for entry in entries]
        right = any(versions == list(range(max(space.made), floor - 1, -1)) for floor in range(least, space.floor + 1))
        if not right or any(entry.ref != space.made[entry.version].root.ref for entry in entries):
            self._report(f"the log of {space.name} has {versions}, kept are {space.floor} to {max(space.made)}")

    def _history(self) -> Script:
        space = self._namespace()
        if space is None:
            return
        key = self._rng.choice(KEYS)
        space.trim(self._now)
        least = min(space.made) if space.aged else space.floor
        call = self._ask("roots.history", HistoryRequest(space.name, key, None, 1000))
        yield call
        past = self._answer(call, list[KeyVersion], SnapshotCollected.code)
        if past is None:
            return
        space.trim(self._now)
        found = [(each.version, each.object is not None, each.existed) for each in past]
        for floor in range(least, space.floor + 1):
            changed = []
            for version in range(max(space.made), floor, -1):
                old, new = space.made[version - 1].content.get(key), space.made[version].content.get(key)
                if old != new:
                    changed.append((version, new is not None, old is not None))
            if found == changed:
                return
        self._report(f"the history of {key} in {space.name} is {found}, and must be {changed}")

    def _remove(self) -> Script:
        space = self._namespace()
        if space is None:
            return
        del self._namespaces[space.name]
        self._last[space.name] = max(space.made)
        call = self._ask("roots.remove", OldNamespace(space.name))
        yield call
        self._answer(call, None)
        call = self.client.commit([Put("k0", Val("raw", b"late"))], space.name)
        yield call
        answer = self._certain(call)
        if answer is not None and answer.status != NoSuchNamespace.code:
            self._report(
                f"a commit into {space.name}, which was removed, was answered with {answer.status} {answer.body}"
            )

    def _link(self) -> Script:
        """Read through a link to another namespace: its newest version, at any broker that has the link's version."""
        space = self._namespace()
        if space is None:
            return
        call = self.client.commit([Put(f"reference.{space.name}", Link("k0", space.name))])
        yield call
        answer = self._certain(call)
        if answer is None or answer.status != OK:
            return
        call = self._ask("kvs.get", GetRequest(f"reference.{space.name}", at_least=answer.body.version))
        yield call
        answer = self._certain(call)
        expected = space.newest.content.get("k0")
        if answer is None:
            return
        found = yield from self._data(answer)
        if not self._lost and (answer.status not in (OK, NoSuchKey.code) or found != expected):
            self._report(f"through a link into {space.name}: {answer.status} {answer.body}, and must be {expected!r}")

    def _watch(self) -> Script:
        space = self._namespace()
        if space is not None and len(self._watches) < 3:
            self._watches.append((space.name, self._reader.watch("k0", space.name)))
            yield 0.001

    def _end(self) -> Script:
        """Remove all namespaces: their watches must end with an error."""
        names = list(self._namespaces)
        for name in names:
            yield from self._remove_quietly(name)
        yield 5.0
        for name, call in self._watches:
            if not call.cut and not any(answer.status > OK for answer in call.answers):
                self._report(f"a watch in {name}, which was removed, continues")

    def _remove_quietly(self, name: str) -> Script:
        del self._namespaces[name]
        call = self._ask("roots.remove", OldNamespace(name))
        yield call
        self._answer(call, None)
