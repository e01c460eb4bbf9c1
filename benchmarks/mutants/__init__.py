"""Mistakes put into the code, one at a time: tests have to find each of them."""
