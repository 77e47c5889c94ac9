"""Patterns of keys, component by component.

    job.7.state      one key
    job.*.state      a component of any name; also with more around it: job.1*, job.?.state, job.[0-9]*.state, job.[!x]
    job.**           everything below job, and job itself if it is a value
    **.state         every key that ends with the component "state"

A wildcard matches within one component. ``**`` is a component of its own and matches any number of components, or none.
``[*]`` matches the character itself.

``Pattern`` follows a key down the tree as an automaton: a *state* is the set of positions in the pattern that the
components so far lead to. So a walk down the tree does not enter directories in which nothing can match::

    job.**.x    start (0)    "a" ─▶ ()    "job" ─▶ (1, 2)    "job.y" ─▶ (1, 2)    "job.x" ─▶ (1, 2, 3)
                3 is the end: a match
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from fnmatch import translate
from typing import Protocol, TypeVar

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import join_key, split_key

WILDCARDS = "*?["

PatternState = tuple[int, ...]
"""Positions in a pattern's components, ascending; their number is the end. Empty: nothing can match below."""

S = TypeVar("S")


class KeyFilter(Protocol[S]):
    """Filter of the keys that a walk reports: one pattern, or many. No key matches from an empty state."""

    @property
    def start(self) -> S: ...

    def step(self, state: S, name: str) -> S: ...

    def accepts(self, state: S) -> bool:
        """Return True if the key that led to this state is to be reported."""

    def may_match_below(self, state: S) -> bool:
        """Return True if a key below may have to be reported."""


class _Deep(Enum):
    DEEP = "**"


DEEP = _Deep.DEEP


class Wild:
    """A component with wildcards. Every name that matches begins with ``prefix`` and ends with ``suffix``."""

    __slots__ = ("matches", "prefix", "suffix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.matches: Callable[[str], object] = re.compile(translate(text)).match
        except re.error as error:
            raise InvalidRequest(f"invalid pattern: its component '{text}' has a {error.msg}") from None
        first = min(text.find(char) for char in WILDCARDS if char in text)
        last = max(text.rfind(char) for char in "*?]")
        self.prefix = text[:first]
        self.suffix = text[last + 1 :]


Component = str | Wild | _Deep


def has_wildcards(text: str) -> bool:
    return any(char in text for char in WILDCARDS)


class Pattern:
    """``prefix``: the literal components at the beginning; ``start``: the state below them.

    The prefix of a single key (``plain``) is all of it; of a directory (recursive) all but the ``**``; of a glob at
    most all but the last component, because a link there is matched, not followed.
    """

    __slots__ = ("_end", "_rest", "components", "plain", "prefix", "start")

    def __init__(self, components: list[Component], plain: bool = False) -> None:
        self.components = components
        self.plain = plain
        literal = 0
        while literal < len(components) - (not plain) and isinstance(components[literal], str):
            literal += 1
        self.prefix: list[str] = components[:literal]  # type: ignore[assignment]
        self._rest = components[literal:]
        self._end = len(self._rest)
        self.start: PatternState = self._closed([0])

    @classmethod
    def key(cls, key: str) -> Pattern:
        return cls(list(split_key(key)), plain=True)

    @classmethod
    def below(cls, key: str) -> Pattern:
        """Return the pattern of everything below a directory."""
        return cls([*split_key(key), DEEP])

    @classmethod
    def glob(cls, text: str) -> Pattern:
        """Parse a pattern. Raises InvalidRequest for an invalid pattern, InvalidKey for invalid components."""
        components: list[Component] = []
        for part in split_key(text):
            if part == DEEP.value:
                components.append(DEEP)
            elif "**" in part:
                raise InvalidRequest(
                    f"invalid pattern '{text}': '**' matches whole components, it cannot be part of '{part}'"
                )
            elif _open_bracket(part):
                raise InvalidRequest(
                    f"invalid pattern '{text}': no ']' ends its set of characters; '[[]' matches the character '[' itself"
                )
            else:
                components.append(Wild(part) if has_wildcards(part) else part)
        if not components:
            raise InvalidRequest("invalid pattern '.': give at least one component; '**' matches every key")
        return cls(components)

    @property
    def key_of_prefix(self) -> str:
        return join_key(self.prefix)

    def step(self, state: PatternState, name: str) -> PatternState:
        """Return the state of an entry, from that of its directory."""
        found: dict[int, None] = {}
        rest, end = self._rest, self._end
        for at in state:
            if at == end:
                continue
            component = rest[at]
            if component is DEEP:
                found[at] = None
            elif component == name if isinstance(component, str) else component.matches(name):
                found[at + 1] = None
        return self._closed(list(found))

    def _closed(self, positions: list[int]) -> PatternState:
        """Add the positions after each ``**``, which may match no component."""
        found = dict.fromkeys(positions)
        for at in positions:
            while at < self._end and self._rest[at] is DEEP:
                at += 1
                found[at] = None
        return tuple(sorted(found))

    def accepts(self, state: PatternState) -> bool:
        return bool(state) and state[-1] == self._end

    def may_match_below(self, state: PatternState) -> bool:
        return bool(state) and state[0] < self._end

    def matches(self, key: str) -> bool:
        parts = split_key(key)
        if parts[: len(self.prefix)] != self.prefix:
            return False
        state = self.start
        for part in parts[len(self.prefix) :]:
            state = self.step(state, part)
        return self.accepts(state)


def _open_bracket(part: str) -> bool:
    """Return True if a ``[`` is not closed. A ``]`` right after ``[`` or ``[!`` is a character of the set."""
    at = part.find("[")
    while at >= 0:
        begin = at + 1 + part.startswith("!", at + 1)
        end = part.find("]", begin + 1)
        if end < 0:
            return True
        at = part.find("[", end)
    return False
