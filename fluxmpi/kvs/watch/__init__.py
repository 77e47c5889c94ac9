"""Watches at one broker: match each version's changed keys against an index, evaluate, and notify within credit limits.

Imports ``objects``, ``wire``, ``store`` and ``replica``. Start with ``service.py`` (from a new version to the
notifications), then ``watcher.py`` (states, cursors and credit of one watch) and ``index.py`` (which watchers does a
version match?). ``evaluator.py`` computes the changes, ``catch_up.py`` serves watchers that lag.
"""
