"""Why a figure is short of what must be reached, where that was found out: told in RESULTS.md for the rows that are short.

By the key of a row, or what several keys begin with. A reason says what was measured, not what is supposed.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    "fence.8": (
        "the 16 processes use 3 ms of processor time for it (see above), so two cores need 1.5 ms: some 20 wake-ups of"
        " brokers take 0.1 ms each, in the middle of 15 other processes. Bare processes that wake one another in"
        " the same order take 0.22 ms."
    ),
    "fence.32": (
        "40 processes use 9.6 ms of processor time for it, so two cores need 4.8 ms. Brokers wake 45 times, since members come"
        " one by one; a wake-up takes 0.1 ms in the middle of 39 other processes. In one warm process, without MPI and"
        " sockets, all brokers together take 0.73 ms for the same messages."
    ),
}


def reason(key: str) -> str:
    """For the row ``key``; empty when there is none."""
    found = [begin for begin in REASONS if key.startswith(begin)]
    return REASONS[max(found, key=len)] if found else ""
