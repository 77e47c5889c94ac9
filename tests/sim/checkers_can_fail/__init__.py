"""The checkers can fail: each case breaks one rule of the core on purpose, and the simulator must name it within a few seeds.

A case that no seed notices is a hole in the simulator. ``harness`` runs the cases, the modules hold them by subject.
"""
