"""Objects and keys: the encoding, which is part of every ref, and the rules of keys."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxmpi.errors import FluxmpiError, InvalidKey
from fluxmpi.kvs.objects import (
    KEY_BYTES_MAX,
    KEY_DEPTH_MAX,
    Dir,
    Link,
    Object,
    Val,
    ValRef,
    join_key,
    split_key,
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Object).decode


@pytest.mark.parametrize(
    ("thing", "encoded"),
    [
        (Val("raw", b"ab"), "9300a3726177c4026162"),
        (ValRef("json", 300, (b"\1\2", b"\3")), "9401a46a736f6ecd012c92c4020102c40103"),
        (Dir(b"\1\2"), "9202c4020102"),
        (Link("a.b"), "9303a3612e62c0"),
        (Link("a", "ns"), "9303a161a26e73"),
    ],
)
def test_the_encoding_does_not_change_because_refs_depend_on_it(thing, encoded):
    assert encode(thing).hex() == encoded
    assert decode(bytes.fromhex(encoded)) == thing


def test_objects_of_different_kinds_are_not_equal():
    assert Val("raw", b"") != Dir(b"")
    assert Val("raw", b"") != Val("json", b"")
    assert hash(Val("raw", b"")) == hash(Val("raw", b""))


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (".", []),
        ("a", ["a"]),
        ("a.b.c", ["a", "b", "c"]),
        ("job.", ["job"]),
        ("a b.\n.é\U0001f600", ["a b", "\n", "é\U0001f600"]),
        (".".join("x" * KEY_DEPTH_MAX), ["x"] * KEY_DEPTH_MAX),
        ("x" * KEY_BYTES_MAX, ["x" * KEY_BYTES_MAX]),
        (".a", ["a"]),
        ("a.", ["a"]),
        ("a..b", ["a", "b"]),
        ("...a", ["a"]),
        ("a...", ["a"]),
        (".a....b.c..", ["a", "b", "c"]),
        ("..", []),
        ("....", []),
        ("." * KEY_DEPTH_MAX + "x", ["x"]),
    ],
)
def test_valid_keys(key, parts):
    assert split_key(key) == parts
    assert split_key(join_key(parts)) == parts


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "UTF-8"),
        ("x" * (KEY_BYTES_MAX + 1), "bytes"),
        ("é" * (KEY_BYTES_MAX // 2 + 1), "bytes"),
        (".".join("x" * (KEY_DEPTH_MAX + 1)), "components"),
    ],
)
def test_invalid_keys_are_refused_with_a_reason(key, reason):
    with pytest.raises(InvalidKey, match=reason):
        split_key(key)


@given(st.text(st.characters(blacklist_categories=[]), max_size=30) | st.text(".a\0é\ud800", max_size=10))
def test_any_text_is_a_key_or_a_fluxmpi_error(text):
    try:
        parts = split_key(text)
    except FluxmpiError:
        return
    assert all(part and "." not in part and "\0" not in part for part in parts)
    assert split_key(join_key(parts)) == parts
    for part in parts:
        part.encode()
