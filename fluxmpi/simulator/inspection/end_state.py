"""The state at the end of a run: nothing is left over.

First the instance is idle; then every broker ends, with a reason.

idle             the clients are done: no broker has an open request, walk or parked message, nor a deadline but heartbeats
complete_trees   the trees of all kept roots are canonical and complete
only_reachable   after a collection, the store holds nothing else
complete_files   a checkpoint file holds everything that its roots reach
all_ended        all brokers that were not killed have ended, with the status and reason that the run must have
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.content.store import Store
from fluxmpi.errors import FluxmpiError, ProtocolError
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import Inner, NodeCache, check, decode_node
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.machine import NEVER
from fluxmpi.simulator.cluster import Cluster, SimulatedRank
from fluxmpi.simulator.drivers.disk import SimulatedFile

IDLE = {
    "kvs": ("suspended", "parked", "asked", "adding", "searches", "watch_pending"),
    "content": ("pending",),
    "value": ("pending", "loading"),
    "leader": (),
    "departures": ("missing",),
    "overlay": ("gathers",),
    "exec": ("running",),
    "checkpoint": ("waiting",),
}
"""Statistics that are 0 when no request is open."""


def idle(cluster: Cluster, fences: int) -> Iterator[str]:
    """Yield what is not idle. ``fences``: incomplete fences by the leader's log."""
    for node in cluster.nodes:
        statistics = node.broker.statistics()
        for service, names in IDLE.items():
            for name in names:
                if statistics.get(service, {}).get(name, 0):
                    yield f"idle: rank {node.rank} has {service}.{name} = {statistics[service][name]}"
        if node.rank == 0 and statistics["leader"]["fences"] != fences:
            yield f"idle: the leader has {statistics['leader']['fences']} fences, and {fences} are incomplete"
        if not fences and statistics["kvs"]["fences"]:
            yield f"idle: rank {node.rank} has kvs.fences = {statistics['kvs']['fences']}"
        if node.segments.open != statistics["value"]["segments"]:
            yield f"idle: rank {node.rank} has {node.segments.open} segments open, and knows {statistics['value']['segments']}"
        for machine in node.broker.registry.machines:
            if machine.deadline != NEVER and machine.name != "overlay":
                yield f"idle: the {machine.name} machine of rank {node.rank} has a deadline"
        if node.inbox and node.turn_at == NEVER:
            yield f"idle: rank {node.rank} has not read its inbox"


def complete_trees(cluster: Cluster) -> Iterator[str]:
    digest = digest_function(cluster.shape.algorithm)
    for root in _kept(cluster):
        try:
            check(NodeCache(cluster.store, digest), root.ref)
        except (AssertionError, FluxmpiError) as error:
            yield f"tree: version {root.version} of {root.namespace}: {error}"


def _kept(cluster: Cluster) -> list[RootInfo]:
    leader = cluster.nodes[0].broker.leader
    assert leader is not None
    return [root for namespace in leader.namespaces for root in namespace.roots()]


def only_reachable(cluster: Cluster) -> Iterator[str]:
    """Compare the store after a collection: it holds what kept roots, past values and waiting fences reach, no more."""
    leader = cluster.nodes[0].broker.leader
    assert leader is not None
    needed = _reached(cluster.store, [root.ref for root in _kept(cluster)])
    waiting = _reached(cluster.store, [*leader.pinned(), *cluster.nodes[0].broker.roots.pinned()])
    past = cluster.nodes[0].broker.roots.pinned()
    missing = [ref for ref in (*needed, *past) if ref not in cluster.store]
    garbage = [ref for ref in cluster.store.refs() if ref not in needed and ref not in waiting]
    if missing:
        yield f"collected: the store lacks {len(missing)} reachable blobs, {missing[0].hex()[:12]} for one"
    if garbage:
        yield f"collected: the store still has {len(garbage)} unreachable blobs, {garbage[0].hex()[:12]} for one"


def _reached(store: Store, roots: list[Ref]) -> dict[Ref, None]:
    """Return what these roots reach, by another walk than the collector's."""
    found: dict[Ref, None] = {}
    todo = list(roots)
    while todo:
        ref = todo.pop()
        blob = store.get(ref)
        if ref in found:
            continue
        found[ref] = None
        try:
            node = decode_node(blob or b"", ref)
        except ProtocolError:  # a value, or missing
            continue
        if isinstance(node, Inner):
            todo += node.refs
            continue
        for obj in node.objects:
            if isinstance(obj, Dir):
                todo.append(obj.ref)
            elif isinstance(obj, ValRef):
                found.update(dict.fromkeys(obj.refs))
    return found


def complete_files(cluster: Cluster) -> Iterator[str]:
    """Check the checkpoint files after the end, which may write one."""
    for path, file in cluster.nodes[0].disk.files.items():
        yield from _whole_file(path, file, cluster.shape.algorithm)


def _whole_file(path: str, file: SimulatedFile, algorithm: str) -> Iterator[str]:
    digest = digest_function(algorithm)
    store = Store()
    for ref, blob in file.blobs.items():
        if digest(blob) != ref:
            yield f"checkpoint: {path} holds a blob under the ref of another"
        store.put(ref, blob)
    for root in file.roots:
        try:
            check(NodeCache(store, digest), root.ref)
        except (AssertionError, FluxmpiError) as error:
            yield f"checkpoint: {path}, version {root.version} of {root.namespace}: {error}"


def all_ended(cluster: Cluster, killed: list[int], status: int) -> Iterator[str]:
    """Check how every broker ended. ``killed``: those ranks; each survivor must name one of them, and its host."""
    for node in cluster.nodes:
        if not node.alive:
            continue
        if node.exit is None:
            yield f"end: rank {node.rank} has not ended; its state is {node.broker.lifecycle.state.name}"
        elif killed and not _names_one(node, killed):
            yield f"end: rank {node.rank} ended with status {node.exit.status} and '{node.exit.reason}', naming no lost rank"
        elif not killed and node.exit.status != status:
            yield f"end: rank {node.rank} ended with status {node.exit.status}, not {status}: {node.exit.reason}"


def _names_one(node: SimulatedRank, killed: list[int]) -> bool:
    assert node.exit is not None
    hosts = node.broker.config.hosts
    return node.exit.status == 1 and any(f"broker {rank} ({hosts[rank]})" in node.exit.reason for rank in killed)
