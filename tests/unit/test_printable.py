"""Text on a terminal: no character of it is obeyed, and nothing else is changed."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxmpi.drivers.printable import printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 日本, 🙂", "plain, é, 日本, 🙂"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\x08\x7f", "over\\x0dwritten\\x08\\x7f"),
        ("\x9b2J\x85", "\\u009b2J\\u0085"),
        ("abc\u202edef\u2066\u200f\u2028", "abc\\u202edef\\u2066\\u200f\\u2028"),
        (b"\xff\xc3".decode("utf-8", "surrogateescape"), "\\xff\\xc3"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_controls_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_is_one_line() -> None:
    assert printable("a\nb\tc", one_line=True) == "a\\nb\tc"


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text, one_line=True)
    assert all(character == "\t" or unicodedata.category(character) != "Cc" for character in shown)
    assert not any("\udc80" <= character <= "\udcff" for character in shown)
    assert all(unicodedata.bidirectional(character) not in {"LRO", "RLO", "LRE", "RLE", "PDF"} for character in shown)
    assert printable(shown, one_line=True) == shown


@given(st.text())
def test_json_stays_the_same_value(text: str) -> None:
    shown = printable_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(shown) == text
    assert not any(unicodedata.category(character) == "Cc" for character in shown)
