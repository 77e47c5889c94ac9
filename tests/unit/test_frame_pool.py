"""The pool of unfinished frames: room, order of waiting, and stale reservations."""

from __future__ import annotations

from fluxmpi.drivers.frame_pool import NEVER, FramePool


def test_a_frame_without_room_waits_for_others_to_end_in_order():
    pool = FramePool[str](10, 30.0)
    assert [pool.reserve("a", 6, 0.0), pool.reserve("b", 4, 1.0)] == [True, True]
    assert not pool.reserve("c", 5, 2.0)
    assert not pool.reserve("d", 1, 2.0), "a shorter one does not overtake"
    assert (pool.bytes, pool.waiting, pool.waits("c"), pool.holds("c")) == (10, 2, True, False)
    assert pool.release("b", 3.0) == []
    assert pool.release("a", 3.0) == ["c", "d"]
    assert (pool.bytes, pool.waiting) == (6, 0)
    assert [pool.release(owner, 4.0) for owner in "cda"] == [[], [], []]
    assert pool.bytes == 0


def test_who_gives_up_waiting_lets_the_next_one_in():
    pool = FramePool[str](10, 30.0)
    pool.reserve("a", 6, 0.0)
    pool.reserve("b", 5, 0.0)
    pool.reserve("c", 4, 0.0)
    assert pool.release("b", 1.0) == ["c"]
    assert pool.bytes == 10


def test_a_frame_is_stale_only_while_others_wait():
    pool = FramePool[str](10, 30.0)
    pool.reserve("a", 6, 0.0)
    pool.reserve("b", 2, 5.0)
    assert (pool.deadline, pool.stale(100.0)) == (NEVER, None)
    pool.reserve("c", 5, 10.0)
    assert (pool.deadline, pool.stale(29.0), pool.stale(30.0)) == (30.0, None, ("a", 6))
    assert pool.release("a", 30.0) == ["c"]
    assert (pool.deadline, pool.stale(100.0)) == (NEVER, None)


def test_a_frame_longer_than_the_pool_takes_all_of_it():
    pool = FramePool[str](10, 30.0)
    assert pool.reserve("a", 100, 0.0)
    assert not pool.reserve("b", 1, 0.0)
    assert pool.release("a", 0.0) == ["b"]
