"""Sizes in bytes, as options take them and messages show them."""

from __future__ import annotations

import click
import pytest

from fluxmpi.cli.common import Size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("512K", 512 << 10), ("64M", 64 << 20), ("64m", 64 << 20), ("1.5G", 3 << 29),
        ("2T", 2 << 40), ("64MiB", 64 << 20), ("64 MB", 64 << 20), ("1e3", 1000), ("100B", 100),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1MM", "nan", "inf", "64 M x", "9" * 30])
def test_what_is_no_size(text):
    with pytest.raises(click.BadParameter, match="use a number of bytes, or 512K, 64M"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 byte"), (1000, "1000 bytes"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (1536, "1.5 KiB")],
)
def test_shown_sizes(size, text):
    assert size_text(size) == text
