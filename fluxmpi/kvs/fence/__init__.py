"""Fences: contributions of many clients that become one commit, combined at every broker on the way to rank 0.

Imports ``objects``, ``wire`` and ``replica``. Start with ``gathering.py``, one fence at one broker; ``service.py`` connects it
to messages, and ``membership.py`` decides at rank 0 whether a member has left.
"""
