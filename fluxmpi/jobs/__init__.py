"""Commands on ranks: the ``exec`` service. The launcher driver starts the processes; the two exchange messages.

Imports none of the other services but their ``wire`` records. Start with ``exec.py``.
"""
