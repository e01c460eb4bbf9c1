"""Benchmarks of mmpoe: speed, synthesis, downstream tasks and reliability."""
