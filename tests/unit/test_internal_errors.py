"""An exception out of a step: the error of one request where the state is whole, else the end of the broker."""

from __future__ import annotations

import logging
import traceback

import pytest
from machines import CLIENT, NOW, Cluster, body, commit, error, put, to_broker
from running_broker import running_broker

from fluxmpi import errors
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.content.service import ContentService
from fluxmpi.errors import InternalError, ProtocolError
from fluxmpi.jobs.exec import ExecService
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc.key_history import KeyHistory
from fluxmpi.kvs.mvcc.limits import MvccLimits
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import GetRequest, Got, HistoryRequest, Setroot, WatchRequest
from fluxmpi.message import LOCAL, LOOP, MORE, RESPONSE, Message, control
from fluxmpi.overlay.health import Health


def broken(*_: object, **__: object) -> None:
    raise KeyError("a defect " + "x" * 10_000)


def broken_walk(*_: object, **__: object):
    raise IndexError("a defect")
    yield


def answers(cluster: Cluster, rank: int, msg: Message) -> list[Message]:
    return [out for out in cluster.call(rank, msg) if out.kind == RESPONSE]


def internal_errors(cluster: Cluster) -> list[int]:
    return [int(broker.statistics()["broker"]["internal_errors"]) for broker in cluster.brokers]


@pytest.mark.parametrize(("rank", "target"), [(0, 0), (2, 2), (2, 0), (0, 2)])
def test_a_defect_of_a_read_is_the_error_of_its_request(monkeypatch, rank, target):
    cluster = Cluster(3)
    seen: list[tuple[str, Exception]] = []
    cluster.brokers[target].on_internal_error = lambda what, problem: seen.append((what, problem))
    with monkeypatch.context() as patch:
        patch.setattr(Reads, "root_at", broken)
        (answer,) = answers(cluster, rank, to_broker("kvs.get", GetRequest("a"), target=target))
    found = error(answer)
    assert type(found) is InternalError
    assert found.text.startswith("kvs.get: KeyError: 'a defect xxx")
    assert found.text.endswith("x; this is a defect of fluxmpi: the broker's log has the traceback")
    assert len(found.text) < 400
    assert not InternalError.definite
    assert [(what, type(problem)) for what, problem in seen] == [("kvs.get", KeyError)]
    assert internal_errors(cluster) == [int(each == target) for each in range(3)]
    (answer,) = answers(cluster, 1, to_broker("kvs.commit", commit(1, put("a", 1))))
    (answer,) = answers(cluster, rank, to_broker("kvs.get", GetRequest("a"), target=target))
    assert body(answer, Got).data == b"1"


def test_a_defect_of_a_suspended_read_is_not_that_of_what_it_waited_for(monkeypatch):
    """The walk is resumed while the broker steps a response, a setroot, or nothing."""
    cluster = Cluster(3)
    (answer,) = answers(cluster, 0, to_broker("kvs.commit", commit(1, put("a.b", "x" * 3000), put("c", 1))))
    other = body(answer, list)[2]
    (answer,) = answers(cluster, 0, to_broker("kvs.commit", commit(2, put("a.b", "y" * 3000))))
    cluster.brokers[2].step(to_broker("content.dropcache"), NOW)
    with monkeypatch.context() as patch:
        patch.setattr(Reads, "add_nodes", broken)
        (answer,) = answers(cluster, 2, to_broker("kvs.get", GetRequest("a.b", at=other)))
    assert type(error(answer)) is InternalError
    cluster.step(2, to_broker("kvs.get", GetRequest("a.b", at_least=3), tag=5))
    with monkeypatch.context() as patch:
        patch.setattr(Reads, "get", broken)
        out = answers(cluster, 2, to_broker("kvs.commit", commit(3, put("d", 1)), tag=6))
    assert [(msg.tag, msg.status) for msg in sorted(out, key=lambda msg: msg.tag)] == [(5, 49), (6, 0)]
    assert internal_errors(cluster) == [0, 0, 2]
    (answer,) = answers(cluster, 2, to_broker("kvs.get", GetRequest("d")))
    assert body(answer, Got).data == b"1"
    assert cluster.brokers[2].statistics()["kvs"]["suspended"] == 0


def test_a_defect_of_a_search_in_histories(monkeypatch):
    """It runs over several turns: the first of them is the request's, the others are ticks."""
    cluster = Cluster(1, kvs=KvsLimits(mvcc=MvccLimits(search_versions_per_turn=1)))
    for serial in range(1, 5):
        answers(cluster, 0, to_broker("kvs.commit", commit(serial, put("a", serial))))
    monkeypatch.setattr(KeyHistory, "advance", lambda self, count: None)
    cluster.step(0, to_broker("roots.history", HistoryRequest("primary", "a")))
    monkeypatch.setattr(KeyHistory, "advance", broken)
    (answer,) = [msg for _, msg in cluster.run() if msg.kind == RESPONSE]
    assert type(error(answer)) is InternalError
    assert cluster.brokers[0].statistics()["roots"]["searches"] == 0


@pytest.mark.parametrize("cold", [False, True])
def test_a_defect_of_an_evaluation_ends_one_watch(monkeypatch, cold):
    """At once, or when the node that it lacks has arrived. Others of the same key are notified."""
    cluster = Cluster(3)
    answers(cluster, 0, to_broker("kvs.commit", commit(1, put("a.b", "x" * 3000))))
    for tag in (1, 2):
        answers(cluster, 2, to_broker("kvs.watch", WatchRequest("a.b"), tag=tag))
    if cold:
        answers(cluster, 2, to_broker("content.dropcache"))
    notify = Watcher.notify

    def broken_once(self: Watcher, *args: object) -> list[Message]:
        return broken() if self.tag == 1 else notify(self, *args)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(Watcher, "notify", broken_once)
    cluster.step(0, to_broker("kvs.commit", commit(2, put("a.b", "y" * 3000)), hop=CLIENT - 9))
    out = [msg for rank, msg in cluster.run() if rank == 2 and msg.kind == RESPONSE]
    assert sorted((msg.tag, msg.status) for msg in out) == [(1, InternalError.code), (2, MORE)]
    assert cluster.brokers[2].statistics()["kvs"]["watchers"] == 1
    assert internal_errors(cluster) == [0, 0, 1]
    cluster.brokers[2].check()


@pytest.mark.parametrize(
    ("kind", "method", "topic"),
    [(Health, "_ping", "ping.ping"), (ContentService, "_load", "content.load"), (ExecService, "_kill", "exec.kill")],
)
def test_other_isolated_handlers(monkeypatch, kind, method, topic):
    monkeypatch.setattr(kind, method, broken)
    cluster = Cluster(3)
    for target in range(3):
        (answer,) = answers(cluster, 1, to_broker(topic, target=target))
        assert type(error(answer)) is InternalError
    cluster.brokers[0].check()


def test_an_exception_where_the_state_may_be_broken_leaves_the_broker(monkeypatch):
    monkeypatch.setattr(Leader, "_commit", broken)
    broker = Broker(Config(), NOW)
    broker.start(NOW)
    with pytest.raises(KeyError):
        broker.step(to_broker("kvs.commit", commit(1, put("a", 1))), NOW)
    assert broker.statistics()["broker"]["internal_errors"] == 0


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x91\xc0", b"\x92\xa1\xff\x01"])
@pytest.mark.parametrize(
    ("topic", "hop"),
    [("kvs.setroot", 0), ("kvs.gather", 3), ("lifecycle.end", 0), ("overlay.heartbeat", 4), ("kvs.fence-here", 3)],
)
def test_a_peer_that_sends_nonsense_ends_the_broker(topic, hop, raw):
    """What it said is lost, and nobody says it again: going on would let requests wait for ever."""
    relay = Broker(Config(rank=1, size=7, hosts=("h",) * 7), NOW)
    msg = control(topic, hop=hop)
    msg.body = raw
    with pytest.raises(ProtocolError, match=f"^rank {hop} sent {topic}: .*does not decode"):
        relay.step(msg, NOW)


def test_a_response_that_does_not_decode_ends_the_broker():
    relay = Broker(Config(rank=1, size=7, hosts=("h",) * 7), NOW)
    relay.step(control("kvs.setroot", Setroot("primary", 0, bytes(32), NOW, None, []), 0), NOW)
    (asked,) = relay.step(to_broker("kvs.commit", commit(1, put("a", 1))), NOW)
    with pytest.raises(ProtocolError, match=r"^rank 0 answered leader\.commit: "):
        relay.step(Message(RESPONSE, asked.topic, 0, tag=asked.tag, route=[LOCAL], body=b"\xc1"), NOW)


def test_the_loop_logs_the_traceback(tmp_path, monkeypatch, caplog):
    logging.getLogger("fluxmpi").propagate = True
    caplog.set_level("WARNING", "fluxmpi")
    monkeypatch.setattr(Reads, "get", broken_walk)
    with running_broker(tmp_path) as running, running.connect() as h:
        with pytest.raises(errors.InternalError, match=r"kvs\.get: IndexError: a defect; "):
            h.rpc("kvs.get", GetRequest("a"))
        h.kvs.put("a", 1)
        assert h.rpc("stats.get")["broker"]["internal_errors"] == 1
        running.loop.post(control("kvs.setroot", None, LOOP))
        h.rpc("ping.ping", [1])
        assert h.rpc("stats.get")["broker"]["dropped"] == 1
    (failed,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failed.getMessage() == "kvs.get failed by a defect; the request was answered with InternalError"
    assert failed.exc_info is not None
    assert "broken_walk" in "".join(traceback.format_exception(failed.exc_info[1]))
    assert any("dropped kvs.setroot" in record.getMessage() for record in caplog.records)


def test_every_client_gets_its_own(monkeypatch):
    """Others of the same turn are not affected."""
    cluster = Cluster(1)
    cluster.step(0, to_broker("kvs.commit", commit(1, put("a", 1))))
    with monkeypatch.context() as patch:
        patch.setattr("fluxmpi.overlay.health.Info", broken)
        cluster.step(0, to_broker("overlay.info", tag=9, hop=CLIENT - 5))
    out = [(msg.hop, msg.tag, msg.status) for _, msg in cluster.run() if msg.kind == RESPONSE]
    assert out == [(CLIENT - 5, 9, 49), (CLIENT, 1, 0)]
