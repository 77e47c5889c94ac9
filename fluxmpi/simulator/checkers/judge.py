"""All checkers over one history.

``judge`` needs nothing but the history. ``judge_answers`` compares a history with versions that are known already, as
in the simulator, which computes them from the leader's log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fluxmpi.simulator.checkers import commits, linearizability, reads, sessions, snapshots, watches
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from fluxmpi.simulator.checkers.versions import VersionStates


def judge(history: Iterable[Operation]) -> list[str]:
    """Return the violations of a history of a store that was empty at version 0."""
    history = list(history)
    states = replay(history)
    return [
        *states.problems,
        *sessions.violations(history, states),
        *snapshots.violations(history, states),
        *watches.violations(history, states),
        *commits.violations(history, states),
        *linearizability.violations([*history, *linearizability.fresh_reads(history)]),
    ]


def judge_answers(
    history: Iterable[Operation],
    states: VersionStates,
    *,
    gaps: Collection[str] = (),
    keys: Collection[str] = (),
    queue_max: int = 0,
    abandoned: str | None = None,
) -> list[str]:
    """Return the violations of a history whose versions are known.

    ``gaps``: namespaces with versions that no commit made. ``keys``: namespaces that began empty and whose keys are
    independent (no links, no copied directories). ``queue_max``: see ``watches``. ``abandoned``: see ``commits``.
    """
    history = list(history)
    initial = {name: min(versions) for name, versions in states.namespaces.items()}
    found = [
        *commits.violations(history, states, abandoned),
        *sessions.violations(history, states),
        *reads.violations(history, states),
        *snapshots.violations(history, states),
        *watches.violations(history, states, queue_max),
        *linearizability.versions(history, initial=initial, gaps=gaps),
    ]
    independent = [operation for operation in history if operation.namespace in keys]
    return found + linearizability.keys([*independent, *linearizability.fresh_reads(independent)])
