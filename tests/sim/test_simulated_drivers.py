"""The simulated drivers behave as the real ones: order, no loss, whole files, processes that end."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from fluxmpi.errors import CheckpointError, StorageError, decode_error
from fluxmpi.jobs.wire import Signal, Spawn, Spawned
from fluxmpi.kvs.mvcc.checkpoint import Chunk, Failed, ReadFile, Refs, Write
from fluxmpi.kvs.wire import SavedNamespace
from fluxmpi.message import DISK, LAUNCHER, Body, Message, control, decode_batch
from fluxmpi.simulator.cluster import Cluster, Shape
from fluxmpi.simulator.drivers.disk import SimulatedDisk
from fluxmpi.simulator.drivers.launcher import SimulatedLauncher
from fluxmpi.simulator.inspection import end_state
from fluxmpi.simulator.inspection.archive import ArchivingStore
from fluxmpi.simulator.inspection.monitor import Monitor
from fluxmpi.simulator.network import LinkDelays, Network
from fluxmpi.simulator.plan import Faults, plan_of
from fluxmpi.simulator.run import Run
from fluxmpi.simulator.schedule import Schedule
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.transcript import Transcript

SLOW = LinkDelays(spikes=0.5, spike_s=1.0, slow_links=0.5)


class Wire:
    """A network of some ranks, and the messages that arrived."""

    def __init__(self, seed: int) -> None:
        self.schedule = Schedule()
        self.arrived: list[tuple[int, int, str]] = []
        self.network = Network(self.schedule, Random(seed), SLOW, self._arrive, Trace())

    def _arrive(self, source: int, target: int, blob: bytes) -> None:
        self.arrived += [(source, target, msg.topic) for msg in decode_batch(blob)]

    def send(self, source: int, target: int, number: int) -> None:
        self.network.send(source, target, [control(str(number))])


@pytest.mark.parametrize("seed", range(5))
def test_links_keep_order_and_lose_nothing(seed: int) -> None:
    wire = Wire(seed)
    for number in range(50):
        wire.send(0, 1, number)
        wire.send(2, 1, number)
        if number == 20:
            wire.network.slow(0, 1, 0.3)
            wire.network.block(2, 1, 0.4)
        wire.schedule.run(wire.schedule.now + 0.01)
    wire.schedule.run(wire.schedule.now + 100)
    for source in (0, 2):
        assert [topic for sender, _, topic in wire.arrived if sender == source] == [str(number) for number in range(50)]
    assert [sender for sender, _, _ in wire.arrived] != sorted(sender for sender, _, _ in wire.arrived), (
        "links are independent"
    )


@pytest.mark.parametrize("seed", range(5))
def test_only_a_prefix_arrives_from_a_killed_rank(seed: int) -> None:
    wire = Wire(seed)
    for number in range(40):
        wire.send(1, 0, number)
        wire.send(0, 1, number)
    wire.network.kill(1)
    wire.schedule.run(wire.schedule.now + 100)
    heard = [topic for _, target, topic in wire.arrived if target == 0]
    assert heard == [str(number) for number in range(len(heard))]
    assert len(heard) < 40
    assert not [topic for _, target, topic in wire.arrived if target == 1]


# ---------------------------------------------------------------------------------------------------------------- disk


def disk(failures: float = 0.0) -> tuple[SimulatedDisk, list[Message], Schedule]:
    schedule, sent = Schedule(), []
    return SimulatedDisk(schedule, Random(1), sent.append, lambda ref: b"blob " + ref, failures), sent, schedule


def write(driver: SimulatedDisk, schedule: Schedule, number: int) -> None:
    driver.step(control("disk.refs", Refs([b"%d" % number]), DISK))
    driver.step(control("disk.commit", Write("file", [SavedNamespace("primary", number, b"ref", 0.0)]), DISK))
    schedule.run(schedule.now + 1)


def test_a_failed_write_leaves_the_older_file() -> None:
    driver, sent, schedule = disk()
    write(driver, schedule, 1)
    driver.failures = 1.0
    write(driver, schedule, 2)
    assert [msg.topic for msg in sent] == ["disk.saved", "disk.failed"]
    failed = Body(Failed)(sent[1])
    assert isinstance(decode_error(failed.status, failed.body), StorageError)
    assert driver.files["file"].blobs == {b"1": b"blob 1"}


def test_a_file_is_read_as_it_was_written_and_a_missing_one_is_an_error() -> None:
    driver, sent, schedule = disk()
    write(driver, schedule, 1)
    for path in ("file", "other"):
        driver.step(control("disk.read", ReadFile(path), DISK))
        schedule.run(schedule.now + 1)
    assert [msg.topic for msg in sent] == ["disk.saved", "disk.blobs", "disk.roots", "disk.failed"]
    assert Body(Chunk)(sent[1]) == Chunk([b"1"], [b"blob 1"])
    assert isinstance(decode_error(*Body(tuple[int, bytes])(sent[3])), CheckpointError)


# ------------------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("words", "signal", "output", "status"),
    [
        (["echo", "a", "b"], None, b"a b", 0),
        (["exit", "3"], None, b"", 3),
        (["sleep", "5"], None, b"", 0),
        (["sleep", "5000"], 15, b"", 143),
        (["stubborn"], 9, b"", 137),
        (["no-such-program"], None, b"", 127),
    ],
)
def test_processes(words: list[str], signal: int | None, output: bytes, status: int) -> None:
    schedule, sent = Schedule(), []
    launcher = SimulatedLauncher(schedule, Random(1), sent.append)
    launcher.step(control("launcher.spawn", Spawn(7, words, None, {}, b""), LAUNCHER))
    if signal is not None:
        launcher.step(control("launcher.signal", Signal(7, 15), LAUNCHER))
        launcher.step(control("launcher.signal", Signal(7, signal), LAUNCHER))
    schedule.run(schedule.now + 10)
    spawned = [Body(Spawned)(msg) for msg in sent]
    assert b"".join(each.data for each in spawned) == output
    assert [each.status for each in spawned if each.status is not None] == [status]


# ---------------------------------------------------------------------------------------------------------- an instance


def test_the_status_of_the_initial_program_is_that_of_the_instance() -> None:
    cluster = Cluster(Shape(5, command=("exit", "3")), Random(1), Trace())
    cluster.start()
    assert cluster.schedule.run(cluster.now + 60, lambda: cluster.ended)
    assert list(end_state.all_ended(cluster, [], 3)) == []


def test_a_checkpoint_is_restored_in_an_instance_of_another_size() -> None:
    plan = plan_of(11, steps=150)
    shape = replace(plan.shape, ranks=7, checkpoint="sim.h5", disk_failures=0.0, algorithm="sha256")
    first = Run(replace(plan, shape=shape, faults=Faults(), mix="directories", namespaces=("primary",)))
    assert first.report().violations == []
    file = first.cluster.nodes[0].disk.files["sim.h5"]
    (root,) = [root for root in file.roots if root.namespace == "primary"]
    assert root.version > 10

    store = ArchivingStore()
    for ref, blob in file.blobs.items():
        store.put(ref, blob)
    cluster = Cluster(Shape(3, "flat", cache_bytes_max=600, nodes_max=8), Random(2), Trace(), file.roots, store)
    monitor = cluster.observer = Monitor()
    cluster.start()
    reader = Client("reader", cluster, monitor, Transcript(), 2)
    found = reader.getroot()
    listed = reader.listing(".")
    cluster.schedule.run(cluster.now + 5)
    assert (found.answers[0].body.version, found.answers[0].body.ref) == (root.version, root.ref)
    assert len(listed.answers[0].body.entries) > 3
    assert monitor.violations == []
