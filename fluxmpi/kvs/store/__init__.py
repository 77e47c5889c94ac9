"""Content-addressed directory trees: their nodes, edits, lookups, differences and the log of root refs.

Imports ``kvs.objects`` and ``kvs.wire`` only; it knows nothing of brokers, ranks or clients. Start with ``node.py``,
which defines the shape of a tree; ``edit.py`` changes one, ``lookup.py`` reads one, ``diff.py`` compares two.
"""
