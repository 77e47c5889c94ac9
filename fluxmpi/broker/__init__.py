"""One rank's broker: it composes the machines, routes messages between them, and ends the instance.

Imports the services below it; knows nothing of MPI, sockets or clocks. Start with ``broker.py``.
"""
