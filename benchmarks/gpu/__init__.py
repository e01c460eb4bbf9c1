"""Checks and measurements that need an NVIDIA GPU, as one session of nine minutes at most."""
