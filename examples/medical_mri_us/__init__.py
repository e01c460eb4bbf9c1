"""Synthesis between brain MRI and intra-operative ultrasound with missing modalities."""
