"""What the command line can do: one module per verb, with its options and how to run it."""
