"""Three patterns of synchronization between a producer and a consumer, each wrong and right; see docs/patterns.md.

Each module has functions of two handles, ``consumer`` and ``producer``, on any two brokers. They call the actions of
the other side between the steps, so the wrong ways fail every time, and the right ways succeed nevertheless.
"""
