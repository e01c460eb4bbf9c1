"""Files that are changed at random, and whether every reader ends as it says."""
