"""Rank 0's multi-version state: the namespaces, their kept versions, leases, garbage collection and checkpoints.

Imports ``objects``, ``wire`` and ``store``. Start with ``namespace.py``, which keeps the versions of one namespace, and
``service.py``, which answers requests about versions and namespaces. ``key_index.py`` finds the versions that wrote a
key, ``gc.py`` collects what no kept version reaches.
"""
