"""The truth: every version's tree, made by applying the ledger's commits, in their order, to plain dicts.

While it is made it is compared with what the leader made: each version's real tree, read blob by blob from rank 0's store,
must equal the plain one. On the way these rules are checked:

- a commit id is applied once; sent again it is answered with the same version, or fails as before;
- a commit that failed fails in the model with the same error, and changes nothing;
- two commits in one version touch different keys, none above or below another (so every value is some version's value);
- a version has at least one commit, and its setroot names exactly the keys that were touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.blobref import Ref
from fluxmpi.errors import BY_CODE, FluxmpiError, InvalidRequest, NoSuchBlob
from fluxmpi.kvs.wire import CommitId, Op, RootInfo, Setroot
from fluxmpi.message import OK
from fluxmpi.sim.archive import Archive
from fluxmpi.sim.ledger import Entry, Ledger
from fluxmpi.sim.model import Edit, Tree, Walker


@dataclass(slots=True)
class Fact:
    """One version as it truly is."""

    version: int
    ref: Ref
    time: float
    tree: Tree
    commits: list[Entry] = field(default_factory=list)


class Truth:
    """``at(namespace, version)``; ``of(ref)``. ``problems``: where the leader's tree is not the truth."""

    def __init__(self, ledger: Ledger, ops: dict[CommitId, list[Op]], store: Archive) -> None:
        self.problems: list[str] = []
        self.applied: dict[CommitId, tuple[str, int]] = {}
        self.walker = Walker(store.ever.get)
        self.retention = ledger.retention
        self.newest_at = ledger.version_at
        self._ops = ops
        self._facts: dict[str, dict[int, Fact]] = {}
        self._refused: dict[CommitId, int] = {}
        self._written: dict[int, list[str]] = {}
        self.by_ref: dict[Ref, Fact] = {}
        for name, root in ledger.first.items():
            self._replay(name, root, ledger.entries[name], ledger.setroots[name])

    @property
    def names(self) -> list[str]:
        return list(self._facts)

    def at(self, namespace: str, version: int) -> Fact | None:
        return self._facts.get(namespace, {}).get(version)

    def versions(self, namespace: str) -> list[Fact]:
        return list(self._facts.get(namespace, {}).values())

    def written(self, fact: Fact) -> list[str]:
        """The keys that a version wrote, links resolved."""
        return self._written.get(id(fact), [])

    # ------------------------------------------------------------------------------------------------------- replaying

    def _replay(self, name: str, root: RootInfo, entries: list[Entry], setroots: list[Setroot]) -> None:
        first = Fact(root.version, root.ref, root.time, self.walker.tree(root.ref))
        self._facts[name] = {root.version: first}
        self.by_ref[root.ref] = first
        edit = Edit(first.tree, name, self.walker)
        made = {setroot.version: setroot for setroot in setroots}
        fact = first
        keys: list[list[str]] = []
        for entry in entries:
            if entry.status == OK and entry.version == fact.version + 1 and not self._known(entry):
                self._seal(name, fact, edit, keys, made)
                keys = []
                setroot = made.get(entry.version)
                if setroot is None:
                    self.problems.append(f"replay: {entry} says version {entry.version}, which has no setroot")
                    return
                fact = self._facts[name][entry.version] = Fact(entry.version, setroot.ref, setroot.time, {})
                self.by_ref.setdefault(setroot.ref, fact)
            keys += self._take(entry, fact, edit, keys)
        self._seal(name, fact, edit, keys, made)
        for version in made:
            if version not in self._facts[name]:
                self.problems.append(f"replay: version {version} of {name} holds no commit")

    def _known(self, entry: Entry) -> bool:
        return any(commit_id in self.applied for commit_id in entry.ids)

    def _take(self, entry: Entry, fact: Fact, edit: Edit, keys: list[list[str]]) -> list[list[str]]:
        """Apply one entry to the version under construction; the keys that it touched."""
        if entry.reset is not None:
            edit.tree = self.walker.tree(entry.reset)
            return []
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
        if entry.status == NoSuchBlob.code:  # it referred to what was never here, or had been collected: for that, see ``keeper``
            self._refuse(entry, entry.status)
            return []
        try:
            ops = [op for commit_id in entry.ids for op in self._ops[commit_id]]
            touched = edit.apply(ops)
        except FluxmpiError as error:
            if entry.status != error.code:
                self.problems.append(f"replay: {entry} must fail: {type(error).__name__} {error}; status {entry.status}")
            self._refuse(entry, error.code)
            return []
        if entry.status != OK:
            self.problems.append(f"replay: {entry} was refused with status {entry.status}, but nothing is wrong with it")
            self._refuse(entry, entry.status)
            return []
        if entry.version != fact.version:
            self.problems.append(f"replay: {entry} is in version {entry.version}, after version {fact.version} was made")
        for commit_id in entry.ids:
            self.applied[commit_id] = entry.namespace, entry.version
        fact.commits.append(entry)
        for others in keys:
            for key in touched:
                for other in others:
                    if _overlap(key, other):
                        self.problems.append(f"merge: version {fact.version} has commits of {other} and {key} by {entry}")
        return [touched]

    def _refuse(self, entry: Entry, status: int) -> None:
        for commit_id in entry.ids:
            self._refused[commit_id] = status

    def _seal(self, name: str, fact: Fact, edit: Edit, keys: list[list[str]], made: dict[int, Setroot]) -> None:
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
        touched = self._written[id(fact)] = [key for commit in keys for key in commit]
        if setroot.keys is not None and setroot.keys != touched:
            self.problems.append(f"replay: version {fact.version} of {name} names {setroot.keys}, and changed {touched}")


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
