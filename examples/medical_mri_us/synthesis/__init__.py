"""Synthesis of whole volumes: on the model's grid, slice by slice, and back on the input's."""
