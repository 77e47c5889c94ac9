"""Reads of versions that are not retained: every kind of read raises SnapshotCollected, whatever part is missing."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from instance import Instance

from fluxmpi.client.handle import Handle
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.errors import SnapshotCollected
from fluxmpi.kvs.objects import ValRef

VALUES = {
    "small": 1,
    "blob": "b" * 5000,
    "long": numpy.arange(400_000.0),
    "d.blob": "c" * 5000,
    "d.long": b"l" * 3_000_000,
}


def commit_values(h: Handle, namespace: str) -> Snapshot:
    """Commit all VALUES to a new namespace, to be collected later."""
    h.kvs.namespaces.create(namespace)
    return h.kvs.namespace(namespace).commit(VALUES)


def collect(h: Handle, namespace: str) -> None:
    h.kvs.namespace(namespace).retention(count=1)
    h.kvs.namespace(namespace).commit(dict.fromkeys(VALUES, "new"))
    h.kvs.gc()
    for rank in range(h.size):
        h.content.dropcache(rank)


READS = {
    "get": lambda kvs, at: kvs.get("blob", at=at),
    "get long": lambda kvs, at: kvs.get("long", at=at),
    "get_async": lambda kvs, at: kvs.get_async("long", at=at).get(),
    "get_object": lambda kvs, at: kvs.get_object("long", at=at),
    "exists": lambda kvs, at: kvs.exists("small", at=at),
    "readlink": lambda kvs, at: kvs.readlink("small", at=at),
    "view": lambda kvs, at: kvs.view("long", at=at),
    "open": lambda kvs, at: kvs.open("long", at=at),
    "get_file": lambda kvs, at: kvs.get_file("long", io.BytesIO(), at=at),
    "ls": lambda kvs, at: list(kvs.ls("d", at=at)),
    "entries": lambda kvs, at: list(kvs.entries(at=at)),
    "dir": lambda kvs, at: kvs.dir("d", at=at),
    "diff": lambda kvs, at: list(kvs.diff(at)),
    "copy": lambda kvs, at: kvs.copy("d", "e", at=at),
    "lease": lambda kvs, at: kvs.lease(at),
    "namespace": lambda kvs, at: kvs.namespaces.create("c1copy", at=at),
}


@pytest.fixture(scope="module")
def gone(instance: Instance) -> Snapshot:
    with instance.connect(1) as h:
        snapshot = commit_values(h, "c1")
        collect(h, "c1")
    return snapshot


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("rank", [0, 2])
def test_every_read_of_a_collected_snapshot_fails(instance: Instance, gone: Snapshot, read: str, rank: int) -> None:
    for at in (gone, f"c1@{gone.version}:{gone.root}", str(gone)):
        with instance.connect(rank) as h, pytest.raises(SnapshotCollected):
            READS[read](h.kvs, at)


@pytest.mark.parametrize("rank", [0, 2])
def test_loading_a_value_after_its_collection_fails(instance: Instance, rank: int) -> None:
    namespace = f"c2on{rank}"
    with instance.connect(1) as h, instance.connect(rank) as reader:
        kvs = reader.kvs
        snapshot = commit_values(h, namespace)
        found = kvs.get_object("blob", at=snapshot)
        file = kvs.open("blob", at=snapshot)
        directory = kvs.dir("d", at=snapshot)
        assert len(directory) == 2
        entries = [entry for entry in kvs.entries(at=snapshot, recursive=True) if entry.name == "blob"]
        (past,) = [each for each in kvs.namespace(namespace).history("blob") if each.object is not None]
        changes = [each for each in kvs.diff(snapshot.version - 1, snapshot) if "blob" in each.key]
        with kvs.namespace(namespace).watch("blob") as watch:
            update = watch.update()
        assert update is not None
        collect(h, namespace)
        late: dict[str, Callable[[], Any]] = {
            "value_of": lambda: kvs.value_of(found),
            "bytes_of": lambda: kvs.bytes_of(found),
            "file": file.read,
            "items": lambda: dict(directory.items()),
            "values": lambda: list(directory.values()),
            "one": lambda: directory["blob"],
            "pages": lambda: list(directory.pages(1)),
            "history": lambda: past.value,
            "watch": lambda: update.changes[0].value,
        }
        late |= {f"entry {each.key}": lambda each=each: each.value for each in entries}
        late |= {f"change {each.key}": lambda each=each: each.after for each in changes}
        assert len(late) == 13
        for name, read in late.items():
            with pytest.raises(SnapshotCollected):
                raise AssertionError(f"{name} returned {read()!r:.50}")
        assert kvs.namespace(namespace).get("blob") == "new"
        h.kvs.namespaces.remove(namespace)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_long_value_with_a_collected_piece_fails(instance: Instance, rank: int) -> None:
    """Newly stored blobs are kept for some minutes, so this value refers to blobs that were never stored."""
    with instance.connect(rank) as h:
        found = ValRef("raw", 2_500_000, tuple(bytes([number]) * 32 for number in range(3)))
        seeked = h.kvs.file_of(found)
        seeked.seek(2_000_000)
        for read in (
            lambda: h.kvs.value_of(found),
            lambda: h.kvs.bytes_of(found),
            h.kvs.file_of(found).read,
            seeked.read,
            lambda: list(h.kvs.file_of(found).pieces()),
        ):
            with pytest.raises(SnapshotCollected):
                read()
