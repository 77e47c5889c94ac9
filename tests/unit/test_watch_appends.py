"""A watch of one key is told what each append of a version added; a value that was written anew is not an append."""

from __future__ import annotations

import pytest
from machines import body, put
from test_watch_rewrites import commit_many
from test_watch_service import updates
from world import World, val

from fluxmpi.kvs.objects import Link
from fluxmpi.kvs.wire import Append, Mkdir, Put, Setroot, Unlink


@pytest.fixture
def world():
    made = World()
    made.commit(Put("a", val("abc")))
    return made


def appends(out):
    return [(change.key, change.appends) for note in updates(out) for change in note.changes]


def test_each_append_of_a_version_is_told(world):
    assert appends(world.watch("a", uniq=False)) == [("a", None)], "the value now"
    assert appends(world.commit(Append("a", b"d"))) == [("a", [1])]
    assert appends(world.commit(Append("a", b"ef"), Append("b", b"xyz"), Append("a", b""))) == [("a", [2, 0])]
    assert appends(world.commit(Append("a", b""))) == [("a", [0])]


@pytest.mark.parametrize(
    "ops",
    [
        [Put("a", val("abcd"))],
        [Put("a", val("abc"))],
        [Put("a", val("abc")), Append("a", b"d")],
        [Append("a", b"d"), Put("a", val("abcd"))],
        [Unlink("a"), Append("a", b"abcd")],
    ],
)
def test_a_value_that_was_written_anew_is_no_append(world, ops):
    world.watch("a", uniq=False)
    assert appends(world.commit(*ops)) == [("a", [])]


def test_appends_below_a_directory_that_was_removed(world):
    world.commit(Put("d.log", val("x")))
    world.watch("d.log")
    assert appends(world.commit(Unlink("d"), Append("d.log", b"xy"))) == [("d.log", [])]
    assert appends(world.commit(Mkdir("e"), Append("d.log", b"z"))) == [("d.log", [1])]


def test_a_key_that_an_append_created(world):
    world.watch("new")
    assert appends(world.commit(Append("new", b"x"), Append("new", b"y"))) == [("new", [1, 1])]


def test_appends_through_a_link_are_told_unless_the_link_changed(world):
    world.commit(Put("l", Link("a")), Put("b", val("abc")))
    world.watch("l")
    assert appends(world.commit(Append("a", b"d"))) == [("l", [1])]
    assert appends(world.commit(Put("l", Link("b")), Append("b", b"de"))) == [("l", [])], "b was something else"


def test_a_setroot_names_appends_only_if_it_names_keys(world):
    made = world.make(Append("a", b"d"), Append("a", b"e"))
    assert (body(made, Setroot).keys, body(made, Setroot).appends) == (["a", "a"], {"a": [1, 1]})
    assert body(world.make(put("b", 1)), Setroot).appends is None


def test_of_a_version_of_very_many_keys_appends_are_not_known(world):
    world.watch("a")
    assert appends(commit_many(world, Append("a", b"d"))) == [("a", None)]
