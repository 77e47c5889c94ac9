"""The tree of brokers: who is whose parent, where a message goes next, which ranks are alive, and events.

Imports nothing of the package but ``message``, ``machine`` and ``errors``. Start with ``router.py``.
"""
