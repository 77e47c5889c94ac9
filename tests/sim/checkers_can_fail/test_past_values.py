"""Broken rules of the past values of single keys."""

from __future__ import annotations

from checkers_can_fail.harness import Cases, Patch
from fluxmpi.kvs.mvcc.key_history import KeyHistory
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.value_history import PastEntry, ValueHistory

CASES = Cases()
case = CASES.case


@case(("reference:", "collected:"), past=200)
def blobs_of_past_values_are_not_pinned(patch: Patch) -> None:
    patch(ValueHistory, "pinned", lambda self: iter(()))


@case("reference:", past=200)
def a_removal_is_not_recorded(patch: Patch) -> None:
    change = ValueHistory._change

    def forgetful(self: ValueHistory, key: str, old: object, new: object, after: object) -> None:
        if new is not None:
            change(self, key, old, new, after)  # type: ignore[arg-type]

    patch(ValueHistory, "_change", forgetful)


@case("reference:", past=200)
def a_version_is_not_compared(patch: Patch) -> None:
    may = ValueHistory._may_match
    patch(ValueHistory, "_may_match", lambda self, key: key != "d.a" and may(self, key))


@case("reference:", past=200)
def the_removal_of_a_directory_is_not_seen(patch: Patch) -> None:
    may = ValueHistory._may_match
    patch(ValueHistory, "_may_match", lambda self, key: key != "d" and may(self, key))


@case("reference:", past=200)
def the_entry_after_the_version_is_answered(patch: Patch) -> None:
    checked = ValueHistory._checked

    def late(self: ValueHistory, key: str, tail: object, starts: list[float], at: float) -> PastEntry | None:
        return checked(self, key, tail, starts, at + 1)  # type: ignore[arg-type]

    patch(ValueHistory, "_checked", late)


@case("reference:", past=200)
def a_key_that_was_evicted_counts_as_unchanged(patch: Patch) -> None:
    since = ValueHistory._known_since

    def trusting(self: ValueHistory, rules: list) -> object:  # type: ignore[type-arg]
        self._forgotten = None
        return since(self, rules)

    trim = ValueHistory._trim

    def hasty(self: ValueHistory, key: str, tail: object, count: int) -> None:
        trim(self, key, tail, count)  # type: ignore[arg-type]
        if key == "quiet":
            self._drop(key, tail)  # type: ignore[arg-type]

    patch(ValueHistory, "_known_since", trusting)
    patch(ValueHistory, "_trim", hasty)


@case("reference:", past=200)
def a_history_repeats_an_entry(patch: Patch) -> None:
    def twice(self: KeyHistory) -> None:
        self._version += 1
        add(self)

    add = KeyHistory._add_recorded
    patch(KeyHistory, "_add_recorded", twice)


@case("reference:", past=200)
def too_few_values_are_kept(patch: Patch) -> None:
    trim = ValueHistory._trim
    patch(ValueHistory, "_trim", lambda self, key, tail, count: trim(self, key, tail, max(1, count - 1)))


@case(("reference:", "broken:"), past=200)
def the_past_outlives_its_namespace(patch: Patch) -> None:
    remove, create = Namespaces.remove, Namespaces.advance
    kept: dict[str, ValueHistory] = {}

    def removing(self: Namespaces, name: str) -> int:
        values = self.find(name).values
        if values is not None:
            kept[name] = values
        return remove(self, name)

    def advancing(self: Namespaces, root: object, owner: int | None = None) -> object:
        namespace = create(self, root, owner)  # type: ignore[arg-type]
        namespace.values = namespace.values or kept.get(namespace.root.namespace)
        return namespace

    patch(Namespaces, "remove", removing)
    patch(Namespaces, "advance", advancing)


test_a_broken_rule_is_noticed, test_nothing_is_noticed_while_no_rule_is_broken = CASES.tests()
