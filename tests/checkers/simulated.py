"""The simulator's histories in the common form: what its clients asked and were answered, and nothing of what it knows inside.

Atomic operations come with their results, and guards with what they found: where one failed, and nothing else was asked for, the
transaction was a fresh read of that key.

A key below another needs a directory there, and a value in the place of a directory removes what was below it: such steps are
written out, so that each key can be judged for itself. Links are not resolved: use workloads without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from checkers.linearizability import ANY, BLOB, DIRECTORY
from checkers.record import Operation, Step
from checkers.replay import below
from fluxmpi.errors import BY_CODE, IsADirectory, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    Add,
    Append,
    Exchange,
    Guard,
    Mkdir,
    Op,
    OpResult,
    Put,
    Swap,
    Unlink,
    WatchRequest,
)
from fluxmpi.message import MORE, OK
from fluxmpi.simulator.workload.client import UNSURE
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, Transcript

TELLING = ("add", "exchange", "swap")
"""Steps of operations that have results."""

ABSENT = (NoSuchKey.code, NotADirectory.code)


def operations(history: Transcript) -> list[Operation]:
    keys = dict.fromkeys(op.key for ops in history.ops().values() for op in ops)
    found: list[Operation] = []
    for number, call in enumerate(history.calls):
        if call.topic in ("kvs.commit", "kvs.fence", "kvs.add"):
            found.append(_commit(call, list(keys)))
        elif call.topic == "kvs.getroot":
            found += _root(call)
        elif call.topic == "kvs.get":
            found += _get(call)
        elif call.topic == "kvs.list":
            found += _list(call)
        elif call.topic == "kvs.watch" and _tells_all(call.body):
            found += _watch(call, str(number))
    versions = {
        operation.ref: operation.version for operation in found if operation.ref and operation.version is not None
    }
    for operation in found:
        if operation.at and operation.version is None:
            operation.version = versions.get(operation.ref)
    return found


def fresh_reads(found: list[Operation]) -> list[Operation]:
    """Who was told the newest version, and reads at it, reads freshly: as of the moment at which it was told. What others read
    of that version counts as well, since they cannot have read anything else.
    """
    read: dict[tuple[str, int], dict[Step, Any]] = {}
    for operation in found:
        if operation.kind == "read" and operation.version is not None and operation.answered:
            told = read.setdefault((operation.namespace, operation.version), {})
            told.update((step, operation.result(index)) for index, step in enumerate(operation.steps))
    made = []
    for root in found:
        told = read.get((root.namespace, root.version or 0))
        if root.kind == "root" and root.fresh and root.answered and told:
            for step, result in told.items():
                if result != ANY and not str(result).startswith(BLOB):
                    made.append(
                        Operation(
                            root.client, "read", root.start, root.end, [step], [result], root.version, root.namespace,
                            root.broker, fresh=True,
                        )
                    )  # fmt: skip
    return made


# --------------------------------------------------------------------------------------------------------------- calls


def _commit(call: ClientCall, keys: list[str]) -> Operation:
    answer = next((answer for answer in call.answers if answer.status not in UNSURE), None)
    root = answer.body if answer is not None and answer.status == OK else None
    guards, ops = _asked_for(call, getattr(root, "succeeded", True))
    done = Operation(call.client, "commit", call.began, steps=guards, namespace=call.body.namespace)
    results: list[Any] = [None] * len(guards)
    told = getattr(root, "results", [])
    for index, op in enumerate(ops):
        # A swap that puts nothing there needs no directory.
        inside = not isinstance(op, Swap) or bool(op.object is not None and told and told[index].done)
        steps = list(_steps(op, keys, inside))
        done.steps = [*done.steps, *steps]
        results += [_result(op, told[index]) if told and step.what in TELLING else None for step in steps]
    done.fence = call.body.name if call.topic == "kvs.fence" else ""
    if answer is not None:
        done.end, done.broker = answer.time, answer.rank
        if root is None:
            done.error = BY_CODE[answer.status].__name__
        elif not getattr(root, "succeeded", True) and not ops:
            done.kind, done.fresh = "read", True
        else:
            done.version, done.ref, done.results = root.version, root.ref.hex(), results
    return done


def _asked_for(call: ClientCall, succeeded: bool) -> tuple[list[Step], list[Op]]:
    """What the guards found, and the operations that were applied."""
    if call.topic == "kvs.add":
        return [], [Add(call.body.key, call.body.amount)]
    if call.topic == "kvs.fence":
        return [], call.body.parts[0].ops
    guards = [step for guard in call.body.guards for step in _guard(guard, succeeded)]
    # Of several, nobody knows which one failed.
    return guards if succeeded or len(
        call.body.guards
    ) == 1 else [], call.body.ops if succeeded else call.body.otherwise


def _guard(guard: Guard, succeeded: bool) -> Iterator[Step]:
    """That a value is, or is not, this one; other guards say less of a single key."""
    if guard.what == GUARD_VALUE and guard.compare in ("==", "!="):
        yield Step("equals" if (guard.compare == "==") is succeeded else "differs", guard.key, _value(guard.operand))
    elif guard.what == GUARD_EXISTS:
        yield Step("differs" if (guard.operand is (guard.compare == "==")) is succeeded else "equals", guard.key)


def _result(op: Op, told: OpResult) -> Any:
    if isinstance(op, Add):
        return [told.done, told.number]
    if isinstance(op, Swap):
        return [told.done, _value(told.object)]
    return _value(told.object) if isinstance(op, Exchange) else None


def _steps(op: Op, keys: list[str], inside: bool) -> Iterator[Step]:
    """``inside``: what is above the key is a directory then."""
    key = op.key
    if isinstance(op, Unlink):
        yield from (Step("unlink", name) for name in keys if below(name, key))
        yield Step("unlink", key)
        return
    parts = key.split(".") if inside else []
    yield from (Step("within", ".".join(parts[:count])) for count in range(1, len(parts)))
    if isinstance(op, Put):
        yield from (Step("unlink", name) for name in keys if below(name, key))
        yield Step("put", key, _value(op.object))
    elif isinstance(op, Append):
        yield Step("append", key, op.data.decode("latin-1"))
    elif isinstance(op, Add):
        yield Step("add", key, op.amount, limit=op.limit)
    elif isinstance(op, Exchange):
        yield Step("exchange", key, _value(op.object))
        yield from (Step("unlink", name) for name in keys if below(name, key))
    elif isinstance(op, Swap):
        yield Step("swap", key, _value(op.object), _value(op.expected))
    elif isinstance(op, Mkdir):
        yield Step("within", key)


def _value(obj: Any) -> Any:
    if isinstance(obj, Dir):
        return DIRECTORY
    if isinstance(obj, ValRef):
        return BLOB + obj.refs[0].hex() if len(obj.refs) == 1 else ANY
    if isinstance(obj, Val):
        return _data(obj.type, obj.data)
    return None if obj is None else ANY


def _data(type_: str, data: bytes) -> Any:
    """A json integer is a number, all else a text."""
    number = type_ == "json" and data.removeprefix(b"-").isdigit()
    return int(data) if number else data.decode("latin-1")


def _asked(call: ClientCall, kind: str) -> Operation:
    done = Operation(call.client, kind, call.began, namespace=call.body.namespace)
    at = getattr(call.body, "at", None)
    if at is not None:
        done.at = True
        done.version, done.ref = (at, "") if isinstance(at, int) else (None, at.hex())
    return done


def _answers(call: ClientCall, kind: str, status: tuple[int, ...]) -> Iterator[tuple[Operation, Answer]]:
    for answer in call.answers:
        if answer.status in status:
            done = _asked(call, kind)
            done.end, done.broker = answer.time, answer.rank
            yield done, answer


def refused(history: Transcript) -> Iterator[Operation]:
    """Reads at a version or root that ended with an error of their own, or with no answer at all."""
    for call in history.of("kvs.getroot", "kvs.get", "kvs.list"):
        if call.body.at is not None and not call.cut:
            done = _asked(call, "read")
            if call.answers:
                answer = call.answers[0]
                done.end, done.broker = answer.time, answer.rank
                done.error = "" if answer.status == OK else BY_CODE[answer.status].__name__
            if not call.answers or done.error:
                yield done


def _root(call: ClientCall) -> Iterator[Operation]:
    for done, answer in _answers(call, "root", (OK,)):
        done.version = answer.body.version if call.body.at is None else done.version
        done.ref, done.fresh = answer.body.ref.hex(), call.body.fresh
        done.least = call.body.at_least if call.body.at is None else 0
        yield done


def _get(call: ClientCall) -> Iterator[Operation]:
    for done, answer in _answers(call, "read", (OK, IsADirectory.code, *ABSENT)):
        body = answer.body
        value: Any = None if answer.status in ABSENT else DIRECTORY
        if answer.status == OK:
            value = _value(body.object) if body.data is None else _data(body.object.type, body.data)
            done.ref = body.root.hex()
            done.version = body.version if call.body.at is None else done.version
        done.steps, done.results = [Step("get", call.body.key)], [value]
        yield done


def _list(call: ClientCall) -> Iterator[Operation]:
    for done, answer in _answers(call, "read", (OK,)):
        prefix = "" if call.body.key == "." else f"{call.body.key}."
        done.ref = answer.body.root.hex()
        done.version = answer.body.version if call.body.at is None else done.version
        done.steps = [Step("get", f"{prefix}{name}") for name, _ in answer.body.entries]
        done.results = [_value(obj) for _, obj in answer.body.entries]
        yield done


def _tells_all(watch: WatchRequest) -> bool:
    """From what is there, or from a version on, every version. Others: ``fluxmpi.simulator.checkers.watches``."""
    return (watch.initial or watch.after is not None) and watch.uniq and not (watch.glob or watch.latest)


def _watch(call: ClientCall, stream: str) -> Iterator[Operation]:
    """Parts of one notification are one; those without changes, but the first, tell nothing."""
    parts: list[Any] = []
    begun = False
    for done, answer in _answers(call, "watch", (MORE,)):
        parts += answer.body.changes
        if answer.body.more or not (parts or not begun):
            continue
        changes, parts, begun = parts, [], True
        done.version, done.ref, done.stream = answer.body.version, answer.body.root.hex(), stream
        done.since, done.at = call.body.after, call.body.after is not None
        done.pattern = f"{call.body.key}." if call.body.recursive and call.body.key != "." else call.body.key
        done.steps = [Step("get", change.key) for change in changes]
        done.results = [[_value(change.object), change.existed] for change in changes]
        yield done
