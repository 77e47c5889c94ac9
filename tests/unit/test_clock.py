"""The clock of a broker: a correction of the system's time does not move it."""

from __future__ import annotations

from fluxmpi.drivers.clock import Clock


def test_a_clock_that_is_set_back_or_forwards_does_not_move_it():
    wall, running = [1000.0], [50.0]
    clock = Clock(lambda: wall[0], lambda: running[0])
    assert clock.now() == 1000.0
    wall[0] = 10.0
    running[0] += 2.5
    assert clock.now() == 1002.5
    wall[0] = 1e9
    assert clock.now() == 1002.5
