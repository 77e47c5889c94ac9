"""History bounded in bytes: collections compact the oldest versions beyond the bound, and count exactly."""

from __future__ import annotations

import pytest
from test_gc import World, long

from fluxmpi import errors
from fluxmpi.kvs.mvcc.gc import Phase
from fluxmpi.kvs.mvcc.namespace import VERSION_BYTES, Namespaces
from fluxmpi.kvs.objects import Dir, Val
from fluxmpi.kvs.wire import PRIMARY, Lease, Leased, Log, LogEntry, NewNamespace, Put, Release, Retention, Unlink

SIZE = 10_000


def value(number: int, size: int = SIZE) -> Val:
    return Val("raw", str(number).encode().ljust(size, b"."))


def overwrite(world: World, count: int, key: str = "a", namespace: str = PRIMARY) -> None:
    for number in range(count):
        world.commit(Put(key, value(number)), namespace=namespace)


def readable(world: World, namespace: str = PRIMARY) -> list[int]:
    return [entry.version for entry in world.ask("log", Log(namespace), list[LogEntry])]


@pytest.fixture
def world() -> World:
    return World()


def test_the_oldest_versions_go_first(world: World) -> None:
    overwrite(world, 20)
    world.ask("retention", Retention(bytes=5 * (SIZE + 1000)))
    assert len(readable(world)) == 21, "nothing goes before a collection"
    status = world.collect()
    assert readable(world) == [20, 19, 18, 17, 16, 15]
    assert 5 * SIZE <= status.history_bytes <= 5 * (SIZE + 1000)
    assert status.live_bytes + status.history_bytes == status.bytes == world.store.bytes
    assert status.garbage_bytes >= 14 * SIZE
    assert set(world.store.refs()) == world.reached()
    with pytest.raises(errors.SnapshotCollected):
        world.namespaces.find(PRIMARY).at(14)


def test_the_newest_version_always_stays(world: World) -> None:
    overwrite(world, 3)
    world.ask("retention", Retention(bytes=1))
    status = world.collect()
    assert readable(world) == [3]
    assert (status.history_bytes, status.history_blobs) == (0, 0)
    assert world.get("a") == world.get("a")


def test_live_values_of_old_versions_cost_history_nothing(world: World) -> None:
    """A run that only adds keys has a past of tree nodes, however much it stores."""
    for number in range(20):
        world.commit(Put(f"k{number}", value(number)))
    world.ask("retention", Retention(bytes=40_000))
    status = world.collect()
    assert len(readable(world)) == 21
    assert status.live_bytes > 20 * SIZE > 40_000 > status.history_bytes


def test_a_directory_that_moves_costs_history_nothing(world: World) -> None:
    for number in range(20):
        world.commit(Put(f"d.k{number}", value(number)))
    world.commit(Put("e", world.get("d")))
    world.commit(Unlink("d"))
    world.ask("retention", Retention(bytes=40_000))
    status = world.collect()
    assert len(readable(world)) == 23
    assert status.history_bytes < 40_000


def test_an_unlinked_directory_is_charged_to_the_last_version_that_has_it(world: World) -> None:
    for number in range(20):
        world.commit(Put(f"d.k{number}", value(number)))
    world.commit(Unlink("d"))
    world.commit(Put("a", long("x")))
    world.ask("retention", Retention(bytes=20 * SIZE))
    status = world.collect()
    assert readable(world) == [22, 21]
    assert status.history_bytes < 1000, "the marks of the version that did not fit were taken back"
    assert status.garbage_bytes > 20 * SIZE
    assert set(world.store.refs()) == world.reached()


def test_a_value_that_is_put_again_is_live(world: World) -> None:
    for number in range(20):
        world.commit(Put("a", value(number % 2)))
    world.ask("retention", Retention(bytes=2 * SIZE))
    world.collect()
    assert len(readable(world)) == 21


def test_leased_versions_stay_and_are_counted_apart(world: World) -> None:
    overwrite(world, 10)
    lease = world.ask("lease", Lease(PRIMARY, 2), Leased)
    world.ask("retention", Retention(bytes=3 * (SIZE + 1000)))
    status = world.collect()
    assert readable(world) == [10, 9, 8, 7]
    assert SIZE <= status.leased_bytes <= SIZE + 1000
    assert 3 * SIZE <= status.history_bytes <= 3 * (SIZE + 1000)
    assert world.namespaces.find(PRIMARY).at(2).version == 2
    assert set(world.store.refs()) == world.reached()
    world.ask("release", Release(lease.id))
    assert world.collect().leased_bytes == 0


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.HELD, Phase.HISTORY])
def test_a_version_that_is_leased_during_the_collection_stays(phase: Phase) -> None:
    world = World(nodes_per_turn=1, nodes_per_stored_blob=0)
    overwrite(world, 10)
    world.ask("retention", Retention(bytes=2 * (SIZE + 1000)))
    world.gc.wake()
    for _ in range(1000):
        if world.gc.phase is phase:
            break
        world.slice()
    assert world.gc.phase is phase
    leased = world.ask("lease", Lease(PRIMARY, 2), Leased)
    for _ in range(1000):
        if world.gc.phase is Phase.IDLE:
            break
        world.slice()
    assert readable(world) == [10, 9, 8]
    assert leased.root.version == 2
    assert set(world.store.refs()) == world.reached()


def test_each_namespace_has_its_own_bound(world: World) -> None:
    world.ask("create", NewNamespace("work", 7))
    overwrite(world, 10)
    overwrite(world, 10, namespace="work")
    world.ask("retention", Retention("work", bytes=2 * (SIZE + 1000)))
    world.collect()
    assert len(readable(world)) == 11
    assert len(readable(world, "work")) == 3
    assert world.namespaces.find("work").history_bytes < world.namespaces.find(PRIMARY).history_bytes


def test_marks_that_were_taken_back_are_made_again_for_another_namespace(world: World) -> None:
    """The last namespace is marked first. What it drops is shared with the ones that are marked later, and stays."""
    for number in range(20):
        world.commit(Put(f"d.k{number}", value(number)))
    shared = world.get("d")
    assert isinstance(shared, Dir)
    for name in ("before", "between"):
        world.ask("create", NewNamespace(name, 7))
        world.commit(Put("d", shared), namespace=name)
        world.commit(Unlink("d"), namespace=name)
    world.commit(Unlink("d"))
    world.ask("retention", Retention("between", bytes=1000))
    world.ask("retention", Retention(bytes=1000))
    status = world.collect()
    assert readable(world, "between") == [2]
    assert readable(world, "before") == [2, 1, 0]
    assert readable(world) == [21, 20], "the directory of version 20 costs nothing, it is kept by another namespace"
    assert status.history_bytes > 20 * SIZE
    assert set(world.store.refs()) == world.reached()


def test_the_records_of_versions_count_too(world: World) -> None:
    """A version that names many long keys is not free, although its nodes are the same."""
    for number in range(50):
        world.commit(Put("a", long(number % 2)))
    world.collect()
    before = world.namespaces.find(PRIMARY).history_bytes
    assert before >= 50 * VERSION_BYTES
    world.ask("retention", Retention(bytes=before // 2))
    world.collect()
    assert len(readable(world)) < 40


def test_large_values_are_collected_early() -> None:
    """Overwriting one large value stays near the bound, although the store has much that is live."""
    world = World(bytes_min=4 * SIZE)
    for number in range(100):
        world.commit(Put(f"k{number}", value(number)))
    world.ask("retention", Retention(bytes=5 * (SIZE + 1000)))
    world.collect()
    live = world.store.bytes
    for number in range(100):
        world.commit(Put("a", value(1000 + number)))
        for _ in range(100):
            if world.gc.deadline > world.now:
                break
            world.slice()
        assert world.store.bytes < live + 12 * (SIZE + 2000)


def test_a_new_namespace_has_the_default() -> None:
    namespaces = Namespaces(10, defaults=Retention(age_s=5.0, bytes=77), chosen=("bytes",))
    world = World()
    namespace = namespaces.advance(world.namespaces.find(PRIMARY).root)
    assert namespace.retention == Retention(PRIMARY, 10, 5.0, 77)


# ------------------------------------------------------------------------------------------------------- checkpoints


def saved_of(chosen: tuple[str, ...] = (), wanted: Retention | None = None) -> Retention | None:
    """Return the retention in a checkpoint of a namespace."""
    namespaces = Namespaces(10, defaults=Retention(age_s=5.0, bytes=77), chosen=chosen)
    namespace = namespaces.advance(World().namespaces.find(PRIMARY).root)
    if wanted is not None:
        namespace.retain(wanted)
    return namespace.saved().retention


def test_a_checkpoint_has_what_was_chosen() -> None:
    assert saved_of() == Retention()
    assert saved_of(("count", "bytes")) == Retention(count=10, bytes=77)
    assert saved_of(("count",), Retention(bytes=5, age_s=0.0)) == Retention(count=10, bytes=5, age_s=0.0)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [((), Retention(PRIMARY, 3, 77.0, 1000)), (("count", "bytes"), Retention(PRIMARY, 10, 77.0, 2000))],
)
def test_what_is_chosen_at_the_start_replaces_a_checkpoint(chosen: tuple[str, ...], kept: Retention) -> None:
    old = Namespaces(3, defaults=Retention(age_s=77.0, bytes=1000), chosen=("count", "age_s", "bytes"))
    saved = old.advance(World().namespaces.find(PRIMARY).root).saved()
    new = Namespaces(10, defaults=Retention(age_s=0.0, bytes=2000), chosen=chosen)
    assert new.restore(saved, saved.root, World().nodes).retention == kept


# ------------------------------------------------------------------------------------------------ when one begins


def idle(world: World) -> None:
    for _ in range(1000):
        if world.gc.deadline > world.now:
            return
        world.slice()
    raise AssertionError("it does not come to rest")


def test_a_large_directory_that_was_unlinked_is_collected_after_some_time() -> None:
    """Hardly anything is stored by that, so the bytes that are stored start no collection."""
    world = World(bytes_min=SIZE, interval_s=30.0)
    for number in range(30):
        world.commit(Put(f"d.k{number}", value(number)))
    idle(world)
    world.ask("retention", Retention(bytes=SIZE))
    world.collect()
    world.commit(Unlink("d"))
    idle(world)
    assert world.store.bytes > 30 * SIZE
    assert world.now < world.gc.deadline <= world.now + 30.0
    world.now += 30.0
    idle(world)
    assert world.store.bytes < 2 * SIZE


def test_an_idle_instance_collects_nothing() -> None:
    world = World(bytes_min=SIZE, interval_s=30.0)
    for number in range(30):
        world.commit(Put(f"d.k{number}", value(number)))
    idle(world)
    world.now += 30.0
    idle(world)
    cycles = world.gc.status.cycles
    for _ in range(5):
        world.now += 100.0
        idle(world)
    assert world.gc.status.cycles == cycles


@pytest.mark.parametrize(
    ("wanted", "begins"),
    [
        (Retention(count=5), True),
        (Retention(bytes=SIZE), True),
        (Retention(age_s=5.0), True),
        (Retention(count=100_000), False),
        (Retention(age_s=0.0), False),
        (Retention(), False),
    ],
)
def test_a_shorter_retention_begins_a_collection(world: World, wanted: Retention, begins: bool) -> None:
    begun = []
    world.roots.on_lowered = lambda: begun.append(1)
    world.ask("retention", wanted)
    assert bool(begun) is begins
