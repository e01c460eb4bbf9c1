"""Synthesis of missing modalities by seven systems, on the same incomplete patients."""
