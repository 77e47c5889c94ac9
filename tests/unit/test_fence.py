"""Fences: contributions are counted by id, equal objects cross a link once, members that leave break them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, OTHER, ask, body, control_from, put, topics

from fluxmpi import errors
from fluxmpi.kvs.fence.broken import BrokenFences
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.fence.membership import FenceMembership, MemberSearches
from fluxmpi.kvs.fence.service import FenceService
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Append, CommitId, Contribution, Fence, FenceDone, FenceMember, Mkdir, Op, PutShared, Unlink
from fluxmpi.machine import NEVER
from fluxmpi.message import Body, control, encode_body
from fluxmpi.overlay.router import Router

LIMITS = FenceLimits()


def gathering_of(first: Fence, limits: FenceLimits = LIMITS) -> Gathering:
    return Gathering(first, limits)


def fence_service(limits: FenceLimits = LIMITS) -> FenceService:
    """The fences of rank 3 of seven: its parent is rank 1, and it has no children."""
    return FenceService(Router(3, 7), {}, lambda msg: [], limits)


def sent_up(messages) -> list[Fence]:
    """Return the contributions that are sent to the parent."""
    assert {msg.hop for msg in messages} <= {1}
    return [body(msg, Fence) for msg in messages if msg.topic == "kvs.gather"]


def reported(messages) -> list[FenceMember]:
    """Return the members that are reported to have left."""
    return [body(msg, FenceMember) for msg in messages if msg.topic == "kvs.fence-left"]


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
    gathering = gathering_of(fence())
    for number in range(3):
        assert not gathering.complete
        assert gathering.add(fence(part(number, put(f"k{number}", number))), CLIENT - number)
    assert gathering.complete
    assert unshared(gathering) == [put("k0", 0), put("k1", 1), put("k2", 2)]


def test_a_resent_contribution_counts_once():
    gathering = gathering_of(fence())
    assert gathering.add(fence(part(1, put("a", 1))), CLIENT)
    gathering.take_unsent()
    assert not gathering.add(fence(part(1, put("a", 1))), OTHER), "also from another client"
    assert not gathering.complete
    assert gathering.take_unsent().parts == [], "and is not sent to the parent again"
    assert unshared(gathering) == [put("a", 1)]


def test_one_client_may_contribute_more_than_once():
    gathering = gathering_of(fence(size=2))
    for serial in (1, 2):
        gathering.add(fence(Contribution(CommitId("c", serial), [Unlink(f"k{serial}")]), size=2), CLIENT)
    assert gathering.complete


def test_equal_objects_are_sent_to_the_parent_once():
    gathering = gathering_of(fence(size=9))
    for number in range(3):
        gathering.add(fence(part(number, put(f"k{number}", "same")), size=9), CLIENT - number)
    up = gathering.take_unsent()
    assert up.objects == [val("same")]
    assert [contribution.ops for contribution in up.parts] == [[PutShared(f"k{number}", 0)] for number in range(3)]
    gathering.add(fence(part(3, put("k3", "same"), put("l3", "other")), size=9), CLIENT)
    up = gathering.take_unsent()
    assert up.objects == [val("other")], "the parent has the first object"
    assert up.parts == [part(3, PutShared("k3", 0), PutShared("l3", 1))]
    assert gathering.take_unsent() == fence(size=9, first=2)


def test_operations_without_objects_are_forwarded_unchanged():
    ops = [Append("a", b"x"), Unlink("b"), Mkdir("c"), put("d", 1)]
    gathering = gathering_of(fence(size=1))
    gathering.add(fence(part(1, *ops), size=1), CLIENT)
    assert unshared(gathering) == ops
    assert gathering.take_unsent().parts[0].ops == [*ops[:3], PutShared("d", 0)]


def test_each_link_has_a_table_of_its_own():
    """Both children have an object with index 0, and the objects differ."""
    gathering = gathering_of(fence(size=4))
    gathering.add(fence(part(1, PutShared("a", 0)), size=4, objects=[val("x")]), 1)
    gathering.add(fence(part(2, PutShared("b", 0)), size=4, objects=[val("y")]), 2)
    gathering.add(fence(part(3, PutShared("c", 0), PutShared("d", 1)), size=4, objects=[val("x")], first=1), 2)
    assert unshared(gathering) == [put("a", "x"), put("b", "y"), put("c", "y"), put("d", "x")]
    assert gathering.take_unsent().objects == [val("x"), val("y")]


def test_a_message_that_builds_on_a_dropped_table_is_ignored():
    """The fence was done meanwhile. The child learns it, and sends its remaining contributions with a new table."""
    child, above = gathering_of(fence(size=2)), gathering_of(fence(size=2))
    child.add(fence(part(1, put("a", 1)), size=2), CLIENT)
    child.take_unsent()
    child.add(fence(part(2, put("b", 2)), size=2), CLIENT)
    assert not above.add(child.take_unsent(), 1)
    assert above.parts == {}
    assert child.remove([CommitId("client1", 1)]) == 1
    assert list(child.parts) == [CommitId("client2", 1)], "the second one is left over"
    assert above.add(child.take_unsent(), 1)
    assert unshared(above) == [put("b", 2)]
    assert child.remove([CommitId("client2", 1)]) == 1
    assert not child.parts


def test_a_new_table_replaces_the_old_one():
    above = gathering_of(fence(size=9))
    above.add(fence(part(1, PutShared("a", 0)), size=9, objects=[val("x")]), 1)
    above.add(fence(part(2, PutShared("b", 0)), size=9, objects=[val("y")]), 1)
    assert unshared(above) == [put("a", "x"), put("b", "y")]


def test_contributors_must_agree_on_the_size():
    gathering = gathering_of(fence(part(1), size=3))
    gathering.add(fence(part(1), size=3), CLIENT)
    with pytest.raises(errors.FenceMismatch, match="'f' has 3 contributions, but this one was sent with size 4"):
        gathering.add(fence(part(2), size=4, objects=[val("x")]), 1)
    assert list(gathering.parts) == [CommitId("client1", 1)]
    gathering.add(fence(part(2, PutShared("k", 0)), size=3, objects=[val("y")]), 1)
    assert unshared(gathering) == [put("k", "y")], "the refused objects are in no table"


@pytest.mark.parametrize("size", [0, -1, LIMITS.size_max + 1])
def test_invalid_sizes_are_refused(size):
    with pytest.raises(errors.InvalidRequest, match=str(size)):
        gathering_of(fence(size=size))


@pytest.mark.parametrize("index", [-1, 1, 1 << 40])
def test_an_index_outside_the_table_is_refused(index):
    gathering = gathering_of(fence())
    with pytest.raises(errors.InvalidRequest, match=f"object {index} is not in the table of 1"):
        gathering.add(fence(part(1, PutShared("a", index)), objects=[val("x")]), 1)
    assert gathering.parts == {}
    with pytest.raises(errors.InvalidRequest):
        gathering.add(fence(part(1, PutShared("a", 0))), CLIENT)


@settings(max_examples=50)
@given(st.data())
def test_a_tree_of_gatherings_delivers_every_contribution_and_each_object_once_per_link(data):
    """Contributions at random places of a tree of brokers, messages at random times, some sent twice: rank 0 has the sum."""
    size = data.draw(st.integers(1, 12), "contributions")
    brokers = data.draw(st.integers(1, 5), "brokers")
    parent = [-1] + [data.draw(st.integers(0, rank - 1)) for rank in range(1, brokers)]
    gatherings = [gathering_of(fence(size=size)) for _ in range(brokers)]
    crossed: dict[int, list] = {rank: [] for rank in range(brokers)}
    expected = {}

    def flush(rank: int) -> None:
        if rank:
            up = over_the_wire(gatherings[rank].take_unsent())
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


def test_a_message_to_the_parent_is_bounded_and_carries_the_objects_that_it_needs():
    gathering, above = gathering_of(fence(size=9), FenceLimits(message_ops=4)), gathering_of(fence(size=9))
    parts = [part(number, put(f"k{number}", number), put(f"l{number}", "same")) for number in range(5)]
    gathering.add(fence(*parts, part(5, *(put(f"m{number}", number) for number in range(9))), size=9), CLIENT)
    sent = [gathering.take_unsent()]
    while gathering.has_unsent:
        sent.append(gathering.take_unsent())
    assert [sum(len(one.ops) for one in up.parts) for up in sent] == [4, 4, 11]
    assert [up.objects for up in sent] == [
        [val(0), val("same"), val(1)], [val(2), val(3)], [val(4), *map(val, range(5, 9))]
    ]  # fmt: skip
    for up in sent:
        assert above.add(over_the_wire(up), 7)
    assert unshared(above) == unshared(gathering)
    assert gathering.remove([CommitId("client0", 1)])
    again, other = gathering.take_unsent(), gathering_of(fence(size=9))
    assert again.objects == gathering.objects, "a new table, with all that may be needed"
    assert other.add(over_the_wire(again), 7)


def test_contributions_beyond_the_bound_are_sent_in_the_next_turn():
    fences = fence_service(FenceLimits(message_ops=1))
    for client in "abcd":
        contribute(fences, Contribution(CommitId(client, 1), [Mkdir(client)]), size=9, hop=CLIENT - ord(client))
    for _ in range(2):
        assert fences.deadline == 0.0
        assert [len(up.parts) for up in sent_up(fences.turn(0.0))] == [1]
        fences.check()
    out = fences.disconnect(CLIENT - ord("d"))
    assert topics(out) == [("kvs.gather", 1)] * 2 + [("kvs.fence-left", 1)], "all of it, before the report"
    assert fences.turn(0.0) == []
    assert fences.deadline == NEVER


def test_encoded_operations_are_forwarded_encoded_after_the_others_of_their_contribution():
    gathering, above = gathering_of(fence(size=2)), gathering_of(fence(size=2))
    some, more = [put("a", 1), put("b", 2)], [encode_body([put("c", 3)]), encode_body([put("d", 4)])]
    refs = [b"r" * 32]
    gathering.add(fence(Contribution(CommitId("c", 1), some, 0, more, refs), size=2), CLIENT)
    gathering.add(fence(part(2, put("e", 5), put("f", 1)), size=2), OTHER)
    assert above.add(over_the_wire(gathering.take_unsent()), 7)
    assert list(above.pieces(3)) == [some, *more, [put("e", 5), put("f", 1)]]
    assert list(above.pieces(1)) == [[put("a", 1)], [put("b", 2)], [], *more, [put("e", 5)], [put("f", 1)]]
    assert list(above.refs()) == refs
    assert above.objects == [val(1), val(2), val(5)]


def contribute(fences: FenceService, part: Contribution, name="f", size=3, hop=CLIENT, tag=1) -> None:
    assert fences.from_client(ask("kvs.fence", Fence("primary", name, size, [part]), hop=hop, tag=tag), 0.0) == []
    fences.check()


def test_a_broker_holds_contributions_until_as_many_are_there_as_last_time():
    fences = fence_service()

    def enter(client: str, name: str) -> None:
        contribute(fences, Contribution(CommitId(client, 1), []), name, size=8)

    for client in "abc":
        enter(client, "first")
        assert fences.deadline == 0.0, "no fence of this size before: nothing is held"
    assert [len(fence.parts) for fence in sent_up(fences.turn(0.0))] == [3]
    ids = [CommitId(client, 1) for client in "abc"]
    fences.done(FenceDone("primary", "first", ids, 1), 0.0)

    enter("a", "second")
    enter("b", "second")
    assert fences.deadline == LIMITS.hold_s
    assert fences.turn(0.0) == []
    enter("c", "second")
    assert fences.deadline == 0.0
    assert [len(fence.parts) for fence in sent_up(fences.turn(0.0))] == [3]
    fences.done(FenceDone("primary", "second", ids, 2), 0.0)

    enter("a", "third")
    assert [len(fence.parts) for fence in sent_up(fences.turn(LIMITS.hold_s))] == [1], "it holds them up to hold_s"


# --------------------------------------------------------------------------------------------- members that leave


def entered(fences: FenceService, client: str, hop: int, tag: int, name: str = "f") -> None:
    contribute(fences, Contribution(CommitId(client, 1), []), name, hop=hop, tag=tag)


def waits(fences: FenceService, client: str) -> bool:
    """Return whether a client waits here, as rank 0 learns by a search."""
    (report,) = fences.about_member(
        control_from("kvs.fence-missing", FenceMember("primary", "none", CommitId(client, 1)))
    )
    return {"kvs.fence-here": True, "kvs.fence-absent": False}[report.topic]


def test_a_client_that_disconnects_has_left_its_fences():
    fences = fence_service()
    entered(fences, "a", CLIENT, 1)
    entered(fences, "a", CLIENT, 2)
    entered(fences, "b", OTHER, 1, "g")
    assert reported(fences.disconnect(CLIENT)) == [FenceMember("primary", "f", CommitId("a", 1))]
    fences.check()
    assert not waits(fences, "a")
    assert waits(fences, "b")
    assert fences.disconnect(CLIENT) == []


def test_a_client_that_contributed_over_two_connections_has_not_left_with_one():
    fences = fence_service()
    entered(fences, "a", CLIENT, 1)
    entered(fences, "a", OTHER, 1)
    assert fences.disconnect(CLIENT) == []
    assert waits(fences, "a")
    fences.check()
    assert [member.name for member in reported(fences.disconnect(OTHER))] == ["f"]


def test_a_client_that_has_the_outcome_has_not_left():
    fences = fence_service()
    entered(fences, "a", CLIENT, 1)
    assert len(fences.done(FenceDone("primary", "f", [CommitId("a", 1)], 1), 0.0)) == 1
    fences.check()
    assert fences.disconnect(CLIENT) == []


def test_a_client_leaves_a_fence_by_cancelling_its_request():
    fences = fence_service()
    entered(fences, "a", CLIENT, 7)
    assert fences.cancel(ask("kvs.cancel"), 8) is None
    assert fences.cancel(ask("kvs.cancel", hop=OTHER), 7) is None
    assert reported(fences.cancel(ask("kvs.cancel"), 7)) == [FenceMember("primary", "f", CommitId("a", 1), gone=True)]
    assert waits(fences, "a"), "it still gets the outcome"


def test_contributions_go_up_before_the_report_that_their_client_left():
    fences = fence_service()
    entered(fences, "a", CLIENT, 1)
    out = fences.disconnect(CLIENT)
    assert topics(out) == [("kvs.gather", 1), ("kvs.fence-left", 1)]
    assert [len(fence.parts) for fence in sent_up(out)] == [1]
    assert fences.turn(1.0) == []


def test_a_broken_fence_is_broken_until_all_clients_have_the_error():
    broken = BrokenFences(LIMITS)
    gathering = gathering_of(fence(size=3))
    gathering.add(fence(part(1)), CLIENT)
    text = broken.add(gathering, CommitId("client1", 1), 10.0).text
    assert (
        text
        == "fence 'f' is broken: client client1 left it when 1 of 3 contributions had arrived; nothing of it was committed"
    )
    again = Contribution(CommitId("client2", 9), [])
    for late in (part(2), again):
        assert broken.error(fence(late), 11.0).text == text, "the same client may come twice"
    assert broken.error(Fence("other", "f", 3, [part(3)]), 11.0) is None
    assert broken.error(fence(part(3)), 11.0) is not None
    assert len(broken) == 0
    assert broken.error(fence(part(4)), 11.0) is None, "the name is free"


def test_a_broken_fence_is_forgotten_after_a_time():
    broken = BrokenFences(LIMITS)
    gathering = gathering_of(fence(size=3))
    gathering.add(fence(part(1)), CLIENT)
    broken.add(gathering, CommitId("client1", 1), 10.0)
    assert broken.error(fence(part(2)), 10.0 + LIMITS.broken_s) is None
    assert len(broken) == 0


def test_broken_fences_are_bounded():
    broken = BrokenFences(FenceLimits(broken_max=2))
    for name in "abc":
        gathering = gathering_of(Fence("primary", name, 3, []))
        gathering.add(Fence("primary", name, 3, [part(1)]), CLIENT)
        broken.add(gathering, CommitId("client1", 1), 0.0)
    assert [broken.error(Fence("primary", name, 3, [part(2)]), 0.0) is None for name in "abc"] == [True, False, False]


def test_members_of_broken_fences_are_bounded():
    broken = BrokenFences(FenceLimits(broken_clients_max=4))
    for name in "ab":
        gathering = gathering_of(Fence("primary", name, 9, []))
        gathering.add(Fence("primary", name, 9, [part(number) for number in range(3)]), CLIENT)
        broken.add(gathering, CommitId("client1", 1), 0.0)
        broken.check()
    assert [broken.error(Fence("primary", name, 9, [part(7)]), 0.0) is None for name in "ab"] == [True, False]
    assert broken.clients == 4


def fill(fences: FenceService, number: int, data: bytes, hop: int = CLIENT) -> None:
    """Send one of two contributions of a fence of its own."""
    sent = Fence("primary", f"f{number}", 2, [part(number, put("a", data.decode()))])
    fences.from_client(ask("kvs.fence", sent, hop=hop, tag=number), 0.0)


def end(fences: FenceService, number: int) -> None:
    fences.done(FenceDone("primary", f"f{number}", [CommitId(f"client{number}", 1)], 1), 0.0)
    fences.check()


def test_contributions_of_one_client_are_bounded_in_number_and_bytes():
    fences = fence_service(FenceLimits(waiting_client_max=3, bytes_client_max=1000))
    fill(fences, 1, bytes(800))
    with pytest.raises(errors.Overloaded, match="bytes of contributions"):
        fill(fences, 2, bytes(800))
    fill(fences, 2, bytes(800), OTHER)
    fill(fences, 3, b"")
    fill(fences, 4, b"")
    with pytest.raises(errors.Overloaded, match="3 contributions to fences"):
        fill(fences, 5, b"")
    fill(fences, 1, bytes(800))  # sent again
    fences.check()
    end(fences, 1)
    fill(fences, 5, bytes(800))
    fences.disconnect(CLIENT)
    fences.check()
    fill(fences, 6, bytes(800))
    for number in range(2, 7):
        end(fences, number)
    assert fences.statistics() == {"fences": 0, "fence_bytes": 0, "searches": 0}


def test_all_contributions_at_a_broker_are_bounded_in_bytes():
    fences = fence_service(FenceLimits(bytes_max=2000))
    fill(fences, 1, bytes(800))
    child = Fence("primary", "c", 9, [part(9, put("a", bytes(800).decode()))])
    assert fences.from_child(control("kvs.gather", child, 7), 0.0) == []
    with pytest.raises(errors.Overloaded, match="at broker 3 already"):
        fill(fences, 2, bytes(800))
    (answer,) = fences.from_child(control("kvs.gather", child, 8), 0.0)
    refused = body(answer, FenceDone)
    assert (answer.hop, refused.ids, refused.status) == (8, [CommitId("client9", 1)], errors.Overloaded.code)
    fences.check()
    end(fences, 1)
    fill(fences, 2, bytes(800))
    fences.check()


MEMBER = FenceMember("primary", "f", CommitId("a", 1))


SOUGHT = FenceMember("primary", "f", CommitId("a", 1), search=1)


def test_a_member_is_searched_before_it_counts_as_gone():
    departures = FenceMembership()
    assert departures.step(control("departures.left", MEMBER), 1.0) == []
    assert departures.deadline == 1.0 + LIMITS.grace_s
    assert departures.tick(1.0) == []
    assert departures.tick(1.0 + LIMITS.grace_s) == [control("kvs.fence-missing", SOUGHT)]
    assert (departures.deadline, departures.statistics()) == (NEVER, {"missing": 1}), (
        "brokers that are silent break nothing"
    )
    assert departures.step(control("departures.absent", SOUGHT), 100.0) == [control("leader.fence-break", SOUGHT)]
    assert departures.statistics() == {"missing": 0}


def test_a_member_that_is_found_has_not_left():
    departures = FenceMembership()
    departures.step(control("departures.left", MEMBER), 1.0)
    departures.tick(1.0 + LIMITS.grace_s)
    assert departures.step(control("departures.here", SOUGHT), 2.0) == []
    assert departures.statistics() == {"missing": 0}
    assert departures.step(control("departures.absent", SOUGHT), 3.0) == []


def test_a_member_that_left_again_is_searched_again():
    """1. It is searched. 2. A broker reports it absent. 3. It connects there, and leaves. 4. The others report it absent."""
    departures = FenceMembership()
    departures.step(control("departures.left", MEMBER), 1.0)
    departures.tick(1.0 + LIMITS.grace_s)
    assert departures.step(control("departures.left", MEMBER), 4.0) == []
    assert departures.step(control("departures.absent", SOUGHT), 4.1) == []
    assert departures.deadline == 4.0 + LIMITS.grace_s
    (again,) = departures.tick(4.0 + LIMITS.grace_s)
    assert Body(FenceMember)(again).search == 2


def test_a_subtree_has_reported_when_all_of_it_has():
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
