"""One instance of three brokers for all CLI tests: each test uses keys of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from instance import Instance


@pytest.fixture(scope="session")
def instance() -> Iterator[Instance]:
    with Instance(3) as running:
        yield running
