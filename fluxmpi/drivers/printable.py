"""Text that is safe to show on a terminal: no byte of it can move the cursor, change the window, or reorder the line.

A terminal obeys control characters, and a value may hold any bytes. So what is shown on a terminal has them as escapes,
as ``ls`` and ``git`` do; what goes to a file or a pipe is not changed.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and newline, DEL
    "\x80-\x9f"  # C1: some terminals take U+009B for ESC [
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # they break a line, or change the order of its characters
    "\udc80-\udcff"  # a byte that is not UTF-8, as "surrogateescape" decodes it
    "]"
)
_UNSAFE_OR_NEWLINE = re.compile(f"{_UNSAFE.pattern[:-1]}\n]")


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Return ``text`` with ``\xNN`` for control characters and bytes that are not UTF-8, ``\uNNNN`` for other characters.

    Tabs and newlines are kept; with ``one_line``, a newline becomes ``\n``. Backslashes are not doubled: the result is
    to be read, not to be parsed.
    """
    return (_UNSAFE_OR_NEWLINE if one_line else _UNSAFE).sub(_escape, text)


def printable_json(text: str) -> str:
    r"""Return JSON that has the same meaning, with ``\uNNNN`` for all such characters."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0A:
        return "\\n"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
