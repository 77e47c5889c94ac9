"""Blobs by digest: rank 0's store, the caches of the other ranks, fault-in along the tree, and long values in shared
memory.

Imports none of the other services. Start with ``service.py``, which loads a blob from the parent once for all requests;
``store.py`` and ``cache.py`` hold the blobs, ``values.py`` fills the files that clients map.
"""
