"""The tree of brokers: topology, routing, failure detection, and events.

Owns the next hop to every rank, the set of lost ranks and the order of events. Imports ``message``, ``machine`` and
``errors`` only. Start with ``router.py``; ``topology.py`` has the shapes, ``health.py`` the heartbeats, ``events.py``
publish and subscribe.
"""
