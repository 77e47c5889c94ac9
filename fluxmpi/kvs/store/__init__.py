"""Content-addressed directory trees: their nodes, edits, lookups, listings and differences, and the log of roots.

Imports ``objects`` and ``wire`` only; it knows nothing of brokers, ranks or clients. Start with ``node.py``, which
defines the shape of a tree; ``edit.py`` changes one, ``lookup.py`` and ``listing.py`` read one, ``diff.py`` compares
two.
"""
