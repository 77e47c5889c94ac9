"""Patterns against a regular expression, and the trie of patterns against trying each pattern."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_nodes

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import Val, split_key
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf
from fluxmpi.kvs.store.pattern import Pattern, has_wildcards
from fluxmpi.kvs.store.pattern_trie import MatchSet, PatternTrie

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
def test_a_pattern_matches_like_a_regular_expression(pattern: str, key: str) -> None:
    assert Pattern.glob(pattern).matches(key) == fits(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("a.b.*.c", ["a", "b"]), ("**", []), ("a.b", ["a"]), ("*.a", []), ("a.**", ["a"])],
)
def test_the_prefix_of_a_pattern_is_its_literal_beginning(pattern: str, prefix: list[str]) -> None:
    assert Pattern.glob(pattern).prefix == prefix


def test_a_wildcard_character_is_escaped_by_brackets() -> None:
    assert Pattern.glob("a[*]").matches("a*")
    assert not Pattern.glob("a[*]").matches("ab")
    assert Pattern.key("a*.**").prefix == ["a*", "**"]
    assert has_wildcards("a[1]")
    assert not has_wildcards("a.b")


@pytest.mark.parametrize("pattern", ["a**", "**b", "a.[", "[!]", "."])
def test_an_invalid_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        Pattern.glob(pattern)


def test_a_pattern_of_many_stars_is_matched_fast() -> None:
    assert not Pattern.glob("*a" * 1000 + "*b").matches("a" * 4000)


# ------------------------------------------------------------------------------------------------------------- the trie


patterns = st.one_of(keys.map(Pattern.key), keys.map(Pattern.below), globs.map(Pattern.glob))


def may_be_below(pattern: Pattern, key: str) -> bool:
    """Something below ``key`` may match: tried with all keys there are."""
    parts = split_key(key)
    return pattern.components[: len(parts)] == parts or any(
        pattern.matches(f"{key}.{'.'.join(more)}") for more in (("a",), ("b", "x"), ("ab", "k1", "x"), ("k12", "abc"))
    )


def trie_of(some: list[Pattern]) -> PatternTrie[int]:
    trie: PatternTrie[int] = PatternTrie()
    for number, pattern in enumerate(some):
        trie.add(pattern, number)
    return trie


def matches(trie: PatternTrie[int], changed: list[str], directories: bool) -> dict[int, None]:
    found = MatchSet(trie)
    for key in changed:
        found.add(key, lambda _: directories)
    return found.items


@given(st.lists(patterns, max_size=12), st.sets(st.integers(0, 11), max_size=6), st.lists(keys, min_size=1, max_size=3))
@settings(max_examples=100)
def test_the_trie_finds_what_a_changed_key_may_match(some: list[Pattern], gone: set[int], changed: list[str]) -> None:
    trie = trie_of(some)
    left = [number for number in range(len(some)) if number not in gone]
    for number in sorted(gone):
        if number < len(some):
            trie.remove(some[number], number)
    trie.check()
    assert len(trie) == len(left)
    found = matches(trie, changed, True)
    assert set(found) <= set(left)
    for number in left:
        pattern = some[number]
        must = any(pattern.matches(key) or may_be_below(pattern, key) for key in changed)
        must = must or (pattern.plain and any(key.startswith(f"{pattern.key_of_prefix}.") for key in changed))
        assert not must or number in found
    exactly = matches(trie, changed, False)
    for number in left:
        if any(some[number].matches(key) for key in changed):
            assert number in exactly


def test_a_key_of_equal_names_is_matched_with_many_double_stars_in_few_steps() -> None:
    trie = trie_of([Pattern.glob("**." + "a.**." * 12 + "b")])
    assert not matches(trie, [".".join("a" * 18)], False)
    assert trie.steps < 18 * 30
    assert list(matches(trie, [".".join("a" * 127) + ".b"], False)) == [0]


def test_the_trie_keeps_nothing_of_what_was_removed() -> None:
    trie: PatternTrie[int] = PatternTrie()
    for _ in range(3):
        some = [Pattern.glob(f"job.k{n}*.**.x") for n in range(50)]
        for number, pattern in enumerate(some):
            trie.add(pattern, number)
        trie.check()
        for number, pattern in enumerate(some):
            trie.remove(pattern, number)
    assert not list(trie.root.children())
    assert len(trie) == 0


def test_a_key_is_compared_with_few_of_many_wildcards() -> None:
    """Ten thousand components with wildcards in one node: a name is not tried with each."""
    trie: PatternTrie[int] = PatternTrie()
    tried = []

    for n in range(10_000):
        pattern = Pattern.glob(f"job.k{n}x*")
        wild = pattern.components[1]
        wild_matches = wild.matches
        wild.matches = lambda name, wild_matches=wild_matches: tried.append(name) or wild_matches(name)
        trie.add(pattern, n)
    assert list(matches(trie, ["job.k77x1"], False)) == [77]
    assert len(tried) == 1


# --------------------------------------------------------------------------------------------- a diff of what is wanted


trees = st.dictionaries(keys, st.integers(0, 3), max_size=12)


def without_conflicts(tree: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in tree.items() if not any(other.startswith(f"{key}.") for other in tree)}


@given(trees, trees, st.lists(patterns, min_size=1, max_size=4))
@settings(max_examples=100)
def test_a_filtered_diff_has_the_matching_changes_of_the_whole_diff(
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
        sent = everything(Diff(nodes, *refs, "", first))
        assert sent == [change for change in whole if first.matches(change[0])]
    sent = everything(Diff(nodes, *refs, "", trie_of(some)), limit=2, steps=3)
    for change in whole:
        if any(pattern.matches(change[0]) for pattern in some):
            assert change in sent


def everything(diff: Diff, **limits: int) -> list:
    found = []
    more = True
    while more:
        step = diff.advance(**limits)
        found += step.value
        more = step.more
    return found
