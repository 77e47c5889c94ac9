"""One run: from a plan to a report.

    start ─▶ clients work, faults strike ─▶ all clients done ─▶ quiet? ─▶ shutdown ─▶ all ended? ─▶ checkers
                          ├── someone shuts it down in the middle ─────────────────▶ all ended? ────┤
                          └── a rank is killed ─▶ all others ended, with the reason? ──────────────────┘

A violation is a text. A broken assertion in a broker counts as one, and ends the run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from fluxmpi.blobref import digest_function
from fluxmpi.kvs.objects import Link, Val, split_key
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import Message, control
from fluxmpi.simulator.cluster import Cluster
from fluxmpi.simulator.inspection import end_state as ending
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.inspection.leader_log import LeaderLog
from fluxmpi.simulator.inspection.monitor import Monitor
from fluxmpi.simulator.judgement import judge_run
from fluxmpi.simulator.plan import Plan
from fluxmpi.simulator.schedule import START
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.fence_leaver import FenceLeaver, fence_leavers
from fluxmpi.simulator.workload.load_generator import LoadGenerator, drivers
from fluxmpi.simulator.workload.reference_client import ReferenceClient
from fluxmpi.simulator.workload.transcript import Transcript

PATIENCE_S = 120.0
"""Virtual seconds that the clients may take, beside their thinking; past that, something hangs."""

SETTLE_S = 600.0
"""After the clients are done, until the instance must be quiet: watchers may lag far behind on slow links."""

STUCK_S = 20.0
"""When nothing was loaded for so long, whatever is left is stuck."""

GRACE_S_MAX = 10.0
"""With a longer grace no run waits until all that clients stored may be collected."""

END_S = 60.0
"""From a shutdown or a kill until every broker is gone: heartbeats must be missed, and each level may wait for its children."""


@dataclass(slots=True)
class Report:
    """How a run went. ``numbers`` are for people."""

    plan: Plan
    digest: str = ""
    violations: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.violations


class Run:
    """``trace`` None: digest only."""

    def __init__(self, plan: Plan, trace: Trace | None = None) -> None:
        self.plan = plan
        self.trace = trace or Trace()
        self.history = Transcript()
        self.monitor = Monitor()
        self.faults = plan.rng("faults")
        store, restored = _restored(plan)
        self.cluster = Cluster(plan.shape, plan.rng("world"), self.trace, restored, store)
        self.cluster.watcher = self.monitor
        leader = self.cluster.nodes[0].broker.leader
        assert leader is not None
        self.ledger = LeaderLog(leader)
        self.drivers: list[LoadGenerator | FenceLeaver | ReferenceClient] = []
        self.keeper: ReferenceClient | None = None
        self._setroots: dict[int, list[Message]] = {}

    def report(self) -> Report:
        """Do all of it."""
        report = Report(self.plan)
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
            Client(f"c{index}", cluster, self.monitor, self.history, rng.randrange(plan.shape.ranks))
            for index in range(plan.clients)
        ]
        working = drivers(clients, plan)
        self.drivers = [*working, *fence_leavers(working, plan, self._deserter), *self._keeper()]
        for driver in self.drivers:
            driver.act()
        self._plan_faults()
        limit = cluster.now + PATIENCE_S + plan.steps * plan.think_s * 10
        found: list[str] = []
        if plan.faults.kills:
            for rank, at in plan.faults.kills:
                cluster.schedule.at(START + at, partial(cluster.kill, rank))
            cluster.schedule.run(START + plan.faults.kills[0][1] + END_S, lambda: cluster.ended)
        elif plan.faults.stop_at is not None:
            cluster.schedule.run(START + plan.faults.stop_at)
            self.shut_down()
        elif cluster.schedule.run(limit, self._done):
            found += self.settle()
            found += ending.whole(cluster)
            found += self._collect()
            self.shut_down()
        else:
            found += [f"hang: no answer after {cluster.now - START:.0f} s: {call}" for call in self._open()]
        cluster.schedule.run(cluster.now + 1.0)  # the clients learn of it
        found += ending.ended(cluster, [node.rank for node in cluster.nodes if not node.alive], self._status())
        found += ending.files(cluster)
        found += self.keeper.violations if self.keeper is not None else []
        return found + judge_run(self.history, self.ledger, cluster)

    def settle(self) -> list[str]:
        """Wait until nothing is left to do, twice in a row, since something may be under way between two brokers; what is
        left if that does not come.
        """
        cluster, end = self.cluster, self.cluster.now + SETTLE_S
        moved, loads, before = cluster.now, -1, True
        while True:
            cluster.schedule.run(cluster.now + 1.0)
            left = list(ending.quiet(cluster, self.ledger.gathering))
            if self.monitor.loads != loads:
                moved, loads = cluster.now, self.monitor.loads
            if cluster.now >= min(end, moved + STUCK_S) or not (left or before):
                return left
            before = bool(left)

    def _deserter(self, name: str) -> Client:
        rank = self.plan.rng(f"{name}/rank").randrange(self.plan.shape.ranks)
        return Client(name, self.cluster, self.monitor, self.history, rank)

    def _keeper(self) -> list[ReferenceClient]:
        """Who works with versions, if the plan has it."""
        if not self.plan.keeping:
            return []
        rank = self.plan.rng("keeper/rank").randrange(self.plan.shape.ranks)
        writer = Client("keeper", self.cluster, self.monitor, self.history, rank)
        self.keeper = ReferenceClient(
            writer, Client("reader", self.cluster, self.monitor, Transcript(), rank), self.plan, self.plan.keeping
        )
        return [self.keeper]

    def _collect(self) -> list[str]:
        """A last collection leaves what is needed and nothing else."""
        cluster, grace_s = self.cluster, self.plan.shape.kvs.gc.grace_s
        if grace_s > GRACE_S_MAX:
            return []
        cluster.schedule.run(cluster.now + grace_s)
        client = Client("collector", cluster, self.monitor, self.history, self.plan.shape.ranks - 1)
        call = client.call("gc.run", None)
        cluster.schedule.run(cluster.now + 10.0, lambda: call.done)
        return list(ending.swept(cluster)) if call.done else [f"hang: {call}"]

    def _done(self) -> bool:
        return all(driver.done for driver in self.drivers)

    def _open(self) -> list[str]:
        calls = [str(call)[:300] for driver in self.drivers for call in driver.client.open.values()]
        return calls or [
            f"{driver.client.name} has {driver.steps} steps left" for driver in self.drivers if not driver.done
        ]

    def shut_down(self) -> None:
        """Someone asks for the end, and it must come."""
        client = Client("last", self.cluster, self.monitor, self.history, self.plan.shape.ranks - 1)
        client.shutdown()
        self.cluster.schedule.run(self.cluster.now + END_S, lambda: self.cluster.ended)

    def _status(self) -> int:
        """0, unless the checkpoint at the end could not be written."""
        return int(self.cluster.nodes[0].disk.failed_last.get(self.plan.shape.checkpoint, False))

    # ------------------------------------------------------------------------------------------------------- faults

    def _plan_faults(self) -> None:
        """Strike at random times while the clients work."""
        faults, rng = self.plan.faults, self.faults
        span = self.plan.steps / max(1, self.plan.clients) * self.plan.think_s + 0.02
        for mean, strike in ((faults.pauses, self._pause), (faults.slows, self._slow), (faults.echoes, self._echo)):
            for _ in range(round(rng.random() * 2 * mean)):
                self.cluster.schedule.after(rng.random() * span, partial(self._strike, strike))

    def _strike(self, strike: Callable[[], None]) -> None:
        if not self._done():
            strike()

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

    def _echo(self) -> None:
        """An old setroot comes again, from the parent."""
        ranks, made = self.plan.shape.ranks, self.ledger.setroots["primary"]
        if ranks > 1 and made:
            rank = self.faults.randrange(1, ranks)
            node = self.cluster.nodes[rank]
            version = node.broker.statistics()["kvs"]["version"]
            old = [setroot for setroot in made if setroot.version <= version]
            if old and node.up:
                self.cluster.inject(rank, node.broker.router.parent, control("kvs.setroot", self.faults.choice(old)))

    # ------------------------------------------------------------------------------------------------------- numbers

    def _numbers(self) -> dict[str, float]:
        calls = self.history.calls
        return {
            "virtual_s": self.cluster.now - START,
            "steps": sum(node.steps for node in self.cluster.nodes),
            "batches": self.trace.batches,
            "calls": len(calls),
            "resent": sum(call.sent - 1 for call in calls),
            "versions": sum(len(made) for made in self.ledger.setroots.values()),
            "commits": sum(len(entries) for entries in self.ledger.requests.values()),
            "refused": sum(entry.status > 0 for entries in self.ledger.requests.values() for entry in entries),
            "notifications": sum(len(call.answers) for call in self.history.of("kvs.watch")),
            "events": sum(len(subscribed.events) for subscribed in self.history.subscriptions),
            "loads": self.monitor.loads,
            "old_setroots": self.monitor.old_setroots,
        }


def _restored(plan: Plan) -> tuple[ArchivingStore, list[RootInfo]]:
    """What rank 0 starts from: the namespaces beside the primary one exist because a checkpoint had them."""
    store = ArchivingStore()
    roots = []
    for name in plan.namespaces:
        if name == "primary":
            continue
        digest = digest_function(plan.shape.algorithm)
        nodes = NodeCache(store, digest)
        edit = Edit(nodes, nodes.insert(Leaf([], [])), name)
        for number in range(60):
            edit.put(split_key(f"wide.k{number}"), Val("raw", f"old {number}".encode()))
        edit.put(split_key("l0"), Link("wide"))
        roots.append(RootInfo(name, 7, edit.seal()[0], START - 1000.0))
    return store, roots


def run(plan: Plan, trace: Trace | None = None) -> Report:
    return Run(plan, trace).report()
