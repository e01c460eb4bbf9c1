"""The published experiment on ReMIND, for a machine with GPUs."""
