"""Rank 0's write path: transactions are ordered, deduplicated, batched into versions and sealed.

Imports ``objects``, ``wire``, ``store``, ``mvcc`` and ``fence``. Start with ``service.py``, which takes requests;
``committer.py`` turns a namespace's queue into versions, ``batch.py`` is one version under construction.
"""
