"""The watchdog of ``ranks`` writes to the terminal's stderr, not to what pytest captures."""

from __future__ import annotations

import pytest
import ranks
from _pytest.faulthandler import fault_handler_stderr_fd_key


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    ranks.stderr = config.stash.get(fault_handler_stderr_fd_key, 2)
