"""Broken rules of versions at brokers, sessions, reads, root pages, the cached reader."""

from __future__ import annotations

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.client.cached_reader import CachedReader, RefCache
from fluxmpi.kvs.replica import root_page as page
from fluxmpi.kvs.replica.pending import OnAnswer, PendingRequests
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import RESPONSE, Message
from fluxmpi.simulator.drivers.page import SimulatedPage

CASES = Cases()
case = CASES.case


@case("versions:", old_setroots=6.0)
def an_older_root_is_adopted(patch: Patch) -> None:
    def adopt(self: Replica, root: object, oldest: int = 0) -> bool:
        self.root, self.version = root, root.version  # type: ignore[attr-defined, assignment]
        self._history = VersionLog(self.namespace, self.version)
        self._history.append(root)  # type: ignore[arg-type]
        return True

    patch(Replica, "adopt", adopt)


@case("versions:")
def a_setroot_is_not_forwarded_to_one_child(patch: Patch) -> None:
    spread = KvsService._spread

    def forgetful(self: KvsService, msg: Message) -> list[Message]:
        out = spread(self, msg)
        return out[:-1] if msg.topic == "kvs.setroot" and self._setroots % 5 == 4 else out

    patch(KvsService, "_spread", forgetful)


@case("sessions:")
def a_commit_is_answered_before_its_broker_has_the_version(patch: Patch) -> None:
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
    when = PendingRequests.wait_for_version
    patch(PendingRequests, "wait_for_version", lambda self, msg, namespace, at_least: when(self, msg, namespace, 0))


@case("reads:")
def a_read_returns_another_version_than_it_names(patch: Patch) -> None:
    root_at = Reads.root_at

    def older(self: Reads, namespace: str, at: object) -> object:
        root = root_at(self, namespace, at)  # type: ignore[arg-type]
        before = self._replicas[namespace].at(root.version - 1)
        return root if before is None else replace_root(root, before.ref)

    patch(Reads, "root_at", older)


def replace_root(root: object, ref: bytes) -> object:
    return type(root)(root.namespace, root.version, ref, root.time)  # type: ignore[attr-defined, call-arg]


@case("reads:", mix="hot")
def a_page_older_than_the_session_is_read(patch: Patch) -> None:
    patch(CachedReader, "root", lambda self, namespace: self.page.root(namespace) if self.page else None)


@case("page:")
def a_page_is_written_after_the_answer(patch: Patch) -> None:
    flush = SimulatedPage.flush
    late: dict[int, None] = {}

    def flush_late(self: SimulatedPage) -> None:
        if self._changed and id(self) not in late:
            late[id(self)] = None
        else:
            late.pop(id(self), None)
            flush(self)

    patch(SimulatedPage, "flush", flush_late)


@case("reads:", mix="hot")
def a_torn_page_is_accepted(patch: Patch) -> None:
    def believe(image: bytes) -> page.Slot:
        _, version, time, state, ref_bytes, name_bytes, ref, name, _, _ = page._SLOT.unpack(image)
        return page.Slot(
            1, state, RootInfo(name[:name_bytes].decode("utf-8", "replace"), version, ref[:ref_bytes], time)
        )

    patch(page, "decode_slot", believe)  # type: ignore[arg-type]


@case("reads:", mix="directories")
def a_client_caches_a_node_under_another_ref(patch: Patch) -> None:
    add = RefCache.add
    last: list[bytes] = []

    def confused(self: RefCache, ref: bytes, blob: bytes) -> None:
        last.append(blob)
        add(self, ref, last[-2] if len(last) % 9 == 8 else blob)

    patch(RefCache, "add", confused)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
