"""Combining a fence's contributions: counted by id, equal objects once per link, whatever the way."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, OTHER, ask, put

from fluxmpi import errors
from fluxmpi.kvs.fence import gathering as fences
from fluxmpi.kvs.fence.aggregator import HOLD_S, FenceAggregator
from fluxmpi.kvs.fence.gathering import BROKEN_S, FENCE_SIZE_MAX, BrokenFences, Gathering
from fluxmpi.kvs.fence.membership import GRACE_S, FenceMembership, MemberSearches
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Append, CommitId, Contribution, Fence, FenceDone, FenceMember, Mkdir, Op, PutShared, Unlink
from fluxmpi.machine import NEVER
from fluxmpi.message import Body, control, encode_body


def unshared(gathering):
    return [op for piece in gathering.pieces(2) for op in piece]


def part(number: int, *ops: Op) -> Contribution:
    return Contribution(CommitId(f"client{number}", 1), list(ops))


def fence(*parts: Contribution, size: int = 3, objects=(), first: int = 0) -> Fence:
    return Fence("primary", "f", size, list(parts), list(objects), first)


def over_the_wire(sent: Fence) -> Fence:
    return msgspec.msgpack.decode(encode_body(sent), type=Fence)


def val(text) -> Val:
    return Val("raw", str(text).encode())


def test_a_fence_is_complete_with_its_last_contribution():
    gathering = Gathering(fence())
    for number in range(3):
        assert not gathering.complete
        assert gathering.add(fence(part(number, put(f"k{number}", number))), CLIENT - number)
    assert gathering.complete
    assert unshared(gathering) == [put("k0", 0), put("k1", 1), put("k2", 2)]


def test_sending_again_counts_once():
    gathering = Gathering(fence())
    assert gathering.add(fence(part(1, put("a", 1))), CLIENT)
    gathering.outlet()
    assert not gathering.add(fence(part(1, put("a", 1))), OTHER), "also over another way"
    assert not gathering.complete
    assert gathering.outlet().parts == [], "and is not sent on again"
    assert unshared(gathering) == [put("a", 1)]


def test_one_client_may_contribute_more_than_once():
    gathering = Gathering(fence(size=2))
    for serial in (1, 2):
        gathering.add(fence(Contribution(CommitId("c", serial), [Unlink(f"k{serial}")]), size=2), CLIENT)
    assert gathering.complete


def test_equal_objects_go_up_once_and_only_what_is_new():
    gathering = Gathering(fence(size=9))
    for number in range(3):
        gathering.add(fence(part(number, put(f"k{number}", "same")), size=9), CLIENT - number)
    up = gathering.outlet()
    assert up.objects == [val("same")]
    assert [contribution.ops for contribution in up.parts] == [[PutShared(f"k{number}", 0)] for number in range(3)]
    gathering.add(fence(part(3, put("k3", "same"), put("l3", "other")), size=9), CLIENT)
    up = gathering.outlet()
    assert up.objects == [val("other")], "the parent has the first from before"
    assert up.parts == [part(3, PutShared("k3", 0), PutShared("l3", 1))]
    assert gathering.outlet() == fence(size=9, first=2)


def test_other_operations_pass_unchanged():
    ops = [Append("a", b"x"), Unlink("b"), Mkdir("c"), put("d", 1)]
    gathering = Gathering(fence(size=1))
    gathering.add(fence(part(1, *ops), size=1), CLIENT)
    assert unshared(gathering) == ops
    assert gathering.outlet().parts[0].ops == [*ops[:3], PutShared("d", 0)]


def test_tables_of_two_links_are_their_own():
    """Both children call their first object 0, and mean different ones."""
    gathering = Gathering(fence(size=4))
    gathering.add(fence(part(1, PutShared("a", 0)), size=4, objects=[val("x")]), 1)
    gathering.add(fence(part(2, PutShared("b", 0)), size=4, objects=[val("y")]), 2)
    gathering.add(fence(part(3, PutShared("c", 0), PutShared("d", 1)), size=4, objects=[val("x")], first=1), 2)
    assert unshared(gathering) == [put("a", "x"), put("b", "y"), put("c", "y"), put("d", "x")]
    assert gathering.outlet().objects == [val("x"), val("y")]


def test_what_builds_on_a_table_that_is_gone_is_ignored():
    """The fence was done meanwhile; the child will hear of it, and begin a new table with what it has left over."""
    child, above = Gathering(fence(size=2)), Gathering(fence(size=2))
    child.add(fence(part(1, put("a", 1)), size=2), CLIENT)
    child.outlet()
    child.add(fence(part(2, put("b", 2)), size=2), CLIENT)
    assert not above.add(child.outlet(), 1)
    assert above.parts == {}
    assert child.forget([CommitId("client1", 1)]) == 1
    assert list(child.parts) == [CommitId("client2", 1)], "the second one is left over"
    assert above.add(child.outlet(), 1)
    assert unshared(above) == [put("b", 2)]
    assert child.forget([CommitId("client2", 1)]) == 1
    assert not child.parts


def test_a_new_table_takes_the_place_of_the_old_one():
    above = Gathering(fence(size=9))
    above.add(fence(part(1, PutShared("a", 0)), size=9, objects=[val("x")]), 1)
    above.add(fence(part(2, PutShared("b", 0)), size=9, objects=[val("y")]), 1)
    assert unshared(above) == [put("a", "x"), put("b", "y")]


def test_contributors_must_agree_on_the_size():
    gathering = Gathering(fence(part(1), size=3))
    gathering.add(fence(part(1), size=3), CLIENT)
    with pytest.raises(errors.FenceMismatch, match="'f' is of 3 contributions, this one says 4"):
        gathering.add(fence(part(2), size=4, objects=[val("x")]), 1)
    assert list(gathering.parts) == [CommitId("client1", 1)]
    gathering.add(fence(part(2, PutShared("k", 0)), size=3, objects=[val("y")]), 1)
    assert unshared(gathering) == [put("k", "y")], "what was refused is in no table"


@pytest.mark.parametrize("size", [0, -1, FENCE_SIZE_MAX + 1])
def test_sizes_that_cannot_be(size):
    with pytest.raises(errors.InvalidRequest, match=str(size)):
        Gathering(fence(size=size))


@pytest.mark.parametrize("index", [-1, 1, 1 << 40])
def test_an_object_that_is_not_in_the_table(index):
    gathering = Gathering(fence())
    with pytest.raises(errors.InvalidRequest, match=f"object {index} is not in the table of 1"):
        gathering.add(fence(part(1, PutShared("a", index)), objects=[val("x")]), 1)
    assert gathering.parts == {}
    with pytest.raises(errors.InvalidRequest):
        gathering.add(fence(part(1, PutShared("a", 0))), CLIENT)


@settings(max_examples=50)
@given(st.data())
def test_a_tree_of_gatherings_loses_nothing_and_shares_all(data):
    """Contributions at random places of a tree of brokers, outlets at random times, some sent twice: rank 0 has the sum."""
    size = data.draw(st.integers(1, 12), "contributions")
    brokers = data.draw(st.integers(1, 5), "brokers")
    parent = [-1] + [data.draw(st.integers(0, rank - 1)) for rank in range(1, brokers)]
    gatherings = [Gathering(fence(size=size)) for _ in range(brokers)]
    crossed: dict[int, list] = {rank: [] for rank in range(brokers)}
    expected = {}

    def flush(rank: int) -> None:
        if rank:
            up = over_the_wire(gatherings[rank].outlet())
            crossed[rank] += up.objects
            gatherings[parent[rank]].add(up, rank)

    for number in range(size):
        ops = data.draw(st.lists(st.builds(put, st.sampled_from("abc"), st.integers(0, 3)), max_size=3))
        expected[CommitId(f"client{number}", 1)] = ops
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.integers(0, brokers - 1))
            gatherings[at].add(over_the_wire(fence(part(number, *ops), size=size)), CLIENT - number)
        if data.draw(st.booleans()):
            flush(data.draw(st.integers(0, brokers - 1)))
    for rank in reversed(range(brokers)):
        flush(rank)
    root = gatherings[0]
    assert root.complete
    assert unshared(root) == [op for commit_id in root.parts for op in expected[commit_id]]
    for objects in crossed.values():
        assert len(objects) == len(set(objects)), "an object crossed a link twice"


def test_a_message_up_is_bounded_and_carries_the_objects_that_it_needs(monkeypatch):
    monkeypatch.setattr(fences, "OUTLET_OPS", 4)
    gathering, above = Gathering(fence(size=9)), Gathering(fence(size=9))
    parts = [part(number, put(f"k{number}", number), put(f"l{number}", "same")) for number in range(5)]
    gathering.add(fence(*parts, part(5, *(put(f"m{number}", number) for number in range(9))), size=9), CLIENT)
    sent = [gathering.outlet()]
    while gathering.behind:
        sent.append(gathering.outlet())
    assert [sum(len(one.ops) for one in up.parts) for up in sent] == [4, 4, 11]
    assert [up.objects for up in sent] == [
        [val(0), val("same"), val(1)], [val(2), val(3)], [val(4), *map(val, range(5, 9))]
    ]  # fmt: skip
    for up in sent:
        assert above.add(over_the_wire(up), 7)
    assert unshared(above) == unshared(gathering)
    assert gathering.forget([CommitId("client0", 1)])
    again, other = gathering.outlet(), Gathering(fence(size=9))
    assert again.objects == gathering.objects, "a new table, with all that may be needed"
    assert other.add(over_the_wire(again), 7)


def test_what_does_not_go_up_in_one_turn_goes_in_the_next(monkeypatch):
    monkeypatch.setattr(fences, "OUTLET_OPS", 1)
    gatherings = FenceAggregator()
    for client in "abcd":
        one = Contribution(CommitId(client, 1), [Mkdir(client)])
        gatherings.from_client(ask("kvs.fence"), Fence("primary", "f", 9, [one]), 0.0)
    for _ in range(2):
        assert gatherings.deadline == 0.0
        assert [len(up.parts) for up in gatherings.outlets(0.0)] == [1]
        gatherings.check()
    assert len(gatherings.flush(FenceMember("primary", "f", CommitId("d", 1)))) == 2, (
        "all of it, before word of a member"
    )
    assert gatherings.outlets(0.0) == []
    assert gatherings.deadline == NEVER


def test_operations_that_came_encoded_go_up_so_behind_the_others_of_their_contribution():
    gathering, above = Gathering(fence(size=2)), Gathering(fence(size=2))
    some, more = [put("a", 1), put("b", 2)], [encode_body([put("c", 3)]), encode_body([put("d", 4)])]
    refs = [b"r" * 32]
    gathering.add(fence(Contribution(CommitId("c", 1), some, 0, more, refs), size=2), CLIENT)
    gathering.add(fence(part(2, put("e", 5), put("f", 1)), size=2), OTHER)
    assert above.add(over_the_wire(gathering.outlet()), 7)
    assert list(above.pieces(3)) == [some, *more, [put("e", 5), put("f", 1)]]
    assert list(above.pieces(1)) == [[put("a", 1)], [put("b", 2)], [], *more, [put("e", 5)], [put("f", 1)]]
    assert list(above.refs()) == refs
    assert above.objects == [val(1), val(2), val(5)]


def test_a_broker_holds_contributions_until_as_many_are_there_as_last_time():
    gatherings = FenceAggregator()

    def contribute(client: str, name: str) -> None:
        part = Contribution(CommitId(client, 1), [])
        gatherings.from_client(ask("kvs.fence"), Fence("primary", name, 8, [part]), 0.0)

    for client in "abc":
        contribute(client, "first")
        assert gatherings.deadline == 0.0, "nothing is known of fences of this size: nothing is held"
    assert [len(fence.parts) for fence in gatherings.outlets(0.0)] == [3]
    ids = [CommitId(client, 1) for client in "abc"]
    gatherings.done(FenceDone("primary", "first", ids, 1), b"", 0.0)

    contribute("a", "second")
    contribute("b", "second")
    assert gatherings.deadline == HOLD_S
    assert gatherings.outlets(0.0) == []
    contribute("c", "second")
    assert gatherings.deadline == 0.0
    assert [len(fence.parts) for fence in gatherings.outlets(0.0)] == [3]
    gatherings.done(FenceDone("primary", "second", ids, 2), b"", 0.0)

    contribute("a", "third")
    assert [len(fence.parts) for fence in gatherings.outlets(HOLD_S)] == [1], "and not for long"


# --------------------------------------------------------------------------------------------- members that leave


def entered(gatherings: FenceAggregator, client: str, hop: int, tag: int, name: str = "f") -> None:
    msg = ask("kvs.fence", hop=hop)
    msg.tag = tag
    gatherings.from_client(msg, Fence("primary", name, 3, [Contribution(CommitId(client, 1), [])]), 0.0)
    gatherings.check()


def test_a_client_that_disconnects_has_left_its_fences():
    gatherings = FenceAggregator()
    entered(gatherings, "a", CLIENT, 1)
    entered(gatherings, "a", CLIENT, 2)
    entered(gatherings, "b", OTHER, 1, "g")
    assert gatherings.disconnect(CLIENT) == [FenceMember("primary", "f", CommitId("a", 1))]
    gatherings.check()
    assert not gatherings.waits(CommitId("a", 1))
    assert gatherings.waits(CommitId("b", 1))
    assert gatherings.disconnect(CLIENT) == []


def test_a_client_that_contributed_over_two_connections_has_not_left_with_one():
    gatherings = FenceAggregator()
    entered(gatherings, "a", CLIENT, 1)
    entered(gatherings, "a", OTHER, 1)
    assert gatherings.disconnect(CLIENT) == []
    assert gatherings.waits(CommitId("a", 1))
    gatherings.check()
    assert [member.name for member in gatherings.disconnect(OTHER)] == ["f"]


def test_who_has_the_outcome_has_not_left():
    gatherings = FenceAggregator()
    entered(gatherings, "a", CLIENT, 1)
    assert len(gatherings.done(FenceDone("primary", "f", [CommitId("a", 1)], 1), b"", 0.0)) == 1
    gatherings.check()
    assert gatherings.disconnect(CLIENT) == []


def test_giving_up_names_the_request():
    gatherings = FenceAggregator()
    entered(gatherings, "a", CLIENT, 7)
    assert gatherings.gives_up(CLIENT, 8) is None
    assert gatherings.gives_up(OTHER, 7) is None
    assert gatherings.gives_up(CLIENT, 7) == FenceMember("primary", "f", CommitId("a", 1), gone=True)
    assert gatherings.waits(CommitId("a", 1)), "it is still told how it ended"


def test_contributions_go_up_before_word_that_they_left():
    gatherings = FenceAggregator()
    entered(gatherings, "a", CLIENT, 1)
    (member,) = gatherings.disconnect(CLIENT)
    assert [len(fence.parts) for fence in gatherings.flush(member)] == [1]
    assert gatherings.flush(member) == []
    assert gatherings.outlets(1.0) == []


def test_a_broken_fence_is_broken_until_all_clients_are_told():
    broken = BrokenFences()
    gathering = Gathering(fence(size=3))
    gathering.add(fence(part(1)), CLIENT)
    text = broken.add(gathering, CommitId("client1", 1), 10.0).text
    assert text == "fence 'f' is broken: client client1 left it when 1 of 3 had come; nothing of it was committed"
    again = Contribution(CommitId("client2", 9), [])
    for late in (part(2), again):
        assert broken.error(fence(late), 11.0).text == text, "the same client may come twice"
    assert broken.error(Fence("other", "f", 3, [part(3)]), 11.0) is None
    assert broken.error(fence(part(3)), 11.0) is not None
    assert len(broken) == 0
    assert broken.error(fence(part(4)), 11.0) is None, "the name is free"


def test_a_broken_fence_is_forgotten_after_a_time():
    broken = BrokenFences()
    gathering = Gathering(fence(size=3))
    gathering.add(fence(part(1)), CLIENT)
    broken.add(gathering, CommitId("client1", 1), 10.0)
    assert broken.error(fence(part(2)), 10.0 + BROKEN_S) is None
    assert len(broken) == 0


def test_broken_fences_are_bounded(monkeypatch):
    monkeypatch.setattr("fluxmpi.kvs.fence.gathering.BROKEN_MAX", 2)
    broken = BrokenFences()
    for name in "abc":
        gathering = Gathering(Fence("primary", name, 3, []))
        gathering.add(Fence("primary", name, 3, [part(1)]), CLIENT)
        broken.add(gathering, CommitId("client1", 1), 0.0)
    assert [broken.error(Fence("primary", name, 3, [part(2)]), 0.0) is None for name in "abc"] == [True, False, False]


MEMBER = FenceMember("primary", "f", CommitId("a", 1))


SOUGHT = FenceMember("primary", "f", CommitId("a", 1), search=1)


def test_a_member_is_looked_for_before_it_counts_as_gone():
    departures = FenceMembership()
    assert departures.step(control("departures.left", MEMBER), 1.0) == []
    assert departures.deadline == 1.0 + GRACE_S
    assert departures.tick(1.0) == []
    assert departures.tick(1.0 + GRACE_S) == [control("kvs.fence-missing", SOUGHT)]
    assert (departures.deadline, departures.statistics()) == (NEVER, {"missing": 1}), (
        "brokers that are silent break nothing"
    )
    assert departures.step(control("departures.absent", SOUGHT), 100.0) == [control("leader.fence-break", SOUGHT)]
    assert departures.statistics() == {"missing": 0}


def test_a_member_that_is_found_has_not_left():
    departures = FenceMembership()
    departures.step(control("departures.left", MEMBER), 1.0)
    departures.tick(1.0 + GRACE_S)
    assert departures.step(control("departures.here", SOUGHT), 2.0) == []
    assert departures.statistics() == {"missing": 0}
    assert departures.step(control("departures.absent", SOUGHT), 3.0) == []


def test_a_member_that_left_again_is_looked_for_again():
    """1. It is sought. 2. A broker says that it is not there. 3. It comes there, and leaves. 4. The others say no as well."""
    departures = FenceMembership()
    departures.step(control("departures.left", MEMBER), 1.0)
    departures.tick(1.0 + GRACE_S)
    assert departures.step(control("departures.left", MEMBER), 4.0) == []
    assert departures.step(control("departures.absent", SOUGHT), 4.1) == []
    assert departures.deadline == 4.0 + GRACE_S
    (again,) = departures.tick(4.0 + GRACE_S)
    assert Body(FenceMember)(again).search == 2


def test_a_subtree_has_answered_when_all_of_it_has():
    searches = MemberSearches()
    searches.begin(SOUGHT, [3, 4])
    assert not searches.absent(SOUGHT, 3)
    assert not searches.absent(SOUGHT, 3), "the same child again"
    assert searches.absent(SOUGHT, 4)
    assert len(searches) == 0


def test_an_answer_to_an_earlier_search_does_not_count():
    searches = MemberSearches()
    later = FenceMember("primary", "f", CommitId("a", 1), search=2)
    searches.begin(SOUGHT, [3])
    searches.begin(later, [3])
    assert not searches.absent(SOUGHT, 3)
    assert searches.absent(later, 3)
    searches.begin(later, [3])
    searches.found(later)
    assert not searches.absent(later, 3)


def test_a_member_that_gives_up_is_gone_at_once():
    gone = FenceMember("primary", "f", CommitId("a", 1), gone=True)
    assert FenceMembership().step(control("departures.left", gone), 1.0) == [control("leader.fence-break", gone)]


def test_clients_cannot_send_members_away():
    (answer,) = FenceMembership().step(ask("departures.left", MEMBER), 1.0)
    assert answer.status == errors.InvalidRequest.code
