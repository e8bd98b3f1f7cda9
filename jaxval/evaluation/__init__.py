"""Evaluates one checkpoint: what is prepared once, and the stages."""
