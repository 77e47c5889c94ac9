"""Broken rules of blob caches, mapped values, checkpoint files, the end of the instance."""

from __future__ import annotations

from msgspec.structs import replace

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.broker.lifecycle import Lifecycle
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentService
from fluxmpi.content.values import ValueService
from fluxmpi.content.wire import LoadRequest
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces
from fluxmpi.kvs.mvcc.reach import Reach
from fluxmpi.kvs.replica.fault_in import FaultIn
from fluxmpi.message import Message
from fluxmpi.overlay.wire import LostRank

CASES = Cases()
case = CASES.case


@case("broken: AssertionError", cache=600)
def a_cache_grows_without_bound(patch: Patch) -> None:
    def put(self: Cache, ref: bytes, blob: bytes) -> None:
        if ref not in self._blobs:
            self._blobs[ref] = blob
            self.bytes += len(blob)

    patch(Cache, "put", put)


@case("content:", cache=200, mix="watchers")
def loads_of_one_blob_are_not_coalesced(patch: Patch) -> None:
    load = ContentService._load

    def alone(self: ContentService, msg: Message, now: float) -> list[Message]:
        before = self._coalesced
        out = load(self, msg, now)
        return (
            [self.ask("content.load", LoadRequest(bytes(msg.body[-32:])), self._parent)]
            if self._coalesced > before
            else out
        )

    patch(ContentService, "_load", alone)


@case("content:", mix="directories")
def a_value_is_passed_before_it_is_complete(patch: Patch) -> None:
    loaded = ValueService.answered

    def hasty(self: ValueService, msg: Message, now: float) -> list[Message]:
        segment, _ = self._loads[msg.tag]
        out = loaded(self, msg, now)
        if segment.id in self._filling and segment.placed > 2:
            segment.filled = segment.size
            out += self._end(segment)
        return out

    patch(ValueService, "answered", hasty)


@case("hang:", mix="directories")
def requests_for_a_failed_value_are_not_answered(patch: Patch) -> None:
    def silent(self: ValueService, segment: object, error: object) -> list[Message]:
        return []

    patch(ValueService, "_fail", silent)


@case("idle:", mix="directories")
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


@case("checkpoint:", kills=((0, 0.05),), checkpoint_every=0.01)
def a_periodic_checkpoint_has_a_version_that_was_not_made(patch: Patch) -> None:
    saved = Namespaces.saved
    patch(Namespaces, "saved", lambda self: [replace(one, version=one.version + 1) for one in saved(self)])


@case("broken: AssertionError", namespaces=("primary", "work"))
def an_instance_that_resumes_uses_its_clock_alone(patch: Patch) -> None:
    patch(Namespace, "clock", lambda self, now: now)


@case("end:", fails=((2, 0.02),))
def a_failed_broker_does_not_say_so(patch: Patch) -> None:
    patch(Lifecycle, "fail", lambda self, reason, rescuing, now: [])


@case("end:", fails=((0, 0.02),))
def a_failed_rank_0_does_not_end_the_instance(patch: Patch) -> None:
    patch(Lifecycle, "_end_with", lambda self, rescued, now: [])


@case("end:", kills=((2, 0.02),))
def a_lost_rank_does_not_end_the_instance(patch: Patch) -> None:
    patch(Lifecycle, "_lost", lambda self, lost, now: [])


@case("end:", kills=((2, 0.02),))
def the_end_does_not_name_the_lost_rank(patch: Patch) -> None:
    lost = Lifecycle._lost

    def another(self: Lifecycle, what: LostRank, now: float) -> list[Message]:
        return lost(self, LostRank(0 if self.router.rank else 1, what.reason), now)

    patch(Lifecycle, "_lost", another)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
