"""All checkers over one history."""

from __future__ import annotations

from checkers import linearizability, sessions
from checkers.record import Operation
from checkers.replay import replay, watches


def judge(history: list[Operation], fresh: list[Operation] | None = None) -> list[str]:
    """What is wrong with a history of a store that was empty at version 0. ``fresh``: fresh reads that it implies."""
    replayed = replay(history)
    return [
        *replayed.problems,
        *watches(history, replayed),
        *sessions.violations(history, replayed),
        *linearizability.violations([*history, *(fresh or ())]),
    ]
