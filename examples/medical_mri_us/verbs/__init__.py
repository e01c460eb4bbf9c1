"""The verbs of the command line: each module has the options of one and runs it."""
