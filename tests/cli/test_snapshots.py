"""Texts of snapshots and times, used by other processes: they read the right version or are refused."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from instance import Instance

from fluxmpi.errors import InvalidRequest, SnapshotCollected, VersionUnknown


def test_the_text_of_a_snapshot_is_valid_at_every_broker(instance: Instance) -> None:
    with instance.connect(1) as h, instance.connect(2) as other:
        first = h.kvs.commit({"sn.a": 1, "sn.d.b": "below", "sn.long": b"x" * 3_000_000})
        text = str(first)
        h.kvs.link("sn.a", "sn.link")
        h.kvs.commit({"sn.a": 2, "sn.d.b": "changed", "sn.long": b""})
        assert len(text) <= len("primary@123456:") + 16
        assert first.root.removeprefix("sha256-").startswith(text.partition(":")[2])
        found = other.kvs.snapshot(at=text)
        assert (found.namespace, found.version, found.ref) == (first.namespace, first.version, first.ref)
        assert other.kvs.get("sn.a", at=text) == other.kvs.get_async("sn.a", at=text).get() == 1
        assert len(other.kvs.view("sn.long", at=text)) == 3_000_000
        assert other.kvs.dir("sn", at=text)["d"]["b"] == "below"
        assert [entry.key for entry in other.kvs.entries("sn", recursive=True, at=text)][:3] == [
            "sn.a",
            "sn.d",
            "sn.d.b",
        ]
        assert [change.key for change in other.kvs.diff(text, None, "sn")] == ["sn.a", "sn.d.b", "sn.link", "sn.long"]
        assert [past.value for past in other.kvs.history("sn.a", at=text)] == [1]
        other.kvs.copy("sn", "sncopy", at=text)
        assert other.kvs.get("sncopy.a") == 1
        whole = f"primary@{first.version}:{first.root}"
        assert other.kvs.get("sn.a", at=whole) == 1
        assert str(other.kvs.dir(at=whole).snapshot) == text
        assert str(other.kvs.dir(at=first.root).snapshot) == first.root
        other.kvs.namespaces.create("snns", at=text)
        assert other.kvs.namespace("snns").get("sn.a") == 1
        with pytest.raises(InvalidRequest, match="names no version"):
            next(other.kvs.history("sn.a", at=first.root))
    for where in (text, whole, first.root, str(first.version)):
        assert instance.run("kvs", "get", "--at", where, "sn.a", rank=0).out == "1\n"
    assert instance.run("kvs", "ls", "--at", text, "sn").out.split() == ["a", "d", "long"]
    assert instance.run("kvs", "getroot", "-S", "--at", str(first.version)).out == f"{text}\n"
    assert instance.run("kvs", "getroot", "-b", "--at", text).out == f"{first.root}\n"


def test_a_mistyped_snapshot_is_refused(instance: Instance) -> None:
    with instance.connect(1) as h:
        text = str(h.kvs.put("s2.a", 1))
        h.kvs.put("s2.a", 2)
        head, _, digits = text.partition(":")
        version = int(head.partition("@")[2])
        changed = digits[:-1] + ("0" if digits[-1] != "0" else "1")
        for mistyped in (f"{head}:{changed}", f"primary@{version - 1}:{digits}", f"primary@{version + 1}:{digits}"):
            for read in (h.kvs.get, h.kvs.get_object, h.kvs.dir, lambda key, at: h.kvs.lease(at)):
                with pytest.raises(VersionUnknown, match="of another instance, or was mistyped"):
                    read("s2.a", at=mistyped)
        with pytest.raises(VersionUnknown, match="was not reached yet"):
            h.kvs.get("s2.a", at=f"primary@{version + 1_000_000}:{digits}")
        with pytest.raises(InvalidRequest, match="not a snapshot"):
            h.kvs.get("s2.a", at=text[:-1])
        assert h.kvs.get("s2.a", at=text) == 1
    done = instance.run("kvs", "get", "--at", f"{head}:{changed}", "s2.a", rank=2)
    assert (done.status, "was mistyped" in done.err, done.out) == (1, True, "")


def test_a_snapshot_of_another_instance_is_refused_also_with_sha1(instance: Instance) -> None:
    with Instance(2, ["--hash=sha1"]) as elsewhere, elsewhere.connect(1) as there, instance.connect(0) as h:
        theirs = there.kvs.put("s3.a", "theirs")
        while h.kvs.version() <= theirs.version:
            h.kvs.put("s3.a", "ours")
        assert theirs.root.startswith("sha1-")
        assert there.kvs.get("s3.a", at=str(theirs)) == "theirs"
        assert elsewhere.run("kvs", "get", "--at", str(theirs), "s3.a").out == "theirs\n"
        with pytest.raises(VersionUnknown, match="of another instance"):
            h.kvs.get("s3.a", at=str(theirs))
        with pytest.raises(SnapshotCollected):
            h.kvs.get("s3.a", at=theirs.root)


def test_a_collected_snapshot_is_reported_and_a_leased_one_is_readable(instance: Instance) -> None:
    with instance.connect(1) as h, instance.connect(2) as holder:
        h.kvs.namespaces.create("s4")
        first = h.kvs.namespace("s4").put("a", "first")
        same = h.kvs.namespace("s4").commit({"a": "other"})
        again = h.kvs.namespace("s4").commit({"a": "first"})
        assert again.root == first.root
        lease = holder.kvs.lease(str(first))
        assert lease.snapshot.version == first.version, "two versions have this root; the text names this one"
        last = h.kvs.namespace("s4").put("a", "last")
        h.kvs.namespace("s4").retention(count=1)
        last = h.kvs.namespace("s4").put("a", "last of all")
        h.kvs.gc()
        h.content.dropcache(2)
        with instance.connect(2) as fresh:
            fresh.kvs.namespace("s4").wait_version(last.version)
            assert fresh.kvs.get("a", at=str(first)) == "first"
            for gone in (same, again):
                with pytest.raises(SnapshotCollected):
                    fresh.kvs.get("a", at=str(gone))
        lease.release()
        with instance.connect(2) as fresh, pytest.raises(SnapshotCollected):
            fresh.kvs.get("a", at=str(first))
        h.kvs.namespaces.remove("s4")


def test_reading_at_a_time(instance: Instance) -> None:
    with instance.connect(1) as h, instance.connect(2) as other:
        first = h.kvs.put("s5.a", 1)
        h.kvs.commit({"s5.a": 2, "s5.b": 2})
        h.kvs.link("s5.a", "s5.l")
        then = first.time + 5e-6  # a datetime has microseconds
        moments = [datetime.fromtimestamp(then), datetime.fromtimestamp(then, UTC), f"@{then!r}"]
        moments += [moment.isoformat() for moment in moments[:2]]  # type: ignore[union-attr]
        for at in moments:
            assert other.kvs.get("s5.a", at=at) == 1, at
            assert list(other.kvs.ls("s5", at=at)) == ["a"]
            assert other.kvs.snapshot(time=at).version == first.version
        assert other.kvs.snapshot(time=then) == first
        assert [change.key for change in other.kvs.diff(moments[0], key="s5")] == ["s5.a", "s5.b", "s5.l"]
        assert [past.value for past in other.kvs.history("s5.a", at=moments[0])] == [1]
        with other.kvs.lease(moments[0]) as lease:
            assert lease.snapshot.version == first.version
        with pytest.raises(VersionUnknown, match="in the future"):
            other.kvs.get("s5.a", at=f"@{time.time() + 3600}")
        with pytest.raises(VersionUnknown, match="had no version at 2001-09-09"):
            other.kvs.get("s5.a", at="@1e9")
        with pytest.raises(InvalidRequest, match="one of at, time and fresh"):
            other.kvs.snapshot(at=1, time=1.0)
        h.kvs.namespaces.create("s5")
        h.kvs.namespace("s5").retention(count=1)
        h.kvs.namespace("s5").put("a", 1)
        oldest = h.kvs.namespace("s5").put("a", 2)
        moment = datetime.fromtimestamp(oldest.time, UTC).isoformat(timespec="milliseconds")
        with pytest.raises(SnapshotCollected) as caught:
            other.kvs.namespace("s5").get("a", at="-1h")
        assert f"version {oldest.version}, the oldest kept, is of {moment}" in caught.value.text
        h.kvs.namespaces.remove("s5")
    at = f"@{then!r}"
    for where, value, names in ((at, 1, "a\n"), ("-1ms", 2, "a    b    l\n")):
        assert instance.run("kvs", "get", "--at", where, "s5.a", rank=2).out == f"{value}\n"
        assert instance.run("kvs", "get", f"--at={where}", "s5.a").out == f"{value}\n"
        assert instance.run("kvs", "ls", "-a", where, "s5").out == names
        assert instance.run("kvs", "dir", "-a", where, "s5").out.startswith(f"s5.a = {value}\n")
        assert instance.run("kvs", "history", "--at", where, "s5.a").out.splitlines()[0].endswith(f" {value}")
        assert ("+s5.b=2" in instance.run("kvs", "diff", where, "-0s").out) is (where == at)
        assert instance.run("kvs", "diff", str(first.version), where, "s5.a").out == (
            "-s5.a=1\n+s5.a=2\n" if value == 2 else ""
        )
        assert instance.run("kvs", "getroot", "-s", "--time", where).out >= f"{first.version}\n"
        held = instance.run("kvs", "lease", "-N", "primary", where, "--", "sh", "-c", "exit 7")
        assert held.status == 7
        name = f"s5at{value}"
        assert instance.run("kvs", "namespace", "create", "-r", where, name).status == 0
        assert instance.run("kvs", "get", "-N", name, "s5.a").out == f"{value}\n"
    assert instance.run("kvs", "copy", "--at", at, "s5.a", "s5copy").status == 0
    assert instance.run("kvs", "get", "s5copy").out == "1\n"
    own = instance.run("kvs", "lease", "-1ms", "sh", "-c", "echo $0", "-5s")
    assert own.out == "-5s\n", "arguments after the command belong to the command"
    assert instance.run("kvs", "readlink", "--at", "-1ms", "s5.l").out == "s5.a\n"
    missing = instance.run("kvs", "readlink", "--at", at, "s5.l")
    assert (missing.status, "s5.l" in missing.err) == (1, True)
    future = instance.run("kvs", "get", "--at", "2999-01-01", "s5.a")
    assert (future.status, "in the future" in future.err) == (1, True)
    before = instance.run("kvs", "diff", "-10000d")
    assert (before.status, "had no version at" in before.err) == (1, True)
