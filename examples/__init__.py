"""Worked examples: what the library does on realistic data."""
