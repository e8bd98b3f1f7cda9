"""Sampled corpora: strategies, rankings to sample by, comparison with the whole."""
