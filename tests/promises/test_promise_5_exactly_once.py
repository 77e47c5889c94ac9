"""Promise 5: every commit has an id; sent again, through any broker, answered or not, it is applied once."""

from __future__ import annotations

import pytest

from fluxmpi.kvs.leader.dedup import ClientResults
from fluxmpi.kvs.leader.fences import FenceGatherer
from fluxmpi.message import OK
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from promises.simulation import Break, Patch, kept, noticed

MIX = {"resends": 1.0, "fences": 3}


def judge(history: list[Operation]) -> list[str]:
    """Return where a version was made by no answered commit, or a text did not grow once by each append."""
    return replay(history).problems


def test_kept() -> None:
    made = [one for history in kept(judge, **MIX) for one in history if one.kind == "commit"]
    assert sum(one.answered and any(step.what == "append" for step in one.steps) for one in made) > 50
    assert sum(bool(one.fence) for one in made) > 50
    assert sum(bool(one.error) for one in made) > 20, "some are refused, however often they are sent"


def applied_commits_are_forgotten(patch: Patch) -> None:
    remember = ClientResults.remember
    patch(
        ClientResults,
        "remember",
        lambda self, serial, status, body: remember(self, serial, status, body) if status else None,
    )


def refused_commits_are_forgotten(patch: Patch) -> None:
    remember = ClientResults.remember
    patch(
        ClientResults, "remember",
        lambda self, serial, status, body: remember(self, serial, status, body) if status == OK else None,
    )  # fmt: skip


def a_contribution_counts_as_often_as_it_arrives(patch: Patch) -> None:
    patch(FenceGatherer, "_answer_known", lambda self, fence: [])


BREAKS: list[tuple[str, Break]] = [
    ("replay: ", applied_commits_are_forgotten),
    ("replay: no commit made version", refused_commits_are_forgotten),
    ("replay: no commit made version", a_contribution_counts_as_often_as_it_arrives),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning, **MIX)
