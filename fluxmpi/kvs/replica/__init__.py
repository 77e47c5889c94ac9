"""What each broker keeps of the namespaces: the newest root, recent versions, and the reads served from them.

Imports ``objects``, ``wire`` and ``store``. Start with ``replica.py``, which adopts roots, and ``read_service.py``,
which answers reads by the walks of ``reads.py``. ``fault_in.py`` suspends a walk that lacks a blob, ``pending.py``
keeps requests that wait for a version or for rank 0. ``root_page.py`` shows roots to clients; ``add_combiner.py`` sums
additions.
"""
