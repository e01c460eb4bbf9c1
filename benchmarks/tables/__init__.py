"""Tables with missing cells: the imputer beside opponents that are tuned."""
