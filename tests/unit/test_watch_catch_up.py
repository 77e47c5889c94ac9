"""A watch after a version, and one from the beginning, against a model: plain dicts, one for each version."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, NOW, body, put
from world import World

from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.wire import Notification, Unlink
from fluxmpi.message import CONTROL

KEYS = ["a", "d.a", "d.b", "d.e.a", "job.1.s", "job.2.s", "job.2.x"]
PATTERNS = ["d.*", "**", "job.*.s", "**.a", "d.**", "job.[2-9].?", "a"]

commits = st.lists(
    st.dictionaries(st.sampled_from(KEYS), st.integers(-1, 2), min_size=1, max_size=3), min_size=1, max_size=8
)
"""Of each commit, key to value; -1 removes it."""


def model(history: list[dict[str, int]]) -> list[dict[str, int]]:
    states: list[dict[str, int]] = [{}]
    for commit in history:
        state = {**states[-1], **commit}
        states.append({key: value for key, value in state.items() if value >= 0})
    return states


def notified(messages: list) -> list[tuple[int, dict[str, tuple]]]:
    found = []
    for note in (body(msg, Notification) for msg in messages):
        changes = {change.key: (number(change.object), number(change.old)) for change in note.changes}
        if changes:
            found.append((note.version, changes))
    return found


def number(obj: object) -> int | None:
    return int(obj.data) if isinstance(obj, Val) else None


@given(commits, st.sampled_from(PATTERNS), st.integers(0, 8), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_watch_after_a_version_gets_the_changes_of_each_later_version(
    history: list, text: str, since: int, latest: bool
) -> None:
    world = World()
    pattern = Pattern.glob(text)
    since = min(since, len(history))
    live = [msg for msg in world.watch(text, glob=True, tag=1, hop=CLIENT) if msg.kind != CONTROL]
    for commit in history:
        live += world.commit(*(Unlink(key) if value < 0 else put(key, value) for key, value in commit.items()))
    states = model(history)

    def difference(old: dict[str, int], new: dict[str, int]) -> dict[str, tuple]:
        keys = [key for key in {**old, **new} if pattern.matches(key) and old.get(key) != new.get(key)]
        return {key: (new.get(key), old.get(key)) for key in keys}

    expected = [(version, difference(states[version - 1], states[version])) for version in range(1, len(states))]
    expected = [entry for entry in expected if entry[1]]
    assert notified(live) == expected
    replayed = world.watch(text, glob=True, tag=2, after=since, latest=latest)
    if latest:
        whole = difference(states[since], states[-1])
        assert notified(replayed) == ([(len(history), whole)] if whole else [])
    else:
        assert notified(replayed) == [entry for entry in expected if entry[0] > since]
    assert body(replayed[0], Notification).version == since
    assert world.kvs.deadline > NOW
