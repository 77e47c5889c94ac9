"""Run the cases: a registry of broken rules, the plan that each case needs, and the two assertions about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX, GcLimits, MvccLimits
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT
from fluxmpi.kvs.mvcc.space import UNBOUNDED
from fluxmpi.simulator.plan import Faults, Plan, plan_of
from fluxmpi.simulator.run import run

SEEDS = 40
"""Tried at most until a broken rule is noticed. Most cases need one or two."""

Patch = Callable[[type, str, object], None]
BreakRule = Callable[[Patch], None]


@dataclass(frozen=True)
class Case:
    """``noticed``: the beginnings of the violations that show it. ``wanted``: what the runs must be like."""

    noticed: str | tuple[str, ...]
    break_rule: BreakRule
    wanted: dict[str, Any]


class Cases:
    """The cases of one module, by name."""

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def case(self, noticed: str | tuple[str, ...], **plan: object) -> Callable[[BreakRule], BreakRule]:
        """Register the decorated function, which breaks the rule."""

        def register(break_rule: BreakRule) -> BreakRule:
            self._cases[break_rule.__name__.replace("_", " ")] = Case(noticed, break_rule, plan)
            return break_rule

        return register

    def plans(self) -> list[str]:
        """One name of a case for each different plan."""
        return list({repr(case.wanted): name for name, case in reversed(self._cases.items())}.values())[::-1]

    def tests(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return the module's two tests; call it behind the last case."""

        @pytest.mark.parametrize("name", list(self))
        def noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
            self.assert_noticed(name, monkeypatch)

        @pytest.mark.parametrize("plan", self.plans())
        def clean(plan: str) -> None:
            self.assert_clean(plan)

        return noticed, clean

    def assert_noticed(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fail unless one of the first SEEDS seeds reports the broken rule."""
        case = self._cases[name]
        case.break_rule(monkeypatch.setattr)  # type: ignore[arg-type]
        others: dict[str, int] = {}
        for seed in range(SEEDS):
            for violation in run(plan_for(seed, case.wanted)).violations:
                if violation.startswith(case.noticed):
                    return
                others[violation[:60]] = seed
        pytest.fail(f"{SEEDS} seeds did not notice it; what they noticed: {others}")

    def assert_clean(self, name: str) -> None:
        """Fail if the case's plan has violations while no rule is broken: then ``assert_noticed`` would prove nothing."""
        for seed in range(2):
            assert run(plan_for(seed, self._cases[name].wanted)).violations == []


def plan_for(seed: int, wanted: dict[str, Any]) -> Plan:
    """Return a seed's plan with what the case needs: several brokers, enough steps, and only the faults it asks for."""
    plan = plan_of(seed, steps=200)
    gc = (
        GcLimits(bytes_min=300, grace_s=2.0, nodes_per_turn=wanted.get("nodes", 1))
        if "retention" in wanted
        else GcLimits()
    )
    limits = KvsLimits(gc=gc, mvcc=MvccLimits(checkpoint_nodes_per_turn=wanted.get("checkpoint_nodes", 100)))
    shape = replace(
        plan.shape,
        ranks=7,
        topology="kary:2",
        algorithm="sha256",
        command=(),
        checkpoint="sim.h5",
        checkpoint_every_s=wanted.get("checkpoint_every", 0.0),
        disk_failures=0.0,
        cache_bytes_max=wanted.get("cache", 64 << 20),
        nodes_max=4 if "cache" in wanted else 16384,
        retention=wanted.get("retention", RETENTION_COUNT),
        history_bytes_max=HISTORY_BYTES_MAX,
        store_bytes_max=UNBOUNDED,
        kvs=limits,
    )
    faults = Faults(
        pauses=1.0,
        old_setroots=wanted.get("old_setroots", 0.0),
        resends=wanted.get("resends", 0.0),
        kills=wanted.get("kills", ()),
        fails=wanted.get("fails", ()),
    )
    return replace(
        plan,
        shape=shape,
        faults=faults,
        mix=wanted.get("mix", "everything"),
        transactions="transactions" in wanted,
        clients=5,
        fences=wanted.get("fences", 0),
        rounds=0,
        namespaces=wanted.get("namespaces", plan.namespaces),
        reference_steps=200 if "retention" in wanted else 0,
        past_steps=wanted.get("past", 0),
        abandoned_fences=wanted.get("abandoned_fences", 0),
    )
