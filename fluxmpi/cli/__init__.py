"""The command line: ``main`` finds a command, one file a group of commands has it, ``common`` has what they share."""
