"""Why a figure is short of what must be reached, where that was found out: told in RESULTS.md for the rows that are short.

By the key of a row, or what several keys begin with. A reason says what was measured, not what is supposed.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    "fence.8": (
        "a fence costs 2.5 to 3 ms of processor time in the 16 processes, of which two cores do not do two at a time all the"
        " while: 0.1 ms in each client, where the same code takes 0.03 ms warm and alone, and 0.4 ms at rank 0. Bare processes"
        " that wake one another in the same order take 0.22 ms."
    ),
    "fence.32": (
        "6.4 ms of processor time at the least, half of it in the 32 clients, on two cores. Sleeping and waking alone takes 0.3"
        " to 0.8 ms."
    ),
}


def reason(key: str) -> str:
    """For the row ``key``; empty when there is none."""
    found = [begin for begin in REASONS if key.startswith(begin)]
    return REASONS[max(found, key=len)] if found else ""
