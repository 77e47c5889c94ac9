"""Copy and move: by reference, across namespaces, and without losing concurrent changes."""

from __future__ import annotations

import pytest
from instance import Instance

from fluxmpi import errors
from fluxmpi.client.kvs.copying import TRIES_MAX
from fluxmpi.client.kvs.kvs import Kvs
from fluxmpi.kvs.wire import NewNamespace, OldNamespace


def test_a_directory_is_copied_by_reference(instance: Instance) -> None:
    with instance.connect(2) as h:
        h.kvs.commit({f"cp.a.k{number}": number for number in range(2000)})
        snapshot = h.kvs.copy("cp.a", "cp.b")
        assert h.kvs.get_object("cp.a", at=snapshot) == h.kvs.get_object("cp.b", at=snapshot)
        h.kvs.put("cp.b.k7", "other")
        assert (h.kvs.get("cp.a.k7"), h.kvs.get("cp.b.k7"), h.kvs.get("cp.b.k8")) == (7, "other", 8)


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("mv.a", "mv.c", {"mv.b": 2, "mv.c.x": 1}),
        ("mv.a", "mv.b", {"mv.b.x": 1}),
        ("mv.a", "mv.a", {"mv.a.x": 1, "mv.b": 2}),
        ("mv.a", "mv.a.y", {"mv.a.y.x": 1, "mv.b": 2}),
        ("mv.a.x", "mv.a", {"mv.a": 1, "mv.b": 2}),
    ],
)
def test_move(instance: Instance, source: str, destination: str, expected: dict[str, int]) -> None:
    with instance.connect(1) as h:
        h.kvs.unlink("mv")
        before = h.kvs.commit({"mv.a.x": 1, "mv.b": 2})
        moved = h.kvs.move(source, destination)
        assert moved.version == before.version + 1, "one version"
        found = {
            entry.key: entry.value for entry in h.kvs.entries("mv", recursive=True, at=moved) if not entry.is_directory
        }
        assert found == expected


def test_a_move_includes_a_concurrent_change(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client changes the key between the read and the commit, twice."""
    with instance.connect(1) as h, instance.connect(0) as other:
        h.kvs.commit({"race.a.x": 0})
        read, changes = Kvs.get_object, iter([1, 2])

        def read_then_changed(self: Kvs, key: str, **where: object) -> object:
            found = read(self, key, **where)  # type: ignore[arg-type]
            for value in changes:
                other.kvs.put("race.a.x", value)
                break
            return found

        monkeypatch.setattr(Kvs, "get_object", read_then_changed)
        h.kvs.move("race.a", "race.b")
        assert h.kvs.get("race.b.x") == 2
        assert not h.kvs.exists("race.a")


def test_a_move_of_a_key_that_always_changes_fails(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    with instance.connect(1) as h:
        h.kvs.commit({"busy.a": 0})
        read = Kvs.get_object

        def read_then_changed(self: Kvs, key: str, **where: object) -> object:
            found = read(self, key, **where)  # type: ignore[arg-type]
            h.kvs.add("busy.a")
            return found

        monkeypatch.setattr(Kvs, "get_object", read_then_changed)
        with pytest.raises(errors.Overloaded, match=f"'busy.a' was changed {TRIES_MAX} times"):
            h.kvs.move("busy.a", "busy.b")
        monkeypatch.undo()
        assert (h.kvs.get("busy.a"), h.kvs.exists("busy.b")) == (TRIES_MAX, False)


def test_copy_and_move_between_namespaces(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.rpc("roots.create", NewNamespace("elsewhere", 0))
        long = b"long" * 100_000
        h.kvs.commit({"ns.a.x": 1, "ns.a.long": long})
        h.kvs.namespace("elsewhere").copy("ns.a", "got", source_namespace="primary")
        assert h.kvs.namespace("elsewhere").get("got.long") == long
        h.kvs.move("got", "ns.back", source_namespace="elsewhere")
        assert h.kvs.get("ns.back.x") == 1
        assert not h.kvs.namespace("elsewhere").exists("got")
        with pytest.raises(errors.NoSuchNamespace):
            h.kvs.namespace("nowhere").move("ns.back", "ns.back", source_namespace="primary")
        assert h.kvs.get("ns.back.x") == 1, "the source is kept if the destination cannot be written"
        h.rpc("roots.remove", OldNamespace("elsewhere"))
