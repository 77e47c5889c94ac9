"""A transcript in the form of a history: what the simulated clients asked and were answered, for ``checkers``.

Atomic operations carry their results, and guards what they found: where a guard failed and there was no other branch,
the transaction was a fresh read of that key. ``plain`` resolves the objects of requests and answers (see
``from_wire``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fluxmpi.errors import (
    BY_CODE,
    InstanceEnding,
    IsADirectory,
    LinkLoop,
    NoSuchKey,
    NotADirectory,
    RankLost,
)
from fluxmpi.kvs.objects import Dir, Object, Val, ValRef
from fluxmpi.kvs.wire import GUARD_VERSION, Guard, KeyChange, WatchRequest
from fluxmpi.message import MORE, OK
from fluxmpi.simulator.checkers import from_wire
from fluxmpi.simulator.checkers.blobs import BlobAnswer
from fluxmpi.simulator.checkers.events import EventStream, ReceivedEvent
from fluxmpi.simulator.checkers.from_wire import Plain, named
from fluxmpi.simulator.checkers.history import DIRECTORY, ERROR, KeyStep, Operation, WatchOptions
from fluxmpi.simulator.checkers.watches import ENDED
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, Transcript

UNSURE = (RankLost.code, InstanceEnding.code)
"""Errors that do not say whether a request was executed."""

FOUND = {
    NoSuchKey.code: None,
    IsADirectory.code: DIRECTORY,
    NotADirectory.code: ERROR + NotADirectory.__name__,
    LinkLoop.code: ERROR + LinkLoop.__name__,
}
"""Errors that say what a key is."""


def operations(transcript: Transcript, plain: Plain = named) -> list[Operation]:
    """Return all commits, reads, roots and watches."""
    found: list[Operation] = []
    for number, call in enumerate(transcript.calls):
        if call.topic in ("kvs.commit", "kvs.fence", "kvs.add"):
            found += _commit(call, plain)
        elif call.topic == "kvs.watch":
            found += _watch(call, str(number), plain)
        elif call.topic in ("kvs.getroot", "kvs.get", "kvs.list"):
            found += _read(call, plain)
    versions = {
        operation.ref: operation.version for operation in found if operation.ref and operation.version is not None
    }
    for operation in found:
        if operation.at and operation.version is None:
            operation.version = versions.get(operation.ref)
    return found


# ------------------------------------------------------------------------------------------------------------- commits


def _commit(call: ClientCall, plain: Plain) -> list[Operation]:
    """Return the commit; one without an answer may have applied either branch, so it is a pending operation for each."""
    answers = [answer for answer in call.answers if answer.status not in UNSURE]
    done = Operation(call.client, "commit", call.began, namespace=call.body.namespace)
    if call.topic == "kvs.fence":
        done.fence, done.size = call.body.name, call.body.size
    if not answers:
        done.steps = _steps(call, True, plain)
        if not getattr(call.body, "otherwise", None):
            return [done]
        other = Operation(call.client, "commit", call.began, namespace=call.body.namespace)
        other.steps = _steps(call, False, plain)
        return [done, other]
    answer = answers[0]
    done.end, done.broker = answer.time, answer.rank
    succeeded = answer.status != OK or getattr(answer.body, "succeeded", True)
    done.steps = _steps(call, succeeded, plain)
    if answer.status != OK:
        done.error = BY_CODE[answer.status].__name__
    elif not succeeded and not call.body.otherwise:
        done.kind, done.fresh = "read", True
    else:
        done.version, done.ref = answer.body.version, answer.body.ref.hex()
        done.results = _results(done.steps, answer, plain)
    done.repeats = [_repeat(done, answer, again) for again in answers[1:]]
    return [done]


def _repeat(done: Operation, first: Answer, again: Answer) -> list[Any]:
    if again.status != OK:
        return [f"{BY_CODE[again.status].__name__}: {again.body}", None, "", None]
    if again.body == first.body:
        return [done.error, done.version, done.ref, done.results]
    return ["", again.body.version, again.body.ref.hex(), [str(again.body)]]


def _steps(call: ClientCall, succeeded: bool, plain: Plain) -> list[KeyStep]:
    """Return what the guards found, and the steps that were applied."""
    body = call.body
    if call.topic == "kvs.add":
        return [KeyStep("add", body.key, body.amount)]
    if call.topic == "kvs.fence":
        return [from_wire.step(op, plain) for op in body.parts[0].ops]
    ops = body.ops if succeeded else body.otherwise
    found: list[KeyStep] = []
    if succeeded or len(body.guards) == 1:  # of several, it is not known which one failed
        found = [step for guard in body.guards for step in _found(guard, succeeded, plain)]
    return found + [from_wire.step(op, plain) for op in ops]


def _found(guard: Guard, succeeded: bool, plain: Plain) -> Iterator[KeyStep]:
    """Yield that a value is, or is not, this one; other guards say less about a single key."""
    if guard.what == GUARD_VERSION:
        return
    step = from_wire.guard(guard, plain)
    if step.what in ("equals", "differs"):
        what = step.what if succeeded else "differs" if step.what == "equals" else "equals"
        yield KeyStep(what, step.key, step.value)


def _results(steps: list[KeyStep], answer: Answer, plain: Plain) -> list[Any]:
    given = list(getattr(answer.body, "results", []))
    guards = sum(step.what in ("equals", "differs") for step in steps)
    if len(given) != len(steps) - guards:
        return [None] * len(steps) if not given else [None] * guards + given
    return [None] * guards + [from_wire.result(*pair, plain) for pair in zip(steps[guards:], given, strict=True)]


# --------------------------------------------------------------------------------------------------------------- reads


def _read(call: ClientCall, plain: Plain) -> Iterator[Operation]:
    """Yield one operation per answer; a read at a version that was never answered is pending."""
    at = getattr(call.body, "at", None)
    if not call.answers and at is not None and not call.cut:
        yield _asked(call)
    for answer in call.answers:
        if answer.status in UNSURE:
            continue
        done = _asked(call)
        done.end, done.broker = answer.time, answer.rank
        done.window = _window(call.body.namespace, answer)
        if answer.status != OK and answer.status not in FOUND:
            done.error = BY_CODE[answer.status].__name__
        elif call.topic == "kvs.getroot":
            _root(done, call, answer)
        else:
            step, result = _got(call, answer, plain) if call.topic == "kvs.get" else _listed(call, answer, plain)
            done.steps, done.results = [step], [result]
            if answer.status == OK:
                _version(done, at, answer.body.version, answer.body.root.hex())
        yield done


def _asked(call: ClientCall) -> Operation:
    kind = "root" if call.topic == "kvs.getroot" else "read"
    done = Operation(call.client, kind, call.began, namespace=call.body.namespace)
    at = call.body.at
    if at is None:
        done.least = call.body.at_least
    else:
        done.at = True
        done.version, done.ref = (at, "") if isinstance(at, int) else (None, at.hex())
        done.asked = done.ref
    return done


def _window(namespace: str, answer: Answer) -> tuple[int, int]:
    return answer.low.get(namespace, -1), answer.high.get(namespace, -1)


def _version(done: Operation, at: int | bytes | None, version: int, ref: str) -> None:
    """Take the version and root of an answer.

    One with another number than was asked for has a root that no version has.
    """
    done.ref = ref
    if at is None:
        done.version = version
    elif isinstance(at, int) and version != at:
        done.ref = f"{ref} of version {version}"


def _root(done: Operation, call: ClientCall, answer: Answer) -> None:
    done.fresh = call.body.fresh
    _version(done, call.body.at, answer.body.version, answer.body.ref.hex())


def _got(call: ClientCall, answer: Answer, plain: Plain) -> tuple[KeyStep, Any]:
    """Return the step with its result; an answer that contradicts itself or the request has an error as its result."""
    body, ask = answer.body, call.body
    step = KeyStep("get" if ask.follow else "look", ask.key)
    if answer.status != OK:
        wrong = answer.status == IsADirectory.code and not ask.load
        return step, f"{ERROR}a directory was asked for" if wrong else FOUND[answer.status]
    obj, data = body.object, body.data
    if ask.load and isinstance(obj, Dir):
        return step, f"{ERROR}a directory has no value"
    inline = ask.load and (isinstance(obj, Val) or (isinstance(obj, ValRef) and len(obj.refs) < 2))
    if inline is not (data is not None):
        return step, f"{ERROR}data that was not asked for, or none"
    whole = plain(obj)
    if data is None:
        return step, whole
    loaded = from_wire.value(obj.type, data)
    return step, loaded if plain is named or loaded == whole else f"{ERROR}data that is not the object's"


def _listed(call: ClientCall, answer: Answer, plain: Plain) -> tuple[KeyStep, Any]:
    ask = call.body
    step = KeyStep("list", ask.key, [ask.prefix, ask.after, ask.limit])
    if answer.status != OK:
        return step, FOUND[answer.status]
    return step, [{name: plain(obj) for name, obj in answer.body.entries}, answer.body.more]


# ------------------------------------------------------------------------------------------------------------- watches


def _watch(call: ClientCall, stream: str, plain: Plain) -> Iterator[Operation]:
    """Yield the watch itself, and each notification; the parts of one notification are one operation."""
    ask: WatchRequest = call.body
    end = next((answer for answer in call.answers if answer.status != MORE), None)
    options = WatchOptions(
        ask.key, ask.at_least, ask.recursive, ask.follow, ask.glob, ask.after, ask.latest, ask.count, ask.uniq,
        ask.initial, ask.wait, drained=not call.cut, cancelled=call.cancelled,
    )  # fmt: skip
    if end is not None and end.status in UNSURE:
        options.drained = False
    elif end is not None:
        options.ending = ENDED if end.status == OK else BY_CODE[end.status].__name__
        options.ending_text = str(end.body)
    watching = Operation(call.client, "watching", call.began, namespace=ask.namespace, stream=stream, options=options)
    watching.window = None if end is None else _window(ask.namespace, end)
    notifications = [answer for answer in call.answers if answer.status == MORE]
    if call.progress_after is not None:
        later = [answer.body for answer in call.answers[call.progress_after :] if answer.status == MORE]
        options.progress = [body.version for body in later if not body.changes and not body.more]
    pattern = f"{ask.key}." if ask.recursive and ask.key != "." else ask.key
    changes: list[Any] = []
    before: Any = None
    found: list[Operation] = []
    for answer in notifications:
        body = answer.body
        if before is not None and before.more and before.version != body.version:
            options.contradiction = (
                f"version {before.version} was sent in part, and then version {body.version} arrived"
            )
        before = body
        changes += body.changes
        options.contradiction = next(filter(None, map(_wrong_appends, body.changes)), options.contradiction)
        if body.more:
            continue
        found.append(
            Operation(
                call.client, "watch", call.began, answer.time, [KeyStep("get", change.key) for change in changes],
                [_change(change, plain) for change in changes], body.version, ask.namespace, answer.rank,
                at=ask.after is not None, ref=body.root.hex(), stream=stream, pattern=pattern, after=ask.after,
            )
        )  # fmt: skip
        changes = []
    yield watching
    yield from found


def _wrong_appends(change: KeyChange) -> str:
    """Return what is wrong with the appends of a change: together with the old value they are the new one."""
    if not change.appends:
        return ""
    before, after = _text_size(change.old), _text_size(change.object)
    if before is None or after is None or after == before + sum(change.appends):
        return ""
    return f"{change.key} had {before} bytes, was appended {change.appends}, and has {after}"


def _change(change: KeyChange, plain: Plain) -> list[Any]:
    new, old = (None if obj is None else plain(obj) for obj in (change.object, change.old))
    return [new, change.existed, old]


def _text_size(obj: Object | None) -> int | None:
    """Return the bytes of a value that an append follows; None if they must be read first."""
    if isinstance(obj, Val):
        text = obj.type == "json" and obj.data.startswith(b'"')
        return len(msgspec.json.decode(obj.data).encode()) if text else len(obj.data)
    if isinstance(obj, ValRef):
        return obj.size if obj.type == "raw" else None
    return 0


# ----------------------------------------------------------------------------------------------------- events and blobs


def published(transcript: Transcript) -> list[ReceivedEvent]:
    """Return the events that were published by request, with the numbers that were answered."""
    return [
        ReceivedEvent(call.body.topic, answer.body, bytes(call.body.payload))
        for call in transcript.of("event.publish")
        for answer in call.answers
        if answer.status == OK
    ]


def event_streams(transcript: Transcript) -> list[EventStream]:
    return [
        EventStream(
            one.call.client,
            one.prefix,
            next((answer.body for answer in one.call.answers if answer.status == OK), None),
            [ReceivedEvent(topic, seq, payload, one.snapshots[seq]) for topic, seq, payload in one.events],
            one.ended or one.call.cut,
        )
        for one in transcript.subscriptions
    ]


def blob_answers(transcript: Transcript) -> Iterator[BlobAnswer]:
    for call in transcript.of("content.load", "content.store", "value.map"):
        what = call.topic.rpartition(".")[2]
        refs = [call.body.ref] if what == "load" else call.body.refs if what == "map" else []
        size = call.body.size if what == "map" else 0
        for answer in call.answers:
            ok = answer.status == OK
            data = b"" if not ok else answer.body.ref if what == "store" else answer.body
            error = "" if ok else BY_CODE[answer.status].__name__
            yield BlobAnswer(call.client, what, refs, size, data, error, "" if ok else str(answer.body))
