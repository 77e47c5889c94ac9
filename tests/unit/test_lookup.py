"""Lookups and listings compared with plain models, with blobs that are hidden until a walk asks for them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import SHA256, Blobs, Hidden, build, build_model, flatten, make_nodes, names_of_level, run, val

from fluxmpi import errors
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, split_key
from fluxmpi.kvs.store.listing import Listing
from fluxmpi.kvs.store.lookup import Descent, Lookup
from fluxmpi.kvs.store.node import MISSING_MAX, Found, Inner, Leaf, Missing, NodeCache, level

NAMES = [f"n{index}" for index in range(3000)]


def no_roots(namespace):
    raise AssertionError(f"namespace {namespace} was asked for")


def lookup(entries, key, follow=True, root_of=no_roots):
    nodes, _ = make_nodes()
    return Lookup(nodes, root_of, "primary", build(nodes, entries), split_key(key), follow)


def get(entries, key, follow=True):
    return lookup(entries, key, follow).advance()


# ------------------------------------------------------------------------------------------------------------- lookup


def test_an_existing_key_is_found():
    entries = {"a": val(1), "b.c.d": val(2)}
    assert get(entries, "a") == Found(val(1))
    assert get(entries, "b.c.d") == Found(val(2))
    assert type(get(entries, "b.c").value) is Dir


def test_the_root_is_a_directory():
    nodes, _ = make_nodes()
    root = build(nodes, {"a": val(1)})
    assert Lookup(nodes, no_roots, "primary", root, []).advance() == Found(Dir(root))


@pytest.mark.parametrize("key", ["b", "a.b", "a.b.c", "d.x", "z", "d.x.y"])
def test_a_missing_key_is_none_also_below_a_value(key):
    assert get({"a": val(1), "d.e": val(2)}, key) == Found(None)


def test_all_names_of_a_large_directory_and_missing_ones_between():
    nodes, _ = make_nodes()
    root = build(nodes, NAMES[::2])
    for index, name in enumerate(NAMES):
        walk = Lookup(nodes, no_roots, "primary", root, [name])
        assert walk.advance() == Found(None if index % 2 else val(name))


def test_links_are_followed_at_the_end_only_if_wanted():
    entries = {"dir.x": val(1), "link": Link("dir"), "end": Link("link.x")}
    walk = lookup(entries, "end")
    assert walk.advance() == Found(val(1))
    assert (walk.links_followed, walk.namespace, walk.resolved_key) == (2, "primary", "dir.x")
    assert get(entries, "end", follow=False) == Found(Link("link.x"))
    assert get(entries, "link.x", follow=False) == Found(val(1))
    assert get(entries, "link.y") == Found(None)


def test_a_link_to_the_root_and_a_dangling_one():
    entries = {"up": Link("."), "x": val(1), "gone": Link("no.such")}
    assert get(entries, "up.up.x") == Found(val(1))
    assert type(get(entries, "up").value) is Dir
    assert get(entries, "gone") == Found(None)
    assert get(entries, "gone", follow=False) == Found(Link("no.such"))


def test_a_descent_ends_at_the_first_link():
    nodes, _ = make_nodes()
    root = build(nodes, {"a.link": Link("x"), "x.y": val(1)})
    assert Descent(nodes, root, ["a", "link", "y"]).advance() == Found(Link("x"))
    assert Descent(nodes, root, ["x", "y"]).advance() == Found(val(1))
    assert Descent(nodes, root, ["x", "y", "z"]).advance() == Found(None), "a value is on the way"
    descent = Descent(NodeCache(Blobs(), SHA256), root, ["a", "link", "y"])
    assert descent.advance() == Missing([root])
    assert descent.remaining == ["a", "link", "y"]


def test_link_loops_end_and_links_max_are_followed():
    with pytest.raises(errors.LinkLoop, match="links"):
        get({"a": Link("b"), "b": Link("a")}, "a")
    with pytest.raises(errors.LinkLoop):
        get({"a": Link("a.a")}, "a.x")
    chain = {f"l{index}": Link(f"l{index + 1}") for index in range(LINKS_MAX)} | {f"l{LINKS_MAX}": val(1)}
    assert get(chain, "l0") == Found(val(1))
    with pytest.raises(errors.LinkLoop):
        get(chain | {"first": Link("l0")}, "first")


def test_empty_components_of_keys_and_targets_are_left_out():
    entries = {"a.b": val(1), "l": Link("..a...b.")}
    assert get(entries, "..a.....b...") == get(entries, ".l") == Found(val(1))


def test_a_link_to_an_invalid_key():
    with pytest.raises(errors.InvalidKey):
        get({"a": Link("b\0c")}, "a")


def test_a_link_into_another_namespace_and_back():
    nodes, _ = make_nodes()
    roots = {"other": build(nodes, {"d.back": Link("x", "primary"), "d.own": Link("d.y"), "d.y": val("other")})}
    asked = []

    def root_of(namespace):
        asked.append(namespace)
        return roots.get(namespace)

    root = build(nodes, {"there": Link("d", "other"), "x": val("primary"), "lost": Link("a", "none")})
    walk = Lookup(nodes, root_of, "primary", root, ["there", "own"])
    assert walk.advance() == Found(val("other"))
    assert (walk.namespace, walk.resolved_key, walk.links_followed) == ("other", "d.y", 2)
    assert Lookup(nodes, root_of, "primary", root, ["there", "back"]).advance() == Found(val("primary"))
    assert asked == ["other", "other"], "a walk stays at the root that it began with"
    with pytest.raises(errors.NoSuchNamespace, match="none"):
        Lookup(nodes, root_of, "primary", root, ["lost"]).advance()


def test_a_suspended_walk_continues_at_its_position():
    full, store = make_nodes()
    entries = {f"a.b.{name}": val(name) for name in NAMES} | {"l": Link("a")}
    root = build(full, entries)
    hidden = Hidden(store)
    nodes = NodeCache(hidden, SHA256)
    walk = Lookup(nodes, no_roots, "primary", root, ["l", "b", "n77"])
    waits = 0
    while isinstance(answer := walk.advance(), Missing):
        waits += 1
        assert walk.advance() == answer, "without the blob it keeps its position"
        hidden.shown.clear()  # drop the nodes that it has passed: it must not need them again
        nodes.clear()
        hidden.reveal(answer.refs)
    assert answer == Found(val("n77"))
    assert waits == 5
    assert len(hidden.asked) == len(set(hidden.asked)), "a node was read again"


def test_a_wrong_child_and_a_blob_that_is_not_a_node():
    nodes, store = make_nodes()
    leaf = nodes.insert(Leaf(["a", "b"], [val(1), val(2)]))
    root = nodes.insert(Inner(2, ["b", "c"], [leaf, leaf]))
    store[b"\1" * 32] = b"\1"
    for walk in (
        Lookup(nodes, no_roots, "primary", root, ["a"]),
        Lookup(nodes, no_roots, "primary", b"\1" * 32, ["a"]),
        Listing(nodes, root),
        Listing(nodes, b"\1" * 32),
    ):
        with pytest.raises(errors.ProtocolError):
            walk.advance()


components = st.sampled_from(["a", "b", "c", "lnk", "é", *names_of_level(1, 2)])
targets = st.lists(components, max_size=3).map(lambda parts: ".".join(parts) or ".")
things = st.integers(0, 3).map(val) | st.builds(Link, targets)
models = st.recursive(
    st.dictionaries(components, things, max_size=5),
    lambda inner: st.dictionaries(components, inner | things, max_size=5),
    max_leaves=20,
)


def naive(model, parts, follow, links=0):
    """The object, a dict for a directory, or None for no such key; the string 'loop' for a LinkLoop."""
    if links > LINKS_MAX:
        return "loop"
    thing = model
    for index, part in enumerate(parts):
        if not isinstance(thing, dict) or part not in thing:
            return None
        thing = thing[part]
        if isinstance(thing, Link) and (follow or index + 1 < len(parts)):
            return naive(model, split_key(thing.target) + parts[index + 1 :], follow, links + 1)
    return thing


@given(models, st.lists(components, max_size=4), st.booleans())
@settings(max_examples=250)
def test_lookups_equal_a_naive_walk_also_when_suspended(model, parts, follow):
    full, store = make_nodes()
    root = build_model(full, model)
    hidden = Hidden(store)
    walk = Lookup(NodeCache(hidden, SHA256), no_roots, "primary", root, parts, follow)
    expected = naive(model, parts, follow)
    if expected == "loop":
        with pytest.raises(errors.LinkLoop):
            run(walk, hidden)
        return
    found = run(walk, hidden).value
    if isinstance(expected, dict):
        assert found == Dir(build_model(full, expected))
    else:
        assert found == expected


# ------------------------------------------------------------------------------------------------------------ listing


def pages(nodes, root, hidden=None, **arguments):
    """All pages of a directory, each by a listing of its own."""
    after, entries = arguments.pop("after", ""), []
    while True:
        found = run(Listing(nodes, root, after=after, **arguments), hidden)
        entries += found.value
        if not found.more:
            return entries
        assert len(found.value) == arguments["limit"]
        after = found.value[-1][0]


def test_a_listing_is_ordered_and_complete():
    nodes, _ = make_nodes()
    root = build(nodes, NAMES)
    assert Listing(nodes, root, limit=5000).advance() == Found([(name, val(name)) for name in sorted(NAMES)])
    assert Listing(nodes, build(nodes, [])).advance() == Found([])


def test_a_listing_shows_directories_and_links_as_they_are():
    nodes, _ = make_nodes()
    entries = dict(Listing(nodes, build(nodes, {"d.x": val(1), "l": Link("d")})).advance().value)
    assert type(entries["d"]) is Dir
    assert entries["l"] == Link("d")


def test_a_listing_continues_after_its_limit():
    nodes, _ = make_nodes()
    walk = Listing(nodes, build(nodes, NAMES[:100]), limit=7)
    entries = []
    while True:
        found = walk.advance()
        entries += found.value
        if not found.more:
            break
    assert [name for name, _ in entries] == sorted(NAMES[:100])
    assert walk.advance() == Found([])


def test_a_limit_of_zero_is_refused():
    nodes, _ = make_nodes()
    with pytest.raises(errors.InvalidRequest, match="limit"):
        Listing(nodes, build(nodes, []), limit=0)


def test_a_listing_reads_only_the_nodes_that_it_needs():
    nodes, store = make_nodes()
    root = build(nodes, [f"{name:06d}" for name in range(20000)])
    hidden = Hidden(store)
    found = run(Listing(NodeCache(hidden, SHA256), root, prefix="01234"), hidden)
    assert [name for name, _ in found.value] == [f"{name:06d}" for name in range(12340, 12350)]
    assert len(hidden.asked) <= 8
    hidden = Hidden(store)
    found = run(Listing(NodeCache(hidden, SHA256), root, after="015000", limit=20), hidden)
    assert [name for name, _ in found.value] == [f"{name:06d}" for name in range(15001, 15021)]
    assert len(hidden.asked) <= 12


def test_a_long_listing_asks_for_many_nodes_at_once():
    nodes, store = make_nodes()
    root = build(nodes, NAMES)
    hidden = Hidden(store)
    walk = Listing(NodeCache(hidden, SHA256), root, limit=5000)
    batches = []
    while isinstance(answer := walk.advance(), Missing):
        batches.append(len(answer.refs))
        hidden.reveal(answer.refs)
    assert len(answer.value) == 3000
    assert max(batches) <= MISSING_MAX
    assert len(batches) <= 25 < len(hidden.asked) / 5


def test_a_listing_asks_for_at_most_missing_max_nodes():
    nodes, store = make_nodes()
    wide = build(nodes, [f"n{index}" for index in range(40_000) if level(f"n{index}") < 2])
    assert max(len(nodes.node(ref).names) for ref in store) > 2 * MISSING_MAX
    hidden = Hidden(store)
    walk = Listing(NodeCache(hidden, SHA256), wide, limit=10**6)
    while isinstance(answer := walk.advance(), Missing):
        assert len(answer.refs) <= MISSING_MAX
        hidden.reveal(answer.refs)


@given(
    st.sets(st.sampled_from(NAMES[:400]), max_size=150),
    st.sampled_from(["", "n", "n1", "n12", "n123", "n9", "o", "m"]),
    st.sampled_from(["", "a", "n1", "n123", "n2", "n25", "z"]),
    st.integers(1, 40),
)
@settings(max_examples=200)
def test_listings_equal_a_naive_one_also_when_suspended(names, prefix, after, limit):
    full, store = make_nodes()
    root = build(full, names)
    hidden = Hidden(store)
    entries = pages(NodeCache(hidden, SHA256), root, hidden, prefix=prefix, after=after, limit=limit)
    assert entries == [(name, val(name)) for name in sorted(names) if name > after and name.startswith(prefix)]


def test_flatten_and_listings_agree():
    nodes, _ = make_nodes()
    model = {"a": {"b": val(1)}, "c": val(2)}
    assert [key for key, _ in flatten(model)] == ["a", "a.b", "c"]
    assert [name for name, _ in Listing(nodes, build_model(nodes, model)).advance().value] == ["a", "c"]
