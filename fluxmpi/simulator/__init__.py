"""The simulator: whole instances in one process, under a virtual clock, reproducible from one seed.

The brokers are the real ones; only what touches the world is a twin here::

    drivers/loop + mpi ── cluster + network      turns, batches, links that keep order; delays, pauses, kills
    drivers/clients    ── client                 the real protocol core of the client, over frames
    drivers/disk       ── disk                   files in memory, writes that fail
    drivers/launcher   ── launcher               processes that do what their command says

A run is ``plan`` (what the seed decides) → ``workload`` (what the clients do, by ``mixes``) → ``history`` (what they saw) →
``checkers`` (whether that is allowed). Two things watch from inside: ``ledger`` notes what the leader was given and answered,
and ``monitor`` looks at each broker after each step. ``replay`` makes the truth out of the ledger: it applies the commits to
plain dicts (``model``), and every version's tree must be equal to them.

``python -m fluxmpi.simulator --help`` runs seeds. Nothing here reads a clock, or has chance but a Random made from the seed.
"""
