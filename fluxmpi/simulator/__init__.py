"""The simulator: whole instances in one process, under a virtual clock, reproducible from one seed.

The brokers are the real ones. Whatever touches the world is simulated::

    drivers/loop + mpi ── cluster + network      turns, batches, ordered links; delays, pauses, kills
    drivers/*          ── simulator/drivers      files, processes, memory segments and root pages in memory
    clients            ── workload               the client's real protocol core, over frames

A run is a ``plan`` (what the seed decides), executed by ``run``: ``workload`` draws what the clients do and records the
transcript; ``inspection`` checks what only an insider can see; ``judgement`` hands the transcript to ``checkers``,
which judge histories only, and judge the histories of real client processes as well. ``scenario`` plays one race from a
file.

May import everything below ``drivers`` and ``cli``. No clock is read, and all chance is a Random made from the seed.
Start with ``run``; ``python -m fluxmpi.simulator --help`` runs seeds.
"""
