"""The last values of single keys, beyond the versions that had them: rules, recording, bounds, and what is answered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import NOW, ask, body, commit, error, put, responses
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.limits import MvccLimits, ValueHistoryLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.wire import (
    PRIMARY,
    HistoryRequest,
    KeyVersion,
    Mkdir,
    NewNamespace,
    OldNamespace,
    PastRequest,
    Put,
    Retention,
    Unlink,
    ValueRule,
)
from fluxmpi.machine import NEVER


class World:
    """A leader and the roots service. ``states``: the root of every version there was, which nothing collects here."""

    def __init__(self, count=1, **limits):
        limits = MvccLimits(values=ValueHistoryLimits(**limits), search_versions_per_turn=2)
        self.nodes, self.blobs = make_nodes()
        self.namespaces = Namespaces(count, 7, limits)
        self.leader = Leader(self.namespaces, self.nodes, self.blobs, SHA256, NOW, [])
        self.roots = MvccService(self.namespaces, self.nodes, self.leader, limits)
        self.serial = 0
        self.states = {0: self.space.root}

    @property
    def space(self):
        return self.namespaces.find(PRIMARY)

    @property
    def values(self):
        return self.space.values

    def commit(self, *ops, now=NOW):
        self.serial += 1
        self.leader.step(ask("leader.commit", commit(self.serial, *ops)), now)
        self.leader.tick(now)
        self.states[self.space.root.version] = self.space.root
        self.namespaces.check()

    def ask(self, topic, record=None, kind=None, now=NOW):
        out = self.roots.step(ask(f"roots.{topic}", record), now)
        while not responses(out):
            assert self.roots.deadline <= now
            out = self.roots.tick(now)
        self.roots.check()
        (answer,) = responses(out)
        return error(answer) if answer.status else body(answer, kind) if kind else answer

    def keep(self, key, values):
        return self.ask("retention", Retention(values=[ValueRule(key, values)]), Retention)

    def history(self, key, before=None, limit=100):
        return self.ask("history", HistoryRequest(PRIMARY, key, before, limit), list[KeyVersion])

    def past(self, key, version, **arguments):
        """What the key was: its object, or the error."""
        found = self.ask("past", PastRequest(key, PRIMARY, version, **arguments), KeyVersion)
        return found.object if isinstance(found, KeyVersion) else found

    def was(self, key, version, follow=True):
        """What it was in truth."""
        lookup = Lookup(self.nodes, lambda _: None, PRIMARY, self.states[version].ref, split_key(key), follow)
        return lookup.advance().value


@pytest.fixture
def world():
    return World()


def val(text):
    return Val("raw", str(text).encode())


def is_collected(found):
    return isinstance(found, errors.SnapshotCollected)


# --------------------------------------------------------------------------------------------------------------- values


def test_the_last_values_of_a_quiet_key_outlive_their_versions_however_busy_another_one_is(world):
    world.keep("**", 3)
    for number in range(3):
        world.commit(put("quiet", number), now=NOW + number)
    for number in range(500):
        world.commit(put("busy", number), now=NOW + 10 + number)
    assert [(each.version, each.object, each.time - NOW) for each in world.history("quiet")] == [
        (3, val(2), 2.0),
        (2, val(1), 1.0),
        (1, val(0), 0.0),
    ]
    assert [world.past("quiet", version) for version in (1, 2, 3, 300)] == [val(0), val(1), val(2), val(2)]
    assert [each.object for each in world.history("busy")] == [val(499), val(498), val(497)]


def test_a_removal_is_an_entry_and_writing_the_same_value_again_is_none(world):
    world.keep("a", 10)
    world.commit(put("a", 1))
    world.commit(put("a", 1))
    world.commit(Unlink("a"))
    world.commit(put("b", 1))
    world.commit(put("a", 2))
    world.commit(put("b", 2))
    assert [(each.version, each.object, each.existed) for each in world.history("a")] == [
        (5, val(2), False),
        (3, None, True),
        (1, val(1), False),
    ]
    assert [world.past("a", version) for version in range(6)] == [None, val(1), val(1), None, None, val(2)]


def test_a_history_has_kept_versions_and_recorded_ones_in_one_order_and_in_pages():
    world = World(4)
    world.keep("a", 5)
    for number in range(12):
        world.commit(put("a", number))
    everything = world.history("a")
    assert [each.version for each in everything] == list(range(12, 4, -1))
    assert [each.version for each in world.history("a", limit=6)] == [12, 11, 10, 9, 8, 7]
    assert [each.version for each in world.history("a", before=7)] == [6, 5]
    assert [each.version for each in world.history("a", before=11, limit=3)] == [10, 9, 8]
    assert [each.ref for each in everything] == [world.states[each.version].ref for each in everything]


def test_a_value_from_before_the_rule_is_known_from_then_on_and_not_in_the_history(world):
    world.commit(put("a", 1))
    world.commit(put("b", 1))
    world.keep("a", 3)
    world.commit(put("b", 2))
    assert world.past("a", 2) == val(1)
    world.commit(put("a", 2))
    world.commit(put("b", 3))
    assert is_collected(world.past("a", 1))
    assert [world.past("a", version) for version in (2, 3, 4)] == [val(1), val(1), val(2)]
    assert [each.version for each in world.history("a")] == [4]


def test_a_key_without_a_rule_and_a_value_before_the_oldest_entry_are_collected(world):
    world.keep("a", 2)
    for number in range(5):
        world.commit(put("a", number), put("b", number))
    assert is_collected(world.past("b", 2))
    assert is_collected(world.past("a", 3))
    assert "not among its past values" in world.past("a", 3).text
    assert world.past("a", 4) == val(3)
    assert isinstance(world.past("a", 99), errors.VersionUnknown)


def test_a_time_selects_the_value_of_then(world):
    world.keep("a", 5)
    for number in range(4):
        world.commit(put("a", number), now=NOW + 10 * number)
    world.commit(put("b", 1), now=NOW + 100)
    asked = [PastRequest("a", time=NOW + 25), PastRequest("a", ago_s=85.0), PastRequest("a", time=NOW + 500)]
    found = [world.ask("past", each, KeyVersion, now=NOW + 110) for each in asked]
    assert [found[0].object, found[0].version, found[1].object] == [val(2), 3, val(2)]
    assert isinstance(found[2], errors.VersionUnknown)
    assert isinstance(world.ask("past", PastRequest("a")), errors.InvalidRequest)


def test_a_snapshot_is_read_only_if_its_root_can_be_verified(world):
    world.keep("a", 5)
    world.commit(put("a", 1))
    world.commit(put("b", 1))
    world.commit(put("b", 2))
    root = world.states[1].ref
    assert world.past("a", 1, root=root) == world.past("a", 1, root=root[:8]) == val(1)
    assert is_collected(world.past("a", 1, root=b"12345678"))
    assert is_collected(world.past("a", 2, root=world.states[2].ref))
    assert world.past("a", 3, root=world.states[3].ref[:8]) == val(1)  # a version that is kept


# ---------------------------------------------------------------------------------------------------------------- rules


def test_rules_are_listed_changed_and_removed(world):
    world.keep("job.", 2)
    world.keep("job.*.state", 5)
    assert world.keep("a", 1).values == [ValueRule("a", 1), ValueRule("job.**", 2), ValueRule("job.*.state", 5)]
    for number in range(7):
        world.commit(put("job.7.state", number), put("job.7.node", number), put("a", number))
    world.commit(put("z", 1))
    counts = [len(world.history(key)) for key in ("job.7.state", "job.7.node", "a")]
    assert counts == [5, 2, 1]
    assert world.keep("job.*.state", 0).values == [ValueRule("a", 1), ValueRule("job.**", 2)]
    assert world.keep(".a..", 3).values == [ValueRule("a", 1), ValueRule("a.**", 3), ValueRule("job.**", 2)]
    assert world.keep("a.", 0).values == [ValueRule("a", 1), ValueRule("job.**", 2)], "the same rule"
    assert world.keep("job..**", 4).values == [ValueRule("a", 1), ValueRule("job.**", 4)]
    assert world.keep("job.", 2).values == [ValueRule("a", 1), ValueRule("job.**", 2)]
    assert len(world.history("job.7.state")) == 2
    world.keep("job.", 0)
    assert world.history("job.7.state") == []
    world.keep("a", 0)
    assert world.values is None
    assert world.keep("none", 0).values == []


@pytest.mark.parametrize(
    ("key", "values", "kind"),
    [
        ("a", -1, errors.InvalidRequest),
        ("a", 10_001, errors.InvalidRequest),
        ("a\0", 1, errors.InvalidKey),
        ("a.[", 1, errors.InvalidRequest),
    ],
)
def test_a_rule_out_of_range_is_refused(world, key, values, kind):
    assert isinstance(world.keep(key, values), kind)
    assert world.values is None


def test_the_number_of_rules_is_bounded():
    world = World(rules_max=2)
    world.keep("a", 1)
    world.keep("b", 1)
    assert isinstance(world.keep("c", 1), errors.Overloaded)
    assert len(world.keep("a", 2).values) == 2


def test_the_tail_of_a_namespace_goes_with_it():
    world = World()
    world.ask("create", NewNamespace("work", 7))
    world.ask("retention", Retention("work", values=[ValueRule("a", 3)]), Retention)
    world.ask("remove", OldNamespace("work"))
    world.ask("create", NewNamespace("work", 7))
    assert world.ask("retention", Retention("work"), Retention).values == []
    assert list(world.roots.pinned()) == []


# --------------------------------------------------------------------------------------------------------------- bounds


def long(number, size=10_000):
    return Put(f"k{number % 3}", Val("raw", b"%05d" % number * (size // 5)))


def test_the_blobs_of_past_values_are_pinned_and_let_go(world):
    world.keep("k0", 2)
    for number in (0, 3, 6):
        world.commit(long(number))
    world.commit(put("z", 1))
    past = [each.object for each in world.history("k0")]
    assert [type(each) for each in past] == [ValRef, ValRef]
    assert list(world.roots.pinned()) == list(past[1].refs)  # the first one is in the version that is kept
    world.keep("k0", 0)
    assert list(world.roots.pinned()) == []


def test_a_busy_key_loses_its_oldest_values_first_when_the_bytes_are_used_up():
    world = World()
    world.keep("**", 100)
    world.ask("retention", Retention(bytes=200_000))  # half of them for past values
    world.commit(put("quiet", 1))
    world.commit(put("quiet", 2))
    for number in range(0, 90, 3):
        world.commit(long(number))
    world.commit(put("z", 1))
    assert world.values.bytes <= 100_000
    assert [each.object for each in world.history("quiet")] == [val(2), val(1)]
    versions = [each.version for each in world.history("k0")]
    assert 5 < len(versions) < 11
    assert versions == list(range(32, 32 - len(versions), -1))


def test_nothing_is_said_about_keys_that_were_evicted_as_a_whole():
    world = World(entries_max=4)
    world.keep("**", 5)
    world.commit(put("a", 1))
    world.commit(put("a", 2))
    for number in range(6):
        world.commit(put(f"b{number}", 1))
    world.commit(put("z", 1))
    for version in range(world.space.root.version):
        found = world.past("a", version)
        assert is_collected(found) or found == world.was("a", version)
    assert is_collected(world.past("a", 1))


def test_a_version_that_changed_many_keys_is_recorded_in_slices_before_it_goes():
    world = World(steps_per_turn=10, slice_changes=10, slice_steps=10)
    world.keep("d.", 2)
    world.commit(*(put(f"d.k{number}", 1) for number in range(100)))
    world.commit(*(put(f"d.k{number}", 2) for number in range(100)))
    assert world.space.history.first < world.space.oldest
    assert world.past("d.k99", 1) == val(1)  # nothing compares it with the next version yet, so it is still here
    assert next(world.space.roots()).version == world.space.history.first
    while world.roots.deadline < NEVER:
        world.roots.tick(NOW)
    assert world.space.history.first == world.space.oldest
    assert [world.past(f"d.k{number}", 1) for number in (0, 50, 99)] == [val(1)] * 3
    assert [each.version for each in world.history("d.k99")] == [2, 1]


# ------------------------------------------------------------------------------------------------ against a naive model

KEYS = ["a", "a.b", "a.b.c", "l", "l.b", "l.b.c", "m", "m.c", "z"]
operations = st.one_of(
    st.builds(lambda key, number: put(key, number), st.sampled_from(KEYS), st.integers(0, 3)),
    st.builds(lambda key, number: Put(key, Val("raw", b"%d" % number * 300)), st.sampled_from(KEYS), st.integers(0, 3)),
    st.builds(Unlink, st.sampled_from(KEYS)),
    st.builds(Mkdir, st.sampled_from(KEYS)),
    st.builds(
        lambda key, target: Put(key, Link(target)), st.sampled_from(["l", "m", "a"]), st.sampled_from(["a", "a.b", "l"])
    ),
)
rules = st.tuples(st.sampled_from(["**", "a", "a.", "*.b", "l.**", "m.*", "z"]), st.integers(0, 4))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(operations, rules), max_size=30),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([3, 8, 1000]),
    st.sampled_from([3, 1000]),
)
def test_an_answer_is_what_the_key_was_or_that_it_is_not_known(steps, kept, entries, turn):
    world = World(kept, entries_max=entries, steps_per_turn=turn, slice_changes=2, slice_steps=3)
    for step in steps:
        if isinstance(step, tuple):
            world.keep(*step)
        else:
            world.commit(step)
    for key in KEYS:
        for version in world.states:
            for follow in (True, False):
                try:
                    right = world.was(key, version, follow)
                except errors.FluxmpiError:
                    continue
                found = world.past(key, version, follow=follow)
                assert is_collected(found) or found == right, (key, version, follow)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "d.b", "d.c"]), st.integers(-1, 2)), max_size=40),
    st.sampled_from([1, 2, 5]),
    st.integers(1, 4),
)
def test_the_last_values_of_every_key_are_readable(writes, kept, values):
    """Without links and directories nothing may be missing: at least the last values, in order, each once."""
    world = World(kept)
    world.keep("**", values)
    for key, number in writes:
        world.commit(Unlink(key) if number < 0 else put(key, number))
    newest = world.space.root.version
    for key in ("a", "d.b", "d.c"):
        changes = []
        for version in range(newest, 0, -1):
            new, old = world.was(key, version), world.was(key, version - 1)
            if new != old:
                changes.append((version, new, old is not None))
        found = [(each.version, each.object, each.existed) for each in world.history(key)]
        assert found == changes[: len(found)]
        assert len(found) >= min(values, len(changes))
        for version in range(changes[values - 1][0] if len(changes) >= values else 0, newest + 1):
            assert world.past(key, version) == world.was(key, version)


def test_a_directory_that_replaced_a_value_is_not_answered_for(world):
    world.keep("**", 5)
    world.commit(put("a", 1))
    world.commit(Unlink("a"))
    world.commit(put("a.b", 1))
    world.commit(put("z", 1))
    world.commit(put("z", 2))
    assert world.past("a", 1) == val(1)
    assert world.past("a", 2) is None
    assert is_collected(world.past("a", 3))
    assert [type(each.object) for each in world.history("a")] == [Dir, type(None), Val]
