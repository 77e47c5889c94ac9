"""Rank 0's multi-version state: the namespaces, their retained versions, leases, garbage collection and checkpoints.

Imports ``objects``, ``wire`` and ``store``. Start with ``namespace.py``, which keeps the versions of one namespace;
``service.py`` answers requests about versions and namespaces.
"""
