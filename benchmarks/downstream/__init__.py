"""Downstream tasks of synthetic images: segmenting tumours, registering MR to ultrasound."""
