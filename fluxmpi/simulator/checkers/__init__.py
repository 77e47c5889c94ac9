"""Checkers: they judge histories only, that is what clients asked and were answered.

``history`` is the common form, ``model`` the store as plain dicts, ``replay`` makes versions out of a history;
``reads``, ``sessions``, ``snapshots``, ``watches``, ``commits``, ``events``, ``blobs`` and ``linearizability`` each
check their rules; ``judge`` runs them all. ``from_wire`` makes the plain form out of message records. The simulator
uses them on its runs, the tests on real processes. They import no other package of the simulator, and no machine of a
broker. Start with ``judge``.
"""
