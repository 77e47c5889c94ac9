"""Patterns against the plainest matcher there is, and the index of watchers against asking each of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import ask
from trees import make_nodes

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import Val, split_key
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf
from fluxmpi.kvs.store.pattern import Pattern, has_wildcards
from fluxmpi.kvs.watch.index import Concerned, WatchIndex
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import WatchRequest

NAMES = ["a", "b", "ab", "abc", "k1", "k12", "x"]
COMPONENTS = [*NAMES, "*", "?", "a*", "*b", "k?", "[ab]", "[!a]*", "k[0-9]*", "*1*", "**"]

keys = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(".".join)
globs = st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=4).map(".".join)


def fits(pattern: str, key: str) -> bool:
    """One regular expression over the whole key."""
    parts = []
    for part in pattern.split("."):
        if part == "**":
            parts.append(r"(?:[^.]+\.)*")
        else:
            inner = re.sub(r"\*", "[^.]*", part).replace("?", "[^.]").replace("[!", "[^")
            parts.append(inner + r"\.")
    return re.fullmatch("".join(parts), key + ".") is not None


@given(globs, keys)
@settings(max_examples=300)
def test_a_pattern_matches_what_it_says(pattern: str, key: str) -> None:
    assert Pattern.glob(pattern).matches(key) == fits(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("a.b.*.c", ["a", "b"]), ("**", []), ("a.b", ["a"]), ("*.a", []), ("a.**", ["a"])],
)
def test_the_walk_begins_below_the_literal_beginning(pattern: str, prefix: list[str]) -> None:
    assert Pattern.glob(pattern).prefix == prefix


def test_a_character_that_is_a_wildcard_can_be_meant_itself() -> None:
    assert Pattern.glob("a[*]").matches("a*")
    assert not Pattern.glob("a[*]").matches("ab")
    assert Pattern.key("a*.**").prefix == ["a*", "**"]
    assert has_wildcards("a[1]")
    assert not has_wildcards("a.b")


@pytest.mark.parametrize("pattern", ["a**", "**b", "a.[", "[!]", "."])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        Pattern.glob(pattern)


def test_a_pattern_of_many_stars_does_not_take_long() -> None:
    assert not Pattern.glob("*a" * 1000 + "*b").matches("a" * 4000)


# ------------------------------------------------------------------------------------------------------------ the index


def watcher(pattern: Pattern, tag: int) -> Watcher:
    return Watcher(ask("kvs.watch", tag=tag), WatchRequest(""), pattern, pattern.key_of_prefix)


patterns = st.one_of(keys.map(Pattern.key), keys.map(Pattern.below), globs.map(Pattern.glob))


def may_be_below(pattern: Pattern, key: str) -> bool:
    """Something below ``key`` may match: tried with all keys there are."""
    parts = split_key(key)
    return pattern.components[: len(parts)] == parts or any(
        pattern.matches(f"{key}.{'.'.join(more)}") for more in (("a",), ("b", "x"), ("ab", "k1", "x"), ("k12", "abc"))
    )


def concerned(watches: WatchIndex, changed: list[str], directories: bool) -> dict[Watcher, None]:
    found = Concerned(watches)
    for key in changed:
        found.add(key, lambda _: directories)
    return found.watchers


@given(
    st.lists(patterns, max_size=12), st.lists(st.integers(0, 11), max_size=6), st.lists(keys, min_size=1, max_size=3)
)
@settings(max_examples=100)
def test_the_index_finds_whom_a_key_concerns(some: list[Pattern], gone: list[int], changed: list[str]) -> None:
    watches = WatchIndex("primary")
    all_of_them = [watcher(pattern, tag) for tag, pattern in enumerate(some)]
    for one in all_of_them:
        watches.add(one)
    for index in gone:
        if index < len(all_of_them) and not all_of_them[index].ended:
            all_of_them[index].ended = True
            watches.remove(all_of_them[index])
    watches.check()
    left = [one for one in all_of_them if not one.ended]
    found = concerned(watches, changed, True)
    assert len(found) <= len(left)
    for one in left:
        pattern = one.pattern
        must = any(pattern.matches(key) or may_be_below(pattern, key) for key in changed)
        must = must or (pattern.plain and any(key.startswith(f"{one.key}.") for key in changed))
        assert not must or one in found
    exactly = concerned(watches, changed, False)
    for one in left:
        if any(one.pattern.matches(key) for key in changed):
            assert one in exactly


def test_the_index_does_not_grow_by_what_comes_and_goes() -> None:
    watches = WatchIndex("primary")
    for _ in range(3):
        some = [watcher(Pattern.glob(f"job.k{n}*.**.x"), n) for n in range(50)]
        for one in some:
            watches.add(one)
        watches.check()
        for one in some:
            watches.remove(one)
    assert not watches._trie.literals
    assert watches._trie.count == 0
    assert watches.idle


def test_a_key_looks_at_few_of_many_watchers() -> None:
    """Ten thousand components with wildcards at one place: a name is not tried with each."""
    watches = WatchIndex("primary")
    tried = []

    for n in range(10_000):
        pattern = Pattern.glob(f"job.k{n}x*")
        wild = pattern.components[1]
        matches = wild.matches
        wild.matches = lambda name, matches=matches: tried.append(name) or matches(name)
        watches.add(watcher(pattern, n))
    found = concerned(watches, ["job.k77x1"], False)
    assert [one.tag for one in found] == [77]
    assert len(tried) == 1


# ------------------------------------------------------------------------------------------------- a diff of what is wanted


trees = st.dictionaries(keys, st.integers(0, 3), max_size=12)


def without_conflicts(tree: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in tree.items() if not any(other.startswith(f"{key}.") for other in tree)}


@given(trees, trees, st.lists(patterns, min_size=1, max_size=4))
@settings(max_examples=100)
def test_a_diff_tells_what_is_wanted_of_the_whole_diff(
    a: dict[str, int], b: dict[str, int], some: list[Pattern]
) -> None:
    nodes, _ = make_nodes()
    refs = []
    for tree in (without_conflicts(a), without_conflicts(b)):
        edit = Edit(nodes, nodes.insert(Leaf([], [])), "primary")
        for key, value in tree.items():
            edit.put(split_key(key), Val("raw", b"%d" % value))
        refs.append(edit.seal()[0])
    whole = everything(Diff(nodes, *refs))
    first = some[0]
    if not first.prefix:
        told = everything(Diff(nodes, *refs, "", first))
        assert told == [change for change in whole if first.matches(change[0])]
    watches = WatchIndex("primary")
    for tag, pattern in enumerate(some):
        watches.add(watcher(pattern, tag))
    told = everything(Diff(nodes, *refs, "", watches), limit=2, steps=3)
    for change in whole:
        if any(pattern.matches(change[0]) for pattern in some):
            assert change in told


def everything(diff: Diff, **limits: int) -> list:
    found = []
    more = True
    while more:
        step = diff.advance(**limits)
        found += step.value
        more = step.more
    return found
