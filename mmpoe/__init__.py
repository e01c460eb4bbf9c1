r"""Products of experts for multimodal data with missing modalities."""

__version__ = "0.1.0"
