"""Processes that run the same task at the same time: one per URI, started once, used for many tasks.

A task is a module-level function ``task(uri, number, barrier, *args)``. ``Team.run`` returns the results, by number.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

RESULT_S = 120.0


class Team:
    """One process per URI, in a ``with`` block."""

    def __init__(self, uris: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(len(uris))
        self._pipes: list[Connection] = []
        self._processes = []
        for number, uri in enumerate(uris):
            ours, theirs = context.Pipe()
            process = context.Process(target=_member, args=(theirs, uri, number, self._barrier), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, task: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((task, args))
        results = []
        for number, pipe in enumerate(self._pipes):
            if not pipe.poll(RESULT_S):
                raise TimeoutError(f"process {number} of {len(self._pipes)} did not finish within {RESULT_S:g} s")
            result = pipe.recv()
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *exc: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.terminate()


def _member(pipe: Connection, uri: str, number: int, barrier: Any) -> None:
    while True:
        try:
            task, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(task(uri, number, barrier, *args))
        except Exception as error:
            barrier.abort()
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
