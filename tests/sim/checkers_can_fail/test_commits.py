"""Broken rules of commits: order, deduplication, guards, atomic operations, combined additions, published events."""

from __future__ import annotations

import msgspec
import pytest

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.kvs.leader import batch as version
from fluxmpi.kvs.leader.batch import Batch, Placed
from fluxmpi.kvs.leader.committer import Committer, Entry
from fluxmpi.kvs.leader.dedup import ClientResults
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.store import edit as tree
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import level
from fluxmpi.kvs.wire import Adds, Committed
from fluxmpi.message import Body, Message, encode_body
from fluxmpi.overlay.events import EventService
from fluxmpi.overlay.wire import Published

CASES = Cases()
case = CASES.case

_decode_committed = msgspec.msgpack.Decoder(Committed).decode
_decode_published = Body(Published)


@case("merge:", mix="hot")
def commits_to_one_key_merge(patch: Patch) -> None:
    patch(Batch, "_conflicts", lambda self, keys: False)


@case("once:", resends=0.5)
def a_commit_that_is_sent_again_is_applied_again(patch: Patch) -> None:
    patch(Committer, "_known", lambda self, entry, version: False)


@case("once:", mix="links", resends=1.0)
def a_refused_commit_is_forgotten(patch: Patch) -> None:
    remember = ClientResults.remember
    patch(
        ClientResults,
        "remember",
        lambda self, serial, status, body: None if status else remember(self, serial, status, body),
    )


@case("replay:", mix="hot")
def a_commit_that_fails_leaves_something_behind(patch: Patch) -> None:
    patch(Edit, "rollback", lambda self, mark: None)


@case("replay:", mix="directories")
def an_unlink_is_lost(patch: Patch) -> None:
    unlink = Edit.unlink
    patch(Edit, "unlink", lambda self, parts: "x" if parts == ["d1"] else unlink(self, parts))


@case("tree:", mix="directories")
def nodes_are_cut_elsewhere(patch: Patch) -> None:
    patch(tree, "level", lambda name: level(f"x{name}"))  # type: ignore[arg-type]


@case("replay:", mix="hot", transactions=True)
def guards_are_not_asked(patch: Patch) -> None:
    patch(Batch, "_holds", lambda self, guard, key, obj: True)


@case("results:", mix="hot", transactions=True)
def a_swap_does_not_compare(patch: Patch) -> None:
    patch(version, "same", lambda one, other, read: True)  # type: ignore[arg-type]


@case("merge:", mix="hot", transactions=True)
def a_guard_does_not_keep_others_from_its_key(patch: Patch) -> None:
    overlap = version._overlap
    patch(version, "_overlap", lambda keys, touched, above: False if "hot.a" in keys else overlap(keys, touched, above))  # type: ignore[arg-type]


@case("once:", mix="hot", transactions=True, resends=1.0)
def the_results_of_a_commit_are_forgotten(patch: Patch) -> None:
    answer = Committer._answer

    def poor(self: Committer, entry: Entry, body: bytes) -> None:
        answer(self, entry, body)
        client, commit = entry.client, entry.commit
        assert client is not None
        assert commit is not None
        done = _decode_committed(body)
        client.remember(commit.id.serial, 0, encode_body(Committed(done.namespace, done.version, done.ref, done.time)))

    patch(Committer, "_answer", poor)


@case("once:", mix="hot", transactions=True, resends=1.0)
def an_addition_that_is_sent_again_is_added_again(patch: Patch) -> None:
    place = Committer._place_adds

    def forgetful(self: Committer, entry: Entry, adds: Adds, making: Batch) -> bool:
        for part in adds.parts:
            self._common.results.client(part.id.client).results.pop(part.id.serial, None)
        return place(self, entry, adds, making)

    patch(Committer, "_place_adds", forgetful)


@case("results:", mix="hot", transactions=True)
def combined_additions_get_one_sum(patch: Patch) -> None:
    place = Batch.place_adds

    def equal(self: Batch, key: str, amounts: list[int]) -> list | None:
        made = place(self, key, amounts)
        return made and [made[-1]] * len(made)

    patch(Batch, "place_adds", equal)


@case("broken: AssertionError", mix="hot", transactions=True)
def additions_that_waited_are_never_sent(patch: Patch) -> None:
    send = AddCombiner._send
    patch(
        AddCombiner,
        "_send",
        lambda self, key, counter: [] if counter.under_way and counter.waiting else send(self, key, counter),
    )


@case("events:", mix="watchers", transactions=True)
def an_event_is_published_although_its_guards_failed(patch: Patch) -> None:
    placed = Committer._placed

    def loud(self: Committer, entry: Entry, what: Placed, making: Batch) -> None:
        placed(self, entry, what._replace(succeeded=True) if what.made else what, making)

    patch(Committer, "_placed", loud)


@case("events:", mix="watchers", transactions=True)
def an_event_is_of_a_version_to_come(patch: Patch) -> None:
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


@pytest.mark.parametrize("name", CASES)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES.assert_noticed(name, monkeypatch)


@pytest.mark.parametrize("plan", CASES.plans())
def test_nothing_is_noticed_while_no_rule_is_broken(plan: str) -> None:
    CASES.assert_clean(plan)
