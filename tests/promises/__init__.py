"""The promises of the store, one file each: kept as it is, and noticed when one line of it is broken on purpose.

Histories come from the simulator. What they are judged by sees only what clients were answered (``checkers``).
"""
