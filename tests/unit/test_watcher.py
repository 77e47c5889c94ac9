"""The state table of a watcher: each method's next state and cursor, and the transitions that are refused."""

from __future__ import annotations

import pytest
from machines import ask

from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.watcher import WatchClient, Watcher, WatcherState
from fluxmpi.kvs.wire import RootInfo, WatchRequest

WAITING, UNSYNCED, SYNCED, ENDED = WatcherState


def root(version: int, namespace: str = "primary") -> RootInfo:
    return RootInfo(namespace, version, b"root of %d" % version, 0.0)


def make(**options) -> Watcher:
    client = WatchClient(WatchLimits(queue_max=3))
    watcher = Watcher(ask("kvs.watch", tag=1), WatchRequest("a", **options), Pattern.key("a"), client)
    client.add(watcher)
    return watcher


def position(watcher: Watcher) -> tuple[WatcherState, int, list[int]]:
    watcher.check()
    return watcher.state, watcher.own.next_version, [match.root.version for match in watcher.pending]


def synced(version: int = 10, **options) -> Watcher:
    """A watcher that has evaluated this version."""
    watcher = make(**options)
    watcher.begin(root(version))
    watcher.move_to(watcher.take().root)
    return watcher


def test_a_watcher_begins_at_the_newest_version_or_at_after() -> None:
    watcher = make()
    assert position(watcher) == (WAITING, 0, [])
    watcher.begin(root(10))
    assert position(watcher) == (SYNCED, 11, [10])
    watcher = make(after=4)
    watcher.begin(root(10))
    assert position(watcher) == (UNSYNCED, 4, [])


def test_a_synced_watcher_accepts_matched_versions_once_and_in_order() -> None:
    watcher = synced()
    for version in (12, 12, 11, 15):
        assert watcher.accept(root(version))
    assert position(watcher) == (SYNCED, 16, [12, 15])
    assert watcher.accept(root(16))
    assert not watcher.accept(root(17)), "queue_max versions are pending"


def test_an_unsynced_watcher_reads_pages_until_the_log_has_no_later_version() -> None:
    watcher = make(after=8)
    watcher.begin(root(10))
    watcher.take_page([root(8), root(9)])
    assert watcher.accept(root(11)), "ignored: it is read from the log"
    assert position(watcher) == (UNSYNCED, 10, [8, 9])
    while watcher.take():
        pass
    watcher.take_page([root(10), root(11)])
    while watcher.take():
        pass
    watcher.catch_up(11)
    assert position(watcher) == (SYNCED, 12, [])


def test_a_watcher_falls_behind_when_the_index_gives_up() -> None:
    watcher = synced()
    watcher.accept(root(12))
    assert watcher.fall_behind(14, root(20))
    assert position(watcher) == (UNSYNCED, 14, [12]), "what is pending is evaluated first"
    watcher = synced()
    watcher.accept(root(21))
    assert watcher.fall_behind(14, root(20))
    assert position(watcher) == (SYNCED, 22, [21]), "it was given later versions already"


def test_mode_latest_keeps_one_pending_version() -> None:
    watcher = synced(latest=True)
    for version in (11, 13):
        watcher.accept(root(version))
    assert position(watcher) == (SYNCED, 14, [13])
    assert watcher.fall_behind(14, root(20))
    assert position(watcher) == (SYNCED, 21, [20])
    watcher = make(latest=True, after=4)
    watcher.begin(root(10))
    watcher.take_page([root(4)])
    watcher.move_to(watcher.take().root)
    watcher.skip_to(root(10))
    assert position(watcher) == (SYNCED, 11, [10])


def test_a_watcher_rewinds_to_the_version_after_the_one_under_evaluation() -> None:
    watcher = synced()
    watcher.add_cursor(root(3, "other"))
    watcher.accept(root(12))
    watcher.accept(root(4, "other"))
    watcher.rewind()
    assert position(watcher) == (UNSYNCED, 11, [4]), "versions of other namespaces stay"


def test_each_namespace_has_a_cursor() -> None:
    watcher = synced()
    watcher.add_cursor(root(3, "other"))
    watcher.accept(root(3, "other"))
    watcher.accept(root(5, "other"))
    assert position(watcher) == (SYNCED, 11, [5])
    assert watcher.cursors["other"].next_version == 6
    assert not watcher.fall_behind(6, root(9, "other")), "its log is not read"
    assert not watcher.unlink(RootInfo("other", 4, b"", 0.0)), "it exists again"
    assert watcher.unlink(RootInfo("other", 5, b"", 0.0))
    assert position(watcher) == (SYNCED, 11, [5, 5])


def test_a_watcher_restarts_after_the_first_version_was_collected() -> None:
    watcher = synced()
    watcher.restart()
    assert position(watcher) == (WAITING, 0, [])
    assert watcher.watch.at_least == 11


def test_an_ended_watcher_takes_nothing() -> None:
    watcher = synced()
    watcher.end()
    assert watcher.accept(root(11))
    assert watcher.fall_behind(11, root(12))
    assert not watcher.queue(progress=True)
    assert not watcher.start()
    assert position(watcher) == (ENDED, 11, [])


@pytest.mark.parametrize(
    ("make_watcher", "transition"),
    [
        (synced, lambda watcher: watcher.begin(root(11))),
        (synced, lambda watcher: watcher.take_page([root(11)])),
        (synced, lambda watcher: watcher.catch_up(10)),
        (make, lambda watcher: watcher.rewind()),
        (make, lambda watcher: watcher.skip_to(root(1))),
        (make, lambda watcher: watcher.restart()),
    ],
)
def test_other_transitions_raise_and_change_nothing(make_watcher, transition) -> None:
    watcher = make_watcher()
    before = position(watcher)
    with pytest.raises(AssertionError):
        transition(watcher)
    assert position(watcher) == before
