"""The leader: commits have one order, each is applied once, and its answer follows its setroot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import NOW, ask, body, commit, control_from, error, put, responses, topics, work
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.objects import Link, Val, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.wire import (
    Append,
    CommitId,
    Contribution,
    Fence,
    FenceDone,
    GetRoot,
    Mkdir,
    Put,
    PutShared,
    RootInfo,
    SavedNamespace,
    Setroot,
)
from fluxmpi.machine import NEVER
from fluxmpi.message import RESPONSE

LIMITS = LeaderLimits()


class World:
    def __init__(self, restored=(), limits=LIMITS):
        self.nodes, self.blobs = make_nodes()
        self.namespaces = Namespaces()
        self.leader = Leader(self.namespaces, self.nodes, self.blobs, SHA256, NOW, list(restored), limits)
        self.roots = MvccService(self.namespaces, self.nodes, self.leader)
        self.tag = 0

    def send(self, *commits):
        """Let commits arrive in one turn; the tags of their answers count up."""
        for one in commits:
            self.tag += 1
            out = self.leader.step(ask("leader.commit", one, tag=self.tag), NOW)
            assert out == [], "nothing is done before the end of the turn"

    def turn(self, *commits):
        self.send(*commits)
        assert NOW <= self.leader.deadline <= NOW + LIMITS.group_s
        out = work(self.leader)
        self.leader.check()
        return out

    def get(self, key, at=None):
        root = body(self.roots.step(ask("roots.get", GetRoot(at=at)), NOW)[0], RootInfo)
        return Lookup(self.nodes, lambda _: root.ref, "primary", root.ref, split_key(key)).advance().value

    def fence(self, *parts, size=2, name="f", objects=(), hop=-1):
        message = Fence("primary", name, size, list(parts), list(objects))
        return self.leader.step(control_from("leader.fence", message, hop), NOW)


@pytest.fixture
def world():
    return World()


def versions(out):
    """(version, changed keys) of each setroot, in order."""
    roots = [body(msg, Setroot) for msg in out if msg.topic == "kvs.setroot"]
    return [(root.version, root.keys) for root in roots]


def answers(out):
    """(tag, version) of each answer, in order."""
    return [(msg.tag, body(msg, RootInfo).version) for msg in responses(out)]


def val(text):
    return Val("raw", str(text).encode())


# ------------------------------------------------------------------------------------------------------------ versions


def test_an_empty_namespace_begins_at_version_0(world):
    (out,) = world.leader.start(NOW)
    setroot = body(out, Setroot)
    assert (out.topic, setroot.namespace, setroot.version, setroot.time) == ("kvs.setroot", "primary", 0, NOW)
    assert world.leader.deadline == NEVER


def test_disjoint_commits_of_one_turn_share_a_version(world):
    out = world.turn(commit(1, put("a", 1)), commit(2, put("b", 2)), commit(1, put("c", 3), client="d"))
    assert versions(out) == [(1, ["a", "b", "c"])]
    assert answers(out) == [(1, 1), (2, 1), (3, 1)]
    assert out[0].topic == "kvs.setroot", "the setroot first, so that a client with an answer finds the version"


def test_commits_to_one_key_get_a_version_each_in_order(world):
    out = world.turn(*(commit(serial, put("a", serial)) for serial in range(1, 5)))
    assert versions(out) == [(1, ["a"]), (2, ["a"]), (3, ["a"]), (4, ["a"])]
    assert answers(out) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [world.get("a", at) for at in range(5)] == [None, val(1), val(2), val(3), val(4)]
    kinds = [(msg.kind == RESPONSE, msg.topic) for msg in out]
    assert kinds == [(False, "kvs.setroot"), (True, "leader.commit")] * 4


def test_a_conflict_does_not_change_the_order_of_arrival(world):
    out = world.turn(commit(1, put("a", 1)), commit(2, put("a", 2)), commit(3, put("b", 3)), commit(4, put("a", 4)))
    assert versions(out) == [(1, ["a"]), (2, ["a", "b"]), (3, ["a"])]


def test_an_empty_commit_makes_a_version(world):
    assert versions(world.turn(commit(1))) == [(1, [])]


def test_a_setroot_carries_nodes_and_keys_up_to_its_limits(world):
    (out, _) = world.turn(commit(1, put("a.b", 1)))
    setroot = body(out, Setroot)
    assert len(setroot.nodes) == 2
    assert SHA256(setroot.nodes[-1]) == setroot.ref
    (out, _) = world.turn(commit(2, *(Put(f"k{n}", Val("raw", bytes(200))) for n in range(200))))
    setroot = body(out, Setroot)
    assert setroot.nodes == []
    assert len(setroot.keys) == 200
    (out, _) = world.turn(commit(3, *(put(f"n{n}", n) for n in range(LIMITS.setroot_keys_max + 1))))
    assert body(out, Setroot).keys is None, "too many: every watcher is evaluated"


# ----------------------------------------------------------------------------------------------------------- resending


def test_a_resent_commit_gets_the_same_answer_and_is_not_applied_again(world):
    first = world.turn(commit(1, Append("log", b"x")))
    world.turn(commit(2, Append("log", b"y")))
    again = world.turn(commit(1, Append("log", b"x")))
    assert versions(again) == []
    assert answers(again) == [(3, 1)]
    assert responses(again)[0].body == responses(first)[0].body
    assert world.get("log") == val("xy")
    assert world.leader.statistics()["resent"] == 1


def test_a_commit_resent_in_the_same_turn_is_applied_once(world):
    out = world.turn(commit(1, Append("log", b"x")), commit(1, Append("log", b"x")), commit(2, put("b", 1)))
    assert versions(out) == [(1, ["log", "b"])]
    assert answers(out) == [(1, 1), (2, 1), (3, 1)]
    assert world.get("log") == val("x")


def test_a_commit_resent_in_the_same_turn_after_another_version_is_applied_once(world):
    out = world.turn(commit(1, put("a", 1)), commit(2, put("a", 2)), commit(1, put("a", 1)))
    assert versions(out) == [(1, ["a"]), (2, ["a"])]
    assert sorted(answers(out)) == [(1, 1), (2, 2), (3, 1)]
    assert world.get("a") == val(2)


def test_a_resent_commit_that_failed_fails_again(world):
    world.turn(commit(1, put("a", 1)))
    assert isinstance(error(world.turn(commit(2, put("a.b", 1)))[0]), errors.NotADirectory)
    assert versions(world.turn(commit(3, put("b", 1)))) == [(2, ["b"])]
    assert isinstance(error(world.turn(commit(2, put("a.b", 1)))[0]), errors.NotADirectory)


def test_acknowledged_responses_are_forgotten_and_their_commits_refused(world):
    for serial in range(1, 6):
        world.turn(commit(serial, put("a", serial), acked=serial - 1))
    assert world.leader.table.clients() == {"c": [5]}, "the client lacks one response, so one is kept"
    (out,) = world.leader.step(ask("leader.commit", commit(3, put("a", 3), acked=4)), NOW)
    assert isinstance(error(out), errors.InvalidRequest)
    assert not error(out).definite, "it was applied; what became of it is forgotten"
    assert world.get("a") == val(5)
    (out,) = world.leader.step(ask("leader.commit", commit(7, put("a", 7), acked=1 << 60)), NOW)
    assert isinstance(error(out), errors.InvalidRequest), "a commit that acknowledges itself needs no answer"
    assert world.leader.table.clients() == {"c": []}


def test_clients_have_serials_of_their_own(world):
    world.turn(commit(1, Append("log", b"c")))
    assert versions(world.turn(commit(1, Append("log", b"d"), client="d"))) == [(2, ["log"])]


def test_the_deduplication_table_is_bounded():
    world = World(limits=LeaderLimits(clients_max=3, results_max=2))
    world.namespaces.find("primary").count = 4
    for number in range(6):
        world.turn(commit(1, put("a", number), client=f"c{number}"))
    assert list(world.leader.table.clients()) == ["c3", "c4", "c5"], "those silent longest are forgotten"
    for serial in range(2, 7):
        world.turn(commit(serial, put("a", serial), client="c3"))
    assert list(world.leader.table.clients()) == ["c4", "c5", "c3"]
    assert world.leader.table.clients()["c3"] == [5, 6]
    assert list(world.namespaces.find("primary").history) == [8, 9, 10, 11]


def test_short_lived_clients_drop_no_client_that_goes_on():
    world = World(limits=LeaderLimits(clients_max=8))
    for serial in (1, 2):
        world.turn(commit(serial, put("a", serial), client="long"))
    for number in range(50):
        world.turn(commit(1, put("a", number), client=f"short{number}"))
    assert list(world.leader.table.clients()) == [*(f"short{number}" for number in range(43, 50)), "long"]
    ((_, version),) = answers(world.turn(commit(2, put("a", 9), client="long")))
    assert (version, world.get("a")) == (2, val(49)), "it is answered again, and not applied"


def test_a_commit_of_a_dropped_client_is_not_applied_again():
    world = World(limits=LeaderLimits(clients_max=2, dropped_max=2))
    world.turn(commit(1, Append("log", b"x"), client="old"))
    for number in range(2):
        world.turn(commit(1, put("a", number), client=f"other{number}"))
    (out,) = world.turn(commit(1, Append("log", b"x"), client="old"))
    raised = error(out)
    assert "its outcome is not kept any more" in raised.text
    assert not raised.definite
    assert world.get("log") == val("x")
    assert versions(world.turn(commit(2, Append("log", b"y"), client="old"))) == [(4, ["log"])]
    for number in range(5):
        world.turn(commit(1, put("a", number), client=f"more{number}"))
    assert world.leader.statistics()["clients_dropped"] == 2
    world.leader.check()


def test_a_commit_that_is_queued_when_its_client_is_dropped_is_applied_once():
    world = World(limits=LeaderLimits(clients_max=2))
    first = [commit(1, Append("log", b"x"), client=name) for name in ("a", "b", "c", "a")]
    out = world.turn(*first)
    assert world.get("log") == val("xxx")
    assert [msg.status > 0 for msg in out if msg.kind == RESPONSE].count(True) == 1
    world.leader.check()


def test_responses_are_bounded_in_bytes_per_client():
    world = World(limits=LeaderLimits(result_bytes_client_max=1000))
    for serial in range(1, 31):
        world.turn(commit(serial, put("a", serial)))
    assert world.leader.table.clients()["c"][-1] == 30
    assert 500 < world.leader.statistics()["response_bytes"] <= 1000
    (out,) = world.turn(commit(1, put("a", "again")))
    assert "is not kept any more" in error(out).text
    assert world.get("a") == val(30)
    world.turn(commit(31, put("a", 31), acked=30))
    world.leader.check()
    assert world.leader.table.clients() == {"c": [31]}


def test_responses_are_bounded_in_bytes_for_all_clients():
    world = World(limits=LeaderLimits(result_bytes_max=4000))
    for serial in (1, 2):
        world.turn(commit(serial, put("a", serial), client="long"))
    for number in range(50):
        world.turn(commit(1, put("a", number), client=f"short{number}"))
    assert 3000 < world.leader.statistics()["response_bytes"] <= 4000
    kept = world.leader.table.clients()
    assert (kept["long"], kept["short0"], kept["short49"]) == ([1, 2], [], [1])
    (out,) = world.turn(commit(1, put("a", "again"), client="short0"))
    assert "is not kept any more" in error(out).text
    world.leader.check()


def test_a_leader_that_falls_behind_stops_the_reading_of_messages():
    world = World(limits=LeaderLimits(queue_bytes_high=5000, turn_steps=1, slice_ops=1, batch_steps_max=1))
    assert not world.leader.congested
    for serial in range(1, 12):
        world.leader.step(ask("leader.commit", commit(serial, put("a", serial))), NOW)
    assert world.leader.congested
    ticks = 0
    while world.leader.congested:
        world.leader.tick(NOW)
        ticks += 1
        assert ticks < 50
    assert 0 < world.leader.statistics()["queued"] < 11
    work(world.leader)
    assert (world.leader.statistics()["queued"], world.leader.congested) == (0, False)


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from("cd"), st.integers(1, 6), st.sampled_from(["a", "b", "a.x"]), st.sampled_from("xy")
            ),
            max_size=4,
        ),
        max_size=6,
    )
)
def test_any_mix_of_resends_applies_each_commit_once(turns):
    """Against a model: each id is applied when it first arrives, and has the same answer from then on."""
    world = World()
    log: dict[tuple[str, int], int] = {}
    appended = {"a": "", "b": ""}
    ops = {}
    for turn in turns:
        sent = []
        for client, serial, key, text in turn:
            op = ops.setdefault((client, serial), Append(key, text.encode()))
            sent.append((client, serial, op))
        out = world.turn(*(commit(serial, op, client=client) for client, serial, op in sent)) if sent else []
        first_tag = world.tag - len(sent) + 1
        for msg in responses(out):
            client, serial, op = sent[msg.tag - first_tag]
            if msg.status:
                assert (client, serial) not in log
                continue
            version = body(msg, RootInfo).version
            assert log.setdefault((client, serial), version) == version
        assert len(responses(out)) == len(sent), "each is answered exactly once"
        numbers = [version for version, _ in versions(out)]
        assert numbers == sorted(set(numbers))
    for key in appended:
        applied = sorted((v, i) for i, v in log.items() if ops[i].key == key)
        value = world.get(key)
        expected = b"".join(ops[i].data for _, i in applied)
        if type(value) is Val:
            assert value.data == expected
        else:
            assert expected == b""


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (commit(1, put("x", 1), namespace="nowhere"), errors.NoSuchNamespace),
        (commit(0, put("x", 1)), errors.InvalidRequest),
        (commit(-1, put("x", 1)), errors.InvalidRequest),
        ([], errors.InvalidRequest),
    ],
)
def test_an_invalid_commit_is_refused_at_once(world, bad, kind):
    (out,) = world.leader.step(ask("leader.commit", bad), NOW)
    assert isinstance(error(out), kind)
    assert world.leader.deadline == NEVER


def test_too_many_operations():
    world = World(limits=LeaderLimits(ops_max=2, large_ops=2))
    (out,) = world.leader.step(ask("leader.commit", commit(1, *[put("x", 1)] * 3)), NOW)
    assert isinstance(error(out), errors.TooLarge)


def test_a_commit_that_fails_does_not_affect_others_of_its_turn(world):
    out = world.turn(commit(1, put("a", 1)), commit(2, put("b", 1), put("..", 2)), commit(3, put("c", 3)))
    assert versions(out) == [(1, ["a", "c"])]
    assert [(msg.tag, msg.status) for msg in responses(out)] == [(2, errors.InvalidKey.code), (1, 0), (3, 0)]
    assert world.get("b") is None


def test_a_write_through_a_link_loop_is_refused(world):
    world.turn(commit(1, Put("l", Link("m")), Put("m", Link("l"))))
    assert isinstance(error(world.turn(commit(2, put("l.x", 1)))[0]), errors.LinkLoop)


def test_roots_get_by_version(world):
    world.turn(commit(1, put("a", 1)))
    step = world.roots.step
    assert body(step(ask("roots.get", GetRoot()), NOW)[0], RootInfo).version == 1
    assert body(step(ask("roots.get", GetRoot(at=0)), NOW)[0], RootInfo).version == 0
    for at, text in ((2, "was not reached yet"), (-1, "before this instance")):
        failed = error(step(ask("roots.get", GetRoot(at=at)), NOW)[0])
        assert isinstance(failed, errors.VersionUnknown)
        assert text in failed.text
    assert isinstance(error(step(ask("roots.get", GetRoot("nowhere")), NOW)[0]), errors.NoSuchNamespace)
    for machine in (world.leader, world.roots):
        assert isinstance(error(machine.step(ask("leader.other"), NOW)[0]), errors.InvalidRequest)


# -------------------------------------------------------------------------------------------------------------- fences


def part(number, *ops):
    return Contribution(CommitId(f"f{number}", 1), list(ops))


def done_of(out):
    return [body(msg, FenceDone) for msg in out if msg.topic == "kvs.fence-done"]


def test_a_fence_becomes_one_commit_with_its_last_contribution(world):
    assert world.fence(part(1, PutShared("a", 0)), objects=[val("x")], hop=1) == []
    assert world.leader.deadline == NEVER
    assert world.leader.statistics()["fences"] == 1
    world.fence(part(2, PutShared("b", 0)), objects=[val("y")], hop=2)
    (setroot,) = world.leader.tick(NOW)
    root = body(setroot, Setroot)
    assert (root.version, root.keys) == (1, ["a", "b"])
    assert root.fences == [FenceDone("primary", "f", [CommitId("f1", 1), CommitId("f2", 1)], 1)]
    assert (world.get("a"), world.get("b")) == (val("x"), val("y"))
    assert world.leader.statistics()["fences"] == 0


def test_contributions_to_one_fence_may_write_the_same_key(world):
    world.fence(part(1, put("a", 1)), part(2, put("a", 2)))
    assert versions(world.leader.tick(NOW)) == [(1, ["a", "a"])]
    assert world.get("a") == val(2)


def test_a_fence_does_not_share_a_version_with_a_commit_to_its_keys(world):
    world.send(commit(1, put("a", 1)))
    world.fence(part(1, put("a", 2)), part(2))
    world.send(commit(2, put("a", 3)))
    assert versions(world.leader.tick(NOW)) == [(1, ["a"]), (2, ["a"]), (3, ["a"])]


def test_a_contribution_resent_after_the_fence_gets_its_outcome(world):
    world.fence(part(1, Append("a", b"1")), part(2))
    world.leader.tick(NOW)
    (out,) = world.fence(part(1, Append("a", b"1")))
    root = world.namespaces.find("primary").history[1]
    assert body(out, FenceDone) == FenceDone("primary", "f", [CommitId("f1", 1)], 1, 0, "", root.ref, root.time)
    assert world.leader.deadline == NEVER
    assert world.get("a") == val(1)


def test_the_name_of_a_fence_can_be_used_again(world):
    for round_ in range(1, 4):
        for client in (1, 2):
            world.fence(Contribution(CommitId(f"f{client}", round_), [Append("a", b"x")]))
        (setroot,) = world.leader.tick(NOW)
        assert body(setroot, Setroot).version == round_
    assert world.get("a") == val("xxxxxx")


def test_contributions_with_another_size_are_refused_and_the_fence_continues(world):
    world.fence(part(1, put("a", 1)), hop=1)
    (out,) = world.fence(part(2), part(3), size=3, hop=2)
    done = body(out, FenceDone)
    assert (done.status, done.ids) == (errors.FenceMismatch.code, [CommitId("f2", 1), CommitId("f3", 1)])
    world.fence(part(4), hop=2)
    assert versions(world.leader.tick(NOW)) == [(1, ["a"])]


def test_a_fence_whose_operations_fail_fails_for_all(world):
    world.turn(commit(1, put("v", 1)))
    world.fence(part(1, put("a", 1)), part(2, put("v.x", 1)))
    out = world.leader.tick(NOW)
    assert topics(out) == [("kvs.fence-done", -1)]
    (done,) = done_of(out)
    assert (done.status, done.ids) == (errors.NotADirectory.code, [CommitId("f1", 1), CommitId("f2", 1)])
    assert world.get("a") is None
    (again,) = world.fence(part(2, put("v.x", 1)))
    assert body(again, FenceDone).status == errors.NotADirectory.code


@pytest.mark.parametrize("size", [0, -3])
def test_a_fence_with_an_invalid_size_leaves_no_state(world, size):
    (out,) = world.fence(part(1), size=size)
    assert body(out, FenceDone).status == errors.InvalidRequest.code
    assert world.leader.statistics()["fences"] == 0


def test_a_fence_whose_first_contribution_is_invalid_leaves_no_state(world):
    (out,) = world.fence(part(1, PutShared("a", 5)), size=7)
    assert body(out, FenceDone).status == errors.InvalidRequest.code
    assert world.leader.statistics()["fences"] == 0


def test_a_fence_in_a_namespace_that_does_not_exist_fails(world):
    message = Fence("nowhere", "f", 1, [part(1)], [])
    (out,) = world.leader.step(control_from("leader.fence", message), NOW)
    assert body(out, FenceDone).status == errors.NoSuchNamespace.code


def test_a_resent_contribution_does_not_count_for_the_next_fence_of_that_name(world):
    world.fence(part(1, Append("a", b"1")), part(2))
    world.leader.tick(NOW)
    late = Contribution(CommitId("f2", 2), [Append("b", b"2")])
    (out,) = world.fence(part(1, Append("a", b"1")), late)
    root = world.namespaces.find("primary").history[1]
    assert body(out, FenceDone) == FenceDone("primary", "f", [CommitId("f1", 1)], 1, 0, "", root.ref, root.time)
    world.fence(Contribution(CommitId("f1", 2), [Append("b", b"1")]))
    assert versions(world.leader.tick(NOW)) == [(2, ["b", "b"])]
    assert (world.get("a"), world.get("b")) == (val("1"), val("21"))


def test_a_contribution_resent_in_the_turn_of_the_last_one_is_not_counted_again(world):
    world.fence(part(1, Append("a", b"1")), part(2))
    assert world.fence(part(1, Append("a", b"1"))) == []
    (setroot,) = world.leader.tick(NOW)
    assert body(setroot, Setroot).fences[0].ids == [CommitId("f1", 1), CommitId("f2", 1)]
    assert world.leader.statistics()["fences"] == 0


def test_the_outcome_of_a_fence_is_forgotten_when_it_is_acknowledged(world):
    world.fence(part(1, Append("a", b"1")), size=1)
    world.leader.tick(NOW)
    world.fence(Contribution(CommitId("f1", 2), [], 1), size=1)
    world.leader.tick(NOW)
    assert world.leader.table.clients()["f1"] == [2]
    (out,) = world.fence(part(1, Append("a", b"1")), size=1)
    assert body(out, FenceDone).status == errors.InvalidRequest.code
    assert not body(out, FenceDone).definite
    assert world.get("a") == val("1")


# ------------------------------------------------------------------------------------------------------------- restore


def test_versions_continue_from_a_restored_root():
    world = World()
    world.turn(commit(1, put("a", 1)))
    root = world.leader.roots()[0]
    again = Leader(
        Namespaces(), world.nodes, world.blobs, SHA256, NOW + 9, [SavedNamespace("primary", 41, root.ref, NOW)]
    )
    (out,) = again.start(NOW + 9)
    assert (body(out, Setroot).version, body(out, Setroot).ref) == (41, root.ref)
    again.step(ask("leader.commit", commit(1, put("b", 2))), NOW + 9)
    (setroot, answer) = again.tick(NOW + 9)
    assert body(setroot, Setroot).version == body(answer, RootInfo).version == 42


def test_a_reset_makes_a_new_version(world):
    world.turn(commit(1, put("a", 1)))
    old = world.leader.roots()[0]
    world.turn(commit(2, put("a", 2)))
    root, (setroot,) = world.leader.reset(SavedNamespace("primary", old.version, old.ref, NOW), NOW)
    assert (root.version, root.ref, body(setroot, Setroot).keys) == (3, old.ref, None)
    assert world.get("a") == val(1)
    root, _ = world.leader.reset(SavedNamespace("other", old.version, old.ref, NOW), NOW)
    assert root.version == 0
    world.leader.check()
    out = world.turn(commit(3, put("b", 1), namespace="other"), commit(4, Mkdir("c")))
    assert [body(msg, Setroot).namespace for msg in out if msg.topic == "kvs.setroot"] == ["other", "primary"]


def test_commits_that_arrive_one_at_a_time_do_not_wait():
    world = World()
    for serial in (1, 2, 3):
        world.send(commit(serial, put("a", str(serial))))
        assert world.leader.deadline == NOW
        world.leader.tick(NOW)


def test_group_commit_waits_for_as_many_as_in_the_last_turn_up_to_a_limit():
    world = World()
    world.turn(*[commit(1, put(f"k{i}", "1"), client=f"c{i}") for i in range(3)])
    world.send(commit(2, put("k0", "2"), client="c0"))
    assert world.leader.deadline == NOW + LIMITS.group_s
    world.send(commit(2, put("k1", "2"), client="c1"))
    assert world.leader.deadline == NOW + LIMITS.group_s, "the second does not delay the deadline"
    world.send(commit(2, put("k2", "2"), client="c2"))
    assert world.leader.deadline == NOW, "as many as in the last turn: no reason to wait"
    out = world.leader.tick(NOW)
    assert [msg.topic for msg in out].count("kvs.setroot") == 1

    world.send(commit(3, put("k0", "3"), client="c0"))
    assert world.leader.deadline == NOW + LIMITS.group_s
    world.leader.tick(NOW + LIMITS.group_s)
    world.send(commit(4, put("k0", "4"), client="c0"))
    assert world.leader.deadline == NOW, "the others did not arrive: it does not wait for them again"
