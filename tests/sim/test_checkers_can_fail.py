"""The checkers can fail: a rule is broken on purpose, and the simulator must say which, within a few seeds.

Each case takes a rule out of the core for the length of one test. A case that no seed notices is a hole in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest

from fluxmpi.broker.lifecycle import Lifecycle
from fluxmpi.client.reader import Memory, Reader
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentService
from fluxmpi.content.store import Store
from fluxmpi.content.values import ValueService
from fluxmpi.content.wire import LoadRequest
from fluxmpi.errors import NoSuchBlob
from fluxmpi.kvs.fence.aggregator import FenceAggregator
from fluxmpi.kvs.fence.gathering import BrokenFences, Gathering
from fluxmpi.kvs.leader import batch as version
from fluxmpi.kvs.leader.batch import Batch, Placed
from fluxmpi.kvs.leader.committer import Committer, Entry
from fluxmpi.kvs.leader.dedup import ClientResults
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.leader.validation import ObjectValidator as CommitValues
from fluxmpi.kvs.mvcc import checkpoint
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService, Reach
from fluxmpi.kvs.mvcc.gc import Limits
from fluxmpi.kvs.mvcc.key_index import KeyIndex
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT, Namespace, Namespaces
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.replica import root_page as page
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.replica.fault_in import FaultIn
from fluxmpi.kvs.replica.pending import OnAnswer
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store import edit as tree
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import level
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.service import WatchService
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import Adds, Committed, RootInfo
from fluxmpi.message import RESPONSE, Body, Message, encode_body
from fluxmpi.overlay.events import EventService
from fluxmpi.overlay.wire import LostRank, Published
from fluxmpi.simulator.page import SimulatedPage
from fluxmpi.simulator.plan import Faults, Plan, plan_of
from fluxmpi.simulator.run import run

SEEDS = 40
"""Tried at most until a broken rule is noticed. Most are with the first or second."""

Patch = Callable[[type, str, object], None]

_decode_committed = msgspec.msgpack.Decoder(Committed).decode
_decode_published = Body(Published)

Case = Callable[[Patch], None]

CASES: dict[str, tuple[str | tuple[str, ...], Case, dict[str, object]]] = {}


def case(noticed: str | tuple[str, ...], **plan: object) -> Callable[[Case], Case]:
    """``noticed``: how a violation begins that shows it. ``plan``: what the runs must be like."""

    def register(break_it: Case) -> Case:
        CASES[break_it.__name__.replace("_", " ")] = noticed, break_it, plan
        return break_it

    return register


# ------------------------------------------------------------------------------------------------------------- commits


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


# ------------------------------------------------------------------------------------------------------------ versions


@case("versions:", echoes=6.0)
def an_older_root_is_adopted(patch: Patch) -> None:
    def adopt(self: Replica, root: object, oldest: int = 0) -> bool:
        self.root, self.version = root, root.version  # type: ignore[attr-defined, assignment]
        self._history = VersionLog(self.namespace, self.version)
        self._history.append(root)  # type: ignore[arg-type]
        return True

    patch(Replica, "adopt", adopt)


@case("versions:")
def a_setroot_is_not_passed_to_one_child(patch: Patch) -> None:
    spread = KvsService._spread

    def forgetful(self: KvsService, msg: Message) -> list[Message]:
        out = spread(self, msg)
        return out[:-1] if msg.topic == "kvs.setroot" and self._setroots % 5 == 4 else out

    patch(KvsService, "_spread", forgetful)


@case("sessions:")
def a_commit_is_answered_before_its_version_is_here(patch: Patch) -> None:
    answered = KvsService._answered

    def hasty(self: KvsService, msg: Message, asked: tuple[Message, OnAnswer], now: float) -> list[Message]:
        request, _ = asked
        if request.topic == "kvs.commit" and msg.status == 0:
            return [Message(RESPONSE, request.topic, tag=request.tag, route=request.route, body=msg.body)]
        return answered(self, msg, asked, now)

    # On the real links the setroot comes before the answer, so it must be late, too.
    spread = KvsService._spread
    held: dict[int, list[Message]] = {}

    def late(self: KvsService, msg: Message) -> list[Message]:
        before = held.pop(id(self), [])
        held[id(self)] = spread(self, msg)
        return before

    patch(KvsService, "_answered", hasty)
    patch(KvsService, "_spread", late)


@case("reads:", mix="hot")
def a_read_does_not_wait_for_the_session(patch: Patch) -> None:
    when = KvsService._when
    patch(KvsService, "_when", lambda self, msg, namespace, at_least: when(self, msg, namespace, 0))


@case("reads:")
def a_read_is_of_another_version_than_it_says(patch: Patch) -> None:
    root_at = Reads.root_at

    def older(self: Reads, namespace: str, at: object) -> object:
        root = root_at(self, namespace, at)  # type: ignore[arg-type]
        before = self._replicas[namespace].at(root.version - 1)
        return root if before is None else replace_root(root, before.ref)

    patch(Reads, "root_at", older)


def replace_root(root: object, ref: bytes) -> object:
    return type(root)(root.namespace, root.version, ref, root.time)  # type: ignore[attr-defined, call-arg]


@case("reads:", mix="hot")
def a_page_behind_the_session_is_read(patch: Patch) -> None:
    patch(Reader, "root", lambda self, namespace: self.page.root(namespace) if self.page else None)


@case("page:")
def a_page_is_written_after_the_answer(patch: Patch) -> None:
    flush = SimulatedPage.flush
    late: dict[int, None] = {}

    def flush_late(self: SimulatedPage) -> None:
        if self._told and id(self) not in late:
            late[id(self)] = None
        else:
            late.pop(id(self), None)
            flush(self)

    patch(SimulatedPage, "flush", flush_late)


@case("reads:", mix="hot")
def a_torn_page_is_believed(patch: Patch) -> None:
    def believe(image: bytes) -> page.Slot:
        _, version, time, state, ref_bytes, name_bytes, ref, name, _, _ = page._SLOT.unpack(image)
        return page.Slot(
            1, state, RootInfo(name[:name_bytes].decode("utf-8", "replace"), version, ref[:ref_bytes], time)
        )

    patch(page, "decode_slot", believe)  # type: ignore[arg-type]


@case("reads:", mix="directories")
def a_client_remembers_a_node_under_another_name(patch: Patch) -> None:
    learn = Memory.learn
    last: list[bytes] = []

    def confused(self: Memory, ref: bytes, blob: bytes) -> None:
        last.append(blob)
        learn(self, ref, last[-2] if len(last) % 9 == 8 else blob)

    patch(Memory, "learn", confused)


# ------------------------------------------------------------------------------------------------- watches, events, fences


@case("watches:", mix="watchers")
def a_watch_skips_a_version(patch: Patch) -> None:
    push = WatchService._push
    patch(WatchService, "_push", lambda self, watcher, step: step.root.version % 7 == 3 or push(self, watcher, step))


@case("watches:", mix="links")
def a_watch_does_not_see_through_links(patch: Patch) -> None:
    patch(Evaluator, "_found_link", lambda self, watcher, root: None)


@case("watches:", mix="watchers")
def a_watch_tells_a_version_twice(patch: Patch) -> None:
    tell = Evaluator._tell

    def again(self: Evaluator, watcher: Watcher, root: RootInfo, changes: list, more: bool = False) -> list[Message]:
        return tell(self, watcher, root, changes + changes[:1], more)

    patch(Evaluator, "_tell", again)


@case("events:", mix="watchers")
def an_event_does_not_reach_a_child(patch: Patch) -> None:
    spread = EventService._spread

    def forgetful(self: EventService, event: Message) -> list[Message]:
        return [msg for msg in spread(self, event) if self.seen % 3 or msg.hop != max(self._router.children)]

    patch(
        EventService,
        "_spread",
        lambda self, event: forgetful(self, event) if self._router.children else spread(self, event),
    )


@case("fences:", resends=1.0, fences=4)
def a_contribution_that_is_sent_again_counts_again(patch: Patch) -> None:
    patch(Leader, "_contributed_before", lambda self, fence: [])


@case("hang:", deserted=3)
def nobody_notices_that_a_member_left_a_fence(patch: Patch) -> None:
    patch(FenceAggregator, "disconnect", lambda self, hop: [])
    patch(FenceAggregator, "gives_up", lambda self, hop, tag: None)


@case("hang:", deserted=3)
def whoever_comes_late_to_a_broken_fence_waits(patch: Patch) -> None:
    patch(BrokenFences, "error", lambda self, fence, now: None)


@case("replay:", fences=4)
def objects_of_a_fence_are_mixed_up(patch: Patch) -> None:
    place = Gathering._place

    def mixed(self: Gathering, obj: Object) -> int:
        return max(0, place(self, obj) - 1)

    patch(Gathering, "_place", mixed)


# ------------------------------------------------------------------------------------------------- content, files, ends


@case("broken: AssertionError", cache=600)
def a_cache_grows_without_bound(patch: Patch) -> None:
    def put(self: Cache, ref: bytes, blob: bytes) -> None:
        if ref not in self._blobs:
            self._blobs[ref] = blob
            self.bytes += len(blob)

    patch(Cache, "put", put)


@case("content:", cache=200, mix="watchers")
def loads_of_one_blob_do_not_meet(patch: Patch) -> None:
    load = ContentService._load

    def alone(self: ContentService, msg: Message) -> list[Message]:
        before = self._coalesced
        out = load(self, msg)
        return (
            [self.ask("content.load", LoadRequest(bytes(msg.body[-32:])), self._parent)]
            if self._coalesced > before
            else out
        )

    patch(ContentService, "_load", alone)


@case("content:", mix="directories")
def a_value_is_passed_before_it_is_whole(patch: Patch) -> None:
    loaded = ValueService._loaded

    def hasty(self: ValueService, msg: Message, now: float) -> list[Message]:
        segment, _ = self._loads[msg.tag]
        out = loaded(self, msg, now)
        if segment.id in self._filling and segment.placed > 2:
            segment.filled = segment.size
            out += self._end(segment)
        return out

    patch(ValueService, "_loaded", hasty)


@case("hang:", mix="directories")
def who_waits_for_a_value_that_fails_is_not_told(patch: Patch) -> None:
    def silent(self: ValueService, segment: object, error: object) -> list[Message]:
        return []

    patch(ValueService, "_fail", silent)


@case("quiet:", mix="directories")
def a_segment_stays_open(patch: Patch) -> None:
    forget = ValueService._forget

    def leaky(self: ValueService, segment: object) -> Message:
        msg = forget(self, segment)  # type: ignore[arg-type]
        msg.topic = "segment.seal"
        return msg

    patch(ValueService, "_forget", leaky)


@case("hang:", cache=200)
def a_walk_is_never_resumed(patch: Patch) -> None:
    loaded = FaultIn.loaded
    patch(FaultIn, "loaded", lambda self, msg: [] if self.count > 1 and msg.tag % 3 == 0 else loaded(self, msg))


@case("checkpoint:", mix="directories")
def a_checkpoint_lacks_a_node(patch: Patch) -> None:
    take = Reach.take
    patch(Reach, "take", lambda self, count: list(take(self, count))[:-1])


@case("end:", kills=((2, 0.02),))
def a_lost_rank_is_not_acted_on(patch: Patch) -> None:
    patch(Lifecycle, "_lost", lambda self, lost, now: [])


@case("end:", kills=((2, 0.02),))
def the_end_does_not_name_the_lost_rank(patch: Patch) -> None:
    lost = Lifecycle._lost

    def another(self: Lifecycle, what: LostRank, now: float) -> list[Message]:
        return lost(self, LostRank(0 if self._router.rank else 1, what.reason), now)

    patch(Lifecycle, "_lost", another)


# ------------------------------------------------------------------------------------------------ what is kept, and what not

MISSING = ("tree:", "collected:", "keeper:", "replay:", "reads:", "checkpoint:", "broken:", "blobs:", "content:")


@case(MISSING, retention=3, mix="directories")
def what_a_commit_refers_to_is_not_held(patch: Patch) -> None:
    patch(Store, "hold", lambda self, ref: self.get(ref))


@case(MISSING, retention=3)
def what_is_put_is_not_marked(patch: Patch) -> None:
    put = Store.put

    def unmarked(self: Store, ref: bytes, blob: bytes) -> None:
        marked, self._marked = self._marked, None
        put(self, ref, blob)
        self._marked = marked

    patch(Store, "put", unmarked)


@case(MISSING, retention=3, mix="directories")
def a_directory_counts_as_whole_for_ever(patch: Patch) -> None:
    check = CommitValues._checking_directory

    def trusting(self: CommitValues, ref: bytes) -> Iterator:
        self._whole_in = self._blobs.cycle
        yield from check(self, ref)

    patch(CommitValues, "_checking_directory", trusting)


@case("keeper:", retention=3)
def a_lease_keeps_nothing(patch: Patch) -> None:
    patch(Namespace, "lease", lambda self, version: self.at(version))
    patch(Namespace, "release", lambda self, version: None)
    patch(Namespace, "leases", lambda self, version: 1 << 30)


@case("keeper:", retention=3)
def a_leased_root_is_not_among_the_collectors(patch: Patch) -> None:
    patch(Namespace, "roots", lambda self: iter([self.history[at] for at in range(self.oldest, self.root.version + 1)]))


@case("keeper:", retention=3)
def a_blob_has_no_time_to_be_referred_to(patch: Patch) -> None:
    begin = Store.begin
    patch(Store, "begin", lambda self, since: begin(self, float("inf")))


@case("broken: AssertionError: checkpoint:", retention=1, nodes=1000)
def what_a_save_writes_is_collected(patch: Patch) -> None:
    """It ends with an error then, and the file that the run's end writes is there; so the error is what is looked at."""
    patch(CheckpointService, "pinned", lambda self: [])
    finish = CheckpointService._finish

    def loud(self: CheckpointService, answer: Message, now: float) -> list[Message]:
        assert answer.status != NoSuchBlob.code, "checkpoint: a save lacks a blob"
        return finish(self, answer, now)

    patch(CheckpointService, "_finish", loud)
    patch(checkpoint, "NODES_PER_TICK", 1)  # type: ignore[arg-type]


@case("keeper:", retention=6)
def a_version_is_forgotten_too_early(patch: Patch) -> None:
    trim = Namespace.trim

    def hasty(self: Namespace, now: float) -> bool:
        self.count, count = max(1, self.count - 1), self.count
        more = trim(self, now)
        self.count = count
        return more

    patch(Namespace, "trim", hasty)


@case("collected:", retention=3)
def some_garbage_stays(patch: Patch) -> None:
    sweep = Store.sweep
    patch(Store, "sweep", lambda self, refs, needed: sweep(self, [ref for ref in refs if ref[0] % 4], needed))


@case("keeper:", retention=30)
def a_history_skips_a_version(patch: Patch) -> None:
    newest = KeyIndex.newest
    patch(KeyIndex, "newest", lambda self, key, below: newest(self, key, below - 1))


@case("keeper:", retention=30)
def a_removal_does_not_reach_the_children(patch: Patch) -> None:
    spread = KvsService._spread
    patch(KvsService, "_spread", lambda self, msg: [] if msg.topic == "kvs.removed" else spread(self, msg))


@case(("keeper:", "versions:"), retention=30)
def a_namespace_that_is_made_again_begins_anew(patch: Patch) -> None:
    following = Namespaces.next_version
    patch(Namespaces, "next_version", lambda self, name: following(self, name) if name in self._namespaces else 0)


def plan_for(seed: int, wanted: dict[str, object]) -> Plan:
    """A seed's plan with what the case needs: several brokers, enough steps, and only the faults asked for."""
    plan = plan_of(seed, steps=200)
    shape = replace(
        plan.shape,
        ranks=7,
        topology="kary:2",
        algorithm="sha256",
        command=(),
        checkpoint="sim.h5",
        disk_failures=0.0,
        cache_bytes_max=wanted.get("cache", 64 << 20),
        nodes_max=4 if "cache" in wanted else 16384,
        retention=wanted.get("retention", RETENTION_COUNT),
        collection=Limits(300, 2.0, wanted.get("nodes", 1)) if "retention" in wanted else Limits(),
    )
    faults = Faults(
        pauses=1.0,
        echoes=wanted.get("echoes", 0.0),  # type: ignore[arg-type]
        resends=wanted.get("resends", 0.0),  # type: ignore[arg-type]
        kills=wanted.get("kills", ()),  # type: ignore[arg-type]
    )
    return replace(
        plan,
        shape=shape,
        faults=faults,
        mix=wanted.get("mix", "everything"),
        transactions="transactions" in wanted,
        clients=5,
        fences=wanted.get("fences", 0),
        rounds=0,
        keeping=200 if "retention" in wanted else 0,
        deserted=wanted.get("deserted", 0),
    )


@pytest.mark.parametrize("name", CASES)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noticed, break_it, wanted = CASES[name]
    break_it(monkeypatch.setattr)  # type: ignore[arg-type]
    others: dict[str, int] = {}
    for seed in range(SEEDS):
        for violation in run(plan_for(seed, wanted)).violations:
            if violation.startswith(noticed):
                return
            others[violation[:60]] = seed
    pytest.fail(f"{SEEDS} seeds did not notice it; what they noticed: {others}")


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_noticed_while_no_rule_is_broken(name: str) -> None:
    """Else the tests above prove nothing."""
    _, _, wanted = CASES[name]
    for seed in range(2):
        assert run(plan_for(seed, wanted)).violations == []
