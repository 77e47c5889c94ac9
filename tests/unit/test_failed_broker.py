"""A broker that fails: the instance ends in order, everybody names it, and rank 0's store is saved first."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import CLIENT, NOW, Cluster, body, commit, control_from, error, put, to_broker
from running_broker import END_S, RunningBroker

from fluxmpi import errors
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.failed import FailedBroker
from fluxmpi.broker.lifecycle import RESCUE_S
from fluxmpi.broker.wire import FailLater, Rescued, Shutdown
from fluxmpi.drivers import checkpoint
from fluxmpi.drivers.clients import LIMITS
from fluxmpi.drivers.rescue import rescue
from fluxmpi.kvs.wire import SavedFile
from fluxmpi.message import CONTROL, DISK, EVENT, LOOP, RESPONSE, Message


def fail(cluster: Cluster, rank: int, rescuing: bool = False) -> FailedBroker:
    """Have the loop of ``rank`` put the stand-in into the broker's place."""
    failed = FailedBroker(cluster.brokers[rank], "KeyError: 'x'", cluster.now)
    cluster.brokers[rank] = failed  # type: ignore[call-overload]
    cluster.take(rank, failed.start(rescuing, cluster.now))
    return failed


def ends(sent) -> dict[int, Shutdown]:
    return {rank: body(msg, Shutdown) for rank, msg in sent if msg.topic == "loop.exit"}


# ------------------------------------------------------------------------------------------------- in machines' messages


@pytest.mark.parametrize("shape", ["kary:2", "kary:1", "binomial", "flat"])
@pytest.mark.parametrize("rank", range(7))
def test_every_broker_ends_at_once_in_order_and_names_it(rank: int, shape: str) -> None:
    cluster = Cluster(7, shape)
    parents = [broker.router.parent for broker in cluster.brokers]
    fail(cluster, rank)
    ended = ends(cluster.run())
    reason = f"broker {rank} (host{rank}) failed: KeyError: 'x'"
    assert ended == dict.fromkeys(range(7), Shutdown(1, reason, failed=True))
    order = list(ended)
    for child in range(1, 7):
        assert order.index(child) < order.index(parents[child]), "each after its subtree"
    assert all(not broker.router.lost for broker in cluster.brokers), "so MPI can be finalized everywhere"


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_0_saves_before_the_end(rank: int) -> None:
    cluster = Cluster(3, checkpoint="/x.h5")
    fail(cluster, rank)
    sent = cluster.run(60.0)
    assert [msg.topic for _, msg in sent if msg.topic.startswith("disk")] == ["disk.refs", "disk.commit"]
    assert ends(sent) == {}, "the failed broker waits, and nobody takes it for dead meanwhile"
    cluster.step(0, control_from("disk.saved", ("/x.h5", 1, 100), DISK))
    assert set(ends(cluster.run())) == {0, 1, 2}
    assert all(broker.lifecycle.newest_checkpoint.path == "/x.h5" for broker in cluster.brokers)


@pytest.mark.parametrize(
    ("rescued", "text"),
    [
        (Rescued(SavedFile("/x.h5", NOW, 4, 1)), ""),
        (Rescued(None, "the disk is full"), "; the disk is full"),
        (Rescued(SavedFile("/y.h5", NOW, 4, 1), "saved elsewhere"), "; saved elsewhere"),
    ],
)
def test_a_failed_rank_0_ends_the_instance_when_its_store_is_saved(rescued: Rescued, text: str) -> None:
    cluster = Cluster(3, checkpoint="/x.h5")
    fail(cluster, 0, rescuing=True)
    assert ends(cluster.run(100.0)) == {}, "heartbeats go on meanwhile"
    cluster.step(0, control_from("lifecycle.rescued", rescued, LOOP))
    ended = ends(cluster.run())
    assert {end.reason for end in ended.values()} == {f"broker 0 (host0) failed: KeyError: 'x'{text}"}
    assert set(ended) == {0, 1, 2}
    assert [broker.lifecycle.newest_checkpoint for broker in cluster.brokers] == [rescued.file] * 3


def test_saving_the_store_has_a_time_limit() -> None:
    cluster = Cluster(2, checkpoint="/x.h5")
    fail(cluster, 0, rescuing=True)
    ended = ends(cluster.run(RESCUE_S + 1))
    assert set(ended) == {0, 1}
    assert "the store was not saved in 600 s" in ended[0].reason
    cluster.step(0, control_from("lifecycle.rescued", Rescued(None, "late"), LOOP))
    assert cluster.run() == []


def test_a_failed_broker_answers_requests_and_drops_the_rest() -> None:
    cluster = Cluster(3, "kary:1", checkpoint="/x.h5")
    failed = fail(cluster, 1)
    cluster.run()
    (answer,) = cluster.call(2, to_broker("kvs.sync", None, target=0))
    assert isinstance(error(answer), errors.InstanceEnding)
    assert "broker 1 (host1) failed: KeyError: 'x'" in error(answer).text
    for msg in (
        Message(RESPONSE, "kvs.get", route=[2]),
        Message(EVENT, "some.event"),
        Message(CONTROL, "kvs.setroot"),
        Message(CONTROL, "disk.saved"),
    ):
        assert failed.step(msg, cluster.now) == []
    assert failed.disconnect(CLIENT, cluster.now) == []


def test_a_broker_that_fails_when_it_has_lost_its_parent_ends_its_subtree() -> None:
    cluster = Cluster(3, "kary:1")
    cluster.kill(0)
    cluster.brokers[1].router.mark_lost(0, "silent")
    failed = fail(cluster, 1)
    assert failed.lifecycle.cut_off
    assert set(ends(cluster.run())) == {1, 2}


def test_only_an_instance_for_tests_fails_on_request() -> None:
    for debug in (False, True):
        broker = Broker(Config(debug=debug), NOW)
        out = broker.step(to_broker("lifecycle.fail", FailLater("why"), target=0), NOW)
        assert (out[0].status == 0) == debug
        if debug:
            with pytest.raises(RuntimeError, match="why"):
                broker.tick(NOW)


# ------------------------------------------------------------------------------------------------------- the store saved


def made(*keys: str, **config: object) -> Broker:
    """Return a broker of one rank with one version for each key."""
    broker = Broker(Config(**config), NOW)  # type: ignore[arg-type]
    broker.start(NOW)
    for serial, key in enumerate(keys, 1):
        broker.step(to_broker("kvs.commit", commit(serial, put(key, "x" * 500)), tag=serial), NOW)
        broker.tick(NOW)
    return broker


def saved_by(broker: Broker, *paths: Path) -> tuple[SavedFile, str]:
    assert broker.leader is not None
    assert broker.store is not None
    return rescue(broker.leader.namespaces, broker.store, "sha256", "f00d", [str(path) for path in paths], NOW)


def test_the_store_of_a_failed_broker_is_saved(tmp_path: Path) -> None:
    broker = made("a", "b.c")
    file, problem = saved_by(broker, tmp_path / "x.h5")
    assert (file, problem) == (SavedFile(str(tmp_path / "x.h5"), NOW, 2, 1), "")
    found = checkpoint.read(file.path)
    (saved,) = checkpoint.saved_namespaces(file.path, found.roots)
    assert broker.leader is not None
    assert saved.root == broker.leader.roots()[0]
    assert (saved.keys, saved.owner) == (2, 0)
    assert Broker(Config(), NOW, [saved]).kvs is not None


def test_a_damaged_newest_version_is_left_out(tmp_path: Path) -> None:
    broker = made("a", "b.c")
    assert broker.store is not None
    assert broker.leader is not None
    newest = broker.leader.roots()[0]
    broker.store.put(newest.ref, b"garbage")
    broker.store._blobs[newest.ref] = b"garbage"
    file, problem = saved_by(broker, tmp_path / "x.h5")
    assert file.version == 1
    assert problem == "version 2 of primary is damaged, and 1 was saved instead"


def test_nothing_is_saved_of_a_store_that_is_not_whole(tmp_path: Path) -> None:
    broker = made("a")
    assert broker.store is not None
    for ref in list(broker.store.refs()):
        broker.store._blobs[ref] = b"garbage"
    with pytest.raises(errors.StorageError, match="the store is not whole, so nothing was saved: namespace primary"):
        saved_by(broker, tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


def test_the_fallback_is_used_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    broker = made("a")
    file, problem = saved_by(broker, tmp_path / "none" / "x.h5", tmp_path / "y.h5")
    assert file.path == str(tmp_path / "y.h5")
    assert "the folder does not exist" in problem
    assert f"The store was saved to {tmp_path / 'y.h5'} instead" in problem
    with pytest.raises(errors.StorageError, match="the folder does not exist"):
        saved_by(broker, tmp_path / "none" / "x.h5")


# --------------------------------------------------------------------------------------------------------- in a real loop


def failing(folder: Path) -> RunningBroker:
    """Run a broker that has made one version, and have it fail."""
    running = RunningBroker(folder, Config(checkpoint=str(folder / "x.h5"), debug=True), LIMITS)
    running.thread.start()
    with running.connect() as h:
        assert h.kvs.commit({"a": 1}).version == 1
        h.rpc("lifecycle.fail", FailLater("on purpose"))  # answered: what earlier steps of the turn returned is sent
        with pytest.raises(errors.FluxmpiError):
            h.rpc("ping.ping", (1, b""))
    running.thread.join(END_S)
    assert not running.thread.is_alive()
    return running


def test_a_real_broker_saves_its_store_and_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    running = failing(tmp_path)
    path = tmp_path / "x.h5"
    assert (running.status, running.loop.clean) == (1, True)
    assert [root.version for root in checkpoint.read(path).roots] == [1]
    text = capfd.readouterr().err
    assert "broker 0 (localhost) failed, and saves the store: RuntimeError: on purpose (at " in text
    assert text.count(f"newest checkpoint {path}, saved ") == 1
    assert "Traceback" in text
    assert "no version since is lost" in text


def test_a_second_failure_ends_the_loop_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[Message]:
        raise RuntimeError("broken")

    monkeypatch.setattr(FailedBroker, "start", broken)
    running = failing(tmp_path)
    assert (running.status, running.loop.clean) == (1, False), "so the process exits without MPI's finalize"
    assert list(tmp_path.glob("x.h5*")) == []
