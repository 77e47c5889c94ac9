"""Watches at one broker: match each version's changed keys against an index, evaluate, and notify within credit limits.

Imports ``objects``, ``wire``, ``store`` and ``replica``. Start with ``service.py``; ``watcher.py`` is the state of one watch
and ``index.py`` finds the watchers that a changed key matches.
"""
