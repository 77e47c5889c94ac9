"""Whether what the clients saw is allowed: each function takes the history and the truth, and gives violations as texts.

    commits     every answer to one id is the same, and is the version that the truth says; a refused one changed nothing
    sessions    a client never reads an older version than it has read or written, at whatever broker
    reads       an answer is what its version says, and that version lies between those the broker had meanwhile
    watches     what each watch told (in ``watches``)
    events      one order for all, numbered without a gap, none missed between subscribing and the end
    fences      one commit for each, with the same version for all who contributed
    blobs       what is stored comes back, alone and as a value that is mapped

A call that was cut off (its broker died, its client left) may have no answer; what answers it has must be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fluxmpi.errors import (
    DigestMismatch,
    FenceBroken,
    FluxmpiError,
    InstanceEnding,
    InvalidRequest,
    IsADirectory,
    NoSuchKey,
    NotADirectory,
    RankLost,
    SnapshotCollected,
    VersionUnknown,
)
from fluxmpi.kvs.objects import Val, ValRef
from fluxmpi.kvs.wire import GetRequest, GetRoot, Got, Listed, ListRequest, Notification, RootInfo
from fluxmpi.message import MORE, OK
from fluxmpi.overlay.wire import Origin
from fluxmpi.simulator.checkers.model import Value, lookup
from fluxmpi.simulator.checkers.watches import watches
from fluxmpi.simulator.inspection.leader_log import LeaderLog
from fluxmpi.simulator.inspection.leader_replay import VersionState, VersionStates
from fluxmpi.simulator.plan import DESERTED
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, Transcript

NOT_HERE = (VersionUnknown.code, SnapshotCollected.code)

UNSURE = (RankLost.code, InstanceEnding.code)
"""What a call may end with when a rank was killed."""


def check_all(
    history: Transcript, truth: VersionStates, ledger: LeaderLog, digest: Callable[[bytes], bytes]
) -> list[str]:
    found = [*ledger.problems, *truth.problems]
    for checker in (commits, sessions, reads, watches, events, fences):
        found += checker(history, truth)
    found += fresh_roots(history, ledger)
    found += blobs(history, digest)
    return found


# ------------------------------------------------------------------------------------------------------------- commits


def commits(history: Transcript, truth: VersionStates) -> Iterator[str]:
    for call in history.of("kvs.commit", "kvs.fence", "kvs.add"):
        assert call.id is not None
        applied = truth.applied.get(call.id)
        roots = [answer.body for answer in call.answers if answer.status == OK]
        if any(root != roots[0] for root in roots):
            yield f"once: {call} was answered with different versions: {roots}"
        if roots:
            root: RootInfo = roots[0]
            if applied != (root.namespace, root.version):
                yield f"once: {call} was answered with version {root.version}, but was applied as {applied}"
            fact = truth.at(root.namespace, root.version)
            if fact is None or fact.ref != root.ref:
                yield f"commits: {call} was answered with version {root.version} and a root that it does not have"
        for index, answer in enumerate(call.answers):
            late = index and call.answers[0].status == OK and "was answered already" in str(answer.body)
            if answer.status > OK and answer.status not in UNSURE and not late and applied is not None:
                yield f"once: {call} was answered with error {answer.status} ({answer.body}), but applied as {applied}"


def sessions(history: Transcript, truth: VersionStates) -> Iterator[str]:
    """Independent of what the client's session believes: from the times at which answers came."""
    by_client: dict[str, list[tuple[float, int, str, int]]] = {}
    for call in history.calls:
        for answer in call.answers:
            for namespace, version in _versions(call, answer):
                by_client.setdefault(call.client, []).append((answer.time, id(answer), namespace, version))
    for seen in by_client.values():
        seen.sort(key=lambda entry: entry[0])
    for call in history.calls:
        best: dict[str, int] = {}
        for time, _, namespace, version in by_client.get(call.client, ()):
            if time >= call.began:
                break
            best[namespace] = max(version, best.get(namespace, 0))
        for answer in call.answers:
            for namespace, version in _versions(call, answer):
                if call.id is None and version < best.get(namespace, 0):
                    yield (
                        f"sessions: {call} was answered at rank {answer.rank} with version {version} of {namespace}:"
                        f" this client knew {best[namespace]}"
                    )


def _versions(call: ClientCall, answer: Answer) -> Iterator[tuple[str, int]]:
    """The version that an answer shows, if it was not asked for by name."""
    body = answer.body
    if answer.status not in (OK, MORE) or getattr(call.body, "at", None) is not None:
        return
    if isinstance(body, RootInfo):
        yield body.namespace, body.version
    elif isinstance(body, Notification):
        if call.body.after is None:
            yield body.namespace, body.version
    elif isinstance(body, Got | Listed):
        yield call.body.namespace, body.version


def fresh_roots(history: Transcript, ledger: LeaderLog) -> Iterator[str]:
    """``fresh`` means: at least what rank 0 had when the client asked; a wait ends at the version waited for."""
    for call in history.of("kvs.getroot"):
        for answer in call.answers:
            if answer.status != OK:
                continue
            ask: GetRoot = call.body
            least = ledger.version_at(ask.namespace, call.began - 1e-9) if ask.fresh else ask.at_least
            if ask.at is None and answer.body.version < least:
                yield f"reads: {call} was answered with version {answer.body.version}, less than {least}"
            if ask.at is not None and answer.body.version != ask.at:
                yield f"reads: {call} was answered with version {answer.body.version}"


# --------------------------------------------------------------------------------------------------------------- reads


def reads(history: Transcript, truth: VersionStates) -> Iterator[str]:
    for call in history.of("kvs.get", "kvs.list", "kvs.getroot"):
        for answer in call.answers:
            if answer.status in UNSURE:
                continue
            wrong = (
                _wrong_root(call, answer, truth) if call.topic == "kvs.getroot" else _wrong_read(call, answer, truth)
            )
            if wrong:
                yield f"reads: {call}, at rank {answer.rank} with versions {answer.low} to {answer.high}: {wrong}"


def _wrong_root(call: ClientCall, answer: Answer, truth: VersionStates) -> str:
    if answer.status != OK:
        namespace, at = call.body.namespace, call.body.at
        newest = truth.newest_at(namespace, answer.time)
        absent = at is not None and (at > answer.low.get(namespace, -1) or at <= newest - truth.retention)
        return "" if answer.status in NOT_HERE and absent else f"error {answer.status} {answer.body}"
    root: RootInfo = answer.body
    fact = truth.at(root.namespace, root.version)
    return "" if fact is not None and fact.ref == root.ref else f"version {root.version} has another root"


def _wrong_read(call: ClientCall, answer: Answer, truth: VersionStates) -> str:
    ask: GetRequest | ListRequest = call.body
    low, high = answer.low.get(ask.namespace, -1), answer.high.get(ask.namespace, -1)
    if answer.status == OK:
        fact = _fact_of(ask, answer.body, truth)
        if fact is None:
            return f"there is no version {answer.body.version} with root {answer.body.root.hex()[:12]}"
        if ask.at is None and not max(low, ask.at_least) <= answer.body.version <= high:
            return f"version {answer.body.version} is not one that the broker had meanwhile"
        return _compare(ask, answer.body, fact, truth)
    if ask.at is None:
        facts = [truth.at(ask.namespace, version) for version in range(max(low, ask.at_least), high + 1)]
    elif isinstance(ask.at, int):
        if answer.status in NOT_HERE and (ask.at > low or _gone(ask.namespace, ask.at, answer, truth)):
            return ""
        facts = [truth.at(ask.namespace, ask.at)]
    else:
        facts = [truth.by_ref.get(ask.at)]
        same = [fact.version for fact in truth.versions(ask.namespace) if fact.ref == ask.at]
        if answer.status == SnapshotCollected.code and all(
            _gone(ask.namespace, version, answer, truth) for version in same
        ):
            return ""
    if any(fact is not None and _status(ask, fact) == answer.status for fact in facts):
        return ""
    return f"error {answer.status} {answer.body}"


def _gone(namespace: str, version: int, answer: Answer, truth: VersionStates) -> bool:
    """Retention does not keep it any more, when this is answered."""
    return version <= truth.newest_at(namespace, answer.time) - truth.retention


def _fact_of(ask: GetRequest | ListRequest, body: Got | Listed, truth: VersionStates) -> VersionState | None:
    if isinstance(ask.at, bytes):
        return truth.by_ref.get(ask.at) if body.root == ask.at else None
    if isinstance(ask.at, int) and body.version != ask.at:
        return None
    fact = truth.at(ask.namespace, body.version)
    return fact if fact is not None and fact.ref == body.root else None


def _status(ask: GetRequest | ListRequest, fact: VersionState) -> int:
    """What this read must end with in this version."""
    try:
        thing, _ = lookup(fact.tree, ask.key, ask.follow if isinstance(ask, GetRequest) else True)
    except FluxmpiError as error:
        return error.code
    if thing is None:
        return NoSuchKey.code
    if isinstance(ask, ListRequest):
        return OK if isinstance(thing, dict) else NotADirectory.code
    return IsADirectory.code if ask.load and isinstance(thing, dict) else OK


def _compare(ask: GetRequest | ListRequest, body: Any, fact: VersionState, truth: VersionStates) -> str:
    status = _status(ask, fact)
    if status != OK:
        return f"an answer, but in version {fact.version} it must be error {status}"
    thing, _ = lookup(fact.tree, ask.key, ask.follow if isinstance(ask, GetRequest) else True)
    plain = truth.walker.plain
    if isinstance(ask, GetRequest):
        if plain(body.object) != thing:
            return f"{str(plain(body.object))[:100]}, but in version {fact.version} it is {str(thing)[:100]}"
        if not ask.load or not isinstance(thing, Value):
            return "" if body.data is None else "data that was not asked for"
        inline = isinstance(body.object, Val) or (isinstance(body.object, ValRef) and len(body.object.refs) < 2)
        return "" if body.data == (thing.data if inline else None) else "data that are not the object's"
    names = [name for name in sorted(thing) if name > ask.after and name.startswith(ask.prefix)]
    entries = [(name, plain(obj)) for name, obj in body.entries]
    if entries != [(name, thing[name]) for name in names[: ask.limit]]:
        return f"entries {[name for name, _ in entries]}, but in version {fact.version} they are {names}"
    return "" if body.more or len(names) <= ask.limit else "the end, but there is more"


# ---------------------------------------------------------------------------------------------------- events and fences


def events(history: Transcript, truth: VersionStates) -> Iterator[str]:
    known: dict[int, tuple[str, bytes]] = {}
    for call in history.of("event.publish"):
        for answer in call.answers:
            if answer.status == OK:
                if answer.body in known:
                    yield f"events: two have the number {answer.body}"
                known[answer.body] = call.body.topic, bytes(call.body.payload)
    for subscribed in history.subscriptions:
        for topic, seq, payload in subscribed.events:
            if known.setdefault(seq, (topic, payload)) != (topic, payload):
                yield f"events: {subscribed.call.client} got {topic} as number {seq}, which is {known[seq][0]}"
            yield from _wrong_origin(topic, payload, subscribed.snapshots[seq], truth)
    yield from _twice(history)
    for subscribed in history.subscriptions:
        started = [answer.body for answer in subscribed.call.answers if answer.status == OK]
        numbers = [seq for _, seq, _ in subscribed.events]
        if not started:
            continue
        ended = subscribed.ended or subscribed.call.cut
        last = (numbers[-1] if numbers else 0) if ended else max(known, default=0)
        right = [
            seq for seq in sorted(known) if started[0] < seq <= last and known[seq][0].startswith(subscribed.prefix)
        ]
        if numbers != right:
            yield (
                f"events: {subscribed.call.client} subscribed to '{subscribed.prefix}' after {started[0]} and got {numbers},"
                f" which must be {right}"
            )


def _wrong_origin(topic: str, payload: bytes, origin: Origin | None, truth: VersionStates) -> Iterator[str]:
    """An event that carries a snapshot was published by a commit of that version."""
    if origin is None:
        return
    namespace, version, ref, _ = origin
    fact = truth.at(namespace, version)
    if fact is None or fact.ref != ref or (topic, payload) not in truth.published.get((namespace, version), []):
        yield f"events: {topic} {payload!r} came with version {version} of {namespace}, which did not publish it"


def _twice(history: Transcript) -> Iterator[str]:
    """Each has a number of its own, and who hears all of them hears all numbers."""
    numbers: dict[tuple[str, bytes], int] = {}
    for subscribed in history.subscriptions:
        heard = [seq for _, seq, _ in subscribed.events]
        if not subscribed.prefix and heard != list(range(heard[0], heard[0] + len(heard)) if heard else ()):
            yield f"events: {subscribed.call.client} hears all, and heard {heard}"
        for topic, seq, payload in subscribed.events:
            if numbers.setdefault((topic, payload), seq) != seq:
                yield f"events: {topic} {payload!r} came as number {seq}, and as {numbers[topic, payload]}"


def fences(history: Transcript, truth: VersionStates) -> Iterator[str]:
    """By the first answers: one of another round, under the same name, comes from another version."""
    answers: dict[tuple[str, str], dict[int, list[ClientCall]]] = {}
    broken: dict[tuple[str, str], set[int]] = {}
    for call in history.of("kvs.fence"):
        known = [answer for answer in call.answers if answer.status not in UNSURE]
        broken.setdefault((call.body.namespace, call.body.name), set()).update(answer.status for answer in known[:1])
        if known:
            version = known[0].body.version if known[0].status == OK else 0
            answers.setdefault((call.body.namespace, call.body.name), {}).setdefault(version, []).append(call)
    for (namespace, name), statuses in broken.items():
        if FenceBroken.code in statuses and (not name.startswith(DESERTED) or len(statuses) > 1):
            yield f"fences: {name} of {namespace} broke for some: {sorted(statuses)}, or nobody had left it"
    for (namespace, name), outcomes in answers.items():
        for version, calls in outcomes.items():
            if len(calls) > calls[0].body.size:
                yield f"fences: {len(calls)} contributors of {name} of {namespace} were answered with version {version}"
        rounds = -(-sum(map(len, outcomes.values())) // next(iter(outcomes.values()))[0].body.size)
        if len(outcomes) > rounds:
            yield f"fences: {name} of {namespace} was answered in {len(outcomes)} ways in {rounds} rounds: {list(outcomes)}"


def blobs(history: Transcript, digest: Callable[[bytes], bytes]) -> Iterator[str]:
    for call in history.of("content.load", "content.store"):
        for answer in call.answers:
            if answer.status != OK:
                continue
            if call.topic == "content.load" and digest(answer.body) != call.body.ref:
                yield f"content: {call} gave another blob"
            if call.topic == "content.store" and answer.body.ref not in history.blobs:
                yield f"content: {call} gave a name that nobody's blob has"
    for call in history.of("value.map"):
        parts = [history.blobs.get(ref) for ref in call.body.refs]
        whole = None if None in parts else b"".join(part for part in parts if part is not None)
        right = whole is not None and len(whole) == call.body.size
        for answer in call.answers:
            if answer.status == OK and answer.body != whole:
                yield f"content: {call} gave another value"
            if answer.status == OK and not right:
                yield f"content: {call} gave a value that does not exist"
            if right and answer.status in (DigestMismatch.code, InvalidRequest.code):
                yield f"content: {call} was refused with '{answer.body}', and its blobs are stored"
