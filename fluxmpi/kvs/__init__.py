"""The key-value store: versioned, content-addressed, committed at rank 0 and read at every broker.

Packages, from the lowest to the highest: ``objects`` and ``wire`` (records), ``store`` (directory trees), ``mvcc``
(rank 0's versions), ``replica`` (a broker's copy of the newest ones), ``fence``, ``leader`` (commits), ``watch``;
``service.py`` is the machine that clients talk to. Start with ``service.py`` for reads and watches, with
``leader/service.py`` for commits.
"""
