"""Code with side effects: MPI, doorbells, sockets, files, processes, clock, log, start of an instance.

Each driver exchanges messages with the broker. It may import everything below ``cli``; only it may import os, socket,
mpi4py and the like. Start with ``loop.py``, one turn of a broker; ``start.py`` creates its parts. ``checkpoint.py``,
``checkpoint_format.py`` and ``generations.py`` write and read files without a broker.
"""
