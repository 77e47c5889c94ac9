"""The truth: every version's tree, made by applying the ledger's commits, in their order, to plain dicts.

While it is made it is compared with what the leader made: each version's real tree, read blob by blob from rank 0's store,
must equal the plain one. On the way these rules are checked:

- a commit id is applied once; sent again it is answered with the same version, or fails as before;
- a commit that failed fails in the model with the same error, and changes nothing;
- two commits in one version touch different keys, none above or below another (so every value is some version's value);
- a version has at least one commit, and its setroot names exactly the keys that were touched;
- guards decide as in the state just before their transaction, whose keys nothing else in its version touches;
- results are those of applying the operations one by one; of combined additions, in the order of their message;
- a version publishes the events of its commits whose guards held, in order, and nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.blobref import Ref
from fluxmpi.errors import BY_CODE, FluxmpiError, InvalidRequest, NoSuchBlob, NoSuchNamespace
from fluxmpi.kvs.wire import AddTo, Commit, CommitId, Committed, Contribution, RootInfo, Setroot
from fluxmpi.message import OK
from fluxmpi.simulator.checkers.model import NOTHING, Edit, Outcome, Tree, Walker, last_change
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.inspection.leader_log import LeaderLog, LoggedRequest

Asked = Commit | Contribution | AddTo
Touched = tuple[list[str], list[str]]
"""Keys that a transaction wrote, and that its guards looked at."""


@dataclass(slots=True)
class VersionState:
    """One version as it truly is."""

    version: int
    ref: Ref
    time: float
    tree: Tree
    commits: list[LoggedRequest] = field(default_factory=list)


class VersionStates:
    """``at(namespace, version)``; ``of(ref)``. ``problems``: where the leader's tree is not the truth."""

    def __init__(self, ledger: LeaderLog, asked: dict[CommitId, Asked], store: ArchivingStore) -> None:
        self.problems: list[str] = []
        self.applied: dict[CommitId, tuple[str, int]] = {}
        self.walker = Walker(store.ever.get)
        self.retention = ledger.retention
        self.newest_at = ledger.version_at
        self._asked = asked
        self.published = ledger.published
        self._events: list[tuple[str, bytes]] = []
        self._facts: dict[str, dict[int, VersionState]] = {}
        self._refused: dict[CommitId, int] = {}
        self._written: dict[int, list[str]] = {}
        self.by_ref: dict[Ref, VersionState] = {}
        for name, root in ledger.first.items():
            self._replay(name, root, ledger.entries[name], ledger.setroots[name])

    @property
    def names(self) -> list[str]:
        return list(self._facts)

    def at(self, namespace: str, version: int) -> VersionState | None:
        return self._facts.get(namespace, {}).get(version)

    def versions(self, namespace: str) -> list[VersionState]:
        return list(self._facts.get(namespace, {}).values())

    def written(self, fact: VersionState) -> list[str]:
        """The keys that a version wrote, links resolved."""
        return self._written.get(id(fact), [])

    # ------------------------------------------------------------------------------------------------------- replaying

    def _replay(self, name: str, root: RootInfo, entries: list[LoggedRequest], setroots: list[Setroot]) -> None:
        first = VersionState(root.version, root.ref, root.time, self.walker.tree(root.ref))
        self._facts[name] = {root.version: first}
        self.by_ref[root.ref] = first
        edit = Edit(first.tree, name, self.walker)
        made = {setroot.version: setroot for setroot in setroots}
        fact = first
        keys: list[Touched] = []
        for entry in entries:
            if entry.status == OK and entry.version == fact.version + 1 and self._begins(entry):
                self._seal(name, fact, edit, keys, made)
                keys = []
                setroot = made.get(entry.version)
                if setroot is None:
                    self.problems.append(f"replay: {entry} says version {entry.version}, which has no setroot")
                    return
                fact = self._facts[name][entry.version] = VersionState(entry.version, setroot.ref, setroot.time, {})
                self.by_ref.setdefault(setroot.ref, fact)
            keys += self._take(entry, fact, edit, keys)
        self._seal(name, fact, edit, keys, made)
        for version in made:
            if version not in self._facts[name]:
                self.problems.append(f"replay: version {version} of {name} holds no commit")

    def _begins(self, entry: LoggedRequest) -> bool:
        """Whether it is the first of its version."""
        if entry.adds is not None:
            others = {index for index, _, _ in entry.answer.others}
            return any(index not in others for index in range(len(entry.ids)))
        made = not isinstance(entry.answer, Committed) or entry.answer.succeeded
        return (made or self._has_else(entry)) and not self._known(entry)

    def _known(self, entry: LoggedRequest) -> bool:
        return any(commit_id in self.applied for commit_id in entry.ids)

    def _take(self, entry: LoggedRequest, fact: VersionState, edit: Edit, keys: list[Touched]) -> list[Touched]:
        """Apply one entry to the version under construction; the keys that it touched."""
        if entry.reset is not None:
            edit.tree = self.walker.tree(entry.reset)
            return []
        if entry.adds is not None:
            return self._adds(entry, fact, edit, keys)
        if self._known(entry):
            for commit_id in entry.ids:
                if entry.status == OK and self.applied.get(commit_id, ("", 0))[1] != entry.version:
                    was = self.applied.get(commit_id)
                    self.problems.append(f"once: {commit_id} was applied as {was}, and sent again is {entry.version}")
            return []
        refused = next((self._refused[commit_id] for commit_id in entry.ids if commit_id in self._refused), OK)
        if refused:
            if entry.status not in (refused, InvalidRequest.code):  # the latter: it was answered, and that acknowledged
                self.problems.append(
                    f"once: {entry} failed with {BY_CODE[refused].__name__}, and sent again has status {entry.status}"
                )
            return []
        # It referred to what was never here, or had been collected: for that, see ``keeper``. Or there was no such namespace,
        # and it was refused at once; sent again, when there is, it is told the same.
        if entry.status in (NoSuchBlob.code, NoSuchNamespace.code):
            self._refuse(entry, entry.status)
            return []
        asked = [self._asked[commit_id] for commit_id in entry.ids]
        try:
            outcome = edit.commit(self._one(entry, asked), lambda key: self._last_change(entry, fact, edit.tree, key))
        except FluxmpiError as error:
            if entry.status != error.code:
                self.problems.append(
                    f"replay: {entry} must fail: {type(error).__name__} {error}; status {entry.status}"
                )
            self._refuse(entry, error.code)
            return []
        if entry.status != OK:
            self.problems.append(
                f"replay: {entry} was refused with status {entry.status}, but nothing is wrong with it"
            )
            self._refuse(entry, entry.status)
            return []
        self._compare(entry, outcome, asked)
        if not outcome.made:
            if entry.version not in (fact.version, fact.version - 1):
                self.problems.append(
                    f"replay: {entry} did nothing, and says version {entry.version}, not {fact.version}"
                )
            self.applied.update((commit_id, (entry.namespace, entry.version)) for commit_id in entry.ids)
            return []
        return self._made(entry, outcome, fact, keys)

    def _made(self, entry: LoggedRequest, outcome: Outcome, fact: VersionState, keys: list[Touched]) -> list[Touched]:
        if entry.version != fact.version:
            self.problems.append(
                f"replay: {entry} is in version {entry.version}, after version {fact.version} was made"
            )
        for commit_id in entry.ids:
            self.applied[commit_id] = entry.namespace, entry.version
        fact.commits.append(entry)
        for written, read in keys:
            for key in outcome.keys:
                for other in written + read:
                    if _overlap(key, other):
                        self.problems.append(
                            f"merge: version {fact.version} has commits of {other} and {key} by {entry}"
                        )
            for key in outcome.read:
                for other in written:
                    if _overlap(key, other):
                        self.problems.append(
                            f"merge: version {fact.version} has {other} written and looked at by {entry}"
                        )
        return [(outcome.keys, outcome.read)]

    def _one(self, entry: LoggedRequest, asked: list[Asked]) -> Asked:
        """A fence is one transaction of all its contributions."""
        if entry.fence is None:
            return asked[0]
        return Contribution(entry.ids[0], [op for part in asked for op in part.ops])  # type: ignore[union-attr]

    def _last_change(self, entry: LoggedRequest, fact: VersionState, tree: Tree, key: str) -> tuple[int, bool]:
        """As of the version before the one that it is in, or the newest when it was answered; among those that are kept then."""
        answer = entry.answer
        made = isinstance(answer, Committed) and (answer.succeeded or self._has_else(entry))
        newest = answer.version - 1 if made else entry.newest
        if newest == fact.version:
            fact.tree = tree
        facts = self._facts[entry.namespace]
        kept = range(max(next(iter(facts)), newest - self.retention + 1), newest + 1)
        return last_change([facts[version] for version in kept], key) if key != "." else (newest, True)

    def _has_else(self, entry: LoggedRequest) -> bool:
        return bool(getattr(self._asked[entry.ids[0]], "otherwise", []))

    def _compare(self, entry: LoggedRequest, outcome: Outcome, asked: list[Asked]) -> None:
        """What the leader told, with what is right."""
        if isinstance(asked[0], Commit) and outcome.made and outcome.succeeded:
            self._events += asked[0].events
        answer = entry.answer
        if not isinstance(answer, Committed):
            return
        plain = self.walker.plain
        told = [(result.done, result.number, result.object and plain(result.object)) for result in answer.results]
        if all(one == NOTHING for one in told):
            told = []
        if (answer.succeeded, told) != (outcome.succeeded, outcome.results):
            self.problems.append(
                f"results: {entry} was told {answer.succeeded} {told}, and it is {outcome.succeeded} {outcome.results}"
            )

    def _adds(self, entry: LoggedRequest, fact: VersionState, edit: Edit, keys: list[Touched]) -> list[Touched]:
        """Combined additions, as if they came one by one, but in one version."""
        assert entry.adds is not None
        if entry.status != OK or entry.answer is None:
            return []
        others = {index: (status, body) for index, status, body in entry.answer.others}
        found: list[Outcome] = []
        for index, part in enumerate(entry.adds.parts):
            status = others.get(index, (OK, b""))[0]
            if part.id in self.applied or part.id in self._refused:
                if part.id in self.applied and index not in others and part.id not in entry.ids[:index]:
                    self.problems.append(f"once: {part.id} was added before, and again by {entry}")
                continue
            one = LoggedRequest(entry.namespace, [part.id], version=entry.version, status=status)
            try:
                outcome = edit.commit(self._asked[part.id], lambda key: (0, True))
            except FluxmpiError as error:
                if status != error.code:
                    self.problems.append(f"replay: {part.id} of {entry} must fail: {error}; status {status}")
                self._refuse(one, error.code)
                continue
            if status != OK:
                self.problems.append(
                    f"replay: {part.id} of {entry} was refused with {status}, but nothing is wrong with it"
                )
                continue
            if entry.answer.numbers[index] != outcome.results[0][1]:
                told = entry.answer.numbers[index]
                self.problems.append(f"results: {part.id} of {entry} was told {told}, not {outcome.results}")
            self.applied[part.id] = entry.namespace, entry.version
            found.append(outcome)
        if not found:
            return []
        one = LoggedRequest(entry.namespace, [], version=entry.version, adds=entry.adds)
        return self._made(one, found[0], fact, keys)

    def _refuse(self, entry: LoggedRequest, status: int) -> None:
        for commit_id in entry.ids:
            self._refused[commit_id] = status

    def _seal(self, name: str, fact: VersionState, edit: Edit, keys: list[Touched], made: dict[int, Setroot]) -> None:
        """The version is complete: compare it with the leader's."""
        fact.tree = edit.tree
        setroot = made.get(fact.version)
        if setroot is None:
            return
        if self.walker.tree(fact.ref) != edit.tree:
            self.problems.append(
                f"replay: version {fact.version} of {name} is not what its commits make:"
                f" {', '.join(map(str, fact.commits))}: {_difference(self.walker.tree(fact.ref), edit.tree)}"
            )
            edit.tree = fact.tree = self.walker.tree(fact.ref)
        touched = self._written[id(fact)] = [key for written, _ in keys for key in written]
        published, self._events = self._events, []
        if self.published.get((name, fact.version), []) != published:
            self.problems.append(
                f"events: version {fact.version} of {name} published {self.published.get((name, fact.version))}, not {published}"
            )
        if setroot.keys is not None and setroot.keys != touched:
            self.problems.append(
                f"replay: version {fact.version} of {name} names {setroot.keys}, and changed {touched}"
            )


def _overlap(key: str, other: str) -> bool:
    return key == other or "." in (key, other) or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _difference(real: Tree, plain: Tree, prefix: str = "") -> str:
    """The first place where two trees differ, for people."""
    for name in sorted({**real, **plain}):
        one, other = real.get(name), plain.get(name)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return _difference(one, other, f"{prefix}{name}.")
            return f"{prefix}{name} is {str(one)[:100]}, and must be {str(other)[:100]}"
    return "nothing"
