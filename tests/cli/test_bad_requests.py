"""Invalid requests of the Python API: a specific error each, nothing applied, no pending state at any broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from instance import Instance

from fluxmpi import Handle, errors
from fluxmpi.client.kvs.watch import Watch
from fluxmpi.client.limits import HandleLimits
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.watch.limits import WATCH_LIMITS
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    GUARD_VERSION,
    Add,
    Commit,
    Guard,
    Lease,
    Leased,
    NewNamespace,
    OldNamespace,
    Op,
    Put,
    Release,
    Retention,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
ONE = Val("json", b"1")


@pytest.fixture
def h(instance: Instance) -> Iterator[Handle]:
    with instance.connect(2) as handle:
        handle.kvs.commit({"bad.number": 1, "bad.text": "text", "bad.max": (1 << 63) - 1, "bad.dir.x": 1})
        yield handle


def commit(h: Handle, ops: list[Op], guards: list[Guard] | None = None) -> None:
    h.rpc("kvs.commit", Commit("primary", h.session.commit_id(), h.session.acked, ops, guards or []))


def unchanged(
    h: Handle, ops: list[Op], guards: list[Guard] | None, error: type[errors.FluxmpiError], text: str
) -> None:
    before = h.kvs.snapshot(fresh=True)
    with pytest.raises(error) as raised:
        commit(h, ops, guards)
    assert type(raised.value) is error
    assert text in raised.value.text
    assert raised.value.definite
    assert h.kvs.snapshot(fresh=True) == before


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (Guard("bad.text", GUARD_VALUE, "<", ONE), "bad.text"),
        (Guard("bad.number", GUARD_VALUE, "~", ONE), "~"),
        (Guard("bad.number", GUARD_VALUE, "==", 1), "bad.number"),
        (Guard("bad.number", GUARD_VERSION, "==", ONE), "bad.number"),
        (Guard("bad.number", GUARD_EXISTS, "==", 7), "bad.number"),
        (Guard("bad.number", 99, "==", ONE), "99"),
    ],
)
def test_guards_of_the_wrong_type(h: Handle, guard: Guard, text: str) -> None:
    before = h.kvs.snapshot(fresh=True)
    with pytest.raises((errors.InvalidValue, errors.InvalidRequest)) as raised:
        commit(h, [Put("bad.other", ONE)], [guard])
    assert text in raised.value.text
    assert h.kvs.snapshot(fresh=True) == before


@pytest.mark.parametrize("key", ["bad.text", "bad.dir"])
def test_add_to_a_value_that_is_not_an_integer(h: Handle, key: str) -> None:
    before = h.kvs.snapshot(fresh=True)
    with pytest.raises((errors.InvalidValue, errors.IsADirectory), match=key):
        commit(h, [Put("bad.other", ONE), Add(key, 1)])
    assert h.kvs.snapshot(fresh=True) == before


@pytest.mark.parametrize("amount", [1, (1 << 63) - 1])
def test_a_sum_over_64_bits(h: Handle, amount: int) -> None:
    unchanged(h, [Put("bad.other", ONE), Add("bad.max", amount)], None, errors.InvalidValue, "bad.max")
    assert h.kvs.get("bad.max") == (1 << 63) - 1


def gigabyte(h: Handle) -> None:
    with h.kvs.txn() as txn:
        piece = bytes(1 << 20)
        for _ in range(1024):
            txn.append("bad.log", piece)


def test_a_transaction_of_a_gigabyte_is_refused(h: Handle) -> None:
    before = h.kvs.snapshot(fresh=True)
    with pytest.raises(errors.TooLarge, match="split it"):
        gigabyte(h)
    assert h.kvs.snapshot(fresh=True) == before


def test_compacted_and_future_versions(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.rpc("roots.create", NewNamespace("badshort", 0))
        h.rpc("roots.retention", Retention("badshort", count=1))
        old = h.kvs.namespace("badshort").put("a", 1)
        new = h.kvs.namespace("badshort").put("a", 2)
        with pytest.raises(errors.SnapshotCollected, match=str(old.version)):
            h.kvs.namespace("badshort").get("a", at=old.version)
        with pytest.raises(errors.VersionUnknown, match="1000000") as raised:
            h.kvs.namespace("badshort").get("a", at=1_000_000)
        assert type(raised.value) is errors.VersionUnknown
        with pytest.raises(errors.SnapshotCollected):
            h.rpc("roots.lease", Lease("badshort", old.version))
        assert h.kvs.namespace("badshort").get("a", at=new.version) == 2
    for rank in range(instance.size):
        done = instance.run("kvs", "get", "-N", "badshort", "--at", str(old.version), "a", rank=rank)
        assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    with instance.connect(1) as h:
        h.rpc("roots.remove", OldNamespace("badshort"))


def test_released_and_unknown_leases(instance: Instance) -> None:
    with instance.connect(1) as h:
        lease = h.rpc("roots.lease", Lease("primary"), reply=Leased)
        h.rpc("roots.release", Release(lease.id))
        with pytest.raises(errors.LeaseExpired):
            h.rpc("roots.release", Release(lease.id))
        with pytest.raises(errors.LeaseExpired):
            h.rpc("roots.renew", Release(lease.id))
        with pytest.raises(errors.LeaseExpired):
            h.rpc("roots.renew", Release(1 << 40))
        with pytest.raises(errors.InvalidRequest):
            h.rpc("roots.lease", Lease("primary", ttl_s=-1.0))


def test_an_expired_lease(instance: Instance) -> None:
    """Its version may be collected, and renewing it raises LeaseExpired."""
    with instance.connect(1) as h:
        h.rpc("roots.create", NewNamespace("badlease", 0))
        h.rpc("roots.retention", Retention("badlease", count=1))
        old = h.kvs.namespace("badlease").put("a", 1).version
        lease = h.rpc("roots.lease", Lease("badlease", old, ttl_s=0.05), reply=Leased)
        h.kvs.namespace("badlease").put("a", 2)
        end = time.monotonic() + 60
        while h.rpc("stats.get", target=0)["roots"]["leases"]:
            assert time.monotonic() < end
        with pytest.raises(errors.LeaseExpired):
            h.rpc("roots.renew", Release(lease.id))
        h.rpc("roots.remove", OldNamespace("badlease"))


def test_removing_a_namespace_ends_its_watches_and_waits(instance: Instance) -> None:
    with instance.connect(1) as h, instance.connect(0) as other:
        h.rpc("roots.create", NewNamespace("badgone", 0))
        h.kvs.namespace("badgone").put("a", 1)
        watch = h.kvs.namespace("badgone").watch("a")
        assert watch.get(60).value == 1
        version = h.rpc_async("kvs.getroot", ["badgone", 1000])
        fence = h.kvs.namespace("badgone").txn().fence_async("bad.fence", 2)
        h.rpc("ping.ping", [1, b""], target=1)
        other.rpc("roots.remove", OldNamespace("badgone"))
        with pytest.raises(errors.NoSuchNamespace, match="badgone"):
            watch.get(60)
        with pytest.raises(errors.NoSuchNamespace, match="badgone"):
            version.get(60)
        with pytest.raises(errors.NoSuchNamespace, match="badgone"):
            fence.get(60)
        with pytest.raises(errors.NoSuchNamespace):
            h.kvs.namespace("badgone").put("a", 2)
        with pytest.raises(errors.NoSuchNamespace):
            other.rpc("roots.remove", OldNamespace("badgone"))
        with pytest.raises(errors.InvalidRequest):
            other.rpc("roots.remove", OldNamespace("primary"))
        other.rpc("roots.create", NewNamespace("badgone", 0))
        with pytest.raises(errors.NamespaceExists):
            h.rpc("roots.create", NewNamespace("badgone", 0))
        other.rpc("roots.remove", OldNamespace("badgone"))


def read_all(watch: Watch, values: list[int]) -> None:
    for change in watch:
        values.append(change.value)


def test_a_watch_that_is_not_read_ends_and_can_be_resumed(instance: Instance) -> None:
    """A watch whose client does not read ends with Overloaded. A new watch from its version misses nothing."""
    limits = HandleLimits(watch_credit_bytes=1)
    with instance.connect(1, limits=limits) as h, instance.connect(0) as other:
        watch = h.kvs.watch("**", initial=False)
        watch.progress()
        first = watch.update(60)
        assert first is not None
        with other.batch():
            versions = [other.kvs.commit_async({"bad.flood": number}) for number in range(WATCH_LIMITS.queue_max + 500)]
            last = versions[-1].get(60).version
        h.kvs.wait_version(last)
        got: list[int] = []
        with pytest.raises(errors.Overloaded, match="after"):
            read_all(watch, got)
        with h.kvs.watch("**", after=watch.resume_after) as again:
            while len(got) < WATCH_LIMITS.queue_max + 500:
                change = again.get(60)
                assert change is not None
                got.append(change.value)
        assert got == list(range(WATCH_LIMITS.queue_max + 500))


@pytest.mark.parametrize("pattern", ["a.***", "[", "a.[b", "a.\0*", "*" * 5000])
def test_invalid_patterns(instance: Instance, pattern: str) -> None:
    with instance.connect(1) as h, pytest.raises((errors.InvalidRequest, errors.InvalidKey)):
        h.kvs.watch(pattern).get(60)


def test_invalid_watch_options(instance: Instance) -> None:
    with instance.connect(1) as h:
        for options, error in [
            ({"mode": "some"}, errors.InvalidRequest),
            ({"count": 0}, errors.InvalidRequest),
            ({"after": 10_000_000}, errors.VersionUnknown),
        ]:
            with pytest.raises(error):
                h.kvs.watch("bad.x", **options).get(60)
        with pytest.raises(errors.NoSuchNamespace):
            h.kvs.namespace("badnowhere").watch_key("bad.x", wait=False).get(60)


def test_requests_at_other_ranks_end_with_their_client(instance: Instance) -> None:
    """Requests wait at ranks 0, 1 and 2, up to two hops away; all are dropped when the client disconnects."""
    far = 10_000_000
    with instance.connect(2) as h:
        for rank in range(instance.size):
            h.rpc_async("kvs.getroot", ["primary", far], target=rank)
            h.rpc_async("kvs.get", ["bad.x", "primary", None, far], target=rank)
        h.rpc_async("kvs.getroot", ["primary", far])
        with pytest.raises(errors.RequestTimeout):
            h.kvs.wait_version(far, timeout=0.1)
        parked = [h.rpc("stats.get", target=rank)["kvs"]["parked"] for rank in range(instance.size)]
        assert parked == [2, 2, 3], "the request that timed out does not wait any more"
