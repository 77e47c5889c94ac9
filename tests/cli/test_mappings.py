"""Reads from the client's cache, and directories and subtrees as mappings, on real brokers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instance import Instance

from fluxmpi.client.handle import Handle
from fluxmpi.client.kvs.directory import Directory
from fluxmpi.errors import (
    FluxmpiError,
    InvalidKey,
    InvalidRequest,
    IsADirectory,
    NamespaceExists,
    NoSuchKey,
    NoSuchNamespace,
    NotADirectory,
    VersionUnknown,
)
from fluxmpi.kvs.wire import NewNamespace, OldNamespace


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with Instance(2) as instance:
        yield instance


@pytest.fixture(scope="module")
def h(instance: Instance) -> Iterator[Handle]:
    with instance.connect(1) as h:
        yield h


@pytest.fixture(scope="module")
def other(instance: Instance) -> Iterator[Handle]:
    with instance.connect_without_root_page(0) as h:
        yield h


class Requests:
    """Count the requests of a handle in a block."""

    def __init__(self, h: Handle) -> None:
        self._handle = h

    def __enter__(self) -> Requests:
        self._before = self._handle.statistics()["requests"]
        return self

    def __exit__(self, *exc: object) -> None:
        self.count = self._handle.statistics()["requests"] - self._before


# ----------------------------------------------------------------------------------------------- reads without requests


def test_repeated_and_neighbouring_reads_send_no_request(h: Handle) -> None:
    h.kvs.commit({"near.a": 1, "near.b": [1, 2], "near.long": b"x" * 5000, "near.array": numpy.arange(5)})
    h.kvs.link("near.a", "near.link")
    at = h.kvs.snapshot()
    h.kvs.get("near.long")
    list(h.kvs.ls("near"))  # caches all its nodes
    with Requests(h) as made:
        for _ in range(3):
            assert h.kvs.get("near.a") == h.kvs.get("near.link") == 1
            assert h.kvs.get("near.b", at=at) == [1, 2]
            assert h.kvs.get("near.long") == b"x" * 5000
            assert h.kvs.get("near.none", "default") == "default"
            assert h.kvs.get_async("near.b").get() == [1, 2]
            assert h.kvs.exists("near.a")
            assert not h.kvs.exists("near.none")
            assert h.kvs.readlink("near.link").target == "near.a"
            assert h.kvs.snapshot() == at
            assert h.kvs.wait_version(at.version) == at
            with pytest.raises(NoSuchKey):
                h.kvs.get("near.none")
            with pytest.raises(IsADirectory):
                h.kvs.get_async("near").get()
    assert made.count == 0
    with Requests(h) as made:
        assert list(h.kvs.ls("near")) == ["a", "array", "b", "link", "long"]
        assert [entry.name for entry in h.kvs.entries("near")] == ["a", "array", "b", "link", "long"]
        assert len(h.kvs.get("near.array")) == 5
    assert made.count == 0
    with Requests(h) as made:
        assert h.kvs.get("near.a", fresh=True) == 1
    assert made.count == 1


def test_a_returned_value_may_be_changed(h: Handle) -> None:
    h.kvs.commit({"own.list": [1, {"a": []}], "own.array": numpy.arange(1000.0)})
    for _ in range(2):
        value = h.kvs.get("own.list")
        assert value == [1, {"a": []}]
        value[1]["a"].append("mine")
        array = h.kvs.get("own.array")
        assert array[7] == 7
        array[:] = 0
    assert h.kvs.get("own.list") == [1, {"a": []}]


def test_a_write_is_read_by_its_writer_and_after_wait_version(h: Handle, other: Handle) -> None:
    for n in range(200):
        version = (h if n % 2 else other).kvs.put("told.key", n).version
        reader = other if n % 2 else h
        reader.kvs.wait_version(version)
        assert reader.kvs.get("told.key") == n
        assert h.kvs.get("told.key", fresh=True) == n


def test_the_root_page_shows_a_notified_version(h: Handle, other: Handle) -> None:
    h.kvs.put("stepped.key", -1)
    with h.kvs.watch("stepped.key") as watch:
        assert watch.get(10) is not None
        for n in range(50):
            other.kvs.put("stepped.key", n)
            change = watch.get(10)
            assert change is not None
            with Requests(h) as made:
                assert h.kvs.version() >= change.version
            assert made.count == 0
            assert h.kvs.get("stepped.key") == n


def test_each_version_is_requested_once(h: Handle) -> None:
    versions = [h.kvs.put("old.key", n).version for n in range(5)]
    for n, version in enumerate(versions):
        assert h.kvs.get("old.key", at=version) == n
    with Requests(h) as made:
        assert [h.kvs.get("old.key", at=version) for version in versions] == list(range(5))
        assert list(h.kvs.ls("old", at=str(versions[0]))) == ["key"]
    assert made.count <= 1, "only the directory's node for the listing"
    with pytest.raises(VersionUnknown):
        h.kvs.get("old.key", at=10**6)


# ------------------------------------------------------------------------------------------ equal to the broker's reads

NAMES = st.sampled_from(["a", "b", "dir", "é"])
KEYS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
VALUES = st.one_of(st.integers(), st.text(max_size=5), st.binary(max_size=600), st.lists(st.integers(), max_size=3))


def outcome(action: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return action(*arguments, **named)
    except FluxmpiError as error:
        return type(error), error.text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["put", "put", "unlink", "mkdir", "link"]), KEYS, VALUES), max_size=12),
    st.lists(KEYS),
)
def test_reads_with_and_without_a_root_page_are_equal(h: Handle, other: Handle, steps: Any, keys: list[str]) -> None:
    h.kvs.unlink("same")
    for what, key, value in steps:
        key = f"same.{key}"
        if what == "put":
            outcome(h.kvs.put, key, value)
        elif what == "link":
            outcome(h.kvs.link, f"same.{keys[0]}" if keys else "nowhere", key)
        else:
            outcome(getattr(h.kvs, what), key)
    other.kvs.wait_version(h.kvs.version())
    for key in [f"same.{key}" for key in keys]:
        for read in ("get", "get_object", "exists", "readlink"):
            assert outcome(getattr(h.kvs, read), key) == outcome(getattr(other.kvs, read), key)
        assert outcome(lambda k, key=key: list(k.ls(key)), h.kvs) == outcome(
            lambda k, key=key: list(k.ls(key)), other.kvs
        )


# ---------------------------------------------------------------------------------------------------------- directories


@pytest.fixture(scope="module")
def jobs(h: Handle) -> Directory:
    values: dict[str, Any] = {f"job.{n:05}.state": f"s{n}" for n in range(3000)}
    h.kvs.commit({**values, "job.log": "x" * 4000, "job.note": b"y" * 3000})
    h.kvs.link("job.log", "job.zlink")
    h.kvs.link("nowhere", "job.znowhere")
    jobs = h.kvs.dir("job")
    h.kvs.unlink("job.00007")
    return jobs


def test_a_directory_is_a_mapping_of_one_snapshot(h: Handle, jobs: Directory) -> None:
    assert jobs["00007"]["state"] == jobs["00007.state"] == "s7", "unchanged"
    assert "00007" not in h.kvs.dir("job")
    assert len(jobs) == 3004
    assert bool(jobs)
    assert list(jobs)[:2] == ["00000", "00001"]
    assert list(jobs)[-4:] == ["log", "note", "zlink", "znowhere"]
    assert isinstance(jobs["00003"], Directory)
    assert dict(jobs["00003"]) == {"state": "s3"}
    assert jobs.get("none") is None
    assert jobs["zlink"] == "x" * 4000
    assert "znowhere" not in jobs
    assert [value for name, value in jobs.range("log").items()] == ["x" * 4000, b"y" * 3000, "x" * 4000, None]
    assert list(jobs.range("log", "o").values()) == ["x" * 4000, b"y" * 3000]
    with pytest.raises(KeyError, match=r"there is no key 'job\.none'"):
        jobs["none"]
    with pytest.raises(NotADirectory):
        h.kvs.dir("job.log")
    with pytest.raises(NoSuchKey):
        h.kvs.dir("job.none")
    with pytest.raises(InvalidKey):
        jobs[""]
    assert (5 in jobs, "." in jobs, ".." in jobs) == (False, False, False)
    assert jobs[".00003..state"] == "s3"
    assert repr(jobs.prefix("z")).startswith("<Directory job prefix 'z' of primary@")


def test_parts_of_a_directory(h: Handle, jobs: Directory) -> None:
    names = list(jobs)
    for begin, end in (
        ("", None),
        ("00005", "00010"),
        ("0000", "00001"),
        ("00010.x", "00012"),
        ("z", None),
        ("5", "1"),
    ):
        right = [name for name in names if name >= begin and (end is None or name < end)]
        assert list(jobs.range(begin, end)) == right
        assert len(jobs.range(begin, end)) == len(right)
    assert list(jobs.prefix("0001")) == [f"0001{n}" for n in range(10)]
    assert list(jobs.prefix("0001").range("00012", "00015")) == ["00012", "00013", "00014"]
    assert list(jobs.prefix("0001").prefix("00012")) == ["00012"]
    assert list(jobs.prefix("00012").prefix("0001")) == ["00012"]
    assert not jobs.prefix("0001").prefix("5")
    few = jobs.range("00005", "00010")
    assert "00004" not in few
    assert few.get("00010") is None
    assert few["00009.state"] == "s9"


def test_pages(h: Handle, jobs: Directory) -> None:
    pages = list(jobs.range(end="00025").pages(10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert pages[2][4][0] == "00024"
    with pytest.raises(InvalidRequest, match="not 0"):
        next(jobs.pages(0))


def test_only_requested_parts_of_a_large_directory_are_read(instance: Instance, jobs: Directory) -> None:
    with instance.connect(0) as fresh:
        opened = fresh.kvs.dir("job", at=jobs.snapshot)
        with Requests(fresh) as made:
            assert opened["02000.state"] == "s2000"
        assert made.count <= 1
        with Requests(fresh) as made:
            page = next(iter(opened.prefix("01").pages(20)))
        assert len(page) == 20
        assert made.count <= 3
        assert fresh.kvs.cache_statistics()["items"] < 30, "of 190 nodes"


# ------------------------------------------------------------------------------------------------------------- subtrees


def test_a_subtree_is_a_mutable_mapping(h: Handle) -> None:
    tree = h.kvs.subtree("tree")
    assert (dict(tree), len(tree), bool(tree)) == ({}, 0, False)
    before = h.kvs.version()
    tree.update({"a": 1, "b.c": [2]}, d="three")
    assert h.kvs.version() == before + 1, "one commit"
    assert dict(tree) == {"a": 1, "b.c": [2], "d": "three"}
    assert h.kvs.get("tree.b.c") == [2]
    assert ("b" in tree, "b.c" in tree, 7 in tree) == (False, True, False)
    assert tree.get("none", 5) == 5
    with pytest.raises(IsADirectory):
        tree["b"]
    with pytest.raises(KeyError):
        del tree["b"]
    with pytest.raises(KeyError):
        del tree["none"]
    for name in (".", "...", ""):  # the directory itself
        assert name not in tree
        with pytest.raises(InvalidKey):
            tree[name] = 1
        with pytest.raises(InvalidKey):
            del tree[name]
    assert (tree[".a"], "b..c" in tree) == (1, True)
    tree["b.c"] = 4
    assert tree.pop("b.c") == 4
    assert tree.pop("b.c", None) is None
    assert tree.setdefault("e", 9) == tree.setdefault("e", 10) == 9
    h.kvs.link("tree.a", "tree.link")
    assert tree["link"] == 1
    assert list(tree) == ["a", "d", "e"]
    assert list(tree.values()) == [1, "three", 9]
    tree.clear()
    assert (list(h.kvs.ls("tree")), list(tree)) == ([], [])
    assert repr(tree) == "<Subtree tree of primary>"


def test_the_subtree_of_the_root_is_the_whole_store(instance: Instance) -> None:
    with instance.connect(0) as h:
        store = h.kvs.subtree()
        store["root.x"] = 1
        assert store["root.x"] == h.kvs.get("root.x") == 1
        assert "root.x" in store
        assert "root.y" not in store
        assert h.kvs.get("root.y", None) is None
        with pytest.raises(NoSuchKey):
            h.kvs.get("root.y")
        assert bool(store)
        assert ("root.x", 1) in list(store.items())
        del store["root.x"]
        assert "root.x" not in store
        assert not isinstance(h.kvs, Mapping)
        assert not hasattr(h.kvs, "clear"), "clear() would empty the store"
        assert h.kvs.dir()["root"] == {}


# ----------------------------------------------------------------------------------------------------------- namespaces


def test_the_root_page_follows_namespaces(h: Handle, other: Handle) -> None:
    """A broker learns of a namespace with the first request; then its root page shows the namespace until its removal."""
    for _ in range(2):
        h.rpc("roots.create", NewNamespace("comes", 0))
        with pytest.raises(NamespaceExists):
            h.rpc("roots.create", NewNamespace("comes", 0))
        version = other.kvs.namespace("comes").put("key", 1).version
        assert h.kvs.namespace("comes").wait_version(version).version == version
        h.kvs.link("key", "through", target_namespace="comes")
        assert h.kvs.namespace("comes").get("key") == h.kvs.get("through") == 1
        assert dict(h.kvs.namespace("comes").subtree(".")) == dict(h.kvs.namespace("comes").dir()) == {"key": 1}
        with Requests(h) as made:
            assert h.kvs.namespace("comes").get("key") == h.kvs.get("through") == 1
        assert made.count == 0
        h.rpc("roots.remove", OldNamespace("comes"))
        with pytest.raises(NoSuchNamespace):
            h.kvs.namespace("comes").get("key")
        with pytest.raises(NoSuchNamespace):
            h.kvs.get("through")
