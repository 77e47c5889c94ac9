"""Next hops: every pair of ranks, in every shape, along the tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxmpi.errors import NoSuchRank, RankLost
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.topology import parents

SHAPES = ["kary:1", "kary:2", "kary:3", "kary:16", "binomial", "flat"]


def tree_path(above: list[int], source: int, target: int) -> list[int]:
    """The path, computed by climbing from both ends, without a table."""
    up, down = [source], [target]
    while up[-1] != down[-1]:
        if up[-1] > down[-1]:
            up.append(above[up[-1]])
        else:
            down.append(above[down[-1]])
    return up + down[-2::-1]


def routed_path(routers: list[Router], source: int, target: int) -> list[int]:
    path = [source]
    while path[-1] != target:
        path.append(routers[path[-1]].next_hop(target))
        assert len(path) <= len(routers), f"{source} to {target} goes round: {path}"
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 16, 17, 31, 32, 33, 70])
def test_every_pair_is_routed_along_the_tree(shape, size):
    above = parents(shape, size)
    routers = [Router(rank, size, shape) for rank in range(size)]
    for router in routers:
        router.check()
        near = {above[router.rank]} - {-1} | {rank for rank in range(size) if above[rank] == router.rank}
        assert set(router.neighbours()) == near
    for source in range(size):
        for target in range(size):
            assert routed_path(routers, source, target) == tree_path(above, source, target)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_up_to_70(shape):
    """The table of each rank agrees with the climbed path: the next hop is its second rank."""
    for size in range(1, 71):
        above = parents(shape, size)
        for rank in range(0, size, 3):
            router = Router(rank, size, shape)
            for target in range(size):
                assert router.next_hop(target) == tree_path(above, rank, target)[:2][-1]


def test_ranks_outside_the_instance_are_refused():
    router = Router(1, 4)
    for rank in (-1, -2, 4, 1 << 40):
        with pytest.raises(NoSuchRank, match=f"rank {rank} does not exist: the instance has ranks 0 to 3"):
            router.next_hop(rank)
    with pytest.raises(NoSuchRank):
        Router(4, 4)


@given(st.sampled_from(SHAPES), st.integers(2, 40), st.data())
def test_a_lost_rank_is_never_a_next_hop(shape, size, data):
    router = Router(data.draw(st.integers(0, size - 1)), size, shape)
    lost = data.draw(st.lists(st.integers(0, size - 1), max_size=5))
    for rank in lost:
        known = rank in router.lost or rank == router.rank
        assert router.mark_lost(rank, "test") is not known
    router.check()
    assert not set(router.neighbours()) & set(router.lost)
    for target in range(size):
        path = tree_path(router.parents, router.rank, target)
        if set(path[1:2]) & set(lost) or target in router.lost:
            with pytest.raises(RankLost, match="is gone: test"):
                router.next_hop(target)
        else:
            assert router.next_hop(target) == path[:2][-1]


def test_the_error_names_the_lost_rank_on_the_path():
    router = Router(0, 8)
    router.mark_lost(1, "no heartbeat")
    with pytest.raises(RankLost, match="rank 3 cannot be reached: rank 1 on the path is gone: no heartbeat"):
        router.next_hop(3)
    with pytest.raises(RankLost, match="rank 1 is gone: no heartbeat"):
        router.next_hop(1)
    assert router.next_hop(2) == 2
    assert not router.mark_lost(1, "other")
    assert router.lost == {1: "no heartbeat"}, "the first reason is kept"
    assert router.statistics() == {"size": 8, "children": 2, "lost": 1}
