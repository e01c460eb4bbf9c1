"""One change at a time of the slim MMHVAE, all for the same processor time."""
