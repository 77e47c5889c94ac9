"""Rank 0's write path: transactions are ordered, deduplicated, batched into versions and sealed.

Imports ``objects``, ``wire``, ``store``, ``mvcc`` and ``fence``. A commit passes ``service.py`` (requests and turns),
``committer.py`` (queue entries; a namespace's queue becomes versions) and ``batch.py`` (one version under
construction): read them in this order. Beside them: ``dedup`` (responses by commit id), ``fences`` (until they are
complete), ``validation`` (objects), ``guards`` (conditions), ``limits``.
"""
