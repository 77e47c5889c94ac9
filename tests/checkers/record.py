"""A process writes its history with ``Writer``.

It writes one line before each request and one after the answer, each in one write.

So the history of a killed process is complete. ``load`` reads many of them. CLOCK_MONOTONIC is one clock for all
processes of a host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from fluxmpi.simulator.checkers.history import KeyStep, Operation


class Writer:
    """Writes the history of one process to a file."""

    def __init__(self, path: str | Path, client: str) -> None:
        self.client = client
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encode = msgspec.json.Encoder().encode
        self._count = 0

    def begin(self, kind: str, steps: Iterable[KeyStep] = (), **fields: Any) -> Operation:
        """Record a request before it is sent."""
        self._count += 1
        operation = Operation(self.client, kind, time.monotonic(), steps=list(steps), number=self._count, **fields)
        self._write(operation)
        return operation

    def end(self, operation: Operation, **answer: Any) -> None:
        """Record its answer: ``answer`` are the fields of the operation that it sets."""
        operation.end = time.monotonic()
        for name, value in answer.items():
            setattr(operation, name, value)
        self._write(operation)

    def _write(self, operation: Operation) -> None:
        os.write(self._file, self._encode(operation) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def load(paths: Iterable[Path]) -> list[Operation]:
    """Return the operations of these files in order of their starts.

    A line that a kill cut off counts as not written.
    """
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
