"""The state at the end of a run: nothing is left over.

First the instance is idle; then every broker ends, with a reason.

idle             the clients are done: no broker has an open request, walk or parked message, nor a deadline but heartbeats
complete_trees   the trees of all kept roots are canonical and complete
only_reachable   after a collection, the store holds nothing else
complete_files   a checkpoint file holds everything that its roots reach
restartable_files  its roots are versions that the leader made, and a broker that starts from it continues them
all_ended        all brokers that were not killed have ended, with the status and reason that the run must have
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.content.store import Store
from fluxmpi.errors import FluxmpiError, ProtocolError
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.store.node import Inner, NodeCache, check, decode_node
from fluxmpi.kvs.wire import Commit, CommitId, Committed, Put, RootInfo
from fluxmpi.machine import NEVER
from fluxmpi.message import CLIENT_FIRST, OK, REQUEST, Body, Message, encode_body
from fluxmpi.simulator.cluster import Cluster, SimulatedRank
from fluxmpi.simulator.drivers.disk import SimulatedFile
from fluxmpi.simulator.inspection.leader_log import LeaderLog

_decode_committed = Body(Committed)

PERIODIC = ("overlay", "checkpoint", "gc")
"""Machines that have a deadline when nothing is to be done: heartbeats, saves, collections by the time."""

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
            if machine.deadline != NEVER and machine.name not in PERIODIC:
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


def restartable_files(cluster: Cluster, log: LeaderLog) -> Iterator[str]:
    """Start a broker from each checkpoint file, by a clock that may be behind, and commit to each namespace."""
    for path, file in cluster.nodes[0].disk.files.items():
        for saved in file.roots:
            first, later = log.first[saved.namespace], log.setroots[saved.namespace]
            made = [(first.version, first.ref, first.time), *((one.version, one.ref, one.time) for one in later)]
            if (saved.version, saved.ref, saved.time) not in made:
                yield f"checkpoint: {path} has version {saved.version} of {saved.namespace}, which the leader has not made"
        yield from _restart(path, file, cluster)


def _restart(path: str, file: SimulatedFile, cluster: Cluster) -> Iterator[str]:
    store = Store()
    for ref, blob in file.blobs.items():
        store.put(ref, blob)
    now = cluster.now - 10.0
    broker = Broker(Config(algorithm=cluster.shape.algorithm), now, file.roots, store)
    broker.start(now)
    for tag, saved in enumerate(file.roots, 1):
        commit = Commit(saved.namespace, CommitId("again", tag), 0, [Put("again", Val("raw", b"1"))])
        asked = Message(REQUEST, "kvs.commit", CLIENT_FIRST, tag=tag, body=encode_body(commit))
        out = [*broker.step(asked, now), *broker.tick(now)]
        answers = [msg for msg in out if msg.hop == CLIENT_FIRST and msg.tag == tag]
        if len(answers) != 1 or answers[0].status != OK:
            yield f"checkpoint: after a restart from {path}, a commit to {saved.namespace} gets {answers}"
            continue
        root: Committed = _decode_committed(answers[0])
        if root.version != saved.version + 1 or root.time < saved.time:
            yield f"checkpoint: after a restart from {path}, version {saved.version} of {saved.namespace} is followed by {root}"
    broker.check()


def all_ended(cluster: Cluster, killed: list[int], status: int) -> Iterator[str]:
    """Check how every broker ended. ``killed``: those ranks; each survivor must name one of them, and its host.

    So must every broker if one has failed.
    """
    failed = [node.rank for node in cluster.nodes if node.stand_in is not None]
    for node in cluster.nodes:
        if not node.alive:
            continue
        if node.exit is None:
            yield f"end: rank {node.rank} has not ended; its state is {node.broker.lifecycle.state.name}"
        elif (killed or failed) and not _names_one(node, [*killed, *failed]):
            yield f"end: rank {node.rank} ended with status {node.exit.status} and '{node.exit.reason}', naming no lost rank"
        elif not killed and not failed and node.exit.status != status:
            yield f"end: rank {node.rank} ended with status {node.exit.status}, not {status}: {node.exit.reason}"


def _names_one(node: SimulatedRank, killed: list[int]) -> bool:
    assert node.exit is not None
    hosts = node.broker.config.hosts
    return node.exit.status == 1 and any(f"broker {rank} ({hosts[rank]})" in node.exit.reason for rank in killed)
