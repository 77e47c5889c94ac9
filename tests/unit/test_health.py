"""Heartbeats, lost neighbours, and the status of all brokers."""

from __future__ import annotations

from machines import CLIENT, NOW, answer_to, ask, body, control_from, error, failed_with, topics

from fluxmpi import errors
from fluxmpi.machine import NEVER
from fluxmpi.overlay.health import LOST_AFTER_BEATS, Health
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import Heartbeat, Info, LostRank, Peer, Ping, Pong

BEAT = 2.0
LOST = BEAT * LOST_AFTER_BEATS


def health(rank=1, size=7):
    return Health(Router(rank, size), [f"host{n}" for n in range(size)], BEAT, NOW)


def beat(machine, rank, now, lost=()):
    return machine.step(control_from("overlay.heartbeat", Heartbeat(rank, list(lost)), rank), now)


def live(machine, since, until, ranks):
    """Tick for a time in which only ``ranks`` send heartbeats; return what was sent besides heartbeats."""
    out, now = [], since
    while now < until:
        now += BEAT
        for rank in ranks:
            out += beat(machine, rank, now)
        out += [msg for msg in machine.tick(now) if msg.topic != "overlay.heartbeat"]
    return out


def test_each_neighbour_gets_a_heartbeat_each_period():
    machine = health()
    assert machine.deadline == NOW, "the first at once"
    assert topics(machine.tick(NOW)) == [("overlay.heartbeat", 0), ("overlay.heartbeat", 3), ("overlay.heartbeat", 4)]
    assert machine.deadline == NOW + BEAT


def test_a_broker_without_neighbours_sends_no_heartbeats():
    assert health(0, 1).deadline == NEVER


def test_neighbours_that_send_heartbeats_are_never_lost():
    machine = health()
    assert live(machine, NOW, NOW + 10 * LOST, [0, 3, 4]) == []
    assert not machine.router.lost


def test_a_silent_child_is_reported_once_to_the_parent_and_the_lifecycle():
    machine = health()
    out = live(machine, NOW, NOW + LOST, [0, 4])
    assert out == [], "not before its time"
    out = live(machine, NOW + LOST, NOW + 3 * LOST, [0, 4])
    assert topics(out) == [("lifecycle.lost", -1), ("overlay.lost", 0)]
    assert [body(msg, LostRank).rank for msg in out] == [3, 3]
    assert "no heartbeat for 12.0 s" in body(out[0], LostRank).reason
    beats = machine.tick(NOW + 4 * LOST)
    assert ("overlay.heartbeat", 3) not in topics(beats), "nothing is ever sent to it again"


def test_a_silent_parent_is_reported_to_the_lifecycle_only():
    out = live(health(), NOW, NOW + LOST + BEAT, [3, 4])
    assert topics(out) == [("lifecycle.lost", -1)]


def test_a_reported_loss_is_forwarded_once():
    machine = health()
    assert topics(beat(machine, 3, NOW, lost=[5])) == [("lifecycle.lost", -1), ("overlay.lost", 0)]
    assert beat(machine, 3, NOW, lost=[5]) == []
    assert machine.step(control_from("overlay.lost", LostRank(5, "again"), 4), NOW) == []
    assert beat(machine, 4, NOW, lost=[1]) == [], "a broker does not mark itself as lost"
    beats = machine.tick(NOW)
    assert body(beats[0], Heartbeat).lost == [5], "heartbeats forward it"


def test_a_driver_may_report_a_loss_before_the_heartbeats():
    out = health().step(control_from("overlay.lost", LostRank(4, "its doorbell is closed")), NOW)
    assert topics(out) == [("lifecycle.lost", -1), ("overlay.lost", 0)]
    assert body(out[0], LostRank) == LostRank(4, "its doorbell is closed")


def test_a_broker_that_was_suspended_marks_no_neighbour_as_lost():
    """The heartbeats of its neighbours are unread in MPI when it continues."""
    machine = health()
    machine.tick(NOW)
    out = machine.tick(NOW + 1000)
    assert {topic for topic, _ in topics(out)} == {"overlay.heartbeat"}
    assert not machine.router.lost
    out = live(machine, NOW + 1000, NOW + 1000 + LOST + BEAT, [0, 4])
    assert topics(out)[0] == ("lifecycle.lost", -1), "but silence after that counts"


# -------------------------------------------------------------------------------------------------------------- status


def test_ping_and_info():
    machine = health()
    (pong,) = machine.step(ask("ping.ping", Ping(7, b"abc")), NOW)
    assert body(pong, Pong) == Pong(7, b"abc", 1, [CLIENT])
    (info,) = machine.step(ask("overlay.info"), NOW)
    assert body(info, Info) == Info(1, 7, "host1", "kary:2", 0, [3, 4])
    for topic in ("overlay.other", "ping.other"):
        assert isinstance(error(machine.step(ask(topic), NOW)[0]), errors.InvalidRequest)
    assert isinstance(error(machine.step(ask("ping.ping", "x"), NOW)[0]), errors.InvalidRequest)


def peer(rank, state="up", idle_s=0.0):
    return Peer(rank, f"host{rank}", (rank - 1) // 2, state, idle_s)


def test_status_is_requested_down_the_tree_and_merged_in_order():
    machine = health()
    beat(machine, 4, NOW)
    asked = machine.step(ask("overlay.status", tag=5), NOW + 1.5)
    assert [(msg.topic, msg.target) for msg in asked] == [("overlay.status", 3), ("overlay.status", 4)]
    machine.check()
    assert machine.step(answer_to(asked[1], [peer(9)]), NOW) == []
    (answer,) = machine.step(answer_to(asked[0], [peer(8), peer(7)]), NOW)
    assert (answer.tag, answer.route) == (5, [CLIENT])
    peers = body(answer, list[Peer])
    assert [p.rank for p in peers] == [3, 4, 7, 8, 9]
    assert peers[1] == Peer(4, "host4", 1, "up", 1.5)
    assert machine.statistics()["gathers"] == 0


def test_a_leaf_answers_at_once_and_rank_0_counts_itself():
    assert body(health(3).step(ask("overlay.status"), NOW)[0]) == []
    (answer,) = health(0, 1).step(ask("overlay.status"), NOW)
    assert body(answer, list[Peer]) == [Peer(0, "host0", -1, "up", 0.0)]


def test_a_child_lost_meanwhile_counts_as_answered():
    machine = health()
    first = machine.step(ask("overlay.status", tag=5), NOW)
    second = machine.step(ask("overlay.status", tag=6), NOW)
    assert machine.step(answer_to(first[1], [peer(9)]), NOW) == []
    out = machine.step(control_from("overlay.lost", LostRank(3, "gone")), NOW)
    assert topics(out)[:2] == [("lifecycle.lost", -1), ("overlay.lost", 0)]
    (answer,) = out[2:]
    assert answer.tag == 5, "the second still waits for rank 4"
    assert [p.rank for p in body(answer, list[Peer])] == [3, 4, 9]
    assert machine.step(answer_to(first[0], [peer(7)]), NOW) == [], "a late response is ignored"
    (answer,) = machine.step(answer_to(second[1], []), NOW)
    assert answer.tag == 6
    asked = machine.step(ask("overlay.status", tag=7), NOW)
    assert [msg.target for msg in asked] == [4], "lost ranks get no request"
    (answer,) = machine.step(answer_to(asked[0], []), NOW)
    assert [(p.rank, p.state) for p in body(answer, list[Peer])] == [(3, "lost"), (4, "up")]


def test_a_child_that_cannot_be_reached_counts_as_answered():
    machine = health(1, 4)
    (asked,) = machine.step(ask("overlay.status"), NOW)
    (answer,) = machine.step(failed_with(asked, errors.RankLost("no way")), NOW)
    assert [p.rank for p in body(answer, list[Peer])] == [3]


def test_the_status_request_of_a_disconnected_client_is_dropped():
    machine = health()
    asked = machine.step(ask("overlay.status"), NOW)
    machine.disconnect(CLIENT, NOW)
    assert machine.statistics()["gathers"] == 0
    assert machine.step(answer_to(asked[0], []), NOW) == []


def test_a_parent_that_has_sent_end_may_be_silent():
    """It sends nothing after that, no heartbeats either, while this broker waits for its children."""
    router = Router(1, 4)
    health = Health(router, ["a"] * 4, 1.0, 0.0)
    router.parent_ended = True
    beats = [
        msg.hop for second in range(1, 20) for msg in health.tick(float(second)) if msg.topic == "overlay.heartbeat"
    ]
    assert 0 not in router.lost
    assert beats.count(0) == 19, "the parent still expects this broker's"
