"""Known reasons for missed targets. RESULTS.md lists them for the rows that miss their target.

A key is that of a row, or a prefix of several. A reason states what was measured, not what is assumed.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    "fence.8": (
        "a fence needs 3 ms of processor time in 16 processes (see above), so at least 1.5 ms on two cores. About 20"
        " wake-ups of brokers take 0.1 ms each, among 15 other processes. Plain processes that wake one another in"
        " the same order need 0.22 ms."
    ),
    "fence.32": (
        "a fence needs 9.6 ms of processor time in 40 processes, so at least 4.8 ms on two cores. Brokers wake up 45"
        " times, since members arrive one by one; a wake-up takes 0.1 ms among 39 other processes. In one warm process,"
        " without MPI and sockets, all brokers together need 0.73 ms for the same messages."
    ),
}


def reason(key: str) -> str:
    """Return the reason for the row ``key``, or an empty string."""
    found = [begin for begin in REASONS if key.startswith(begin)]
    return REASONS[max(found, key=len)] if found else ""
