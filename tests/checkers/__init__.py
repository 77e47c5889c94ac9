"""Was that allowed? Checkers that judge an instance by what its clients saw, and by nothing else.

    record            one form for all histories, from the simulator and from real processes
    linearizability   fresh reads and commits: is there one order that explains every answer?
    sessions          no client goes back, whatever broker it asks
    replay            every version is the one before it, with its transactions applied; watches told exactly that
    judge             all of them over one history
    simulated         the simulator's histories in that form
    client            a process that does a bit of everything with a real broker, and writes its history

The simulator's own checkers (``fluxmpi.simulator.checkers``) look inside of rank 0 as well; these do not, so the same code judges
real brokers under MPI.
"""
