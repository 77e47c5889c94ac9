"""Processes that do the same thing at the same time: one per URI, started once, run many times.

A task is a module's function ``task(uri, number, barrier, *args)``; ``Team.run`` gives what each returned, by number.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

ANSWER_S = 120.0


class Team:
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
        answers = []
        for number, pipe in enumerate(self._pipes):
            if not pipe.poll(ANSWER_S):
                raise TimeoutError(f"process {number} of {len(self._pipes)} did not answer within {ANSWER_S:g} s")
            answer = pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

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
