"""Histories of real client processes, and the tests of the checkers that judge them.

``record`` writes and loads the history of one process; ``client`` is a process that does a bit of everything with a
real broker. The checkers are ``fluxmpi.simulator.checkers``: the same code judges the simulator's runs and real brokers
under MPI.
"""
