"""Fences: contributions of many clients that become one commit, combined at every broker on the way to rank 0.

Imports ``objects``, ``wire`` and ``replica``. Start with ``gathering.py``, one fence at one broker; ``service.py``
connects all fences of a broker to messages and clients. A member that leaves breaks its fence: ``membership.py``
decides whether one has left, ``broken.py`` remembers what broke. One class holds a broker's gatherings and answers its
messages, since nothing uses one without the other; departures have modules of their own, since they run on other
messages and mostly at rank 0.
"""
