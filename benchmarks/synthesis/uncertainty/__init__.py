"""Whether the spread of what an MMHVAE draws is as large as its error."""
