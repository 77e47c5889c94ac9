"""Broken rules of commits: order, deduplication, guards, atomic operations, combined additions, published events."""

from __future__ import annotations

import msgspec

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.kvs.leader import batch
from fluxmpi.kvs.leader.batch import Batch, KeySet
from fluxmpi.kvs.leader.dedup import ClientResults
from fluxmpi.kvs.leader.entries import CommitEntry
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.store import edit as tree
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import level
from fluxmpi.kvs.wire import Committed
from fluxmpi.message import Body, Message, encode_body
from fluxmpi.overlay.events import EventService
from fluxmpi.overlay.wire import Published

CASES = Cases()
case = CASES.case

_decode_committed = msgspec.msgpack.Decoder(Committed).decode
_decode_published = Body(Published)


@case("merge:", mix="hot")
def commits_to_one_key_share_a_version(patch: Patch) -> None:
    patch(Batch, "conflicts", lambda self, keys: False)


@case("once:", resends=0.5)
def a_commit_that_is_sent_again_is_applied_again(patch: Patch) -> None:
    patch(ClientResults, "response", lambda self, id_: None)


@case("once:", mix="links", resends=1.0)
def a_refused_commit_is_forgotten(patch: Patch) -> None:
    remember = ClientResults.remember
    patch(
        ClientResults,
        "remember",
        lambda self, serial, status, body: None if status else remember(self, serial, status, body),
    )


@case("replay:", mix="hot")
def a_failed_commit_changes_something(patch: Patch) -> None:
    patch(Edit, "rollback", lambda self, mark: None)


@case("replay:", mix="directories")
def an_unlink_is_lost(patch: Patch) -> None:
    unlink = Edit.unlink
    patch(Edit, "unlink", lambda self, parts: "x" if parts == ["d1"] else unlink(self, parts))


@case("tree:", mix="directories")
def nodes_are_split_at_other_names(patch: Patch) -> None:
    patch(tree, "level", lambda name: level(f"x{name}"))  # type: ignore[arg-type]


@case("replay:", mix="hot", transactions=True)
def guards_are_ignored(patch: Patch) -> None:
    patch(Batch, "_holds", lambda self, guard, key, obj: True)


@case("results:", mix="hot", transactions=True)
def a_swap_does_not_compare(patch: Patch) -> None:
    patch(batch, "equal", lambda one, other, read: True)  # type: ignore[arg-type]


@case("merge:", mix="hot", transactions=True)
def a_guarded_key_is_written_in_the_same_version(patch: Patch) -> None:
    overlaps = KeySet.overlaps
    patch(KeySet, "overlaps", lambda self, keys: False if "hot.a" in keys else overlaps(self, keys))


@case("once:", mix="hot", transactions=True, resends=1.0)
def the_results_of_a_commit_are_forgotten(patch: Patch) -> None:
    respond = CommitEntry._respond

    def poor(self: CommitEntry, body: bytes, out: list[Message]) -> None:
        respond(self, body, out)
        done = _decode_committed(body)
        without = Committed(done.namespace, done.version, done.ref, done.time)
        self.client.remember(self.commit.id.serial, 0, encode_body(without))

    patch(CommitEntry, "_respond", poor)


@case("once:", mix="hot", transactions=True, resends=1.0)
def an_addition_that_is_sent_again_is_added_again(patch: Patch) -> None:
    patch(ClientResults, "response", lambda self, id_: None)


@case("results:", mix="hot", transactions=True)
def combined_additions_get_one_sum(patch: Patch) -> None:
    place = Batch.place_adds

    def equal(self: Batch, key: str, amounts: list[int]) -> list | None:
        made = place(self, key, amounts)
        return made and [made[-1]] * len(made)

    patch(Batch, "place_adds", equal)


@case("broken: AssertionError", mix="hot", transactions=True)
def waiting_additions_are_never_sent(patch: Patch) -> None:
    send = AddCombiner._send
    patch(
        AddCombiner,
        "_send",
        lambda self, key, counter: [] if counter.under_way and counter.waiting else send(self, key, counter),
    )


@case("events:", mix="watchers", transactions=True)
def an_event_is_published_although_its_guards_failed(patch: Patch) -> None:
    join = CommitEntry._join

    def loud(self: CommitEntry, made: Batch) -> None:
        succeeded, self.succeeded = self.succeeded, True
        join(self, made)
        self.succeeded = succeeded

    patch(CommitEntry, "_join", loud)


@case("events:", mix="watchers", transactions=True)
def an_event_names_the_next_version(patch: Patch) -> None:
    step = EventService.step

    def hasty(self: EventService, msg: Message, now: float) -> list[Message]:
        if msg.topic != "event.committed":
            return step(self, msg, now)
        published = _decode_published(msg)
        name, number, *rest = published.snapshot
        published.snapshot = (name, number + 1, *rest)
        msg.body = encode_body(published)
        return step(self, msg, now)

    patch(EventService, "step", hasty)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
