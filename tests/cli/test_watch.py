"""Watches of a real instance, by command and in Python: patterns, history, mode latest, slow readers."""

from __future__ import annotations

import json

import pytest
from instance import Instance

from fluxmpi.client.limits import HandleLimits
from fluxmpi.errors import InvalidRequest, NoSuchNamespace, RequestTimeout, VersionUnknown


def test_watch_of_a_pattern(instance: Instance) -> None:
    instance.run("kvs", "put", "wtx1.7.state=run", "wtx1.7.log=no")
    with instance.popen("kvs", "watch", "-c", "3", "wtx1.*.state", rank=1) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"wtx1.7.state=run\n"
        with instance.connect() as h:
            h.kvs.commit({"wtx1.8.state": "new", "wtx1.8.log": "no"})
            h.kvs.unlink("wtx1.7")
        assert watching.stdout.read() == b"wtx1.8.state=new\n-wtx1.7.state\n"


def test_watch_after_a_version_prints_its_progress(instance: Instance) -> None:
    with instance.connect() as h:
        first = h.kvs.put("wtx2.a", 0).version
        last = [h.kvs.put("wtx2.a", n).version for n in range(1, 4)][-1]
    with instance.popen("kvs", "watch", "--after", str(first), "--progress", "wtx2.a", rank=2) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline().decode().strip() for _ in range(5)]
        watching.kill()
    assert lines[:4] == [f"# {first}", "wtx2.a=1", "wtx2.a=2", "wtx2.a=3"]
    assert lines[4].startswith("# ")
    assert int(lines[4][2:]) >= last


def test_watch_as_json_has_the_previous_value(instance: Instance) -> None:
    with instance.connect() as h:
        first = h.kvs.put("wtx3.a", {"n": 1}).version
        h.kvs.put("wtx3.a", {"n": 2})
    line = json.loads(instance.run("kvs", "watch", "--json", "--after", str(first), "-c", "1", "wtx3.a").out)
    assert (line["value"], line["previous"], line["existed"]) == ({"n": 2}, {"n": 1}, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.b**"], "'**' matches whole components"),
        (["a.[b"], "no ']' ends its set of characters; '[[]' matches"),
        (["--after", "100000000", "a"], "was not reached yet"),
        (["-N", "no-such-space", "--after", "1", "a" * 5000], "has over 4096 bytes"),
    ],
)
def test_watch_with_invalid_arguments(instance: Instance, words: list[str], message: str) -> None:
    done = instance.run("kvs", "watch", *words)
    assert done.status == 1
    assert message in done.err


def test_get_watch_prints_equal_values_without_uniq(instance: Instance) -> None:
    for option, printed in (("-w", b"1\n1\n2\n"), ("-wu", b"1\n2\n")):
        instance.run("kvs", "put", "wtx4.a=1")
        count = str(printed.count(b"\n"))
        with instance.popen("kvs", "get", option, "-c", count, "wtx4.a", rank=1) as watching:
            assert watching.stdout is not None
            first = watching.stdout.readline()
            instance.run("kvs", "put", "wtx4.a=1")
            instance.run("kvs", "put", "wtx4.a=2")
            assert first + watching.stdout.read() == printed


def test_get_watch_append_prints_the_whole_of_a_replaced_value(instance: Instance) -> None:
    instance.run("kvs", "put", "-r", "wtx5.a=one")
    with instance.popen("kvs", "get", "-w", "-A", "-c", "3", "wtx5.a", rank=1) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"one\n"
        instance.run("kvs", "put", "-A", "wtx5.a=two")
        instance.run("kvs", "put", "-r", "wtx5.a=three")
        assert watching.stdout.read() == b"two\nthree\n"


# ------------------------------------------------------------------------------------------------------------ in Python


def test_changes_have_the_previous_value(instance: Instance) -> None:
    with instance.connect() as h, instance.connect(1) as other:
        h.kvs.put("wty1.a", [1])
        with other.kvs.watch("wty1.") as watch:
            first = watch.get(10)
            h.kvs.put("wty1.a", [2])
            second = watch.get(10)
            h.kvs.unlink("wty1.a")
            third = watch.get(10)
    assert first is not None and second is not None and third is not None  # noqa: PT018
    assert (first.created, first.value, first.previous) == (True, [1], None)
    assert (second.created, second.value, second.previous) == (False, [2], [1])
    assert (third.deleted, third.value, third.previous) == (True, None, [2])


def test_appends_to_a_long_value_are_sent_alone(instance: Instance) -> None:
    block = b"0123456789" * 40_000
    with instance.connect() as h, instance.connect(2) as other:
        h.kvs.put("wty2.log", block)
        with other.kvs.watch("wty2.log") as watch:
            assert watch.get(10).value == block  # type: ignore[union-attr]
            for part in (b"first", block, b"third"):
                with h.kvs.txn() as txn:
                    txn.append("wty2.log", part)
                change = watch.get(10)
                assert change is not None
                assert change.appended == part
            h.kvs.put("wty2.log", b"anew")
            change = watch.get(10)
            assert change is not None
            assert (change.appended, change.value) == (None, b"anew")


def test_a_slow_reader_in_mode_latest_gets_the_newest(instance: Instance) -> None:
    with instance.connect() as h, instance.connect(1) as other:
        with other.kvs.watch("wty3.a", mode="latest") as watch:
            watch.update(10)
            last = [h.kvs.put("wty3.a", n) for n in range(500)][-1]
            values = []
            while watch.version < last.version:
                update = watch.update(10)
                assert update is not None
                values += [change.value for change in update.changes]
        assert values == sorted(values)
        assert values[-1] == 499
        assert len(values) < 500, "some versions were skipped"


def test_a_slow_reader_needs_only_versions_at_the_broker(instance: Instance) -> None:
    """The reader then gets all versions, in order."""
    limits = HandleLimits(watch_credit_bytes=4096)
    with instance.connect() as h, instance.connect(1, limits=limits) as other:
        with other.kvs.watch("wty4.") as watch:
            watch.update(10)
            value = "x" * 200
            versions = [h.kvs.put("wty4.a", f"{n}{value}").version for n in range(200)]
            other.kvs.wait_version(versions[-1])
            statistics = h.rpc("stats.get", target=1)["kvs"]
            assert statistics["watch_queued"] > 100
            assert statistics["watch_unacknowledged"] < 3 * 4096
            versions_seen = [change.version for change in (watch.get(10) for _ in range(200)) if change is not None]
        assert versions_seen == versions
        other.kvs.version()
        statistics = h.rpc("stats.get", target=1)["kvs"]
        assert statistics["watch_queued"] == statistics["watch_unacknowledged"] == statistics["watchers"] == 0


def test_a_watch_resumes_after_another(instance: Instance) -> None:
    with instance.connect() as h:
        with h.kvs.watch("wty5.**", count=2) as watch:
            watch.update(10)
            versions = [h.kvs.put(f"wty5.k{n}", n).version for n in range(4)]
            assert [change.version for change in watch] == versions[:2]
            assert watch.resume_after == versions[1]
        with instance.connect(2) as other, other.kvs.watch("wty5.**", after=watch.resume_after) as watch:
            assert [watch.get(10).version for _ in range(2)] == versions[2:]  # type: ignore[union-attr]
            other.reconnect()
            later = h.kvs.put("wty5.k0", 9).version
            assert watch.get(10).version == later  # type: ignore[union-attr]


def test_progress(instance: Instance) -> None:
    with instance.connect() as h, instance.connect(1) as other, other.kvs.watch("wty6.a") as watch:
        watch.update(10)
        version = h.kvs.put("wty6.b", 1).version
        other.kvs.wait_version(version)
        watch.progress()
        update = watch.update(10)
        assert update is not None
        assert (update.changes, update.version >= version, watch.version) == ([], True, update.version)
        with pytest.raises(RequestTimeout):
            watch.update(0.05)


def test_a_large_directory_is_one_update(instance: Instance) -> None:
    limits = HandleLimits(watch_credit_bytes=1)
    with instance.connect() as h, instance.connect(2, limits=limits) as other:
        other.kvs.wait_version(h.kvs.commit({f"wty7.k{n:04}": n for n in range(3000)}).version)
        with other.kvs.watch("wty7.") as watch:
            update = watch.update(30)
            assert update is not None
            assert [change.value for change in update.changes] == list(range(3000))


def test_invalid_watches(instance: Instance) -> None:
    with instance.connect() as h:
        with pytest.raises(InvalidRequest, match="every"):
            h.kvs.watch("a", mode="some")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="count"):
            h.kvs.watch("a", count=0)
        limits = HandleLimits(watch_credit_bytes=0)
        with instance.connect(limits=limits) as other, pytest.raises(InvalidRequest, match="window"):
            other.kvs.watch("a").update(10)
        with pytest.raises(NoSuchNamespace):
            h.kvs.namespace("unborn").watch_key("a", wait=False).update(10)
        with pytest.raises(VersionUnknown):
            h.kvs.watch("a", after=10**9).update(10)
        with h.kvs.namespace("unborn").watch("a") as watch, pytest.raises(RequestTimeout):
            watch.update(0.05)
