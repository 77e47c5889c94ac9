"""One run: from a plan to a report.

    start ─▶ clients work, faults are injected ─▶ all clients done ─▶ idle? ─▶ shutdown ─▶ all ended? ─▶ judgement
                          ├── the instance is shut down during that ────────────────▶ all ended? ────┤
                          └── a rank is killed, or fails ─▶ all others ended, with the reason? ─────────┘

At the end, a broker starts from each checkpoint file that there is, also after everything was killed.

A violation is a text. A broken assertion in a broker counts as one, and ends the run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from fluxmpi.blobref import digest_function
from fluxmpi.kvs.objects import Link, Val, split_key
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import SavedNamespace
from fluxmpi.message import Message, control
from fluxmpi.simulator.cluster import Cluster
from fluxmpi.simulator.inspection import end_state
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.inspection.leader_log import LeaderLog
from fluxmpi.simulator.inspection.monitor import Monitor
from fluxmpi.simulator.judgement import judge_run
from fluxmpi.simulator.plan import ABANDONED, FENCE_CHANCE, PAST_CHANCE, REFERENCE_CHANCE, Plan
from fluxmpi.simulator.schedule import START
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.fence_leaver import FenceLeaver, fence_leavers
from fluxmpi.simulator.workload.load_generator import LoadGenerator, load_generators
from fluxmpi.simulator.workload.past_client import PastClient
from fluxmpi.simulator.workload.reference_client import ReferenceClient
from fluxmpi.simulator.workload.transcript import Transcript

PATIENCE_S = 120.0
"""Virtual seconds that the clients may take beside their think time. After that, something hangs."""

SETTLE_S = 600.0
"""Maximum time from the end of the clients until the instance is idle: watchers may lag far behind on slow links."""

STUCK_S = 20.0
"""If no blob was loaded for so long, what is left is stuck."""

GRACE_S_MAX = 10.0
"""With a longer grace period, a run does not wait until all stored blobs may be collected."""

END_S = 60.0
"""From a shutdown or kill until every broker has ended: heartbeats must be missed, and each level may wait for its
children.
"""


@dataclass(slots=True)
class RunReport:
    """The result of a run. ``numbers`` are statistics for people."""

    plan: Plan
    digest: str = ""
    violations: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.violations


class Run:
    """One instance with its clients, faults and checkers. ``trace`` None: digest only."""

    def __init__(self, plan: Plan, trace: Trace | None = None) -> None:
        self.plan = plan
        self.trace = trace or Trace()
        self.transcript = Transcript()
        self.monitor = Monitor()
        self.faults = plan.rng("faults")
        store, restored = _restored(plan)
        self.cluster = Cluster(plan.shape, plan.rng("world"), self.trace, restored, store)
        self.cluster.observer = self.monitor
        leader = self.cluster.nodes[0].broker.leader
        assert leader is not None
        self.leader_log = LeaderLog(leader, plan.shape)
        self.drivers: list[LoadGenerator | FenceLeaver | ReferenceClient] = []
        self.references: list[ReferenceClient] = []
        self._setroots: dict[int, list[Message]] = {}

    def report(self) -> RunReport:
        """Execute the whole plan."""
        report = RunReport(self.plan)
        try:
            report.violations += self._go()
        except Exception as problem:
            where = "".join(traceback.format_exception(problem)[-4:])
            report.violations.append(f"broken: {type(problem).__name__}: {problem}\n{where}")
        report.violations[:0] = self.monitor.violations
        report.digest = self.trace.digest
        report.numbers = self._numbers()
        return report

    def _go(self) -> list[str]:
        plan, cluster = self.plan, self.cluster
        cluster.start()
        rng = plan.rng("places")
        clients = [
            Client(f"c{index}", cluster, self.monitor, self.transcript, rng.randrange(plan.shape.ranks))
            for index in range(plan.clients)
        ]
        working = load_generators(clients, plan)
        self.drivers = [*working, *fence_leavers(working, plan, self._fence_leaver), *self._reference_clients()]
        for driver in self.drivers:
            driver.act()
        self._plan_faults()
        limit = cluster.now + PATIENCE_S + plan.steps * plan.think_s * 10
        found: list[str] = []
        if plan.faults.kills or plan.faults.fails:
            for rank, at in plan.faults.kills:
                cluster.schedule.at(START + at, partial(cluster.kill, rank))
            for rank, at in plan.faults.fails:
                cluster.schedule.at(START + at, partial(cluster.fail, rank))
            first = (*plan.faults.kills, *plan.faults.fails)[0][1]
            cluster.schedule.run(START + first + END_S, lambda: cluster.ended)
        elif plan.faults.stop_at is not None:
            cluster.schedule.run(START + plan.faults.stop_at)
            self.shut_down()
        elif cluster.schedule.run(limit, self._done):
            found += self.settle()
            found += end_state.complete_trees(cluster)
            found += self._collect()
            self.shut_down()
        else:
            found += [f"hang: no answer after {cluster.now - START:.0f} s: {call}" for call in self._open()]
        cluster.schedule.run(cluster.now + 1.0)  # the clients notice it
        found += end_state.all_ended(cluster, [node.rank for node in cluster.nodes if not node.alive], self._status())
        found += end_state.complete_files(cluster)
        found += end_state.restartable_files(cluster, self.leader_log)
        for reference in self.references:
            found += reference.violations
        return found + judge_run(self.transcript, self.leader_log, cluster)

    def settle(self) -> list[str]:
        """Wait until the instance is idle twice in a row, since a message may be between two brokers.

        Return what is not idle at the end.
        """
        cluster, end = self.cluster, self.cluster.now + SETTLE_S
        moved, loads, before = cluster.now, -1, True
        while True:
            cluster.schedule.run(cluster.now + 1.0)
            left = list(end_state.idle(cluster, self.leader_log.incomplete_fences))
            if self.monitor.loads != loads:
                moved, loads = cluster.now, self.monitor.loads
            if cluster.now >= min(end, moved + STUCK_S) or not (left or before):
                return left
            before = bool(left)

    def _fence_leaver(self, number: int) -> Client:
        rank = self.plan.rng(f"{FENCE_CHANCE}{number}/rank").randrange(self.plan.shape.ranks)
        return Client(f"{ABANDONED}{number}", self.cluster, self.monitor, self.transcript, rank)

    def _reference_clients(self) -> list[ReferenceClient]:
        """Return the clients that work with versions, if the plan has any."""
        plan = self.plan
        if plan.reference_steps:
            self._add_reference(ReferenceClient, REFERENCE_CHANCE, ("reference", "reader"), plan.reference_steps)
        if plan.past_steps:
            self._add_reference(PastClient, PAST_CHANCE, ("past", "past reader"), plan.past_steps)
        return self.references

    def _add_reference(self, kind: type[ReferenceClient], purpose: str, names: tuple[str, str], steps: int) -> None:
        rank = self.plan.rng(f"{purpose}/rank").randrange(self.plan.shape.ranks)
        writer = Client(names[0], self.cluster, self.monitor, self.transcript, rank)
        reader = Client(names[1], self.cluster, self.monitor, Transcript(), rank)
        self.references.append(kind(writer, reader, self.plan, steps))

    def _collect(self) -> list[str]:
        """Run a last collection: it must leave what is reachable and nothing else."""
        cluster, grace_s = self.cluster, self.plan.shape.kvs.gc.grace_s
        if grace_s > GRACE_S_MAX:
            return []
        cluster.schedule.run(cluster.now + grace_s)
        client = Client("collector", cluster, self.monitor, self.transcript, self.plan.shape.ranks - 1)
        call = client.call("gc.run", None)
        cluster.schedule.run(cluster.now + 10.0, lambda: call.done)
        return list(end_state.only_reachable(cluster)) if call.done else [f"hang: {call}"]

    def _done(self) -> bool:
        return all(driver.done for driver in self.drivers)

    def _open(self) -> list[str]:
        calls = [str(call)[:300] for driver in self.drivers for call in driver.client.open.values()]
        return calls or [
            f"{driver.client.name} has {driver.steps} steps left" for driver in self.drivers if not driver.done
        ]

    def shut_down(self) -> None:
        """Request the shutdown, and wait for it."""
        client = Client("last", self.cluster, self.monitor, self.transcript, self.plan.shape.ranks - 1)
        client.shutdown()
        self.cluster.schedule.run(self.cluster.now + END_S, lambda: self.cluster.ended)

    def _status(self) -> int:
        """Return the expected exit status: 0, unless the last checkpoint could not be written."""
        return int(self.cluster.nodes[0].disk.failed_last.get(self.plan.shape.checkpoint, False))

    # ------------------------------------------------------------------------------------------------------- faults

    def _plan_faults(self) -> None:
        """Schedule faults at random times while the clients work."""
        faults, rng = self.plan.faults, self.faults
        span = self.plan.steps / max(1, self.plan.clients) * self.plan.think_s + 0.02
        for mean, inject in (
            (faults.pauses, self._pause),
            (faults.slows, self._slow),
            (faults.old_setroots, self._old_setroot),
        ):
            for _ in range(round(rng.random() * 2 * mean)):
                self.cluster.schedule.after(rng.random() * span, partial(self._inject, inject))

    def _inject(self, inject: Callable[[], None]) -> None:
        if not self._done():
            inject()

    def _pause(self) -> None:
        rank = self.faults.randrange(self.plan.shape.ranks)
        self.cluster.pause(rank, self.faults.expovariate(1 / self.plan.faults.pause_s) % 3.0)

    def _slow(self) -> None:
        ranks = self.plan.shape.ranks
        if ranks > 1:
            child = self.faults.randrange(1, ranks)
            parent = self.cluster.nodes[child].broker.router.parent
            ends = (child, parent) if self.faults.random() < 0.5 else (parent, child)
            self.cluster.network.slow(*ends, self.faults.random() * 0.5)

    def _old_setroot(self) -> None:
        """Deliver an old setroot again, from the parent."""
        ranks, made = self.plan.shape.ranks, self.leader_log.setroots["primary"]
        if ranks > 1 and made:
            rank = self.faults.randrange(1, ranks)
            node = self.cluster.nodes[rank]
            version = node.broker.statistics()["kvs"]["version"]
            old = [setroot for setroot in made if setroot.version <= version]
            if old and node.up:
                self.cluster.inject(rank, node.broker.router.parent, control("kvs.setroot", self.faults.choice(old)))

    # ------------------------------------------------------------------------------------------------------- numbers

    def _numbers(self) -> dict[str, float]:
        calls = self.transcript.calls
        return {
            "virtual_s": self.cluster.now - START,
            "steps": sum(node.steps for node in self.cluster.nodes),
            "batches": self.trace.batches,
            "calls": len(calls),
            "resent": sum(call.sent - 1 for call in calls),
            "versions": sum(len(made) for made in self.leader_log.setroots.values()),
            "commits": sum(len(entries) for entries in self.leader_log.requests.values()),
            "refused": sum(entry.status > 0 for entries in self.leader_log.requests.values() for entry in entries),
            "notifications": sum(len(call.answers) for call in self.transcript.of("kvs.watch")),
            "events": sum(len(subscribed.events) for subscribed in self.transcript.subscriptions),
            "loads": self.monitor.loads,
            "old_setroots": self.monitor.old_setroots,
        }


def _restored(plan: Plan) -> tuple[ArchivingStore, list[SavedNamespace]]:
    """Return the store and roots that rank 0 starts from: all namespaces but the primary one come from a checkpoint."""
    store = ArchivingStore()
    roots = []
    time = START + Random(f"{plan.seed}/restored").choice((-1000.0, -1000.0, 0.02, 1000.0))
    """When the checkpoint was saved: perhaps by a clock that was ahead of this instance's."""
    for name in plan.namespaces:
        if name == "primary":
            continue
        digest = digest_function(plan.shape.algorithm)
        nodes = NodeCache(store, digest)
        edit = Edit(nodes, nodes.insert(Leaf([], [])), name)
        for number in range(60):
            edit.put(split_key(f"wide.k{number}"), Val("raw", f"old {number}".encode()))
        edit.put(split_key("l0"), Link("wide"))
        roots.append(SavedNamespace(name, 7, edit.seal()[0], time))
    return store, roots


def run(plan: Plan, trace: Trace | None = None) -> RunReport:
    """Execute a plan."""
    return Run(plan, trace).report()
