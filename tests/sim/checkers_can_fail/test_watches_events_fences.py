"""Broken rules of watches, events and fences."""

from __future__ import annotations

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.kvs.fence.broken import BrokenFences
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.fence.service import FenceService
from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.kvs.leader.fences import FenceGatherer
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import Message
from fluxmpi.overlay.events import EventService

CASES = Cases()
case = CASES.case


@case("watches:", mix="watchers")
def a_watch_skips_a_version(patch: Patch) -> None:
    accept = Watcher.accept
    patch(Watcher, "accept", lambda self, root, *more: root.version % 7 == 3 or accept(self, root, *more))


@case("watches:", mix="links")
def a_watch_does_not_follow_links(patch: Patch) -> None:
    patch(Evaluator, "_link_found", lambda self, watcher, root: None)


@case("watches:", mix="watchers")
def a_watch_reports_a_change_twice(patch: Patch) -> None:
    notify = Watcher.notify

    def again(self: Watcher, root: RootInfo, changes: list, more: bool = False) -> list[Message]:
        return notify(self, root, changes + changes[:1], more)

    patch(Watcher, "notify", again)


@case("watches:", mix="watchers")
def a_value_that_was_put_and_appended_to_counts_as_appended_to(patch: Patch) -> None:
    def careless(self: Batch, keys: list[str]) -> None:
        for key, size in self._appended:
            self.appends.setdefault(key, []).append(size)

    patch(Batch, "_note_appends", careless)


@case("events:", mix="watchers")
def an_event_does_not_reach_a_child(patch: Patch) -> None:
    forward = EventService._forward

    def forgetful(self: EventService, event: Message) -> list[Message]:
        return [msg for msg in forward(self, event) if self.seen % 3 or msg.hop != max(self.router.children)]

    patch(
        EventService,
        "_forward",
        lambda self, event: forgetful(self, event) if self.router.children else forward(self, event),
    )


@case("fences:", resends=1.0, fences=4)
def a_contribution_that_is_sent_again_counts_again(patch: Patch) -> None:
    patch(FenceGatherer, "_answer_known", lambda self, fence: [])


@case("hang:", abandoned_fences=3)
def a_member_that_left_a_fence_is_not_noticed(patch: Patch) -> None:
    patch(FenceService, "disconnect", lambda self, hop: [])
    patch(FenceService, "cancel", lambda self, msg, tag: None)


@case("hang:", abandoned_fences=3)
def a_late_member_of_a_broken_fence_waits(patch: Patch) -> None:
    patch(BrokenFences, "error", lambda self, fence, now: None)


@case("replay:", fences=4)
def objects_of_a_fence_are_mixed_up(patch: Patch) -> None:
    index_of = Gathering._index_of

    def mixed(self: Gathering, obj: Object) -> int:
        return max(0, index_of(self, obj) - 1)

    patch(Gathering, "_index_of", mixed)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
