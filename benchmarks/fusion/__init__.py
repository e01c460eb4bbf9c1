"""Fusion rules side by side: on models whose posteriors are known, and on six views of digits."""
