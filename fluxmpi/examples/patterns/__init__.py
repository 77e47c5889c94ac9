"""Three ways to synchronize a producer and a consumer over the KVS, each wrong and right; see docs/patterns.md.

Each module has functions of two handles, ``consumer`` and ``producer``, which may be on any two brokers. What the other side
does meanwhile is called in between, so the wrong ways go wrong every time, and the right ways hold although it is so.
"""
