"""The published experiment on genuine ReMIND, for a machine with GPUs."""
