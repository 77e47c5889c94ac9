"""Simulated drivers: DISK, LAUNCHER, SEGMENTS and PAGE in memory, under the virtual clock.

Each takes the messages of its counterpart in ``fluxmpi.drivers`` and answers with the same messages, after a delay.
They may import the wire records of the services and ``simulator.schedule``; nothing else of the simulator.
Start with ``disk``.
"""
