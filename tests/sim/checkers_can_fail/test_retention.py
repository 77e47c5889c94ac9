"""Broken rules of retention, leases, garbage collection, namespaces."""

from __future__ import annotations

from collections.abc import Iterator

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.content.store import Store
from fluxmpi.errors import FluxmpiError, NoSuchBlob
from fluxmpi.kvs.leader.validation import ObjectValidator
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService
from fluxmpi.kvs.mvcc.key_index import KeyIndex
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces
from fluxmpi.kvs.service import KvsService
from fluxmpi.message import Message

CASES = Cases()
case = CASES.case


MISSING = ("tree:", "collected:", "reference:", "replay:", "reads:", "checkpoint:", "broken:", "blobs:", "content:")


@case(MISSING, retention=1, mix="directories")
def blobs_of_a_pending_commit_are_not_held(patch: Patch) -> None:
    patch(Store, "hold", lambda self, ref: self.get(ref))


@case(MISSING, retention=3)
def new_blobs_are_not_marked(patch: Patch) -> None:
    put = Store.put

    def unmarked(self: Store, ref: bytes, blob: bytes) -> None:
        marked, self._marked = self._marked, None
        put(self, ref, blob)
        self._marked = marked

    patch(Store, "put", unmarked)


@case(MISSING, retention=3, mix="directories")
def a_directory_is_checked_only_once(patch: Patch) -> None:
    check = ObjectValidator._check_directory

    def trusting(self: ObjectValidator, ref: bytes) -> Iterator:
        self._cycle = self._blobs.cycle
        yield from check(self, ref)

    patch(ObjectValidator, "_check_directory", trusting)


@case("reference:", retention=3)
def a_lease_does_not_keep_its_version(patch: Patch) -> None:
    patch(Namespace, "lease", lambda self, version: self.at(version))
    patch(Namespace, "release", lambda self, version: None)
    patch(Namespace, "leases", lambda self, version: 1 << 30)


@case("reference:", retention=3)
def leased_roots_are_not_marked(patch: Patch) -> None:
    patch(Namespace, "leased_roots", lambda self: iter(()))


@case("reference:", retention=3)
def a_blob_has_no_grace_period(patch: Patch) -> None:
    begin = Store.begin
    patch(Store, "begin", lambda self, since: begin(self, float("inf")))


@case("broken: AssertionError: checkpoint:", retention=1, nodes=1000, checkpoint_nodes=1)
def blobs_are_collected_during_a_save(patch: Patch) -> None:
    """The save ends with an error, and the file of the run's end exists: so the error itself is asserted."""
    patch(CheckpointService, "pinned", lambda self: [])
    finish = CheckpointService._finish_with

    def loud(self: CheckpointService, error: FluxmpiError, now: float) -> list[Message]:
        assert not isinstance(error, NoSuchBlob), "checkpoint: a save lacks a blob"
        return finish(self, error, now)

    patch(CheckpointService, "_finish_with", loud)


@case("reference:", retention=6)
def a_version_is_dropped_too_early(patch: Patch) -> None:
    compact = Namespace.compact

    def hasty(self: Namespace, now: float) -> bool:
        self.count, count = max(1, self.count - 1), self.count
        more = compact(self, now)
        self.count = count
        return more

    patch(Namespace, "compact", hasty)


@case("collected:", retention=3)
def some_garbage_is_not_swept(patch: Patch) -> None:
    sweep = Store.sweep
    patch(Store, "sweep", lambda self, refs, needed: sweep(self, [ref for ref in refs if ref[0] % 4], needed))


@case("reference:", retention=30)
def a_history_skips_a_version(patch: Patch) -> None:
    newest = KeyIndex.newest_write
    patch(KeyIndex, "newest_write", lambda self, key, below: newest(self, key, below - 1))


@case("reference:", retention=30)
def a_removal_does_not_reach_the_children(patch: Patch) -> None:
    spread = KvsService._spread
    patch(KvsService, "_spread", lambda self, msg: [] if msg.topic == "kvs.removed" else spread(self, msg))


@case(("reference:", "versions:"), retention=30)
def a_namespace_that_is_created_again_starts_at_zero(patch: Patch) -> None:
    following = Namespaces.next_version
    patch(Namespaces, "next_version", lambda self, name: following(self, name) if name in self._namespaces else 0)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
