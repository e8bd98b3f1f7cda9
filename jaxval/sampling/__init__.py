"""Sampled corpora: strategies, the rankings they use, and the comparison with the whole."""
