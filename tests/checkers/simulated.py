"""The simulator's histories in the common form: what its clients asked and were answered, and nothing of what it knows inside.

A key below another needs a directory there, and a value in the place of a directory removes what was below it: such steps are
written out, so that each key can be judged for itself. Links are not resolved: use workloads without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from checkers.linearizability import DIRECTORY
from checkers.record import Operation, Step
from checkers.replay import ANY, BLOB, below
from fluxmpi.errors import BY_CODE, IsADirectory, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.wire import Append, Mkdir, Op, Put, Unlink
from fluxmpi.message import MORE, OK
from fluxmpi.sim.client import UNSURE
from fluxmpi.sim.history import Answer, Call, History

ABSENT = (NoSuchKey.code, NotADirectory.code)


def operations(history: History) -> list[Operation]:
    keys = dict.fromkeys(op.key for ops in history.ops().values() for op in ops)
    found: list[Operation] = []
    for number, call in enumerate(history.calls):
        if call.topic in ("kvs.commit", "kvs.fence"):
            found.append(_commit(call, list(keys)))
        elif call.topic == "kvs.getroot":
            found += _root(call)
        elif call.topic == "kvs.get":
            found += _get(call)
        elif call.topic == "kvs.list":
            found += _list(call)
        elif call.topic == "kvs.watch":
            found += _watch(call, str(number))
    versions = {operation.ref: operation.version for operation in found if operation.ref and operation.version is not None}
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


def _commit(call: Call, keys: list[str]) -> Operation:
    ops: list[Op] = call.body.parts[0].ops if call.topic == "kvs.fence" else call.body.ops
    done = Operation(call.client, "commit", call.began, None, [step for op in ops for step in _steps(op, keys)])
    done.namespace = call.body.namespace
    done.fence = call.body.name if call.topic == "kvs.fence" else ""
    for answer in call.answers:
        if answer.status not in UNSURE:
            done.end, done.broker = answer.time, answer.rank
            if answer.status == OK:
                done.version, done.ref = answer.body.version, answer.body.ref.hex()
            else:
                done.error = BY_CODE[answer.status].__name__
            break
    return done


def _steps(op: Op, keys: list[str]) -> Iterator[Step]:
    key = op.key
    if isinstance(op, Unlink):
        yield from (Step("unlink", name) for name in keys if below(name, key))
        yield Step("unlink", key)
        return
    parts = key.split(".")
    yield from (Step("within", ".".join(parts[:count])) for count in range(1, len(parts)))
    if isinstance(op, Put):
        yield from (Step("unlink", name) for name in keys if below(name, key))
        yield Step("put", key, _value(op.object))
    elif isinstance(op, Append):
        yield Step("append", key, op.data.decode("latin-1"))
    elif isinstance(op, Mkdir):
        yield Step("within", key)


def _value(obj: Any) -> Any:
    if isinstance(obj, Dir):
        return DIRECTORY
    if isinstance(obj, ValRef):
        return BLOB + obj.refs[0].hex() if len(obj.refs) == 1 else ANY
    return obj.data.decode("latin-1") if isinstance(obj, Val) else None if obj is None else ANY


def _asked(call: Call, kind: str) -> Operation:
    done = Operation(call.client, kind, call.began, namespace=call.body.namespace)
    at = getattr(call.body, "at", None)
    if at is not None:
        done.at = True
        done.version, done.ref = (at, "") if isinstance(at, int) else (None, at.hex())
    return done


def _answers(call: Call, kind: str, status: tuple[int, ...]) -> Iterator[tuple[Operation, Answer]]:
    for answer in call.answers:
        if answer.status in status:
            done = _asked(call, kind)
            done.end, done.broker = answer.time, answer.rank
            yield done, answer


def refused(history: History) -> Iterator[Operation]:
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


def _root(call: Call) -> Iterator[Operation]:
    for done, answer in _answers(call, "root", (OK,)):
        done.version = answer.body.version if call.body.at is None else done.version
        done.ref, done.fresh = answer.body.ref.hex(), call.body.fresh
        done.least = call.body.at_least if call.body.at is None else 0
        yield done


def _get(call: Call) -> Iterator[Operation]:
    for done, answer in _answers(call, "read", (OK, IsADirectory.code, *ABSENT)):
        body = answer.body
        value: Any = None if answer.status in ABSENT else DIRECTORY
        if answer.status == OK:
            value = body.data.decode("latin-1") if body.data is not None else _value(body.object)
            done.ref = body.root.hex()
            done.version = body.version if call.body.at is None else done.version
        done.steps, done.results = [Step("get", call.body.key)], [value]
        yield done


def _list(call: Call) -> Iterator[Operation]:
    for done, answer in _answers(call, "read", (OK,)):
        prefix = "" if call.body.key == "." else f"{call.body.key}."
        done.ref = answer.body.root.hex()
        done.version = answer.body.version if call.body.at is None else done.version
        done.steps = [Step("get", f"{prefix}{name}") for name, _ in answer.body.entries]
        done.results = [_value(obj) for _, obj in answer.body.entries]
        yield done


def _watch(call: Call, stream: str) -> Iterator[Operation]:
    for done, answer in _answers(call, "watch", (MORE,)):
        done.version, done.ref, done.stream = answer.body.version, answer.body.root.hex(), stream
        done.pattern = f"{call.body.key}." if call.body.recursive and call.body.key != "." else call.body.key
        done.steps = [Step("get", change.key) for change in answer.body.changes]
        done.results = [[_value(change.object), change.existed] for change in answer.body.changes]
        yield done
