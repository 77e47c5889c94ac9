"""The shapes of the tree."""

from __future__ import annotations

import pytest

from fluxmpi.errors import InvalidRequest
from fluxmpi.overlay.topology import FANOUT_MAX, depth, parents

SHAPES = ["kary:1", "kary:2", "kary:3", "kary:16", "kary:1024", "binomial", "flat"]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_has_a_parent_with_a_lower_number(shape):
    for size in range(1, 71):
        above = parents(shape, size)
        assert len(above) == size
        assert above[0] == -1
        assert all(0 <= parent < rank for rank, parent in enumerate(above) if rank)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ranks_parent_does_not_depend_on_the_size(shape):
    largest = parents(shape, 70)
    assert all(parents(shape, size) == largest[:size] for size in range(1, 70))


def test_the_parents_of_each_shape():
    assert parents("kary:2", 8) == [-1, 0, 0, 1, 1, 2, 2, 3]
    assert parents("kary:3", 8) == [-1, 0, 0, 0, 1, 1, 1, 2]
    assert parents("binomial", 9) == [-1, 0, 0, 2, 0, 4, 4, 6, 0]
    assert parents("flat", 4) == [-1, 0, 0, 0]
    assert parents("kary:1", 4) == [-1, 0, 1, 2]


def test_depths():
    assert [depth("kary:2", rank) for rank in (0, 1, 2, 3, 6, 7, 14, 15)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [depth("binomial", rank) for rank in (0, 1, 7, 8, 63)] == [0, 1, 3, 1, 6]
    assert max(depth("flat", rank) for rank in range(70)) == 1
    assert depth("kary:1", 69) == 69


@pytest.mark.parametrize(
    "shape",
    ["", "kary", "kary:", "kary:0", "kary:-1", f"kary:{FANOUT_MAX + 1}", "kary:2.0", "kary:²", "ring", "flat:2"],
)
def test_an_unknown_shape_is_named_in_the_error(shape):
    with pytest.raises(InvalidRequest, match="use kary:K"):
        parents(shape, 4)
