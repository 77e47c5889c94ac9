"""The plan of a run: what a seed decides about the instance, the links, the faults, and what clients do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import msgspec

from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT
from fluxmpi.simulator.cluster import Shape
from fluxmpi.simulator.network import LinkDelays

TOPOLOGIES = ("kary:2", "kary:1", "kary:3", "kary:16", "binomial", "flat")


@dataclass(frozen=True, slots=True)
class Faults:
    """Mean counts during a run, and times in seconds.

    ``old_setroots``: a broker receives an old setroot again, as from a new parent. It must change nothing.
    """

    pauses: float = 0.0
    pause_s: float = 0.1
    slows: float = 0.0
    old_setroots: float = 0.0
    resends: float = 0.0
    """Share of the commits and contributions that are sent again later."""
    quits: float = 0.0
    """Share of the clients whose process ends at some step."""
    fails: tuple[tuple[int, float], ...] = ()
    """Ranks in which a machine raises, with seconds after the start; not together with kills."""
    kills: tuple[tuple[int, float], ...] = ()
    """Ranks to kill, with seconds after the start. The first kill ends the instance."""
    stop_at: float | None = None
    """When the instance is shut down while clients work; not together with kills."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``steps``: requests of all clients together.

    ``mix``: see ``workload.request_mix``. ``window``: open requests per client.
    """

    seed: int
    shape: Shape
    faults: Faults
    clients: int
    steps: int
    mix: str = "everything"
    window: int = 4
    think_s: float = 0.001
    fences: int = 2
    abandoned_fences: int = 0
    """Fences that one member leaves before they are complete."""
    reference_steps: int = 0
    """Steps of the reference client, which works with versions and namespaces."""
    past_steps: int = 0
    """Steps of the past client, which reads values whose versions have gone."""
    rounds: int = 0
    """How often some clients pass one fence, under one name."""
    namespaces: tuple[str, ...] = field(default=("primary",))
    transactions: bool = False
    """Commits have guards and publish events, and there are atomic operations and combined additions, in any mix."""

    def rng(self, purpose: str) -> Random:
        """Return the random numbers for one purpose: what one part draws does not change what another one gets.

        A purpose is part of a seed's meaning: renaming one makes other runs of the seeds that found something.
        """
        return Random(f"{self.seed}/{purpose}")


ABANDONED = "abandoned"
"""Prefix of the names of fences that one member leaves."""

FENCE_CHANCE, REFERENCE_CHANCE = "deserted", "keeper"
"""Purposes (see ``Plan.rng``) of the abandoned fences and of the reference client, by their old names."""

PAST_CHANCE = "past values"
"""Purpose of the past client."""

COMMON = ("everything", "hot", "watchers", "links", "directories")

MIXES = (*COMMON, "fresh", "snapshots", "watched")


def plan_of(seed: int, ranks: int | None = None, steps: int | None = None, kill: int | None = None) -> Plan:
    """Return the plan of a seed; the other arguments replace parts of it."""
    rng = Random(f"{seed}/plan")
    return _replaced(_with_bounds(_with_retention(_drawn(seed, rng))), rng, ranks, steps, kill)


def _drawn(seed: int, rng: Random) -> Plan:
    size = rng.choice((1, 2, 3, 4, 5, 7, 8, 11, 16))
    mix = rng.choice(COMMON)
    mix = Random(f"{seed}/mix").choice((mix, mix, mix, mix, mix, *MIXES[len(COMMON) :]))
    kills = _kills(rng, size) if rng.random() < 0.12 else ()
    clients = rng.randint(1, 6)
    count = rng.choice((20, 50, 100, 200))
    shape = Shape(
        ranks=size,
        topology=rng.choice(TOPOLOGIES),
        algorithm=rng.choice(("sha256", "sha256", "sha1")),
        cache_bytes_max=rng.choice((200, 600, 2_000, 64 << 20)),
        nodes_max=rng.choice((4, 6, 16, 130, 16384)),
        command=rng.choice(((), (), ("sleep", "1000"), ("stubborn",))),
        checkpoint=rng.choice(("", "", "sim.h5")),
        segments_bytes_max=rng.choice((3_000, 10_000, 1 << 30)),
        disk_failures=rng.choice((0.0, 0.3)),
        delays=rng.choice(
            (LinkDelays(), LinkDelays(spikes=0.2), LinkDelays(slow_links=0.4), LinkDelays(delay_s=0.005, spikes=0.0))
        ),
    )
    faults = Faults(
        pauses=rng.choice((0.0, 1.0, 4.0)),
        pause_s=rng.choice((0.01, 0.1, 1.0)),
        slows=rng.choice((0.0, 2.0)),
        old_setroots=rng.choice((0.0, 3.0)),
        resends=rng.choice((0.0, 0.1, 0.5)),
        quits=rng.choice((0.0, 0.0, 0.3)),
        kills=kills,
        stop_at=rng.uniform(0.0, 0.1) if not kills and rng.random() < 0.08 else None,
    )
    plan = Plan(
        seed=seed,
        shape=shape,
        faults=faults,
        clients=clients,
        steps=count,
        mix=mix,
        window=rng.choice((1, 4, 16)),
        think_s=rng.choice((0.0002, 0.001, 0.005)),
        fences=rng.choice((0, 1, 4)),
        abandoned_fences=Random(f"{seed}/{FENCE_CHANCE}").choice((0, 0, 1, 3)),
        rounds=rng.choice((0, 0, 8)),
        namespaces=rng.choice((("primary",), ("primary",), ("primary", "work"))),
    )
    past_steps = Random(f"{seed}/{PAST_CHANCE}").choice((0, 0, 0, 40, 100))
    own = Random(f"{seed}/checkpoints")
    plan = replace(plan, shape=replace(shape, checkpoint_every_s=own.choice((0.0, 0.01, 0.05, 1.0))))
    if not kills and faults.stop_at is None and own.random() < 0.08:
        plan = replace(plan, faults=replace(faults, fails=((own.randrange(size), own.uniform(0.0, 0.1)),)))
    return replace(plan, transactions=Random(f"{seed}/transactions").random() < 0.5, past_steps=past_steps)


def _with_retention(plan: Plan) -> Plan:
    """Let some plans keep few versions, collect garbage often, and have a reference client."""
    keep = Random(f"{plan.seed}/keeping")
    if keep.random() < 0.6:
        shape = replace(
            plan.shape,
            retention=keep.choice((RETENTION_COUNT, 30, 6)),
            kvs=KvsLimits(
                gc=GcLimits(
                    bytes_min=keep.choice((300, 3_000, KVS_LIMITS.gc.bytes_min)),
                    grace_s=keep.choice((KVS_LIMITS.gc.grace_s, 2.0, 0.2)),
                    nodes_per_turn=keep.choice((1, 10, KVS_LIMITS.gc.nodes_per_turn)),
                )
            ),
        )
        plan = replace(plan, shape=shape, reference_steps=keep.choice((0, 40, 100)))
    return plan


def _with_bounds(plan: Plan) -> Plan:
    """Let some plans bound the history, or the store, in bytes, so that collections drop versions and commits fail."""
    rng = plan.rng("bounds")
    shape, gc = plan.shape, plan.shape.kvs.gc
    if rng.random() < 0.25:
        shape = replace(shape, history_bytes_max=rng.choice((1, 1_000, 5_000, 30_000)))
    if rng.random() < 0.2:
        shape = replace(shape, store_bytes_max=rng.choice((3_000, 20_000, 60_000, 200_000)))
        gc = msgspec.structs.replace(gc, pressed_grace_s=rng.choice((0.05, 1.0, gc.pressed_grace_s)))
    return replace(plan, shape=replace(shape, kvs=msgspec.structs.replace(shape.kvs, gc=gc)))


def _replaced(plan: Plan, rng: Random, ranks: int | None, steps: int | None, kill: int | None) -> Plan:
    """Replace the size, length and kill, and what depends on them."""
    if ranks is not None:
        shape = replace(plan.shape, ranks=ranks, check_every=max(8, ranks))
        kills = tuple((rank % ranks, at) for rank, at in plan.faults.kills)
        fails = tuple((rank % ranks, at) for rank, at in plan.faults.fails)
        faults = replace(plan.faults, kills=kills, fails=fails)
        plan = replace(plan, shape=shape, clients=min(32, 2 + ranks // 4), faults=faults)
    if steps is not None:
        later = max(1, steps / 100)
        kills = tuple((rank, at * later) for rank, at in plan.faults.kills)
        fails = tuple((rank, at * later) for rank, at in plan.faults.fails)
        stop_at = None if plan.faults.stop_at is None else plan.faults.stop_at * later
        plan = replace(plan, steps=steps, faults=replace(plan.faults, kills=kills, fails=fails, stop_at=stop_at))
    if kill is not None:
        plan = replace(
            plan, faults=replace(plan.faults, kills=((kill, rng.uniform(0.0, 0.1)),), fails=(), stop_at=None)
        )
    return plan


def _kills(rng: Random, ranks: int) -> tuple[tuple[int, float], ...]:
    """Return one rank, or also a second one, while the others detect the first loss or end."""
    first = rng.randrange(ranks), rng.uniform(0.0, 0.1)
    return (first,) if rng.random() < 0.7 else (first, (rng.randrange(ranks), rng.uniform(0.0, 15.0)))
