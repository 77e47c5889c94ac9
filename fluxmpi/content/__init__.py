"""Blobs by digest: rank 0's store, the other ranks' caches, fault-in along the tree, and long values in shared memory.

Imports nothing of the other services. Start with ``service.py``, which loads a blob from the parent once for all who wait.
"""
