"""Past values of single keys on a real instance: their rules, and reading them after their versions have gone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy
import pytest
from instance import Instance

from fluxmpi.errors import NoSuchKey, SnapshotCollected
from fluxmpi.kvs.wire import ValueRule

ARRAYS = [numpy.arange(200_000.0) + number for number in range(3)]
"""Long values: 1.6 MB each, so that they are mapped."""


@pytest.fixture(scope="module", autouse=True)
def space(instance: Instance) -> Iterator[None]:
    """A namespace that keeps one version, and five values of each key below ``job``."""
    with instance.connect(1) as h:
        h.kvs.namespaces.create("past")
        kvs = h.kvs.namespace("past")
        assert kvs.retention(count=1, values=5, key="job.").values == [ValueRule("job.**", 5)]
        kvs.put("job.quiet", "old")
        for array in ARRAYS:
            kvs.put("job.mesh", array)
        kvs.put("job.quiet", "new")
        for number in range(50):
            kvs.put("job.busy", number)
        kvs.unlink("job.mesh")
        kvs.put("other", 1)
        kvs.put("other", 2)
        h.kvs.gc()
        for rank in range(h.size):
            h.content.dropcache(rank)
        yield
        h.kvs.namespaces.remove("past")


@pytest.mark.parametrize("rank", [0, 2])
def test_past_values_are_read_at_any_broker(instance: Instance, rank: int) -> None:
    with instance.connect(rank) as h:
        kvs = h.kvs.namespace("past")
        past = list(kvs.history("job.mesh"))
        assert [each.version for each in past] == [56, 4, 3, 2]
        assert past[0].deleted
        assert [bool((each.value == array).all()) for each, array in zip(past[:0:-1], ARRAYS, strict=True)] == [
            True
        ] * 3
        assert [kvs.get("job.quiet", at=version) for version in (1, 4, 5, 40)] == ["old", "old", "new", "new"]
        assert (kvs.get("job.mesh", at=3) == ARRAYS[1]).all()
        assert kvs.get("job.mesh", None, at=57) is None
        assert [each.value for each in kvs.history("job.busy")] == [49, 48, 47, 46, 45]
        assert [each.value for each in kvs.history("job.busy", before=54)] == [47, 46, 45]
        assert kvs.get_object("job.quiet", at=2) == kvs.get_object("job.quiet", at=1)
        assert kvs.exists("job.mesh", at=4)
        assert not kvs.exists("job.mesh", at=1)


def test_a_past_value_is_read_by_the_snapshot_and_the_time_of_its_history(instance: Instance) -> None:
    with instance.connect(2) as h:
        kvs = h.kvs.namespace("past")
        (new, old) = kvs.history("job.quiet")
        for past in (new, old):
            assert kvs.get("job.quiet", at=past.snapshot) == past.value
            assert kvs.get("job.quiet", at=str(past.snapshot)) == past.value
            assert kvs.get("job.quiet", at=f"@{past.time + 1e-6:.6f}") == past.value
        with pytest.raises(SnapshotCollected, match="cannot be verified"):
            kvs.get("job.mesh", at=str(new.snapshot))


def test_what_no_rule_kept_is_collected(instance: Instance) -> None:
    with instance.connect(0) as h:
        kvs = h.kvs.namespace("past")
        for key, at in (("other", 57), ("job.busy", 30)):
            with pytest.raises(SnapshotCollected):
                kvs.get(key, at=at)
        with pytest.raises(NoSuchKey):
            kvs.get("job.mesh", at=57)


def test_the_commands_print_rules_and_past_values(instance: Instance) -> None:
    assert instance.run("kvs", "retention", "-N", "past").lines[1:] == ["job.**: 5 values of each key"]
    found = instance.run("kvs", "retention", "-N", "past", "--values", "2", "--key", "x.*", "--json")
    assert json.loads(found.out)["values"] == [{"key": "job.**", "values": 5}, {"key": "x.*", "values": 2}]
    found = instance.run("kvs", "retention", "-N", "past", "--values", "0", "--key", "x.*")
    assert "x.*" not in found.out
    assert instance.run("kvs", "get", "-N", "past", "--at", "3", "job.quiet").out == "old\n"
    lines = instance.run("kvs", "history", "-N", "past", "job.quiet").out.splitlines()
    assert [line.split()[0] + line.split()[2] for line in lines] == ["5new", "1old"]
    snapshot = json.loads(instance.run("kvs", "history", "-N", "past", "--json", "-c", "1", "job.quiet").out)[
        "snapshot"
    ]
    assert instance.run("kvs", "get", "--at", snapshot, "job.quiet").out == "new\n"
    failed = instance.run("kvs", "get", "-N", "past", "--at", "3", "other")
    assert failed.status == 1
    assert "version 3 of past is not kept any more" in failed.err
    failed = instance.run("kvs", "retention", "--key", "x")
    assert failed.status == 2
    assert "--key needs --values" in failed.err
