"""Blobs by digest: the store, the caches, fault-in along the tree, long values in shared memory.

Imports none of the other services. Start with ``service.py``, which loads a blob from the parent once for all requests;
``store.py`` and ``cache.py`` hold the blobs, ``values.py`` fills the files that clients map.
"""
