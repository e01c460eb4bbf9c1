"""The modalities of the example, and how they are written."""

__all__ = ["LABELS", "MODALITIES"]

MODALITIES = ("us", "t2", "cet1", "flair")
"""Intra-operative ultrasound, T2, contrast-enhanced T1, FLAIR: the order used everywhere."""

LABELS = {"us": "iUS", "t2": "T2", "cet1": "ceT1", "flair": "FLAIR"}
"""How the modalities are written in tables and figures."""
