"""Apply the leader's log to the model, in the log's order, and compare each version with the tree in rank 0's store.

These rules are checked on the way:

- a commit id is applied once; sent again, it gets the same version, or fails as before;
- a commit that failed fails in the model with the same error, and changes nothing;
- two commits in one version touch different keys, none above or below another, so every value is some version's value;
- a version has at least one commit, and its setroot names exactly the keys that were written;
- guards decide by the state just before their transaction, and nothing else in its version touches their keys;
- results are those of applying the operations one by one; of combined additions, in the order of their message;
- a version publishes the events of its commits whose guards held, in order, and no others.

The result, ``states``, is what ``checkers`` compare the clients' answers with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fluxmpi.errors import (
    BY_CODE,
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    NoSuchNamespace,
    SnapshotCollected,
    StoreFull,
)
from fluxmpi.kvs.wire import AddTo, Commit, CommitId, Committed, Contribution, RootInfo, Setroot
from fluxmpi.message import OK
from fluxmpi.simulator.checkers import from_wire
from fluxmpi.simulator.checkers.from_wire import BlobReader
from fluxmpi.simulator.checkers.model import ModelStore, ModelTransaction, Outcome, Tree, last_change
from fluxmpi.simulator.checkers.versions import VersionState, VersionStates
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.inspection.leader_log import LeaderLog, LoggedRequest

Asked = Commit | Contribution | AddTo
KeysOfTransaction = tuple[list[str], list[str]]
"""The keys that a transaction wrote, and those of its guards."""


@dataclass(slots=True)
class _Building:
    """The version under construction."""

    namespace: str
    state: VersionState
    store: ModelStore
    keys: list[KeysOfTransaction] = field(default_factory=list)
    commits: list[LoggedRequest] = field(default_factory=list)
    events: list[tuple[str, bytes]] = field(default_factory=list)


class LeaderReplay:
    """``states``: the versions, with ``problems``.

    ``applied``: commit ids to the namespace and version that applied them.
    """

    def __init__(self, log: LeaderLog, asked: dict[CommitId, Asked], store: ArchivingStore) -> None:
        self.states = VersionStates(complete=True, newest_at=log.version_at, retention=log.shape.retained_min)
        self._bounded = log.shape.retained_min < log.shape.retention
        """Collections drop versions, whose number the replay does not know."""
        self._excused = (StoreFull.code,) if log.shape.small_store else ()
        """Errors with which the leader may refuse anything."""
        self.problems = self.states.problems
        self.applied: dict[CommitId, tuple[str, int]] = {}
        self.blobs = BlobReader(store.ever.get)
        self.published = log.published
        self._asked = asked
        self._refused: dict[CommitId, int] = {}
        for name, root in log.first.items():
            self._replay(name, root, log.requests[name], log.setroots[name])

    # ------------------------------------------------------------------------------------------------------- replaying

    def _replay(self, name: str, root: RootInfo, requests: list[LoggedRequest], setroots: list[Setroot]) -> None:
        tree = self.blobs.tree(root.ref)
        making = _Building(name, VersionState(root.version, root.ref.hex(), tree), ModelStore(tree, name))
        self.states.add(name, making.state)
        made = {setroot.version: setroot for setroot in setroots}
        for request in requests:
            version = request.version
            if request.status == OK and version == making.state.version + 1 and self._begins(request):
                self._seal(making, made)
                setroot = made.get(version)
                if setroot is None:
                    self.problems.append(f"replay: {request} says version {version}, which has no setroot")
                    return
                making = _Building(name, VersionState(version, setroot.ref.hex(), {}), making.store)
                self.states.add(name, making.state)
            self._take(request, making)
        self._seal(making, made)
        for version in made:
            if self.states.at(name, version) is None:
                self.problems.append(f"replay: version {version} of {name} holds no commit")

    def _begins(self, request: LoggedRequest) -> bool:
        """Return whether it is the first of its version."""
        if request.adds is not None:
            others = {index for index, _, _ in request.answer.others}
            return any(index not in others for index in range(len(request.ids)))
        made = not isinstance(request.answer, Committed) or request.answer.succeeded
        return (made or self._has_else(request)) and not self._known(request)

    def _known(self, request: LoggedRequest) -> bool:
        return any(commit_id in self.applied for commit_id in request.ids)

    def _has_else(self, request: LoggedRequest) -> bool:
        return bool(getattr(self._asked[request.ids[0]], "otherwise", []))

    def _take(self, request: LoggedRequest, making: _Building) -> None:
        """Apply one request to the version under construction."""
        if request.reset is not None:
            making.store.tree = self.blobs.tree(request.reset)
        elif request.adds is not None:
            self._adds(request, making)
        elif self._known(request):
            self._again(request)
        elif not self._refused_again(request):
            self._commit(request, making)

    def _again(self, request: LoggedRequest) -> None:
        for commit_id in request.ids:
            was = self.applied.get(commit_id)
            if request.status == OK and (was or ("", 0))[1] != request.version:
                self.problems.append(f"once: {commit_id} was applied as {was}, and sent again is {request.version}")

    def _refused_again(self, request: LoggedRequest) -> bool:
        """Return whether it was refused before: then it must fail in the same way."""
        refused = next((self._refused[commit_id] for commit_id in request.ids if commit_id in self._refused), OK)
        if not refused:
            return False
        if request.status not in (refused, InvalidRequest.code):  # the latter: it was answered, and that acknowledged
            self.problems.append(
                f"once: {request} failed with {BY_CODE[refused].__name__}, and sent again has status {request.status}"
            )
        return True

    def _commit(self, request: LoggedRequest, making: _Building) -> None:
        # NoSuchBlob: it referred to a blob that was never stored, or is collected; the reference client checks those.
        # NoSuchNamespace: it was refused at once; sent again when the namespace exists, it gets the same answer.
        # SnapshotCollected: a guard on a version that a collection has dropped.
        dropped = request.status == SnapshotCollected.code and self._bounded
        if dropped or request.status in (NoSuchBlob.code, NoSuchNamespace.code, *self._excused):
            self._refuse(request, request.status)
            return
        asked = [self._asked[commit_id] for commit_id in request.ids]
        transactions = [from_wire.transaction(one, self.blobs.plain_or_missing) for one in asked]
        whole = transactions[0]
        if request.fence is not None:  # one transaction of all contributions
            whole = ModelTransaction([step for one in transactions for step in one.steps])
        tree = making.store.tree
        try:
            outcome = making.store.commit(whole, lambda key: self._last_change(request, making.state, tree, key))
        except FluxmpiError as error:
            if request.status != error.code:
                self.problems.append(
                    f"replay: {request} must fail: {type(error).__name__} {error}; status {request.status}"
                )
            self._refuse(request, error.code)
            return
        if request.status != OK:
            self.problems.append(
                f"replay: {request} was refused with status {request.status}, but nothing is wrong with it"
            )
            self._refuse(request, request.status)
            return
        if isinstance(asked[0], Commit) and outcome.made and outcome.succeeded:
            making.events += asked[0].events
        self._compare_results(request, outcome, whole)
        if outcome.made:
            self._made(request, outcome, making)
            return
        if request.version not in (making.state.version, making.state.version - 1):
            self.problems.append(
                f"replay: {request} did nothing, and says version {request.version}, not {making.state.version}"
            )
        self.applied.update((commit_id, (request.namespace, request.version)) for commit_id in request.ids)

    def _made(self, request: LoggedRequest, outcome: Outcome, making: _Building) -> None:
        version = making.state.version
        if request.version != version:
            self.problems.append(f"replay: {request} is in version {request.version}, after version {version} was made")
        for commit_id in request.ids:
            self.applied[commit_id] = request.namespace, request.version
        making.commits.append(request)
        for written, read in making.keys:
            for key in outcome.keys:
                for other in written + read:
                    if _overlap(key, other):
                        self.problems.append(f"merge: version {version} has commits of {other} and {key} by {request}")
            for key in outcome.read:
                for other in written:
                    if _overlap(key, other):
                        self.problems.append(f"merge: version {version} writes {other}, and {request} guards it")
        making.keys.append((outcome.keys, outcome.read))

    def _last_change(self, request: LoggedRequest, state: VersionState, tree: Tree, key: str) -> tuple[int, bool]:
        """Return the last change of a key before the request's version, or before its answer.

        Only versions that were kept then count.
        """
        answer = request.answer
        made = isinstance(answer, Committed) and (answer.succeeded or self._has_else(request))
        newest = answer.version - 1 if made else request.newest
        if newest == state.version:
            state.tree = tree
        versions = self.states.namespaces[request.namespace]
        first = next(iter(versions))
        kept = range(first if self._bounded else max(first, newest - self.states.retention + 1), newest + 1)
        return last_change([versions[version] for version in kept], key) if key != "." else (newest, True)

    def _compare_results(self, request: LoggedRequest, outcome: Outcome, asked: ModelTransaction) -> None:
        answer = request.answer
        if not isinstance(answer, Committed):
            return
        steps = asked.steps if outcome.succeeded else asked.otherwise
        right = outcome.results
        results: list[Any] = [None] * len(right)
        if answer.results and len(answer.results) == len(steps):
            plain = self.blobs.plain
            results = [from_wire.result(*pair, plain) for pair in zip(steps, answer.results, strict=True)]
        elif answer.results:
            results = list(answer.results)
        if (answer.succeeded, results) != (outcome.succeeded, right):
            self.problems.append(
                f"results: {request} was answered {answer.succeeded} {results}, and it is {outcome.succeeded} {right}"
            )

    def _adds(self, request: LoggedRequest, making: _Building) -> None:
        """Apply combined additions, as if they arrived one by one, but in one version."""
        assert request.adds is not None
        if request.status != OK or request.answer is None:
            return
        others = {index: (status, body) for index, status, body in request.answer.others}
        found: list[Outcome] = []
        for index, part in enumerate(request.adds.parts):
            status = others.get(index, (OK, b""))[0]
            if part.id in self.applied or part.id in self._refused:
                if part.id in self.applied and index not in others and part.id not in request.ids[:index]:
                    self.problems.append(f"once: {part.id} was added before, and again by {request}")
                continue
            if status in self._excused:
                self._refused[part.id] = status
                continue
            asked = from_wire.transaction(self._asked[part.id], self.blobs.plain)
            try:
                outcome = making.store.commit(asked, lambda key: (0, True))
            except FluxmpiError as error:
                if status != error.code:
                    self.problems.append(f"replay: {part.id} of {request} must fail: {error}; status {status}")
                self._refused[part.id] = error.code
                continue
            if status != OK:
                self.problems.append(
                    f"replay: {part.id} of {request} was refused with {status}, but nothing is wrong with it"
                )
                continue
            number = request.answer.numbers[index]
            if number != outcome.results[0][1]:
                self.problems.append(f"results: {part.id} of {request} was answered {number}, not {outcome.results}")
            self.applied[part.id] = request.namespace, request.version
            found.append(outcome)
        if found:
            one = LoggedRequest(request.namespace, [], version=request.version, adds=request.adds)
            self._made(one, found[0], making)

    def _refuse(self, request: LoggedRequest, status: int) -> None:
        for commit_id in request.ids:
            self._refused[commit_id] = status

    def _seal(self, making: _Building, made: dict[int, Setroot]) -> None:
        """Compare a complete version with the leader's."""
        name, state, plain = making.namespace, making.state, making.store.tree
        state.tree = plain
        setroot = made.get(state.version)
        if setroot is None:
            return
        where = f"version {state.version} of {name}"
        real = self.blobs.tree(setroot.ref)
        if real != plain:
            commits = ", ".join(map(str, making.commits))
            self.problems.append(f"replay: {where} is not what its commits make: {commits}: {_difference(real, plain)}")
            making.store.tree = state.tree = real
        written = state.written = [key for keys, _ in making.keys for key in keys]
        published = self.published.get((name, state.version), [])
        if published != making.events:
            self.problems.append(f"events: {where} published {published}, not {making.events}")
        if setroot.keys is not None and setroot.keys != written:
            self.problems.append(f"replay: {where} names {setroot.keys}, and changed {written}")


def _overlap(key: str, other: str) -> bool:
    return key == other or "." in (key, other) or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _difference(real: Tree, plain: Tree, prefix: str = "") -> str:
    """Return the first place where two trees differ, for people."""
    for name in sorted({**real, **plain}):
        one, other = real.get(name), plain.get(name)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return _difference(one, other, f"{prefix}{name}.")
            return f"{prefix}{name} is {str(one)[:100]}, and must be {str(other)[:100]}"
    return "nothing"
