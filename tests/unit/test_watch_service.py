"""Watches at one broker: the notifications of each version, flow control, and the ends of watches."""

from __future__ import annotations

import sys

import pytest
from machines import CLIENT, NOW, OTHER, answer_to, body, control_from, error, failed_with, put, responses, work
from world import World, replica_limits, val, watch_limits

from fluxmpi import errors
from fluxmpi.kvs.objects import Dir, Link, Val
from fluxmpi.kvs.wire import (
    NOTIFICATION_BYTES,
    WINDOW_MAX,
    Append,
    Cancel,
    KeyChange,
    Listed,
    ListRequest,
    Mkdir,
    Notification,
    OldNamespace,
    Put,
    Setroot,
    Since,
    Unlink,
    WatchAck,
    WatchProgress,
)
from fluxmpi.message import CONTROL, MORE, OK, REQUEST, RESPONSE


@pytest.fixture
def world():
    return World()


@pytest.fixture
def bare():
    """Setroots without nodes: everything must be faulted in."""
    return World(with_nodes=False)


def updates(out):
    assert all(msg.status == MORE for msg in out), [error(msg) for msg in out if msg.status > OK]
    return [body(msg, Notification) for msg in out]


def notes(out):
    """(version, changes) of each notification; the changes without the old values."""
    return [
        (note.version, [KeyChange(change.key, change.object, change.existed) for change in note.changes])
        for note in updates(out)
    ]


# ------------------------------------------------------------------------------------------------------------- watches


def test_a_watch_is_notified_of_the_present_value_and_then_of_each_change(world):
    world.commit(put("a", 1))
    assert notes(world.watch("a")) == [(1, [KeyChange("a", val(1), False)])]
    assert world.commit(put("b", 1)) == []
    assert world.commit(put("a", 1)) == [], "the same value again is no change"
    assert notes(world.commit(put("a", 2), put("c", 1))) == [(4, [KeyChange("a", val(2), True)])]
    assert notes(world.commit(Unlink("a"))) == [(5, [KeyChange("a", None, True)])]
    assert world.commit(Unlink("a")) == []
    (note,) = world.commit(put("a", 3))
    assert notes([note]) == [(7, [KeyChange("a", val(3), False)])]
    assert (note.tag, note.route, body(note, Notification).root) == (1, [CLIENT], world.root.ref)


def test_the_watch_of_a_missing_key_begins_without_changes(world):
    assert notes(world.watch("a.b.c")) == [(0, [])]
    assert notes(world.commit(put("a.b.c", 1))) == [(1, [KeyChange("a.b.c", val(1), False)])]


def test_a_directory_watch_gets_all_changes_of_a_version_at_once(world):
    world.commit(put("d.a", 1), put("d.s.b", 2), put("e", 3))
    assert notes(world.watch("d", recursive=True)) == [
        (1, [KeyChange("d.a", val(1), False), KeyChange("d.s.b", val(2), False)])
    ]
    changes = [KeyChange("d.a", val(9), True), KeyChange("d.s.b", None, True), KeyChange("d.t.c", val(4), False)]
    assert notes(world.commit(put("d.t.c", 4), put("d.a", 9), Unlink("d.s"), put("e", 1))) == [(2, changes)]
    assert world.commit(Mkdir("d.empty")) == [], "directories are no values"
    assert notes(world.commit(Unlink("d"))) == [(4, [KeyChange("d.a", None, True), KeyChange("d.t.c", None, True)])]
    assert notes(world.commit(put("d.x", 1))) == [(5, [KeyChange("d.x", val(1), False)])]


def test_a_watch_of_the_root_directory_gets_every_change(world):
    world.watch(".", recursive=True)
    assert notes(world.commit(put("a.b", 1), put("c", 2))) == [
        (1, [KeyChange("a.b", val(1), False), KeyChange("c", val(2), False)])
    ]


def test_a_watched_directory_becomes_a_value_and_a_directory_again(world):
    world.commit(put("d.a", 1))
    world.watch("d", recursive=True)
    assert notes(world.commit(put("d", 5))) == [(2, [KeyChange("d", val(5), False), KeyChange("d.a", None, True)])]
    assert notes(world.commit(Unlink("d"), put("d.b", 1))) == [
        (3, [KeyChange("d", None, True), KeyChange("d.b", val(1), False)])
    ]


def test_a_key_watch_ends_with_an_error_when_the_key_becomes_a_directory(world):
    world.commit(put("a", 1))
    world.watch("a")
    (end,) = world.commit(Unlink("a"), put("a.b", 1))
    assert isinstance(error(end), errors.IsADirectory)
    assert world.kvs.statistics()["watchers"] == 0
    assert world.commit(put("a.b", 2)) == []


def test_a_change_above_a_watched_key_matches(world):
    world.commit(put("a.b.c", 1))
    world.watch("a.b.c")
    assert notes(world.commit(Unlink("a"))) == [(2, [KeyChange("a.b.c", None, True)])]
    assert notes(world.commit(put("a.b.c", 2))) == [(3, [KeyChange("a.b.c", val(2), False)])]
    assert world.commit(put("a.b.d", 1)) == []


def test_a_directory_put_above_a_watched_key_matches(world):
    world.commit(put("from.x", 1))
    ref = next(obj.ref for _, obj in body(world.step("kvs.list", ListRequest("."))[0], Listed).entries)
    world.watch("to.x")
    world.watch("to", recursive=True, tag=2)
    out = world.commit(Put("to", Dir(ref)))
    assert notes(out) == [(2, [KeyChange("to.x", val(1), False)])] * 2


def test_links_are_followed_also_when_they_change(world):
    world.commit(put("d1.x", 1), put("d2.x", 2), Put("l", Link("d1")))
    assert notes(world.watch("l.x")) == [(1, [KeyChange("l.x", val(1), False)])]
    assert notes(world.commit(put("d1.x", 3))) == [(2, [KeyChange("l.x", val(3), True)])]
    assert notes(world.commit(Put("l", Link("d2")))) == [(3, [KeyChange("l.x", val(2), True)])]
    assert world.commit(put("d1.x", 4)) == []
    assert notes(world.commit(put("l.x", 5))) == [(5, [KeyChange("l.x", val(5), True)])]
    assert notes(world.commit(Unlink("l"))) == [(6, [KeyChange("l.x", None, True)])]
    assert notes(world.commit(Put("l", Link("d1")))) == [(7, [KeyChange("l.x", val(4), False)])]


def test_a_link_itself_can_be_watched(world):
    world.commit(Put("l", Link("a")), put("a", 1), put("b", 2))
    assert notes(world.watch("l", follow=False)) == [(1, [KeyChange("l", Link("a"), False)])]
    assert world.commit(put("a", 2)) == []
    assert notes(world.commit(Put("l", Link("b")))) == [(3, [KeyChange("l", Link("b"), True)])]


def test_a_version_whose_changed_keys_are_unknown_is_evaluated_for_all_watches(world):
    world.watch("k5")
    world.watch("other", tag=2)
    _, out = world.feed(world.commit(*(put(f"k{n}", n) for n in range(1100))))
    assert [(msg.tag, notes([msg])) for msg in out] == [(1, [(1, [KeyChange("k5", val(5), False)])])]


def test_versions_that_arrive_while_an_evaluation_is_suspended_are_notified_in_order(bare):
    bare.commit(put("a", 0), put("d.x", 0))
    loads = bare.watch("a")
    made = [bare.make(put("a", n), put("d.x", n)) for n in range(1, 4)]
    for setroot in made:
        assert [msg for msg in bare.setroot(setroot) if msg.kind != CONTROL] == []
    _, out = bare.feed(loads)
    assert notes(out) == [(1 + n, [KeyChange("a", val(n), n > 0)]) for n in range(4)]


def test_a_watch_cancelled_while_its_evaluation_is_suspended_sends_nothing_more(bare):
    bare.commit(put("a", 0))
    loads = bare.watch("a", tag=4)
    (end,) = bare.step("kvs.cancel", Cancel(4))
    assert (end.tag, end.status) == (4, OK)
    assert bare.feed(loads)[1] == []


def test_a_watch_that_needs_a_collected_version_ends_with_the_version_to_resume_from(bare):
    bare.commit(put("a.b", 0))
    (load,) = bare.watch("a.b", tag=4)
    assert bare.kvs.step(failed_with(load, errors.NoSuchBlob("why")), NOW) == [], "it begins with a later version"
    _, out = bare.feed([msg for msg in bare.setroot(bare.make(put("a.b", 1))) if msg.kind == REQUEST])
    assert notes(out) == [(2, [KeyChange("a.b", val(1), False)])]
    bare.blobs.clear()
    bare.kvs.step(control_from("kvs.dropcache"), NOW)
    (load,) = [msg for msg in bare.setroot(bare.make(put("a.b", 2))) if msg.kind == REQUEST]
    (end,) = bare.kvs.step(failed_with(load, errors.NoSuchBlob("why")), NOW)
    assert "changes up to version 2 were notified" in error(end).text
    assert (end.tag, type(error(end))) == (4, errors.SnapshotCollected)
    assert bare.kvs.statistics()["watchers"] == 0


def test_a_watch_that_lags_too_far_ends():
    bare = World(with_nodes=False, limits=watch_limits(queue_max=3))
    bare.watch("a", tag=4)
    ends = [msg for n in range(5) for msg in bare.commit(put("a", n))]
    assert [(msg.tag, type(error(msg))) for msg in ends] == [(4, errors.Overloaded)]
    assert bare.kvs.statistics()["watchers"] == 0


def test_cancel(world):
    world.watch("a", tag=4)
    world.watch("a", tag=4, hop=OTHER)
    assert world.step("kvs.cancel", Cancel(9)) == []
    (end,) = world.step("kvs.cancel", Cancel(4))
    assert (end.topic, end.tag, end.status, end.route) == ("kvs.watch", 4, OK, [CLIENT])
    assert [msg.route for msg in world.commit(put("a", 1))] == [[OTHER]]
    assert world.step("kvs.cancel", Cancel(4)) == []


def test_cancel_of_a_watch_that_waits_for_its_version(world):
    assert world.watch("a", tag=4, at_least=1) == []
    (end,) = world.step("kvs.cancel", Cancel(4))
    assert (end.topic, end.tag, end.status) == ("kvs.watch", 4, OK)
    assert world.commit(put("a", 1)) == []


def test_the_watches_of_a_disconnected_client_end(world):
    for hop in (CLIENT, OTHER):
        world.watch("a", tag=1, hop=hop)
        world.watch(".", recursive=True, tag=2, hop=hop)
    world.kvs.disconnect(CLIENT, NOW)
    assert world.kvs.statistics()["watchers"] == 2
    assert {tuple(msg.route) for msg in world.commit(put("a", 1))} == {(OTHER,)}


def test_a_tag_in_use_is_refused(world):
    world.watch("a", tag=1)
    assert isinstance(error(world.watch("b", tag=1)[0]), errors.InvalidRequest)
    assert [msg.tag for msg in world.commit(put("a", 1), put("b", 1))] == [1]


def test_the_index_finds_the_watches_of_a_key_among_many(world):
    for n in range(200):
        world.watch(f"w{n}", tag=n)
    out = world.commit(put("w7", 1), put("w70.x", 1), Append("other", b"x"), put("w9", 1))
    assert [(msg.tag, msg.status) for msg in responses(out)] == [
        (7, MORE),
        (70, errors.IsADirectory.code),  # as if it had been one when the watch began
        (9, MORE),
    ]


# ------------------------------------------------------------------------------------------------------------ patterns


def keys_of(out):
    return [[change.key for change in note.changes] for note in updates(out)]


def test_a_pattern_watch_gets_what_matches_and_nothing_else(world):
    world.commit(put("job.1.state", "new"), put("job.2.state", "new"), put("job.2.log", "x"), put("state", 0))
    assert keys_of(world.watch("job.*.state", glob=True)) == [["job.1.state", "job.2.state"]]
    assert world.commit(put("job.2.log", "y"), put("job.state", 1), put("job.1.x.state", 1)) == []
    assert keys_of(world.commit(put("job.3.state", "new"), put("job.1.state", "run"))) == [
        ["job.1.state", "job.3.state"]
    ]
    assert keys_of(world.commit(Unlink("job"))) == [["job.1.state", "job.2.state", "job.3.state"]]


def test_wildcards_in_components_and_of_any_depth(world):
    for tag, pattern in enumerate(("job.1*", "**.state", "job.?", "job.[0-4]x", "a.**.z", "**")):
        world.watch(pattern, glob=True, tag=tag)
    out = world.commit(
        put("job.12", 1), put("job.1", 1), put("job.3x", 1), put("a.z", 1), put("a.b.c.z", 1), put("p.state", 1)
    )
    assert {msg.tag: keys for msg, (keys,) in zip(out, (keys_of([msg]) for msg in out), strict=True)} == {
        0: ["job.1", "job.12"],
        1: ["p.state"],
        2: ["job.1"],
        3: ["job.3x"],
        4: ["a.b.c.z", "a.z"],
        5: ["a.b.c.z", "a.z", "job.1", "job.12", "job.3x", "p.state"],
    }


def test_a_pattern_follows_links_before_its_first_wildcard_and_reports_later_ones(world):
    world.commit(put("real.a", 1), Put("l", Link("real")), Put("d.link", Link("real.a")))
    assert keys_of(world.watch("l.*", glob=True)) == [["l.a"]]
    assert updates(world.watch("d.*", glob=True, tag=2))[0].changes == [KeyChange("d.link", Link("real.a"), False)]
    out = world.commit(put("real.a", 2))
    assert [(msg.tag, keys_of([msg])) for msg in out] == [(1, [["l.a"]])]


@pytest.mark.parametrize("pattern", ["a.b**", "a.[b", "...", "", "x." * 200 + "*", "a.\0*"])
def test_an_invalid_pattern_is_refused(world, pattern):
    (answer,) = world.watch(pattern, glob=True)
    assert isinstance(error(answer), errors.UsageError)
    assert world.kvs.statistics()["watchers"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": 0}, "window"),
        ({"window": -5}, "window"),
        ({"window": WINDOW_MAX + 1}, "window"),
        ({"count": -1}, "count"),
        ({"after": -1}, "after"),
        ({"glob": True, "recursive": True}, "dir.**"),
        ({"recursive": True, "uniq": False}, "rewrites"),
    ],
)
def test_options_out_of_range_are_refused(world, wrong, said):
    (answer,) = world.watch("a", **wrong)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert said in error(answer).text
    assert world.kvs.statistics()["watchers"] == 0


# -------------------------------------------------------------------------------------------- what a notification holds


def test_a_change_has_the_old_value(world):
    world.commit(put("d.a", 1))
    world.watch("d", recursive=True)
    (note,) = updates(world.commit(put("d.a", 2), put("d.b", 3)))
    assert note.changes == [KeyChange("d.a", val(2), True, val(1)), KeyChange("d.b", val(3), False, None)]
    (note,) = updates(world.commit(Unlink("d.a")))
    assert note.changes == [KeyChange("d.a", None, True, val(2))]


def test_a_watch_without_initial_values_begins_without_changes(world):
    world.commit(put("d.a", 1))
    assert notes(world.watch("d", recursive=True, initial=False)) == [(1, [])]
    assert keys_of(world.commit(put("d.b", 1))) == [["d.b"]]


def test_a_watch_ends_after_count_notifications_with_changes(world):
    assert notes(world.watch("a", count=2)) == [(0, [])], "a notification without changes does not count"
    assert len(updates(world.commit(put("a", 1)))) == 1
    last, end = world.commit(put("a", 2))
    assert (last.status, end.status, end.tag) == (MORE, OK, 1)
    assert world.kvs.statistics()["watchers"] == 0
    assert world.commit(put("a", 3)) == []


def test_a_key_written_again_is_notified_with_uniq_false(world):
    world.commit(put("a", 1))
    world.watch("a", uniq=False)
    world.watch("a", tag=2)
    (note,) = world.commit(put("a", 1))
    assert (note.tag, updates([note])[0].changes) == (1, [KeyChange("a", val(1), True, val(1), [])])
    assert world.commit(put("b", 1)) == []


def test_a_long_notification_is_sent_in_parts_of_one_version():
    world = World(limits=watch_limits(slice_changes=3))
    world.commit(*(put(f"d.k{n}", n) for n in range(8)))
    out = world.watch("d", recursive=True)
    parts = updates(out)
    assert [(note.version, len(note.changes), note.more) for note in parts] == [
        (1, 3, True),
        (1, 3, True),
        (1, 2, False),
    ]
    assert [change.key for note in parts for change in note.changes] == [f"d.k{n}" for n in range(8)]


def test_evaluations_past_the_limit_follow_in_later_turns():
    world = World(limits=watch_limits(turn_evaluations=4))
    for tag in range(10):
        world.watch("a", tag=tag)
        world.kvs.tick(NOW)
    out = world.commit(put("a", 1))
    assert len(out) == 4
    assert world.kvs.deadline == NOW, "the broker has more to do"
    assert [len(world.kvs.tick(NOW)) for _ in range(3)] == [4, 2, 0]
    assert world.kvs.deadline > NOW


def test_a_version_is_not_handed_to_a_watch_that_has_ended_meanwhile():
    """Else rank 0 would keep versions for it for ever."""
    world = World(limits=watch_limits(at_once_max=0, hand_max=1, match_steps=1, turn_evaluations=1))
    for tag in (1, 2, 3):
        world.watch("a", tag=tag)
        work(world.kvs)
    world.commit(Put("a", Val("raw", bytes(1000))))
    work(world.kvs)
    world.setroot(world.make(Put("a", Val("raw", bytes(2000)))))  # handed to the first watch
    world.step("kvs.cancel", Cancel(3))
    work(world.kvs)
    world.kvs.check()
    (needing,) = world.kvs.watches.needs.watchers.values()
    assert [watcher.tag for watcher in needing] == [1, 2]


# -------------------------------------------------------------------------------------------------------- flow control


def weight(out):
    return sum(len(msg.body) + NOTIFICATION_BYTES for msg in out)


def test_a_watch_sends_only_while_it_has_credit(world):
    (first,) = world.watch("a", window=1)
    assert world.commit(put("a", 1)) == []
    assert world.commit(put("a", 2)) == []
    statistics = world.kvs.statistics()
    assert (statistics["watch_queued"], statistics["watch_unacknowledged"]) == (2, weight([first]))
    (second,) = world.step("kvs.watch-ack", WatchAck(1, weight([first])), tag=9)
    assert notes([second]) == [(1, [KeyChange("a", val(1), False)])]
    (third,) = world.step("kvs.watch-ack", WatchAck(1, weight([second])), tag=9)
    assert notes([third]) == [(2, [KeyChange("a", val(2), True)])]
    assert world.step("kvs.watch-ack", WatchAck(1, weight([third])), tag=9) == []
    assert world.kvs.statistics()["watch_unacknowledged"] == 0


def test_a_part_waits_for_credit():
    """A pattern that matches everything, and a window of one byte."""
    world = World(limits=watch_limits(slice_changes=3))
    world.commit(*(put(f"d.k{n}", n) for n in range(8)))
    out = world.watch("**", glob=True, window=1)
    parts = 0
    while out:
        (part,) = out
        parts += len(updates(out)[0].changes)
        out = world.step("kvs.watch-ack", WatchAck(1, weight([part])), tag=9)
    assert parts == 8
    assert world.kvs.statistics()["watch_unacknowledged"] == 0


def test_mode_latest_keeps_the_newest_pending_version(world):
    (first,) = world.watch("d", recursive=True, latest=True, window=1)
    for n in range(5):
        assert world.commit(put("d.a", n), put(f"d.k{n}", n)) == []
    assert world.kvs.statistics()["watch_queued"] == 1
    (second,) = world.step("kvs.watch-ack", WatchAck(1, weight([first])), tag=9)
    assert notes([second]) == [
        (5, [KeyChange("d.a", val(4), False)] + [KeyChange(f"d.k{n}", val(n), False) for n in range(5)])
    ]


def test_the_error_of_a_lagging_watch_has_the_version_to_resume_from():
    world = World(limits=watch_limits(queue_max=3))
    (first,) = world.watch("a", window=100)
    world.commit(put("a", 0))
    ends = [msg for n in range(1, 6) for msg in world.commit(put("a", n))]
    (end,) = [msg for msg in ends if msg.status != MORE]
    assert isinstance(error(end), errors.Overloaded)
    notified = [body(msg, Notification).version for msg in ends if msg.status == MORE]
    after = notified[-1] if notified else body(first, Notification).version
    if not notified:
        after = max(after, 1) if weight([first]) < 100 else after
    assert f"after={after}" in error(end).text
    assert world.kvs.statistics()["watch_queued"] == world.kvs.statistics()["watch_unacknowledged"] == 0


def test_the_watches_of_a_client_share_its_credit():
    world = World(limits=watch_limits(credit_bytes_max=150))
    out = [msg for tag in range(6) for msg in world.watch("a", tag=tag)]
    assert 1 < len(out) < 4
    assert len(world.watch("a", tag=0, hop=OTHER)) == 1, "another client has its own credit"
    taken = list(out)
    while taken:
        msg = taken.pop()
        more = world.step("kvs.watch-ack", WatchAck(msg.tag, weight([msg])), tag=99)
        out += more
        taken += more
    assert sorted(msg.tag for msg in out) == list(range(6))


def test_an_acknowledgement_of_an_ended_watch_is_ignored_and_one_of_too_much_refused(world):
    assert world.step("kvs.watch-ack", WatchAck(7, 10)) == []
    (first,) = world.watch("a")
    for wrong in (weight([first]) + 1, -1):
        (answer,) = world.step("kvs.watch-ack", WatchAck(1, wrong), tag=9)
        assert isinstance(error(answer), errors.InvalidRequest)
    assert world.kvs.statistics()["watch_unacknowledged"] == weight([first])


def test_nothing_is_kept_of_a_disconnected_client(world):
    for tag in range(4):
        world.watch("a", tag=tag, window=1)
    world.watch("later", tag=9, namespace="unborn", wait=True)
    world.watch("later", tag=10, at_least=1000)
    for n in range(3):
        world.commit(put("a", n))
    world.kvs.disconnect(CLIENT, NOW)
    world.settle()
    world.kvs.check()
    statistics = world.kvs.statistics()
    assert {name: value for name, value in statistics.items() if name.startswith("watch_") or name == "watchers"} == {
        "watchers": 0,
        "watch_clients": 0,
        "watch_key_bytes": 0,
        "watch_namespaces": 0,
        "watch_needs": 0,
        "watch_queued": 0,
        "watch_unacknowledged": 0,
        "watch_pending": 0,
        "watch_unsynced": 0,
    }
    assert statistics["parked"] == 0
    assert world.commit(put("a", 9)) == []


# ---------------------------------------------------------------------------------------------------------- the past


def test_a_watch_after_a_version_gets_later_changes_and_then_new_ones(world):
    for n in range(5):
        world.commit(put("a", n))
        world.commit(put("b", n))
    out = notes(world.watch("a", after=3))
    assert out == [(3, []), *((2 * n + 1, [KeyChange("a", val(n), True)]) for n in range(2, 5))]
    assert notes(world.commit(put("a", 9))) == [(11, [KeyChange("a", val(9), True)])]


def test_a_pattern_watch_after_a_version(world):
    world.commit(put("d.a", 1))
    world.commit(put("d.b", 1))
    world.commit(Unlink("d"))
    out = world.watch("d.*", glob=True, after=1)
    assert notes(out) == [
        (1, []),
        (2, [KeyChange("d.b", val(1), False)]),
        (3, [KeyChange("d.a", None, True), KeyChange("d.b", None, True)]),
    ]


def test_mode_latest_after_a_version_is_one_notification(world):
    for n in range(5):
        world.commit(put("a", n))
    assert notes(world.watch("a", after=2, latest=True)) == [(2, []), (5, [KeyChange("a", val(4), True)])]


def test_versions_missing_in_the_replica_are_requested_from_rank_0():
    world = World(limits=replica_limits(history_max=2))
    roots = [world.root]
    for n in range(6):
        world.commit(put("a", n))
        roots.append(world.root)
    (asked,) = world.watch("a", after=2)
    assert (asked.topic, body(asked, Since)) == ("roots.since", Since("primary", 2, world.limits.page_versions))
    assert world.commit(put("a", 6)) == [], "it follows after the versions before it"
    roots.append(world.root)
    (asked,) = [msg for msg in world.kvs.step(answer_to(asked, roots[2:4]), NOW) if msg.kind == REQUEST]
    assert body(asked, Since).version == 4
    out = world.kvs.step(answer_to(asked, roots[4:]), NOW)
    world.kvs.check()
    assert [note.version for note in updates(out)] == [4, 5, 6, 7]
    assert world.kvs.statistics()["watch_unsynced"] == 0


def test_a_watch_after_a_version_that_is_not_kept_ends_with_an_error():
    world = World(limits=replica_limits(history_max=2))
    for n in range(6):
        world.commit(put("a", n))
    (asked,) = world.watch("a", after=2)
    (end,) = world.kvs.step(failed_with(asked, errors.SnapshotCollected("gone")), NOW)
    assert isinstance(error(end), errors.SnapshotCollected)
    assert world.kvs.statistics()["watchers"] == 0


def test_a_watch_after_a_future_version_ends_with_an_error_unless_rank_0_has_it(world):
    (asked,) = world.watch("a", after=3)
    assert asked.topic == "roots.get"
    (end,) = world.kvs.step(failed_with(asked, errors.VersionUnknown("not yet")), NOW)
    assert isinstance(error(end), errors.VersionUnknown)
    (asked,) = world.watch("a", after=1)
    world.commit(put("a", 1))
    out = world.kvs.step(answer_to(asked, world.root), NOW)
    assert notes(out) == [(1, [])]


def test_nothing_is_kept_of_a_client_that_disconnects_while_rank_0_is_asked(world):
    (asked,) = world.watch("a", after=1)
    world.kvs.disconnect(CLIENT, NOW)
    world.commit(put("a", 1))
    assert world.kvs.step(answer_to(asked, world.root), NOW) == []
    assert world.kvs.statistics()["watchers"] == world.kvs.statistics()["asked"] == 0


# ------------------------------------------------------------------------------------------------------------ progress


def test_progress_is_notified_on_request(world):
    world.watch("a")
    world.commit(put("b", 1))
    world.commit(put("b", 2))
    assert notes(world.step("kvs.watch-progress", WatchProgress(1), tag=8)) == [(2, [])]
    assert world.step("kvs.watch-progress", WatchProgress(99), tag=8) == []


def test_progress_is_notified_after_the_pending_versions(world):
    (first,) = world.watch("a", window=1)
    world.commit(put("a", 1))
    world.commit(put("b", 2))
    assert world.step("kvs.watch-progress", WatchProgress(1), tag=8) == []
    out = world.step("kvs.watch-ack", WatchAck(1, weight([first])), tag=9)
    assert notes(out) == [(1, [KeyChange("a", val(1), False)])]
    assert notes(world.step("kvs.watch-ack", WatchAck(1, weight(out)), tag=9)) == [(2, [])]


# --------------------------------------------------------------------------------------- namespaces, here and elsewhere


def foreign(world, version, *ops, namespace="ns2"):
    """A new version of another namespace."""
    keys = [op.key for op in ops]
    ref = world.foreign_root(ops)
    out = world.kvs.step(control_from("kvs.setroot", Setroot(namespace, version, ref, NOW, keys, []), 0), NOW)
    world.kvs.check()
    return [msg for msg in out if msg.kind != CONTROL]


def test_a_watch_waits_for_a_namespace_that_does_not_exist(world):
    assert world.watch("a", namespace="ns2", wait=True) == []
    assert notes(foreign(world, 1, put("a", 1))) == [(1, [KeyChange("a", val(1), False)])]
    assert notes(foreign(world, 2, put("a", 2))) == [(2, [KeyChange("a", val(2), True)])]


def test_versions_of_another_namespace_match_a_watch_through_a_link_into_it(world):
    foreign(world, 1, put("x", 1))
    world.commit(Put("l", Link("x", "ns2")))
    assert notes(world.watch("l")) == [(1, [KeyChange("l", val(1), False)])]
    (note,) = updates(foreign(world, 2, put("x", 2)))
    assert (note.namespace, note.version, note.changes) == ("ns2", 2, [KeyChange("l", val(2), True, val(1), [])])
    assert foreign(world, 3, put("x", 2), put("other", 1)) == []
    (note,) = updates(world.commit(put("l2", 1), Unlink("l")))
    assert (note.namespace, note.version, note.changes[0].object) == ("primary", 2, None)


def test_a_link_to_a_link_into_another_namespace_is_followed_when_either_changes(world):
    foreign(world, 1, put("x", 1), put("y", 2))
    world.commit(Put("l", Link("m")), Put("m", Link("x", "ns2")))
    assert notes(world.watch("l")) == [(1, [KeyChange("l", val(1), False)])]
    (note,) = updates(world.commit(Put("m", Link("y", "ns2"))))
    assert (note.namespace, note.version, note.changes) == ("primary", 2, [KeyChange("l", val(2), True, val(1), [])])
    (note,) = updates(foreign(world, 2, put("x", 1), put("y", 3)))
    assert (note.namespace, note.version, note.changes) == ("ns2", 2, [KeyChange("l", val(3), True, val(2), [])])


def test_a_watch_through_a_link_waits_for_a_namespace_that_does_not_exist(world):
    world.commit(Put("l", Link("x", "ns2")))
    assert notes(world.watch("l", wait=True)) == [(1, [])]
    assert isinstance(error(world.watch("l", tag=2)[0]), errors.NoSuchNamespace), "without wait"
    (note,) = updates(foreign(world, 1, put("x", 1)))
    assert (note.namespace, note.version, note.changes) == ("ns2", 1, [KeyChange("l", val(1), False, None, [])])


def test_the_watches_of_a_removed_namespace_end(world):
    foreign(world, 1, put("x", 1))
    world.commit(Put("l", Link("x", "ns2")))
    world.watch("x", namespace="ns2", tag=1)
    world.watch("l", tag=2, wait=True)
    world.watch("l", tag=3)
    out = [
        msg
        for msg in world.kvs.step(control_from("kvs.removed", OldNamespace("ns2", 2), 0), NOW)
        if msg.kind == RESPONSE
    ]
    world.kvs.check()
    assert [(msg.tag, msg.status) for msg in out] == [
        (1, errors.NoSuchNamespace.code),
        (2, MORE),
        (3, errors.NoSuchNamespace.code),
    ]
    (note,) = updates([out[1]])
    assert (note.namespace, note.changes) == ("ns2", [KeyChange("l", None, True, val(1))])
    assert world.kvs.statistics()["watchers"] == 1
    (note,) = updates(foreign(world, 3, put("x", 7)))
    assert note.changes == [KeyChange("l", val(7), False, None, [])], "a namespace of that name may be created again"


# --------------------------------------------------------------------------------- versions whose changes are not known


def test_the_watches_that_a_large_version_matches_are_found_by_one_diff():
    world = World(limits=watch_limits(slice_changes=50))
    for n in range(100):
        world.watch(f"w{n}", tag=n)
    world.watch("job.*.state", glob=True, tag=200)
    world.watch("link.k5", tag=201)
    evaluated = world.kvs.statistics()["evaluated"]
    many = [put(f"other.k{n}", n) for n in range(1200)]
    made = world.make(*many, put("w7", 1), put("job.1.state", 1), Put("link", Link("other")))
    assert body(made, Setroot).keys is None
    out = [msg for msg in world.setroot(made) if msg.kind != CONTROL]
    loads = [msg for msg in out if msg.kind == REQUEST]
    out = [msg for msg in out if msg.kind != REQUEST] + world.feed(loads)[1]
    while world.kvs.deadline <= NOW:
        out += world.kvs.tick(NOW)
    assert sorted(msg.tag for msg in out if msg.kind != CONTROL) == [7, 200, 201]
    assert world.kvs.statistics()["evaluated"] - evaluated == 3


def test_versions_are_matched_after_a_large_one_before_them(bare):
    for n in range(30):
        bare.feed([msg for msg in bare.watch(f"w{n}", tag=n) if msg.kind == REQUEST])
    large = bare.make(*(put(f"o.k{n}", n) for n in range(1200)), put("w3", 1))
    loads = [msg for msg in bare.setroot(large) if msg.kind == REQUEST]
    assert loads
    assert [msg for msg in bare.setroot(bare.make(put("w3", 2), put("w4", 2))) if msg.kind != CONTROL] == []
    assert bare.kvs.statistics()["watch_pending"] == 2
    _, out = bare.feed(loads)
    assert sorted((msg.tag, note.version) for msg, note in zip(out, updates(out), strict=True)) == [
        (3, 1),
        (3, 2),
        (4, 2),
    ]
    assert [note.version for msg, note in zip(out, updates(out), strict=True) if msg.tag == 3] == [1, 2]
    assert bare.kvs.statistics()["watch_pending"] == 0


def test_a_watch_after_a_version_in_mode_latest_ignores_that_version_when_it_is_matched(bare):
    """1. A version arrives and is matched in slices. 2. A watch begins after it. 3. The version matches that watch."""
    for n in range(30):
        bare.feed([msg for msg in bare.watch(f"w{n}", tag=n) if msg.kind == REQUEST])
    finding = [msg for msg in bare.setroot(bare.make(*(put(f"o.k{n}", n) for n in range(1200)))) if msg.kind == REQUEST]
    begun = bare.watch("o.k7*", tag=99, glob=True, after=1, latest=True)
    _, first = bare.feed([msg for msg in begun if msg.kind == REQUEST])
    assert notes([msg for msg in begun if msg.kind != REQUEST] + first) == [(1, [])]
    assert bare.feed(finding)[1] == []
    assert bare.kvs.statistics()["watch_pending"] == 0


# -------------------------------------------------------------------------------------------------- one notification


def test_a_notification_passes_five_files_of_kvs(world):
    """From the setroot to the notification, beside the tree (``store``) and the adoption of the root (``replica``)."""
    world.watch("job.*.state", glob=True)
    world.watch("a", tag=2)
    made = world.make(put("job.7.state", 1), put("a", 1))
    files = {}

    def called(frame, event, _):
        if event == "call" and "/fluxmpi/kvs/" in frame.f_code.co_filename:
            files[frame.f_code.co_filename.rpartition("/fluxmpi/kvs/")[2]] = None

    sys.setprofile(called)
    try:
        out = world.kvs.step(made, NOW)
    finally:
        sys.setprofile(None)
    assert len(updates([msg for msg in out if msg.kind == RESPONSE])) == 2
    passed = sorted(file for file in files if not file.startswith(("store/", "replica/", "objects", "wire/")))
    assert passed == ["service.py", "watch/evaluator.py", "watch/index.py", "watch/service.py", "watch/watcher.py"]
