"""Missing modalities of genuine omics: the imputer beside opponents that are tuned."""
