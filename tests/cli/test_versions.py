"""Versions on a real instance: history, log, diff, retention, leases, namespaces, collection."""

from __future__ import annotations

import json
import os
import time

import pytest
from instance import Instance

from fluxmpi.errors import NamespaceExists, NoSuchNamespace, SnapshotCollected
from fluxmpi.kvs.wire import DiffRequest


def test_history_and_log_list_each_version(instance: Instance) -> None:
    with instance.connect(1) as h:
        made = [h.kvs.put("v1.a", number) for number in range(3)]
        h.kvs.unlink("v1.a")
        past = list(h.kvs.history("v1.a"))
        assert [each.value for each in past] == [None, 2, 1, 0]
        assert [each.snapshot for each in past[1:]] == made[::-1]
        assert (past[0].deleted, past[-1].existed) == (True, False)
        log = list(h.kvs.log())
        assert [entry.version for entry in log] == list(range(log[0].version, -1, -1))
        assert log[0].keys == ["v1.a"]
        assert h.kvs.get("v1.a", at=h.kvs.snapshot(time=made[1].time)) == 1
    done = instance.run("kvs", "history", "--json", "v1.a", rank=2)
    assert [json.loads(line)["value"] for line in done.out.splitlines()] == [None, 2, 1, 0]
    lines = instance.run("kvs", "log", "-c", "2").out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" v1.a")
    assert instance.run("kvs", "log").out.splitlines()[-1].endswith(" (created)")
    at = instance.run("kvs", "getroot", "-s", "--time", f"@{made[1].time}")
    assert at.out == f"{made[1].version}\n"


def test_diff_lists_the_changes(instance: Instance) -> None:
    with instance.connect(1) as h:
        a = h.kvs.commit({"v2.a": 1, "v2.b": 1})
        b = h.kvs.commit({"v2.a": 2, "v2.c": 1})
        found = [(each.key, each.before, each.after) for each in h.kvs.diff(a, b, "v2")]
        assert found == [("v2.a", 1, 2), ("v2.c", None, 1)]
        assert [each.key for each in h.kvs.diff(a, key="v2")] == ["v2.a", "v2.c"]
    done = instance.run("kvs", "diff", str(a.version), str(b.version), "v2", rank=2)
    assert done.out == "-v2.a=1\n+v2.a=2\n+v2.c=1\n"


def test_namespaces_from_the_command_line(instance: Instance) -> None:
    assert instance.run("kvs", "namespace", "create", "v3", rank=1).status == 0
    assert instance.run("kvs", "put", "-N", "v3", "a=1", rank=2).status == 0
    listed = instance.run("kvs", "namespace", "list").out.splitlines()
    assert listed[0] == "NAMESPACE                                 OWNER      FLAGS"
    assert f"{'v3':<36} {os.geteuid():>10} 0x00000000" in listed
    again = instance.run("kvs", "namespace", "create", "v3")
    assert (again.status, "exists already" in again.err) == (1, True)
    with instance.connect(1) as h, instance.connect(0) as other:
        root = h.kvs.namespace("v3").snapshot(fresh=True)
        h.kvs.namespaces.create("v3copy", at=root)
        assert h.kvs.namespace("v3copy").get("a") == 1
        with pytest.raises(NamespaceExists):
            h.kvs.namespaces.create("v3copy")
        h.kvs.link("a", "v3link", target_namespace="v3copy")
        other.kvs.wait_version(h.kvs.version())
        assert other.kvs.get("v3link") == 1
    for name in ("v3", "v3copy"):
        assert instance.run("kvs", "namespace", "remove", name).status == 0
    gone = instance.run("kvs", "get", "-N", "v3", "a")
    assert (gone.status, "does not exist" in gone.err or "was removed" in gone.err) == (1, True)


def test_retention_leases_and_collection(instance: Instance) -> None:
    with instance.connect(1) as h, instance.connect(2) as holder:
        h.kvs.namespaces.create("v4")
        first, second, third = (h.kvs.namespace("v4").put("a", f"v4 {number}") for number in range(3))
        lease = holder.kvs.lease(str(first))
        assert h.kvs.namespace("v4").retention(count=1).count == 1
        status = h.kvs.gc()
        assert status.cycles >= 1
        assert status.live_blobs > 0
        h.content.dropcache(2)
        assert holder.kvs.namespace("v4").get("a", at=first.version) == "v4 0"
        h.content.dropcache(1)
        with instance.connect(1) as fresh, pytest.raises(SnapshotCollected):  # h may still have it in its cache
            fresh.kvs.namespace("v4").get("a", at=second.version)
        with pytest.raises(SnapshotCollected):
            h.kvs.lease(second)
        assert h.kvs.get("a", at=third) == "v4 2"
        lease.release()
        with pytest.raises(SnapshotCollected):
            h.kvs.lease(first)
        with holder.kvs.lease(third, ttl_s=60.0) as held:
            held.renew()
            assert held.expires is not None
            assert held.expires > time.time()
    done = instance.run("kvs", "lease", "-N", "v4", str(third.version), "--", "sh", "-c", "exit 7")
    assert done.status == 7
    done = instance.run("kvs", "lease", "-N", "v4", str(third.version), "no-such-program")
    assert (done.status, "cannot run no-such-program" in done.err) == (127, True)
    done = instance.run("kvs", "gc", "--json")
    assert json.loads(done.out)["cycles"] >= 2
    assert instance.run("kvs", "retention", "-N", "v4").out.startswith("1 version, ")
    with instance.connect(0) as h:
        h.kvs.namespaces.remove("v4")
        with pytest.raises(NoSuchNamespace):
            h.kvs.namespace("v4").log().__next__()


def test_a_long_diff_that_is_not_read_needs_no_memory_at_the_broker(instance: Instance) -> None:
    """1. A client requests a diff of 100,000 keys and exits. 2. Another reads a part, and the rest after a commit."""
    with instance.connect(1) as h:
        before = h.kvs.snapshot()
        after = h.kvs.commit({f"v5.k{number:06}": number for number in range(100_000)})
        ask = DiffRequest("primary", before.ref, after.ref, limit=10_000)
        with instance.connect(2) as dying:
            for _ in range(20):
                dying.rpc_async("kvs.diff", ask)
            dying.flush()
        with instance.connect(2) as slow:
            changes = slow.kvs.diff(before, after)
            keys = [next(changes).key for _ in range(1500)]
            slow.kvs.unlink("v5")
            stats = slow.rpc("stats.get", target=2)
            assert stats["kvs"]["suspended"] == 0
            keys += [change.key for change in changes]
            assert keys == ["v5", *(f"v5.k{number:06}" for number in range(100_000))]
            assert slow.rpc("stats.get", target=2)["kvs"]["suspended"] == 0
