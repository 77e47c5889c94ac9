"""Programs that show what fluxmpi is for, and run as they are: ``python -m fluxmpi.examples.usage --help``."""
