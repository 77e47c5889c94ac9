"""The log of versions, against a plain dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import RootInfo


def root(version: int) -> RootInfo:
    return RootInfo("ns", version, b"%d" % (version % 3), version / 2)


@given(st.integers(0, 5), st.lists(st.integers(-40, 3), max_size=60))
def test_a_log_equals_a_dict_of_its_versions(first: int, steps: list[int]) -> None:
    """A negative step compacts so many versions; another one skips so many before the next."""
    log, plain, version, oldest = VersionLog("ns", first), {}, first, first
    for step in steps:
        if step < 0:
            count = min(-step, len(log))
            log.compact(count)
            oldest += count
            plain = {number: commits for number, commits in plain.items() if number >= oldest}
        else:
            version += step
            log.append(root(version), version % 5)
            plain[version] = version % 5
            version += 1
        log.check()
        assert list(log) == list(plain)
        assert (log.first, log.last) == (oldest, version - 1)
        assert {number: log.commits(number) for number in log} == plain
        assert all(log[number] == root(number) for number in log)
        assert all(log.get(number) is None for number in range(first - 1, version + 2) if number not in plain)


@given(st.integers(1, 30), st.integers(0, 29))
def test_versions_are_found_by_time_and_by_root(count: int, compacted: int) -> None:
    log = VersionLog("ns", 10)
    for version in range(10, 10 + count):
        log.append(root(version))
    compacted = min(compacted, count - 1)
    log.compact(compacted)
    first = 10 + compacted
    for half in range(2 * first - 3, 2 * (10 + count) + 3):
        kept = [version for version in range(first, 10 + count) if version / 2 <= half / 4]
        assert log.newest_at(half / 4, first) == max(kept, default=first - 1)
        assert log.newest_at(half / 4 + 7, first, 7.0) == max(kept, default=first - 1)
    for ref in (b"0", b"1", b"2", b"3"):
        same = [version for version in range(first, 10 + count) if b"%d" % (version % 3) == ref]
        assert log.newest_with(ref, first) == max(same, default=None)
