"""What each broker keeps of the namespaces: the newest root, recent versions, and the reads served from them.

Imports ``objects``, ``wire`` and ``store``. Start with ``replica.py``, which adopts roots; ``reads.py`` answers reads
and ``fault_in.py`` suspends a read that misses a blob.
"""
