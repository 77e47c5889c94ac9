"""Everything that touches the world: MPI, doorbells, sockets, files, processes and the clock; and how an instance starts.

Each driver exchanges messages with the broker. Start with ``loop.py``, one turn of a broker; ``start.py`` makes its parts.
"""
