"""Commands on ranks: the ``exec`` service. Processes are started by the launcher driver, through messages.

Imports nothing of the other services but their ``wire`` records. Start with ``exec.py``.
"""
