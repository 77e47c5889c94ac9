"""One form for all histories: who asked what, from when to when, and what the answer was.

An operation is a list of ``Step``s that happened together, on keys of one namespace, and its answer. It has no ``end`` when
no answer came: then it may have happened at any time after ``start``, or never. One with an ``error`` has certainly changed
nothing.

A process writes its history with ``Writer``: a line before it asks and a line after it was answered, each in one write, so
that of a killed process everything is there that it knew. ``load`` reads many of them; CLOCK_MONOTONIC is one clock for all
processes of a host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

PRIMARY = "primary"

WRITES = ("put", "append", "unlink", "mkdir", "add", "exchange", "swap")
ANSWERS = ("get", "add", "exchange", "swap", "equals", "differs")
"""Steps that can be wrong; a key that has none of them cannot be."""

VALUED = ("put", "append", "add", "exchange", "swap", "equals", "differs")


class Step(msgspec.Struct, array_like=True, frozen=True):
    """``what``, on ``key``, with ``value``; its result, if it has one.

    ==========  ===========================================  =======================
    what        value                                        result
    ==========  ===========================================  =======================
    get                                                      the value, None: absent
    put         the new value
    append      text
    unlink
    mkdir
    add         the amount; ``limit``: only below it         [done, the number after]
    exchange    the new value                                the value before
    swap        the new value; ``expected``: the old one     [done, the value found]
    equals      what the key was found to be, by a guard
    differs     … and what it was found not to be
    within      the key was found to be a directory, or made one
    tree                                                     all that is below, by key
    ==========  ===========================================  =======================
    """

    what: str
    key: str
    value: Any = None
    expected: Any = None
    limit: int | None = None

    def __str__(self) -> str:
        told = f" {self.expected} → {self.value}" if self.what == "swap" else f" {self.value}"
        bound = "" if self.limit is None else f" below {self.limit}"
        return f"{self.what} {self.key}{told if self.what in VALUED else ''}{bound}"


class Operation(msgspec.Struct):
    """``kind``: commit, read (of ``steps`` that are gets), root (a version alone), or watch: one notification, whose ``start``
    is the watch's and ``end`` its own arrival.

    ``results``: one for each step; None when there was no answer. ``version`` and ``ref``: which the answer names. ``fresh``: it
    was asked for what is newest, and not only for what the broker has. ``at``: it was asked for by its number or root: such an
    answer says nothing of where the client stands. ``least``: the version that it was to wait for. ``fence``: contributions of
    one name are one transaction. ``stream``: which watch, and ``pattern``: of what, a key or, with a dot behind, all below it;
    a notification's results are [value, existed]; ``since``: the version that the watch goes on from. ``number``: its place in
    its process's history.
    """

    client: str
    kind: str
    start: float
    end: float | None = None
    steps: list[Step] = []
    results: list[Any] | None = None
    version: int | None = None
    namespace: str = PRIMARY
    broker: int = 0
    fresh: bool = False
    at: bool = False
    fence: str = ""
    error: str = ""
    ref: str = ""
    least: int = 0
    stream: str = ""
    pattern: str = ""
    since: int | None = None
    number: int = 0

    @property
    def answered(self) -> bool:
        return self.end is not None and not self.error

    @property
    def pending(self) -> bool:
        return self.end is None

    def result(self, index: int) -> Any:
        return self.results[index] if self.results is not None and index < len(self.results) else None

    def __str__(self) -> str:
        if self.kind == "root":
            did = f"{'fresh ' if self.fresh else ''}root"
        else:
            did = "; ".join(self._step(index, step) for index, step in enumerate(self.steps)) or self.kind
            did = f"fresh {did}" if self.fresh and self.kind == "read" else did
        end = "no answer" if self.end is None else f"{self.end * 1e3:.3f} ms"
        told = (
            f" = version {self.version}" if self.version is not None else f" = error {self.error}" if self.error else ""
        )
        return f"{self.client} at broker {self.broker} [{self.start * 1e3:.3f} … {end}] {did}{told}"

    def _step(self, index: int, step: Step) -> str:
        if self.results is None or step.what in ("put", "append", "unlink", "mkdir", "equals", "differs", "within"):
            return str(step)
        return f"{step} → {self.result(index)}"


class Writer:
    """One process's history, on its way into a file."""

    def __init__(self, path: str | Path, client: str) -> None:
        self.client = client
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encode = msgspec.json.Encoder().encode
        self._count = 0

    def begin(self, kind: str, steps: Iterable[Step] = (), **fields: Any) -> Operation:
        """Before it is asked."""
        self._count += 1
        operation = Operation(self.client, kind, time.monotonic(), steps=list(steps), number=self._count, **fields)
        self._write(operation)
        return operation

    def end(self, operation: Operation, **answer: Any) -> None:
        """After it was answered; whatever the answer has is set on the operation."""
        operation.end = time.monotonic()
        for name, value in answer.items():
            setattr(operation, name, value)
        self._write(operation)

    def _write(self, operation: Operation) -> None:
        os.write(self._file, self._encode(operation) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def load(paths: Iterable[Path]) -> list[Operation]:
    """The operations of all these files, in order of their starts. A line that a kill cut off counts as not written."""
    decode = msgspec.json.Decoder(Operation).decode
    operations: list[Operation] = []
    for path in paths:
        found: dict[int, Operation] = {}
        for line in path.read_bytes().splitlines():
            try:
                operation = decode(line)
            except msgspec.DecodeError:
                continue
            found[operation.number] = operation
        operations += found.values()
    return sorted(operations, key=lambda operation: operation.start)
